"""What an audit looks at: one call's inputs, where a right kernel rounds, and what the test compares with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from moecheck.cases import Case
from moecheck.checks.judge import VALUE_OPS
from moecheck.errors import UsageError
from moecheck.formats import AnyArray, store, to_float64
from moecheck.mutants.call import Call, decoded, rounded
from moecheck.numerics import INPUT, Numerics
from moecheck.oracle import Oracle

from .recipe import Recipe

OPS = ("fused_experts", "grouped_gemm", "moe_layer", "topk_routing")
# Where vLLM's Triton kernel rounds, found on an H200 by agreement of its bits.
TRITON = Numerics(gate_up=INPUT, act=INPUT, act_times_up=INPUT, weighted=INPUT)
CONTRACTS = {"fused_experts": TRITON, "moe_layer": TRITON}

Load = Callable[[Case], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One call that a criterion is tried on.

    case: op, semantics, sizes and dtype. load: its inputs, values float64 (they need not have the case's format).
    contract: where the kernel under test rounds. expected: where the reference of the test rounds (None: nowhere but at
    its store). expected_inputs: what that reference is given instead of the kernel's own arrays, by name. note: which
    of a test's parametrisations it is.
    """

    case: Case
    load: Load
    contract: Numerics
    expected: Numerics | None = None
    expected_inputs: Load | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.case.op not in OPS:
            raise UsageError(f"op={self.case.op} cannot be audited; {', '.join(OPS)} can.")
        if not self.case.num_tokens:
            raise UsageError("num_tokens=0: there is nothing to audit without tokens.")

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """The kernel's arguments by name, floating-point ones as float64: decoded once for all mutants."""
        return decoded(Call(case=self.case, inputs=self.load(self.case))).inputs

    @cached_property
    def oracle(self) -> Oracle:
        """References of these inputs."""
        return Oracle(load=lambda case: self.inputs if case == self.case else case.inputs())

    @cached_property
    def reference(self) -> tuple[AnyArray, ...]:
        """What the test compares with: its own reference's output, in the op's storage dtypes."""
        other = {} if self.expected_inputs is None else self.expected_inputs(self.case)
        inputs = {**self.inputs, **other}
        call = Call(case=self.case, inputs=inputs)
        if self.case.op == "topk_routing":
            weights, ids = self.oracle.outputs(self.case)
            return weights.astype(np.float32), ids
        return (store(to_float64(rounded(call, self.expected, self.case.dtype)), self.case.dtype),)


def subject_of(case: Case, contract: Numerics | None = None, recipe: Recipe | None = None) -> Subject:
    """A case with moecheck's own inputs or a recipe's, and a kernel that rounds as a contract says, or as is usual."""
    chosen = CONTRACTS.get(case.op, Numerics()) if contract is None else contract
    load = Case.inputs if recipe is None else recipe.inputs
    return Subject(case=case, load=load, contract=chosen, note=sizes(case))


def sizes(case: Case) -> str:
    """`64 tokens, top 2 of 8, H 256, I 128`."""
    token = "token" if case.num_tokens == 1 else "tokens"
    parts = [f"{case.num_tokens} {token}, top {case.spec.routing.top_k} of {case.num_experts}"]
    if case.op != "topk_routing":
        parts.append(f"H {case.hidden_size}, I {case.intermediate_size}")
    return ", ".join(parts)


def is_value_op(case: Case) -> bool:
    """Whether the op has one floating-point output."""
    return case.op in VALUE_OPS
