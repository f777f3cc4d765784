"""Hypothesis strategies for other projects' property tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from moecheck import strategies
from moecheck.cases import Case
from moecheck.errors import UsageError, check_known
from moecheck.formats import FORMATS
from moecheck.ops import OPS
from moecheck.spec import MoESpec, RoutingSpec

from .names import check_text, shown
from .semantics import AnySpec, check_spec

FEW_TOKENS = 8


def moe_cases(
    op: str = "fused_experts",
    *,
    spec: AnySpec | None = None,
    dtypes: Sequence[str] = strategies.DTYPES,
    max_tokens: int = 128,
    small: bool = False,
) -> st.SearchStrategy[Case]:
    """Cases of one op for `@given`; they shrink to few tokens, few experts and plain values.

    spec: the only semantics wanted, None for all kinds. dtypes: format names. small: sizes for kernels that run under
    an interpreter. A case's arrays are `inputs_for(case, "torch")`; kernels that need contiguous rows take
    `moe_cases(...).map(contiguous)`.
    Raises UsageError for an op or dtype that does not exist.
    """
    check_text(op=op)
    check_known("op", op, OPS)
    for dtype in dtypes:
        check_text(dtype=dtype)
        check_known("dtype", dtype, FORMATS)
    check_spec(spec)
    if not isinstance(max_tokens, int):
        raise UsageError(f"max_tokens={shown(max_tokens)} must be an integer.")
    if not dtypes or max_tokens < 1:
        raise UsageError(f"dtypes={tuple(dtypes)!r} and max_tokens={max_tokens} leave no case.")

    @st.composite
    def cases(draw: st.DrawFn) -> Case:
        case = draw(strategies.moe_cases(op, small=small))
        case = replace(case, num_tokens=min(case.num_tokens, max_tokens), dtype=draw(st.sampled_from(tuple(dtypes))))
        return _telling(case if spec is None else _under(case, _whole(spec, case)))

    return cases()


def contiguous(case: Case) -> Case:
    """The case with rows that lie next to each other in memory."""
    return replace(case, layout="contiguous")


def _telling(case: Case) -> Case:
    """The case, but for what could leave a few tokens without any work: a comparison would show nothing."""
    if case.num_tokens >= FEW_TOKENS:
        return case
    return replace(
        case,
        num_local_experts=None,
        load="random" if case.load == "padding" else case.load,
        stratum="random" if case.stratum == "zero_rows" else case.stratum,
    )


def _whole(spec: AnySpec, case: Case) -> MoESpec:
    """The case's spec with the wanted part in the place of its own."""
    if isinstance(spec, MoESpec):
        return spec
    if isinstance(spec, RoutingSpec):
        return replace(case.spec, routing=spec)
    return replace(case.spec, experts=spec, routing=RoutingSpec(top_k=1) if spec.weight_on_input else case.spec.routing)


def _under(case: Case, spec: MoESpec) -> Case:
    """The case with other semantics, and as many experts as these need."""
    routing = spec.routing
    groups = routing.num_expert_groups
    experts = max(case.num_experts, routing.least_experts)
    experts += -experts % groups
    shared = case.shared_intermediate_size or case.intermediate_size
    return replace(
        case,
        spec=spec,
        num_experts=experts,
        shared_intermediate_size=shared if spec.shared_experts != "none" else 0,
        latent_size=(case.latent_size or case.intermediate_size) if spec.latent_experts else 0,
    )
