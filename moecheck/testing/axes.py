"""Sizes of an op's axes, read from the shapes of its arguments, which must agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moecheck.errors import CaseError
from moecheck.ops import OPS, Arg
from moecheck.spec import MoESpec

WORDS = {
    "T": "tokens",
    "H": "hidden size",
    "I": "intermediate size",
    "E": "experts",
    "L": "local experts",
    "M": "rows of expert weights",
    "k": "slots",
    "R": "rows",
    "C": "rows of an expert",
    "S": "shared intermediate size",
    "X": "width of the routed experts",
    "D": "token ids",
    "n": "output columns",
    "K": "input columns",
    "P": "ranks",
    "Q": "places of experts",
}
# A layer's expert weights have a row for each real and each fused shared expert, its logits one for each routed one.
_LAYER_WEIGHTS = ("w13", "w2", "w13_bias", "w2_bias")


@dataclass(frozen=True, slots=True)
class Axes:
    """Axis letter of moecheck.ops -> its size, and the argument that it was read from."""

    sizes: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def bind(self, axis: str, size: int, source: str) -> bool:
        """Note a size; False when it contradicts the one that is known."""
        self.sources.setdefault(axis, source)
        return self.sizes.setdefault(axis, size) == size


def axes_of(op: str, inputs: Mapping[str, Any], spec: MoESpec) -> Axes:
    """The sizes of all axes of an op's given arguments; CaseError names the first argument that does not fit."""
    axes = Axes()
    for name, letter in (("num_experts", "E"), ("hidden_size", "H"), ("intermediate_size", "I"), ("num_ranks", "P")):
        if name in inputs:
            axes.bind(letter, inputs[name], name)
    for arg in OPS[op].args:
        if arg.name in inputs and arg.kind != "int":
            _bind(op, arg, inputs[arg.name].shape, axes)
    if op in ("fused_experts", "expert_outputs") and "expert_map" not in inputs:
        axes.bind("E", axes.sizes["L"], "w13")
    _check_products(op, axes, spec)
    return axes


def _bind(op: str, arg: Arg, shape: tuple[int, ...], axes: Axes) -> None:
    letters = tuple("M" if op == "moe_layer" and arg.name in _LAYER_WEIGHTS and a == "E" else a for a in arg.axes)
    if len(shape) != len(letters):
        raise CaseError(f"{arg.name} has shape {list(shape)}, expected {len(letters)} axes: {_words(letters, axes)}.")
    for letter, size in zip(letters, shape, strict=True):
        if letter != "*" and not axes.bind(letter, size, arg.name):
            known, source = axes.sizes[letter], axes.sources[letter]
            raise CaseError(
                f"{arg.name} has shape {list(shape)}, expected {_words(letters, axes)}: "
                f"{letter} ({WORDS.get(letter, 'size')}) is {known} by {source}."
            )


def _words(letters: tuple[str, ...], axes: Axes) -> str:
    return "[" + ", ".join(str(axes.sizes.get(letter, letter)) for letter in letters) + "]"


def _check_products(op: str, axes: Axes, spec: MoESpec) -> None:
    """Axes that are a function of others: gate and up rows, and the rows of a layer's expert weights."""
    factor, gated = (2, "gated") if spec.experts.gated else (1, "not gated")
    if op == "act_and_mul":
        width = axes.sizes["U"]
        if width % factor or not width:
            raise CaseError(f"x has {width} columns, which cannot be split into gate and up (spec.experts.gated).")
        axes.bind("I", width // factor, "x")
    for rows, inner, weights, other in (("U", "I", "w13", "w2"), ("V", "S", "shared_w13", "shared_w2")):
        if rows in axes.sizes and inner in axes.sizes and axes.sizes[rows] != factor * axes.sizes[inner]:
            raise CaseError(
                f"{weights} has {axes.sizes[rows]} rows of an expert, expected {factor} x {axes.sizes[inner]}: the "
                f"spec's experts are {gated}, and {WORDS[inner]} is {axes.sizes[inner]} by {other}."
            )
    if "X" in axes.sizes and not spec.latent_experts and axes.sizes["X"] != axes.sizes["H"]:
        raise CaseError(f"w13 works on rows of {axes.sizes['X']}, and hidden size is {axes.sizes['H']}.")
    if "D" in axes.sizes and axes.sizes["k"] != spec.routing.top_k:
        raise CaseError(f"tid2eid names {axes.sizes['k']} experts a token, top_k is {spec.routing.top_k}.")
    if "M" in axes.sizes:
        routing = spec.routing
        wanted = axes.sizes["E"] - routing.num_zero_experts + routing.num_fused_shared_experts
        if axes.sizes["M"] != wanted:
            raise CaseError(
                f"w13 holds {axes.sizes['M']} experts, expected {wanted}: router_logits has {axes.sizes['E']}, "
                f"of which num_zero_experts={routing.num_zero_experts} have no weights, and "
                f"num_fused_shared_experts={routing.num_fused_shared_experts} are added."
            )
