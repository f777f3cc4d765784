"""The arrangement in which a kernel wants the experts' weights, with the one converter into it and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import numpy as np

from .errors import Unsupported, UsageError, check_known
from .formats import AnyArray
from .gate_up import gate_up_rows
from .spec import ExpertSpec, GateUpLayout, MoESpec


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLayout:
    """How weights lie in memory. The plain one is w13 [E, 2I, H] with rows as the spec has them, and w2 [E, H, I].

    gate_up: order of the gate and up rows of w13 and its bias and scales; None: as the spec has them.
    stacked: w13 is [E, 2, I, H], its bias [E, 2, I]; the first of the two is what gate_up has first.
    transposed: of each matrix the last two axes are exchanged: w13 [E, H, 2I] (stacked: [E, 2, H, I]), w2 [E, I, H].
    hidden_multiple, intermediate_multiple: H and I (of gate and up each) are filled up with zeros to a multiple; hidden
    states are as wide, and only the first H columns of an output count. scale_padding: what scales are filled with.
    """

    gate_up: GateUpLayout | None = None
    stacked: bool = False
    transposed: bool = False
    hidden_multiple: int = 1
    intermediate_multiple: int = 1
    scale_padding: float = 1.0

    def __post_init__(self) -> None:
        if self.gate_up is not None:
            check_known("gate_up", self.gate_up, get_args(GateUpLayout))
        for name in ("hidden_multiple", "intermediate_multiple"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)!r} must be a positive integer.")
        if self.stacked and self.gate_up not in ("halves", "up_first"):
            raise UsageError(f"stacked=True needs gate_up='halves' or 'up_first', not {self.gate_up!r}.")
        if self.scale_padding not in (0.0, 1.0):
            raise UsageError(f"scale_padding={self.scale_padding!r} must be 0 or 1.")

    def spec(self, spec: MoESpec) -> MoESpec:
        """The spec of the same layer with weights so arranged."""
        if self.gate_up is None:
            return spec
        shared = spec.shared_spec and replace(spec.shared_spec, gate_up_layout=self.gate_up)
        return replace(spec, experts=replace(spec.experts, gate_up_layout=self.gate_up), shared_spec=shared)

    def hidden_size(self, size: int) -> int:
        """Columns of hidden states and of an output."""
        return _up_to(size, self.hidden_multiple)


class Sizes(NamedTuple):
    """H, I and the intermediate size of shared experts, before any padding."""

    hidden: int
    intermediate: int
    shared: int = 0


# What each axis of an array counts, from the last ones: U rows of gate and up, I units, H columns, "" something else.
_AXES = {
    "hidden_states": "H",
    "shared_gate": "H",
    "w13": "UH",
    "w2": "HI",
    "w13_bias": "U",
    "w2_bias": "H",
    "w13_scale": "UH",
    "w2_scale": "HI",
    "shared_w13": "UH",
    "shared_w2": "HI",
    "w": "  ",
}


def to_layout(
    inputs: Mapping[str, Any],
    layout: WeightLayout,
    *,
    spec: MoESpec,
    sizes: Sizes,
    scale_block: tuple[int, int] = (1, 1),
) -> dict[str, Any]:
    """An op's inputs with weights, biases and scales rearranged and padded, and hidden states padded; others as given.

    inputs: by the names of moecheck.ops, NumPy arrays of any dtype, weights in the plain layout with the spec's order
    of gate and up. Codes may be packed along the last axis. scale_block: rows and columns of a matrix that share a
    scale; where an order alternates rows, the scales of several rows alternate one by one.
    Raises Unsupported for what has no such arrangement: a scale that gate and up share, or padding of a latent width.
    """
    _check(layout, spec)
    return {
        name: _Arranged(name, layout, spec, sizes, scale_block).there(value) if name in _AXES else value
        for name, value in inputs.items()
    }


def from_layout(
    inputs: Mapping[str, Any],
    layout: WeightLayout,
    *,
    spec: MoESpec,
    sizes: Sizes,
    scale_block: tuple[int, int] = (1, 1),
) -> dict[str, Any]:
    """The inverse of `to_layout`: the plain layout with the spec's order of gate and up, without padding."""
    _check(layout, spec)
    return {
        name: _Arranged(name, layout, spec, sizes, scale_block).back(value) if name in _AXES else value
        for name, value in inputs.items()
    }


def _check(layout: WeightLayout, spec: MoESpec) -> None:
    if layout.hidden_multiple > 1 and spec.latent_experts:
        raise Unsupported("a padded hidden size is not defined for latent experts")


class _Arranged(NamedTuple):
    """One array's way there and back."""

    name: str
    layout: WeightLayout
    given: MoESpec
    sizes: Sizes
    scale_block: tuple[int, int]

    @property
    def spec(self) -> ExpertSpec:
        return self.given.shared if self.name.startswith("shared_") else self.given.experts

    @property
    def stacks(self) -> bool:
        return self.layout.stacked and self.spec.gated and "U" in _AXES[self.name]

    @property
    def transposes(self) -> bool:
        return self.layout.transposed and len(_AXES[self.name]) == 2

    def there(self, array: AnyArray) -> AnyArray:
        for place in range(len(_AXES[self.name])):
            array = self._along(array, place, back=False)
        if self.stacks:
            axis = array.ndim - len(_AXES[self.name])
            array = array.reshape(*array.shape[:axis], 2, -1, *array.shape[axis + 1 :])
        return np.ascontiguousarray(array.swapaxes(-1, -2)) if self.transposes else array

    def back(self, array: AnyArray) -> AnyArray:
        if self.transposes:
            array = np.ascontiguousarray(array.swapaxes(-1, -2))
        if self.stacks:
            axis = array.ndim - len(_AXES[self.name]) - 1
            array = array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
        for place in range(len(_AXES[self.name])):
            array = self._along(array, place, back=True)
        return array

    def _along(self, array: AnyArray, place: int, *, back: bool) -> AnyArray:
        """The array rearranged along one of its axes."""
        kind, axis = _AXES[self.name][place], array.ndim - len(_AXES[self.name]) + place
        if kind == "U" and self.spec.gated:
            return self._gate_up(array, axis, back=back)
        multiple = self.layout.hidden_multiple if kind == "H" else self.layout.intermediate_multiple
        if kind == " " or multiple == 1:
            return array
        size = self.sizes.hidden if kind == "H" else self._width
        plain, padded = self._entries(array, axis, size, _up_to(size, multiple), back=back)
        return _resized(array, axis, plain if back else padded, self._fill)

    def _gate_up(self, array: AnyArray, axis: int, *, back: bool) -> AnyArray:
        here = self.spec.gate_up_layout
        there = self.layout.gate_up or here
        if there == here and self.layout.intermediate_multiple == 1:
            return array
        width = self._width
        block = self.scale_block[0] if self.name.endswith("_scale") else 1
        if block > 1 and (width % block or here not in ("halves", "up_first")):
            raise Unsupported(f"gate and up share scales of {block} rows")
        plain, padded = (-(-size // block) for size in (width, _up_to(width, self.layout.intermediate_multiple)))
        if array.shape[axis] != 2 * (padded if back else plain):
            raise UsageError(f"{self.name} has {array.shape[axis]} rows, expected {2 * (padded if back else plain)}.")
        if block > 1 and there == "interleaved_8":
            there = "interleaved"
        ends = [(here, plain), (there, padded)]
        (source, length), (target, wanted) = reversed(ends) if back else ends
        halves = [
            _resized(array.take(rows, axis=axis), axis, wanted, self._fill) for rows in gate_up_rows(source, length)
        ]
        both = np.concatenate(halves, axis=axis)
        order = np.argsort(np.concatenate(gate_up_rows(target, wanted)))
        return both.take(order, axis=axis)

    @property
    def _width(self) -> int:
        return self.sizes.shared if self.name.startswith("shared_") else self.sizes.intermediate

    @property
    def _fill(self) -> float:
        return self.layout.scale_padding if self.name.endswith("_scale") else 0.0

    def _entries(self, array: AnyArray, axis: int, plain: int, padded: int, *, back: bool) -> tuple[int, int]:
        """Entries along an axis before and after padding: scales and packed codes stand for several elements each."""
        if self.name.endswith("_scale"):
            block = self.scale_block[axis - (array.ndim - 2)]
        else:
            whole = padded if back else plain
            block = max(1, whole // max(array.shape[axis], 1))
        counts = -(-plain // block), -(-padded // block)
        if array.shape[axis] != counts[back]:
            raise UsageError(f"{self.name} has {array.shape[axis]} entries along axis {axis}, expected {counts[back]}.")
        return counts


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _resized(array: AnyArray, axis: int, size: int, fill: float) -> AnyArray:
    """The array cut or filled up to `size` entries along an axis; the array itself where it has as many."""
    have = array.shape[axis]
    if have == size:
        return array
    if have > size:
        return np.ascontiguousarray(array.take(np.arange(size), axis=axis))
    shape = (*array.shape[:axis], size - have, *array.shape[axis + 1 :])
    return np.concatenate([array, np.full(shape, fill, dtype=array.dtype)], axis=axis)
