"""A case that stands for arrays which somebody gives, instead of drawing its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moecheck.cases import Case
from moecheck.errors import CaseError, UsageError, check_known
from moecheck.ops import OPS
from moecheck.oracle import Oracle
from moecheck.spec import MoESpec

from .arguments import check_indices, common_format, read_arguments
from .axes import Axes, axes_of
from .names import check_keys, check_names, check_text, infer_op
from .semantics import AnySpec, layer_spec

_SAMPLE = 1 << 16  # elements of each array that a given case's seed depends on


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A case and the arrays that it stands for: what an oracle loads instead of drawing them.

    case: op, spec, sizes and dtype of the arrays; its seed is a digest of their bytes. inputs: the op's arguments by
    name, NumPy arrays in storage dtype (indices int32) and integers.
    """

    case: Case
    inputs: dict[str, Any]

    def oracle(self) -> Oracle:
        """References of these inputs, and of any other case's own."""
        return Oracle(load=lambda case: self.inputs if case == self.case else case.inputs())

    def words(self) -> str:
        """`fused_experts · bf16 · 64 tokens · 8 experts · top 2 · hidden 256 · intermediate 128`."""
        case, names = self.case, self.inputs.keys()
        parts = [case.op, case.dtype, f"{case.num_tokens} {'rows' if 'x' in names else 'tokens'}"]
        if case.op not in ("act_and_mul", "shuffle_rows", "unpermute"):
            local = f"{case.num_local_experts} of " if case.num_local_experts else ""
            parts.append(f"{local}{case.num_experts} experts")
        if "topk_ids" in names or "router_logits" in names:
            parts.append(f"top {case.spec.routing.top_k}")
        if "hidden_states" in names or "permuted" in names:
            parts.append(f"hidden {case.hidden_size}")
        if "w13" in names or case.op == "act_and_mul":
            parts.append(f"intermediate {case.intermediate_size}")
        return " · ".join(parts)


@np.errstate(all="ignore")  # drawing large inputs may overflow, which is meant
def given_case(case: Case) -> Given:
    """A case with its own inputs."""
    return Given(case=case, inputs=case.inputs())


@np.errstate(all="ignore")  # values of any kind are read, and those that do not fit are refused
def given(inputs: Mapping[str, object], *, op: str | None = None, spec: AnySpec | None = None) -> Given:
    """The case that an op's arguments describe: torch, jax or NumPy arrays and integers by name, None for absent ones.

    op: inferred from the names where only one op takes them. spec: the layer's semantics, or the part that the op
    reads; ops that route need it, for others it defaults to gated silu experts.
    Raises UsageError, CaseError or SpecError: one sentence naming the argument, its value and what was expected.
    """
    if not isinstance(inputs, Mapping):
        raise UsageError(f"inputs must be a dict of the op's arguments by name, not {type(inputs).__name__}.")
    check_keys(inputs)
    values = {name: value for name, value in inputs.items() if value is not None}
    op = infer_op(values) if op is None else op
    check_text(op=op)
    check_known("op", op, OPS)
    check_names(op, values)
    arrays = read_arguments(op, values)
    dtype, layer = common_format(op, arrays), layer_spec(op, spec, arrays)
    axes = axes_of(op, arrays, layer)
    check_indices(op, arrays, axes)
    return Given(case=_case(op, layer, arrays, axes, dtype), inputs=arrays)


def _case(op: str, spec: MoESpec, arrays: Mapping[str, Any], axes: Axes, dtype: str) -> Case:
    sizes, local = axes.sizes, None
    if "expert_map" in arrays:
        local = sizes.get("L", int(np.count_nonzero(arrays["expert_map"] >= 0)))
        if not local:
            raise CaseError("expert_map names no local expert, so there is nothing to judge.")
    return Case(
        op=op,
        spec=spec,
        num_tokens=_count_tokens(op, arrays, axes),
        num_experts=sizes.get("E", spec.routing.top_k),
        hidden_size=sizes.get("H", sizes.get("K", sizes.get("W", 1))),
        intermediate_size=sizes.get("I", max(sizes.get("n", 2) // 2, 1)),
        shared_intermediate_size=sizes.get("S", 0),
        num_local_experts=local,
        block_size=arrays.get("block_size", 16),
        dtype=dtype,
        hidden_scale="hidden_scale" in arrays,
        latent_size=sizes["X"] if spec.latent_experts else 0,
        num_ranks=arrays.get("num_ranks", 1),
        uneven_ranks="rank_tokens" in arrays,
        map_style="shuffled" if "expert_placement" in arrays else "linear",
        seed=_fingerprint(arrays),
        name="given",
    )


def _count_tokens(op: str, arrays: Mapping[str, Any], axes: Axes) -> int:
    """Tokens, or the rows that an op without tokens works on."""
    if op == "shuffle_rows":
        return len(arrays["x"])
    if op == "batched_experts":
        return int(arrays["expert_counts"].sum())
    return axes.sizes.get("T", axes.sizes.get("R", 0))


def _fingerprint(arrays: Mapping[str, Any]) -> int:
    """31 bits that differ between arrays of other values; of large ones the first elements count."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        first = np.asarray(array).flat[:_SAMPLE]
        digest.update(f"{name} {np.shape(array)}".encode() + first.tobytes())
    return int.from_bytes(digest.digest()[:4], "big") >> 1
