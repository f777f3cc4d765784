"""The experts of a case under one contract after another; contracts that agree up to a stage share it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from importlib import import_module
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from moecheck import draw
from moecheck.cases import Case
from moecheck.formats import AnyArray, Float64, round_to, to_float64
from moecheck.numerics import Numerics
from moecheck.oracle import REFERENCES, reference_modules
from moecheck.quantizer import Quantizer
from moecheck.spec import ExpertSpec

U32 = 2.0**-24
KEPT_BYTES = 1 << 26  # of intermediate results: all of them in a small case, the last few in a large one
ACTIVATION = ("sigmoid", "act", "up", "act_times_up")


class Noise:
    """Normal numbers of a case, the same whichever contracts are asked for."""

    def __init__(self, case: Case) -> None:
        self._key = case.key

    def normal(self, name: str, shape: tuple[int, ...]) -> Float64:
        """Standard normal, one array for each name."""
        numbers: Float64 = draw.look_up(draw.philox(self._key, "noise", name), draw.normal_quantiles(), shape)
        return numbers


class Group(NamedTuple):
    """Rows of one expert: their places in the array of all rows, and the expert's float64 arrays."""

    rows: slice
    w13: Float64
    w2: Float64
    b13: Float64 | None
    b2: Float64 | None


class Experts:
    """z = W2 f(W1 x + b1) + b2 of all rows under one contract after another."""

    def __init__(
        self,
        name: str,
        groups: list[Group],
        spec: ExpertSpec,
        noise: Noise | None,
        static: tuple[float | None, float | None] = (None, None),
    ) -> None:
        """static: the scales of static quantisers of x and of h."""
        self._name, self._groups, self._spec, self._noise = name, groups, spec, noise
        self._static = static
        self._activated: Callable[..., Float64] = reference_modules()["act_and_mul"].activated
        self._kept: dict[Hashable, Float64] = {}
        self._bytes = 0  # of what is kept

    def output(self, x: Float64, x_key: Hashable, stores: Numerics) -> Float64:
        """The rows' z, [P, H]. x: [P, H], the same for the same x_key."""
        first = ("first", x_key, stores.a1_quant, stores.dequantised)
        h = ("h", first, stores.a2_quant, *formats_at(stores, ("before_bias", "gate_up", *ACTIVATION)))
        z = ("z", h, stores.per_expert)
        return self._once(z, lambda: self._second(self._once(h, lambda: self._hidden(x, first, stores)), h, stores))

    def _hidden(self, x: Float64, first: Hashable, stores: Numerics) -> Float64:
        raw = self._once(
            first,
            lambda: self._gemm(
                "first",
                _requantised(x, stores.a1_quant, self._static[0]),
                [rounded(group.w13, stores.dequantised) for group in self._groups],
            ),
        )
        gate_up = self._biased(raw, [group.b13 for group in self._groups], stores)
        h = self._activated(rounded(gate_up, stores.gate_up), self._spec, stores)
        return _requantised(h, stores.a2_quant, self._static[1])

    def _second(self, h: Float64, key: Hashable, stores: Numerics) -> Float64:
        raw = self._once(
            ("second", key),
            lambda: self._gemm(
                f"{self._name}/second", h, [rounded(group.w2, stores.dequantised) for group in self._groups]
            ),
        )
        return rounded(self._biased(raw, [group.b2 for group in self._groups], stores), stores.per_expert)

    def _gemm(self, name: str, x: Float64, matrices: list[Float64]) -> Float64:
        y: Float64 = np.concatenate([x[group.rows] @ w.T for group, w in zip(self._groups, matrices, strict=True)])
        if self._noise is None:
            return y
        parts = [np.square(x[g.rows]) @ np.square(w).T for g, w in zip(self._groups, matrices, strict=True)]
        # The variance of fp32 sums, as the references have it.
        variance = U32**2 * x.shape[1] * (np.concatenate(parts) / 6.0 + np.square(y) / 16.0)
        y += self._noise.normal(f"{self._name}/{name}", y.shape) * np.sqrt(variance)
        return y

    def _biased(self, y: Float64, biases: list[Float64 | None], stores: Numerics) -> Float64:
        if all(bias is None for bias in biases):
            return y
        y = rounded(y, stores.before_bias)
        parts = [y[g.rows] if b is None else y[g.rows] + b for g, b in zip(self._groups, biases, strict=True)]
        return np.concatenate(parts)

    def _once(self, key: Hashable, compute: Callable[[], Float64]) -> Float64:
        value = self._kept.pop(key, None)
        if value is None:
            value = compute()
            self._bytes += value.nbytes
        self._kept[key] = value  # the last used one last
        while len(self._kept) > 1 and self._bytes > KEPT_BYTES:
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes
        return value


def rounded(values: Float64, name: str) -> Float64:
    """Values as a store in format `name` leaves them; `fp32` keeps them."""
    return values if name == "fp32" else round_to(values, name)


def _requantised(values: Float64, quantizer: Quantizer | None, given: float | None) -> Float64:
    """Values as a quantiser leaves them; None keeps them. values: [P, K]. given: the scale of a static one."""
    if quantizer is None:
        return values
    value: Float64 = import_module(f"{REFERENCES}._quantize").quantized(values, quantizer, given).value
    return value


def groups_of(ids: AnyArray, inputs: dict[str, Any]) -> tuple[AnyArray, AnyArray, list[Group]]:
    """Token and slot of each row, sorted by expert, and each expert's group of rows."""
    tokens, slots = np.nonzero(ids >= 0)
    order = np.argsort(ids[tokens, slots], kind="stable")
    tokens, slots = tokens[order], slots[order]
    experts, starts = np.unique(ids[tokens, slots], return_index=True)
    ends = [*starts[1:], len(tokens)]
    groups = [
        Group(
            slice(int(start), int(end)),
            *(to_float64(inputs[name][expert]) for name in ("w13", "w2")),
            *(to_float64(inputs[name][expert]) if name in inputs else None for name in ("w13_bias", "w2_bias")),
        )
        for expert, start, end in zip(experts, starts, ends, strict=True)
    ]
    return tokens, slots, groups


def formats_at(stores: Numerics, names: tuple[str, ...]) -> tuple[str, ...]:
    """The formats of some stores, two or more of them."""
    formats: tuple[str, ...] = _getter(names)(stores)
    return formats


@cache
def _getter(names: tuple[str, ...]) -> Callable[[Numerics], Any]:
    return attrgetter(*names)
