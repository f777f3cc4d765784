"""A wide grid of small cases, by which every specialisation of a kernel should be reached."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from . import draw
from .cases import Case
from .errors import CaseError, SpecError
from .formats import FORMATS
from .models import MODELS
from .ops import OPS
from .quantization import Quantization
from .spec import MoESpec, RoutingSpec

EXPERTS = (1, 2, 8, 16, 32, 60, 64, 72, 128, 160, 256, 384, 512)
TOP_K = (1, 2, 3, 4, 6, 8, 10)
TOKENS = (1, 2, 7, 16, 33, 64, 129, 257)
GROUPS = (1, 8)
WIDTHS = ((128, 64), (256, 128), (200, 72))  # hidden and intermediate size
CANDIDATES = 24  # drawn for each place of the grid, of which the one with most new pairs is taken
MOST = 160  # cases of one kernel
_GROUPED = MODELS["deepseek-v3"].spec.routing


class Point(NamedTuple):
    """One place of the grid: an index into each factor's values."""

    experts: int
    top_k: int
    tokens: int
    groups: int
    widths: int
    form: int


def sweep_cases(
    op: str,
    *,
    dtypes: tuple[str, ...],
    quantizations: tuple[Quantization, ...] = (),
    plain_weights: bool = True,
    specs: tuple[MoESpec, ...] = (),
    seed: int = 0,
) -> list[Case]:
    """Cases in which every two values of (E, top_k, T, groups, widths, dtype or scheme) meet, where they can.

    specs: the only semantics wanted; then their top_k and groups are kept.
    """
    forms: list[tuple[str, Quantization | None]] = [(dtype, None) for dtype in dtypes] if plain_weights else []
    forms += [(dtypes[0], scheme) for scheme in quantizations] if op == "fused_experts" else []
    sizes = tuple(map(len, (EXPERTS, TOP_K, TOKENS, GROUPS, WIDTHS, forms)))
    if not forms:
        return []
    cases: dict[str, Case] = {}
    met: set[tuple[tuple[int, int], ...]] = set()
    for number in range(MOST):
        drawn = draw.integers(("sweep", op, seed, number), (CANDIDATES, len(sizes)), below=1 << 32)
        points = [Point(*(int(value) % size for value, size in zip(row, sizes, strict=True))) for row in drawn]
        for point in sorted(points, key=lambda point: -len(_pairs(point) - met)):
            if _pairs(point) <= met:
                break
            case = _case(op, point, forms, specs, seed)
            if case is not None:
                met |= _pairs(point)
                cases.setdefault(case.digest, case)
                break
    return list(cases.values())


def _pairs(point: Point) -> set[tuple[tuple[int, int], ...]]:
    """Which two values of different factors meet at a point."""
    return set(combinations(enumerate(point), 2))


def _case(
    op: str, point: Point, forms: list[tuple[str, Quantization | None]], specs: tuple[MoESpec, ...], seed: int
) -> Case | None:
    """The case of a point; None where its values contradict each other."""
    dtype, scheme = forms[point.form]
    hidden, inner = WIDTHS[point.widths]
    groups, top_k = GROUPS[point.groups], TOP_K[point.top_k]
    try:
        if specs:
            spec = specs[point.experts % len(specs)]
        elif groups > 1 and "router_logits" in OPS[op].arg_names:
            routing = replace(_GROUPED, top_k=top_k, num_expert_groups=groups, num_fused_shared_experts=0)
            spec = MoESpec(routing=routing)
        else:
            spec = MoESpec(routing=RoutingSpec(top_k=top_k, renormalize=True))
        experts = replace(spec.experts, quantization=scheme)
        return Case(
            op=op,
            spec=replace(spec, experts=experts),
            num_tokens=TOKENS[point.tokens],
            num_experts=EXPERTS[point.experts],
            hidden_size=hidden,
            intermediate_size=inner,
            shared_intermediate_size=inner if spec.shared_experts != "none" else 0,
            latent_size=64 if spec.latent_experts else 0,
            dtype=dtype if dtype in FORMATS else "bf16",
            seed=seed,
        )
    except (CaseError, SpecError):
        return None
