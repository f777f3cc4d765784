"""The arrangement in which a kernel wants the experts' weights, with the one converter into it and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import numpy as np

from .elements import ELEMENTS
from .errors import Unsupported, UsageError, check_known
from .formats import AnyArray
from .gate_up import BLOCKS, gate_up_rows
from .spec import ExpertSpec, GateUpLayout, MoESpec

E8M0_OF_ONE = 127.0  # the code of the scale 1


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


# What each axis of an array counts, from the last ones: U rows of gate and up, I units, H columns, another letter none.
_AXES = {
    "hidden_states": "H",
    "shared_gate": "H",
    "w13": "UH",
    "w2": "HI",
    "w13_bias": "U",
    "w2_bias": "H",
    "w13_scale": "UH",
    "w2_scale": "HI",
    "w13_zeros": "UH",
    "w2_zeros": "HI",
    "shared_w13": "UH",
    "shared_w2": "HI",
    "w": "nk",
}


def to_layout(inputs: Mapping[str, Any], layout: WeightLayout, *, spec: MoESpec, sizes: Sizes) -> dict[str, Any]:
    """An op's inputs with weights, biases and scales rearranged and padded, and hidden states padded; others as given.

    inputs: by the names of moecheck.ops, NumPy arrays of any dtype, weights in the plain layout with the spec's order
    of gate and up, and with codes and scales as the spec's quantization has them. Where an order alternates rows, the
    scales of blocks of rows alternate one by one. Padded codes stand for 0.
    Raises Unsupported for what has no such arrangement: a scale that gate and up share, swizzled scales, padding of
    weights with zero points, or of a hidden size beside latent experts.
    """
    _check(layout, spec)
    return {
        name: _Arranged(name, layout, spec, sizes).there(value) if name in _AXES else value
        for name, value in inputs.items()
    }


def from_layout(inputs: Mapping[str, Any], layout: WeightLayout, *, spec: MoESpec, sizes: Sizes) -> dict[str, Any]:
    """The inverse of `to_layout`: the plain layout with the spec's order of gate and up, without padding."""
    _check(layout, spec)
    return {
        name: _Arranged(name, layout, spec, sizes).back(value) if name in _AXES else value
        for name, value in inputs.items()
    }


def _check(layout: WeightLayout, spec: MoESpec) -> None:
    pads = layout.hidden_multiple > 1 or layout.intermediate_multiple > 1
    if layout.hidden_multiple > 1 and spec.latent_experts:
        raise Unsupported("a padded hidden size is not defined for latent experts")
    quantization = spec.experts.quantization
    if quantization is not None and quantization.zero_points and pads:
        raise Unsupported("padding is not defined for weights with zero points")
    if quantization is not None and quantization.swizzled and layout != WeightLayout():
        raise Unsupported("swizzled scales are not rearranged")


class _Arranged(NamedTuple):
    """One array's way there and back."""

    name: str
    layout: WeightLayout
    given: MoESpec
    sizes: Sizes

    def there(self, array: AnyArray) -> AnyArray:
        for place in range(len(_AXES[self.name])):
            array = self._along(array, place, back=False)
        if self._stacks:
            axis = array.ndim - len(_AXES[self.name])
            array = array.reshape(*array.shape[:axis], 2, -1, *array.shape[axis + 1 :])
        return np.ascontiguousarray(array.swapaxes(-1, -2)) if self._transposes else array

    def back(self, array: AnyArray) -> AnyArray:
        if self._transposes:
            array = np.ascontiguousarray(array.swapaxes(-1, -2))
        if self._stacks:
            axis = array.ndim - len(_AXES[self.name]) - 1
            array = array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
        for place in range(len(_AXES[self.name])):
            array = self._along(array, place, back=True)
        return array

    def _along(self, array: AnyArray, place: int, *, back: bool) -> AnyArray:
        """The array rearranged and resized along one of its axes."""
        kind, axis = _AXES[self.name][place], array.ndim - len(_AXES[self.name]) + place
        block = self._block(place)
        if block == 0 or kind not in "UIH":  # one scale for all of it
            return array
        size = self.sizes.hidden if kind == "H" else self._width
        multiple = self.layout.hidden_multiple if kind == "H" else self.layout.intermediate_multiple
        plain, padded = -(-size // block), -(-_up_to(size, multiple) // block)
        if kind == "U" and self._spec.gated:
            return self._gate_up(array, axis, block, plain, padded, back=back)
        self._check_entries(array, axis, padded if back else plain)
        return _resized(array, axis, plain if back else padded, self._fill)

    def _gate_up(self, array: AnyArray, axis: int, block: int, plain: int, padded: int, *, back: bool) -> AnyArray:
        """Along rows of gate and up. plain, padded: entries of each half; block: rows that one entry stands for."""
        here = self._spec.gate_up_layout
        there = self.layout.gate_up or here
        if there == here and plain == padded:
            return array
        if block > 1 and (self._width % block or here not in ("halves", "up_first")):
            raise Unsupported(f"gate and up share scales of {block} rows")
        self._check_entries(array, axis, 2 * (padded if back else plain))
        if block > 1 and there in BLOCKS:
            there = "interleaved"
        ends = [(here, plain), (there, padded)]
        (source, length), (target, wanted) = reversed(ends) if back else ends
        halves = [
            _resized(array.take(rows, axis=axis), axis, wanted, self._fill) for rows in gate_up_rows(source, length)
        ]
        order = np.argsort(np.concatenate(gate_up_rows(target, wanted)))
        return np.concatenate(halves, axis=axis).take(order, axis=axis)

    def _check_entries(self, array: AnyArray, axis: int, wanted: int) -> None:
        if array.shape[axis] != wanted:
            raise UsageError(f"{self.name} has {array.shape[axis]} entries along axis {axis}, expected {wanted}.")

    def _block(self, place: int) -> int:
        """Rows or columns that one entry along an axis stands for, 0 for all of them."""
        quantization = self._spec.quantization
        if self._scales:
            if quantization is None:
                raise UsageError(f"{self.name} is given, and the spec's weights are not quantised.")
            return (quantization.rows, quantization.columns)[place]
        return 2 if self._codes and quantization is not None and quantization.packed and place == 1 else 1

    @property
    def _fill(self) -> float:
        """What stands behind the end: the code of 0, or what scales are filled with."""
        quantization = self._spec.quantization
        if quantization is None:
            return 0.0
        if self._scales:
            as_codes = quantization.scale == "e8m0" and self.layout.scale_padding == 1.0
            return E8M0_OF_ONE if as_codes else self.layout.scale_padding
        zero = (ELEMENTS[quantization.weights].offset or 0) if self._codes else 0
        return float(zero * 17 if quantization.packed else zero)  # 17: in both halves of a byte

    @property
    def _spec(self) -> ExpertSpec:
        return self.given.shared if self.name.startswith("shared_") else self.given.experts

    @property
    def _width(self) -> int:
        return self.sizes.shared if self.name.startswith("shared_") else self.sizes.intermediate

    @property
    def _scales(self) -> bool:
        return self.name.endswith(("_scale", "_zeros"))

    @property
    def _codes(self) -> bool:
        return self.name in ("w13", "w2")

    @property
    def _stacks(self) -> bool:
        return self.layout.stacked and self._spec.gated and "U" in _AXES[self.name] and self._block(0) != 0

    @property
    def _transposes(self) -> bool:
        return self.layout.transposed and len(_AXES[self.name]) == 2


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
