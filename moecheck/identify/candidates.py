"""The contracts that identification tries: which stores an op has, and the formats that each may have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from itertools import product

from moecheck.cases import Case
from moecheck.formats import FORMATS
from moecheck.numerics import INPUT, STORES, Numerics
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec

EXPERT_OPS = frozenset({"fused_experts", "moe_layer"})
ACTIVATION_OPS = EXPERT_OPS | {"act_and_mul"}
SUM_OPS = EXPERT_OPS | {"unpermute"}
VALUE_OPS = ACTIVATION_OPS | SUM_OPS | {"grouped_gemm"}
ROUTER = "topk_routing"
IDENTIFIED_OPS = VALUE_OPS | {ROUTER}

# Store -> whether it can change what a case's op computes. A store that can not is left out of the search; so is
# act_times_up of act_and_mul, whose result is stored at `out` anyway.
_MATTERS: dict[str, Callable[[str, MoESpec], bool]] = {
    "scores": lambda op, spec: op in ("moe_layer", ROUTER) and _scored(spec),
    "topk_weights": lambda op, spec: op in SUM_OPS or op == ROUTER,
    "dequantised": lambda op, spec: op in EXPERT_OPS and spec.experts.quantization is not None,
    "before_bias": lambda op, spec: _has_bias(op, spec),
    "gate_up": lambda op, spec: op in EXPERT_OPS,
    "sigmoid": lambda op, spec: op in ACTIVATION_OPS and spec.experts.activation == "silu",
    "act": lambda op, spec: op in ACTIVATION_OPS and (spec.experts.gated or _gated_shared(op, spec)),
    "up": lambda op, spec: op in ACTIVATION_OPS and spec.experts.gated and spec.experts.changes_up,
    "act_times_up": lambda op, spec: op in EXPERT_OPS,
    "per_expert": lambda op, spec: op in EXPERT_OPS,
    "weighted": lambda op, spec: op in SUM_OPS,
    "combine": lambda op, spec: op in SUM_OPS and spec.routing.top_k > 1,
}
RICHEST = MoESpec(
    routing=RoutingSpec(top_k=2), experts=ExpertSpec(w13_bias=True, w2_bias=True, swiglu_alpha=1.702, swiglu_beta=1.0)
)  # semantics in which every store matters
TOGETHER = ("before_bias", "sigmoid", "up")
_COMBINES = (("fp32", "tree"), (INPUT, "slot"), (INPUT, "expert"))


@lru_cache(maxsize=1 << 10)
def stores_of(case: Case) -> tuple[str, ...]:
    """The stores that can change the case's output, in the order of the data flow."""
    return tuple(name for name in STORES if name in _MATTERS and _MATTERS[name](case.op, case.spec))


def stores_of_op(op: str, specs: Iterable[MoESpec]) -> tuple[str, ...]:
    """The stores that can change what an op computes under any of the specs, of all specs where there are none."""
    chosen = tuple(specs) or (RICHEST,)
    return tuple(name for name in STORES if name in _MATTERS and any(_MATTERS[name](op, spec) for spec in chosen))


def stores_of_all(cases: Iterable[Case]) -> tuple[str, ...]:
    """The stores that can change the output of any of the cases, in the order of the data flow."""
    found = {name for case in cases for name in stores_of(case)}
    return tuple(name for name in STORES if name in found)


def contracts(cases: Iterable[Case]) -> list[Numerics]:
    """Every contract whose stores are fp32 or the input's format, combined as a tree or low in slot or expert order.

    The stores of TOGETHER are all kept or all low here, a sigmoid stored on its own is tried only where alpha is not 1
    (without it, silu is one function everywhere), scores are kept; `neighbours` changes each of them.
    """
    cases = list(cases)
    names = [name for name in stores_of_all(cases) if name not in ("scores", "combine")]
    together = [name for name in names if name in TOGETHER]
    if all(case.spec.experts.swiglu_alpha == 1.0 for case in cases):
        together = [name for name in together if name != "sigmoid"]
    # Late stores vary fastest, so that contracts which agree up to a stage follow each other.
    apart = [(name,) for name in names if name not in (*TOGETHER, "topk_weights", "weighted")]
    late = [(name,) for name in ("topk_weights", "weighted") if name in names]
    axes = [*([tuple(together)] if together else []), *apart, *late]
    sums = any("combine" in stores_of(case) for case in cases)
    found = []
    for formats in product(("fp32", INPUT), repeat=len(axes)):
        stores = {name: fmt for axis, fmt in zip(axes, formats, strict=True) for name in axis}
        for combine, order in _COMBINES if sums else _COMBINES[:1]:
            found.append(_numerics({**stores, "combine": combine, "combine_order": order}))
    return found


def neighbours(numerics: Numerics, names: Iterable[str]) -> list[Numerics]:
    """Contracts that differ from `numerics` in one of the stores `names`, in any format, or in how they combine."""
    found = []
    for name in names:
        if name == "combine":
            low = [(fmt, order) for fmt in (INPUT, "fp16", "bf16") for order in ("slot", "expert")]
            found += [_changed(numerics, combine=fmt, combine_order=order) for fmt, order in [("fp32", "tree"), *low]]
        else:
            found += [_changed(numerics, **{name: fmt}) for fmt in (INPUT, *FORMATS)]
    return [other for other in dict.fromkeys(found) if other != numerics]


def narrowed(numerics: Numerics, fmt: str) -> Numerics:
    """The contract with every store of the input's format, but the output's, in a format of its own."""
    names = [name for name in STORES if name != "out" and getattr(numerics, name) == INPUT]
    return _changed(numerics, **dict.fromkeys(names, fmt))


@lru_cache(maxsize=1 << 14)
def resolved(numerics: Numerics, case: Case) -> Numerics:
    """What the contract means for a case: formats instead of `input`, and fp32 wherever a store cannot matter."""
    # What a router stores last are its weights.
    seen = stores_of(case) if case.op == ROUTER else (*stores_of(case), "out")
    formats = {name: getattr(numerics, name) if name in seen else "fp32" for name in STORES}
    changes = {name: case.dtype if fmt == INPUT else fmt for name, fmt in formats.items()} | {"accumulate": "fp32-rn"}
    if changes["combine"] == "fp32" or numerics.combine_order == "tree":
        changes |= {"combine": "fp32", "combine_order": "tree"}
    plain = _changed(numerics, **changes)
    return plain if case.op in EXPERT_OPS else replace(plain, a1_quant=None, a2_quant=None)


def _has_bias(op: str, spec: MoESpec) -> bool:
    if op == "grouped_gemm":
        return spec.experts.w13_bias
    return op in EXPERT_OPS and (spec.experts.w13_bias or spec.experts.w2_bias)


def _gated_shared(op: str, spec: MoESpec) -> bool:
    return op == "moe_layer" and spec.shared_experts == "gated"


def _scored(spec: MoESpec) -> bool:
    """Whether the weights are taken from scores of all experts."""
    return spec.routing.selection != "sparsemixer" and not spec.routing.softmax_over_selected


def _numerics(values: dict[str, str]) -> Numerics:
    return Numerics(**values)  # type: ignore[arg-type]  # names and formats of the tables above


def _changed(numerics: Numerics, **values: str) -> Numerics:
    return replace(numerics, **values)  # type: ignore[arg-type]  # as above
