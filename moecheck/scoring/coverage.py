"""Which combinations of semantics the cases exercise: routing x activation x quantisation x plumbing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from moecheck.cases import Case
from moecheck.numerics import Numerics
from moecheck.ops import OPS
from moecheck.quantizer import Quantizer
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec

from .result import Cell

NOT_ROUTED = "given ids"
NO_ACTIVATION = "no activation"


class Combination(NamedTuple):
    """What a case exercises, in words."""

    routing: str
    activation: str
    quantisation: str
    plumbing: str


def combination_of(case: Case, numerics: Numerics | None) -> Combination:
    """The combination of a case judged under a contract."""
    arguments = OPS[case.op].arg_names
    routed = "router_logits" in arguments
    activated = "w2" in arguments or case.op == "act_and_mul"
    return Combination(
        routing=routing_words(case.spec.routing) if routed else NOT_ROUTED,
        activation=activation_words(case.spec.experts) if activated else NO_ACTIVATION,
        quantisation=quantisation_words(case, numerics),
        plumbing=plumbing_words(case),
    )


def routing_words(spec: RoutingSpec) -> str:
    """`sigmoid + bias, groups, renormalised`."""
    name: str = spec.scoring
    if spec.selection != "topk":
        name = spec.selection
    elif spec.softmax_over_selected:
        name = "softmax of chosen"
    name += {"none": "", "select": " + bias", "logits": " of biased"}[spec.correction_bias]
    parts = [name]
    parts += ["groups"] if spec.topk_groups < spec.num_expert_groups else []
    parts += ["renorm"] if spec.renormalize else []
    special = (spec.softcap is not None, spec.per_expert_scale, spec.num_zero_experts > 0)
    parts += [word for word, has in zip(("capped", "scaled", "zero experts"), special, strict=True) if has]
    parts += ["shared slots"] if spec.num_fused_shared_experts else []
    return ", ".join(parts)


def activation_words(spec: ExpertSpec) -> str:
    """`silu`, `silu, clamped`, `relu2, ungated, biases`."""
    parts: list[str] = [spec.activation]
    parts += ["ungated"] if not spec.gated else []
    parts += ["clamped"] if spec.swiglu_limit is not None else []
    parts += ["biases"] if spec.w13_bias or spec.w2_bias else []
    parts += ["weighted input"] if spec.weight_on_input else []
    parts += [spec.gate_up_layout] if spec.gated and spec.gate_up_layout != "halves" else []
    return ", ".join(parts)


def quantisation_words(case: Case, numerics: Numerics | None) -> str:
    """`bf16`, `bf16, fp8 h`, `bf16, fp8 x and h`."""
    parts = [case.dtype, *_of_weights(case.spec)]
    if numerics is not None and numerics.requantises:
        both = [("x", numerics.a1_quant), ("h", numerics.a2_quant)]
        parts.append(" and ".join(f"{name} {_short(q)}" for name, q in both if q is not None))
    return ", ".join(parts)


def plumbing_words(case: Case) -> str:
    """`skewed`, `padding, expert map`, `strided`."""
    parts = [case.load] if case.load != "random" else []
    parts += [f"map {case.map_style}"] if case.num_local_experts is not None else []
    parts += ["strided"] if case.layout == "strided" else []
    parts += [f"shared {case.spec.shared_experts}"] if case.spec.shared_experts != "none" else []
    return ", ".join(parts) or "plain"


def coverage(
    cases: Iterable[tuple[Case, Numerics | None]], died: Iterable[tuple[str, frozenset[Combination]]]
) -> tuple[Cell, ...]:
    """The cells of the matrix that are not empty. died: mutant -> the combinations that it was caught on."""
    count: dict[Combination, int] = defaultdict(int)
    mutants: dict[Combination, set[str]] = defaultdict(set)
    for case, numerics in cases:
        count[combination_of(case, numerics)] += 1
    for name, combinations in died:
        for combination in combinations:
            mutants[combination].add(name)
    return tuple(
        Cell(**combination._asdict(), cases=count[combination], died=tuple(sorted(mutants[combination])))
        for combination in sorted(count.keys() | mutants.keys())
    )


def _of_weights(spec: MoESpec) -> list[str]:
    """How the weights are quantised, where the spec knows of it."""
    found = getattr(spec, "quant", None) or getattr(spec, "weights", None)
    name = getattr(found, "name", None) or getattr(found, "format", None)
    return [f"w {name}"] if isinstance(name, str) else []


def _short(q: Quantizer) -> str:
    name = {"fp8_e4m3fn": "fp8", "fp8_e5m2": "e5m2"}.get(q.format, q.format)
    scale = " e8m0" if q.scale == "power_of_two" else ""
    return f"{name}/{q.group or 'row'}{scale}"
