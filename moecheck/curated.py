"""Named cases, each with the reason why it exists, and the choice of cases for a run."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from .cases import Case
from .curated_ranks import quantised_over_ranks
from .curated_rows import BY_OP, COMMON, TOP2
from .curated_semantics import SEMANTICS
from .errors import check_known
from .models import MODELS, model_case
from .ops import OPS
from .quantised_cases import quantised_cases
from .quantization import Quantization
from .semantic_strategies import OPS as SEMANTIC_OPS
from .semantic_strategies import semantic_cases
from .spec import MoESpec
from .strategies import draw_cases, moe_cases

DRAWN = {"quick": 2, "default": 12, "nightly": 100}
DRAWN_HEAVY = {"quick": 2, "default": 6, "nightly": 100}
PROFILES = tuple(DRAWN)
# Cases of rarer semantics (moecheck.semantic_strategies), an op at a time.
SEMANTIC: dict[str, dict[str, int]] = {
    "quick": {},
    "default": {"topk_routing": 16, "act_and_mul": 6, "fused_experts": 1, "moe_layer": 2},
    "nightly": {"topk_routing": 200, "act_and_mul": 60, "fused_experts": 30, "moe_layer": 60},
}
# Ops whose cases hold experts' weights; a case of another op costs a fifth or a tenth, so more of them are drawn.
HEAVY_OPS = ("fused_experts", "expert_outputs", "batched_experts", "moe_layer", "expert_parallel_moe", "grouped_gemm")
OWN_ROWS = ("expert_parallel_moe",)  # whose named cases are not the common ones: each is a compilation for kernels
# Half as many of ops whose maths is that of fused_experts.
OF_ROWS = ("expert_outputs", "batched_experts")
CHEAPER = {"act_and_mul": 4, "unpermute": 4}
CHEAPEST = 8
# Distinct shapes for kernels that are compiled anew for each (seconds a time).
COMPILED_SHAPES = {"quick": 4, "default": 6, "nightly": 1000}
# Cases of a Pallas interpreter in a run of all kernels: a call takes it seconds, and each case has several.
INTERPRETED_CASES = {"quick": 2, "default": 3, "nightly": 1000}
DTYPES = ("bf16", "fp32", "fp16")
# Models whose scaled layers are in every run: each adds semantics that the others lack.
DEFAULT_MODELS = (
    "mixtral-8x7b",
    "qwen3-30b-a3b",
    "qwen1.5-moe-a2.7b",
    "deepseek-v2",
    "deepseek-v3",
    "gpt-oss-20b",
    "llama-4-scout",
    "olmoe-1b-7b",
    "granite-3-3b",
)
LAYER_OPS = ("topk_routing", "fused_experts", "moe_layer")


def cases_for(
    op: str,
    *,
    profile: str,
    seed: int,
    small: bool = False,
    model: str | None = None,
    examples: int | None = None,
    specs: tuple[MoESpec, ...] = (),
    dtypes: tuple[str, ...] = DTYPES,
    quantizations: tuple[Quantization, ...] = (),
    plain_weights: bool = True,
) -> list[Case]:
    """The cases of one op: curated ones, models' layers and drawn ones.

    small: for kernels under an interpreter. model: only this model's layer. examples: number of drawn cases, the
    profile's when None. specs: the only semantics wanted. dtypes: the only formats wanted; a named case of another
    format is run in the first of these. quantizations: schemes of which there are cases, too; plain_weights: whether
    there are cases without. Raises UsageError for an unknown profile or model.
    """
    check_known("profile", profile, PROFILES)
    quantised = quantised_cases(
        quantizations, profile=profile, seed=seed, dtypes=dtypes, small=small, examples=examples
    )
    if op in OWN_ROWS:
        quantised = quantised_over_ranks(quantizations, dtypes=dtypes, seed=seed)
    if not plain_weights:
        return quantised
    cases = _curated(op, seed)
    if model is not None:
        check_known("model", model, MODELS)
        of_model = [model_case(model, op, num_tokens=T, dtype=d, seed=seed) for T in (64, 1) for d in dtypes]
        specs, cases = (of_model[0].spec,), [*of_model, *cases]
    elif op in LAYER_OPS and profile != "quick":
        names = tuple(MODELS) if profile == "nightly" else DEFAULT_MODELS
        cases += [
            model_case(name, op, num_tokens=64, dtype=DTYPES[i % len(DTYPES)], seed=seed)
            for i, name in enumerate(names)
        ]
    cases = [case if case.dtype in dtypes else replace(case, dtype=dtypes[0]) for case in cases]
    if specs:
        cases = [changed for spec in specs for case in cases if (changed := _under(case, spec)) is not None]
    if small and op not in OWN_ROWS:  # which are small
        cases = [_small(case) for case in cases]
    usual = DRAWN_HEAVY[profile] if op in HEAVY_OPS else DRAWN[profile] * CHEAPER.get(op, CHEAPEST)
    usual = (usual + 1) // 2 if op in OF_ROWS else usual
    count = usual if examples is None else examples
    drawn = list(_drawn(op, small, count // 2 if small else count, seed))
    if specs:
        drawn = [case for i, d in enumerate(drawn) if (case := _under(d, specs[i % len(specs)], own=False)) is not None]
    elif op in SEMANTIC_OPS:
        some = SEMANTIC[profile].get(op, 0) if examples is None else examples // 4
        drawn += _drawn_semantics(op, small, some // 2 if small else some, seed)
    cases += [case if case.dtype in dtypes else replace(case, dtype=dtypes[0]) for case in drawn]
    cases += quantised
    distinct: dict[str, Case] = {}
    for case in cases:
        distinct.setdefault(case.digest, case)
    return list(distinct.values())


def draw_ahead(op: str | None, *, profile: str, seed: int, examples: int | None) -> None:
    """Draw the cases of an op, or of all ops, so that `cases_for` has them ready."""
    for name in OPS if op is None else (op,):
        cases_for(name, profile=profile, seed=seed, examples=examples)


@lru_cache(maxsize=64)
def _drawn_semantics(op: str, small: bool, count: int, seed: int) -> tuple[Case, ...]:
    return tuple(draw_cases(semantic_cases(op, small=small), count, seed))


@lru_cache(maxsize=64)
def _drawn(op: str, small: bool, count: int, seed: int) -> tuple[Case, ...]:
    return tuple(draw_cases(moe_cases(op, small=small), count, seed))


def few_shapes(cases: list[Case], most: int) -> tuple[list[Case], list[Case]]:
    """The cases of the first `most` distinct shapes, and those left out: what a compiler would have to compile for."""
    kept: list[Case] = []
    left: list[Case] = []
    shapes: set[str] = set()
    for case in cases:
        shape = replace(case, stratum="random", load="random", layout="contiguous", seed=0, name="", reason="").digest
        if len(shapes) < most:
            shapes.add(shape)
        (kept if shape in shapes else left).append(case)
    return kept, left


def left_out(
    cases: list[Case], *, profile: str, compiled: bool, interpreted: bool, alone: bool
) -> tuple[list[Case], str]:
    """The cases of an op that a kernel is not given although it takes them, and why.

    compiled: whether it is compiled anew for each shape. interpreted: whether by an interpreter of a GPU or TPU.
    alone: whether the run is about this op or kernel, and no others.
    """
    if cases and cases[0].op in OWN_ROWS:
        op = cases[0].op
        return ([], "") if alone or profile == "nightly" else (cases[1:], f"not the first of many; --op {op} runs all")
    if not compiled:
        return [], ""
    if interpreted and not alone:
        return cases[INTERPRETED_CASES[profile] :], "an interpreter takes long; --kernel or --op runs more"
    return few_shapes(cases, COMPILED_SHAPES[profile])[1], "another shape to compile for; --profile nightly runs all"


def _under(case: Case, spec: MoESpec, *, own: bool = True) -> Case | None:
    """The case with other semantics, and as many experts as these need; None where it exists for its own spec.

    own: a case whose spec is not the plain one exists for that spec, and is kept only if it is the wanted one.
    """
    if own and case.spec not in (TOP2, spec):
        return None
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
        stratum="random" if case.stratum == "integer" else case.stratum,
    )


def _small(case: Case) -> Case:
    """The same case at a size that an interpreter can run: fewer tokens, experts and columns, ragged tails kept."""
    routing = case.spec.routing
    experts = min(case.num_experts, max(8, routing.num_expert_groups * 2, routing.least_experts))
    if routing.num_expert_groups > 1:
        experts = routing.num_expert_groups * max(2, -(-routing.top_k // routing.topk_groups))
    experts += routing.num_expert_groups if case.num_experts & (case.num_experts - 1) else 0
    local = case.num_local_experts
    return replace(
        case,
        num_tokens=min(case.num_tokens, 16),
        num_experts=experts,
        num_local_experts=None if local is None else max(1, local * experts // case.num_experts),
        hidden_size=_narrow(case.hidden_size, 64),
        intermediate_size=_narrow(case.intermediate_size, 32),
        shared_intermediate_size=_narrow(case.shared_intermediate_size, 32),
        latent_size=_narrow(case.latent_size, 32),
    )


def _narrow(size: int, most: int) -> int:
    return size if size <= most else most + (size % 64) // 4


def _curated(op: str, seed: int) -> list[Case]:
    rows = [*(COMMON if op not in OWN_ROWS else []), *BY_OP[op], *SEMANTICS.get(op, [])]
    return [
        Case(op=op, name=name, reason=reason, seed=seed, **{"spec": TOP2, **changes})  # type: ignore[arg-type]
        for name, reason, changes in rows
    ]
