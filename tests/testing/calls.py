"""Calls of kernels, right and wrong, in the arrays of every framework."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from moecheck.cases import Case
from moecheck.formats import FORMATS, AnyArray, to_float64
from moecheck.oracle import Oracle
from moecheck.runner.arrays import to_native
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec
from tests.checks.honest import honest_outputs

TOP2 = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True))
LAYER = MoESpec(
    routing=RoutingSpec(top_k=2, scoring="sigmoid", correction_bias="select", renormalize=True),
    experts=ExpertSpec(w13_bias=True),
    shared_experts="gated",
)
FRAMEWORKS = ("torch", "jax", "numpy")
DTYPES = ("bf16", "fp16", "fp32")


def small_case(op: str = "fused_experts", **changes: Any) -> Case:
    """A case that is judged in a few milliseconds."""
    sizes = {"num_tokens": 12, "num_experts": 4, "hidden_size": 64, "intermediate_size": 32}
    if op == "moe_layer":
        sizes["shared_intermediate_size"] = 32
        changes = {"spec": LAYER, "load": "gapped", **changes}
    return Case(op=op, **{"spec": TOP2, **sizes, **changes})


@cache
def right_outputs(case: Case) -> tuple[AnyArray, ...]:
    """What a flawless kernel returns."""
    return honest_outputs(case, Oracle())


def native(value: Any, framework: str) -> Any:
    """An array, or a dict or tuple of them, in a framework's own kind; integers stay."""
    if isinstance(value, dict):
        return {name: native(item, framework) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(native(item, framework) for item in value)
    return to_native(value, framework) if isinstance(value, np.ndarray) else value


def scaled(out: AnyArray, factor: float = 1.05) -> AnyArray:
    return (to_float64(out) * factor).astype(out.dtype)


def swapped(out: AnyArray) -> AnyArray:
    wrong = out.copy()
    wrong[[0, 1]] = out[[1, 0]]
    return wrong


def with_nan(out: AnyArray) -> AnyArray:
    wrong = out.copy()
    wrong[-1, -1] = np.nan
    return wrong


WRONG = {"1.05 times": scaled, "rows exchanged": swapped, "one NaN": with_nan, "zeros": np.zeros_like}
assert set(DTYPES) == set(FORMATS), "each format has its tests"
