"""What an op gives under one contract after another; contracts that agree up to a stage share it.

The sums are those of the references (a test compares the two over all contracts). Only the order of the work differs:
a reference walks through one contract from start to end, here each stage is kept until a contract asks for another.

A replay may be `noisy`: then it is a kernel, whose GEMMs are off by what fp32 accumulation is off by. How often its
bits are those of the replay without noise is the agreement that an honest kernel of that contract reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np

from . import draw
from .cases import Case
from .formats import AnyArray, Float64, round_to, to_float64, ulp
from .identify_candidates import EXPERT_OPS
from .numerics import Numerics
from .oracle import REFERENCES, Oracle, call_reference, reference_modules
from .quantizer import Quantizer
from .spec import ExpertSpec

U32 = 2.0**-24
MOST_COLUMNS = 256  # of an expert's output
KEPT_BYTES = 1 << 26  # of intermediate results: all of them in a small case, the last few in a large one
WEIGHT_ULPS = 2.0  # standard deviation of a routing weight computed in fp32, as in the reference of moe_layer
EXACT = Numerics(out="fp32")
ACTIVATION = ("sigmoid", "act", "up", "act_times_up")


class Replay(Protocol):
    """One case's output, its compared columns, under any contract whose `input` is resolved."""

    def value(self, stores: Numerics) -> Float64: ...


def compared_columns(case: Case) -> slice:
    """The columns of an output that are compared: all, or for wide experts some from all over it, which cost less."""
    routing = case.spec.routing
    both = case.op == "moe_layer" and routing.num_zero_experts > 0 and case.spec.shared_experts == "gated"
    if case.op not in EXPERT_OPS or both or case.spec.latent_experts:
        return slice(None)
    return slice(None, None, max(1, case.hidden_size // MOST_COLUMNS))


def replay_of(case: Case, oracle: Oracle, *, noisy: bool = False) -> Replay:
    """The replay of a case of a value op."""
    noise = Noise(case) if noisy else None
    if case.op not in EXPERT_OPS or case.spec.latent_experts:
        return DirectReplay(case, oracle, noise)
    columns, inputs = compared_columns(case), dict(oracle.inputs(case))
    inputs["w2"] = inputs["w2"][:, columns]
    for name, picked in (("w2_bias", (slice(None), columns)), ("shared_w2", columns)):
        if name in inputs:
            inputs[name] = inputs[name][picked]
    if case.op == "fused_experts":
        return ExpertsReplay(inputs, inputs["topk_weights"], inputs["topk_ids"], case.spec.experts, noise)
    return LayerReplay(case, inputs, noise)


class Noise:
    """Normal numbers of a case, the same whichever contracts are asked for."""

    def __init__(self, case: Case) -> None:
        self._key = case.key

    def normal(self, name: str, shape: tuple[int, ...]) -> Float64:
        """Standard normal, one array for each name."""
        numbers: Float64 = draw.look_up(draw.philox(self._key, "noise", name), draw.normal_quantiles(), shape)
        return numbers


class DirectReplay:
    """The reference itself, for ops that cost nothing; noise is added before the last store."""

    def __init__(self, case: Case, oracle: Oracle, noise: Noise | None) -> None:
        self._case, self._inputs = case, oracle.inputs(case)
        self._function: Callable[..., Any] = getattr(reference_modules()[case.op], case.op)
        self._noise: Float64 | None = None
        if noise is not None:
            sigma = oracle.values(case, EXACT).sigma
            self._noise = noise.normal("output", sigma.shape) * sigma

    def value(self, stores: Numerics) -> Float64:
        if self._noise is None:
            return self._reference(stores)
        last = stores.resolve(self._case.dtype).out
        return rounded(self._reference(replace(stores, out="fp32")) + self._noise, last)

    def _reference(self, stores: Numerics) -> Float64:
        value: Float64 = call_reference(
            self._function, self._case, self._inputs, numerics=stores, dtype=self._case.dtype
        )
        return value


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

    def output(self, x: Float64, x_key: Hashable, stores: Numerics) -> Float64:
        """The rows' z, [P, H]. x: [P, H], the same for the same x_key."""
        first = ("first", x_key, stores.a1_quant, stores.dequantised)
        h = ("h", first, stores.a2_quant, *_formats(stores, ("before_bias", "gate_up", *ACTIVATION)))
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
        self._kept[key] = value  # the last used one last
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        return value


class ExpertsReplay:
    """fused_experts: the experts, their weighting, and the sum over slots."""

    def __init__(
        self,
        inputs: dict[str, Any],
        weights: AnyArray,
        ids: AnyArray,
        spec: ExpertSpec,
        noise: Noise | None,
    ) -> None:
        self._spec, self._ids = spec, _local(ids, inputs.get("expert_map"))
        self._weights, self._x = to_float64(weights), to_float64(inputs["hidden_states"])
        self._width = inputs["w2"].shape[1]
        self._tokens, self._slots, groups = _groups(self._ids, inputs)
        static = tuple(float(inputs[name][0]) if name in inputs else None for name in ("a1_scale", "a2_scale"))
        self._experts = Experts("routed", groups, spec, noise, (static[0], static[1]))
        self._weighted: tuple[Hashable, Float64] = (None, np.zeros(0))

    def value(self, stores: Numerics) -> Float64:
        names = ("topk_weights", "dequantised", "before_bias", "gate_up", *ACTIVATION, "per_expert", "weighted")
        key = (stores.a1_quant, stores.a2_quant, *_formats(stores, names))
        if self._weighted[0] != key:
            self._weighted = (key, self._terms(stores))
        return rounded(_summed(self._weighted[1], self._ids, stores), stores.out)

    def _terms(self, stores: Numerics) -> Float64:
        """What each slot adds to its token: [T, k, H], 0 for slots without an expert."""
        w = rounded(self._weights, stores.topk_weights)[self._tokens, self._slots][:, None]
        x = self._x[self._tokens]
        terms = np.zeros((*self._ids.shape, self._width))
        if not len(x):
            return terms
        if self._spec.weight_on_input:
            x_key = _formats(stores, ("topk_weights", "weighted"))
            z = self._experts.output(rounded(w * x, stores.weighted), x_key, stores)
        else:
            z = rounded(w * self._experts.output(x, (), stores), stores.weighted)
        terms[self._tokens, self._slots] = z
        return terms


class LayerReplay:
    """moe_layer with the reference's own choice: routed experts, shared experts, and what joins them."""

    def __init__(self, case: Case, inputs: dict[str, Any], noise: Noise | None) -> None:
        self._case, self._inputs, self._noise = case, inputs, noise
        self._routing = replace(case, op="topk_routing")
        _, self._ids = call_reference(reference_modules()["topk_routing"].topk_routing, self._routing, inputs)
        self._x = to_float64(inputs["hidden_states"])
        self._routed: dict[str, tuple[Float64, ExpertsReplay]] = {}
        self._shared: Experts | None = None
        if case.spec.shared_experts != "none":
            w13, w2 = to_float64(inputs["shared_w13"]), to_float64(inputs["shared_w2"])
            all_tokens = Group(slice(0, len(self._x)), w13, w2, None, None)
            self._shared = Experts("shared", [all_tokens], case.spec.shared, noise)
        self._finished: Callable[..., Float64] = reference_modules()["moe_layer"].finished

    def value(self, stores: Numerics) -> Float64:
        if stores.scores not in self._routed:
            self._routed[stores.scores] = self._of_scores(stores.scores)
        weights, routed = self._routed[stores.scores]
        return self._finished(
            routed.value(stores),
            # of x, the layer itself uses all columns for a gate, or the compared ones for zero experts; never both
            x=self._x[:, compared_columns(self._case)] if self._case.spec.routing.num_zero_experts else self._x,
            topk=(weights, self._ids),
            num_experts=self._case.num_experts,
            shared=None if self._shared is None else self._shared.output(self._x, (), stores),
            shared_gate=self._inputs.get("shared_gate"),
            spec=self._case.spec,
            stores=stores,
        )

    def _of_scores(self, fmt: str) -> tuple[Float64, ExpertsReplay]:
        """Routing weights from scores stored in a format, and the experts that they multiply."""
        function = reference_modules()["topk_routing"].weights_of_ids
        weights: Float64 = call_reference(function, self._routing, self._inputs, topk_ids=self._ids, scores=fmt)
        if self._noise is not None:
            weights = weights + self._noise.normal("weights", weights.shape) * WEIGHT_ULPS * ulp(weights, "fp32")
        E, zero, ids = self._case.num_experts, self._case.spec.routing.num_zero_experts, self._ids
        rows = np.where(ids >= E, ids - zero, ids)
        rows = np.where((ids >= E - zero) & (ids < E), -1, rows)
        return weights, ExpertsReplay(self._inputs, weights, rows, self._case.spec.experts, self._noise)


def rounded(values: Float64, name: str) -> Float64:
    """Values as a store in format `name` leaves them; `fp32` keeps them."""
    return values if name == "fp32" else round_to(values, name)


def _requantised(values: Float64, quantizer: Quantizer | None, given: float | None) -> Float64:
    """Values as a quantiser leaves them; None keeps them. values: [P, K]. given: the scale of a static one."""
    if quantizer is None:
        return values
    value: Float64 = import_module(f"{REFERENCES}._quantize").quantized(values, quantizer, given).value
    return value


def _summed(terms: Float64, ids: AnyArray, stores: Numerics) -> Float64:
    """Sum over slots. terms: [T, k, H]. Returns [T, H], each partial sum rounded unless they form a tree."""
    if stores.combine == "fp32" or stores.combine_order == "tree":
        tree: Float64 = np.sum(terms, axis=1)
        return tree
    if stores.combine_order == "expert":
        terms = np.take_along_axis(terms, np.argsort(ids, axis=1, kind="stable")[..., None], axis=1)
    total = np.zeros((len(terms), terms.shape[2]))
    for slot in range(terms.shape[1]):
        total = rounded(total + terms[:, slot], stores.combine)
    return total


def _local(ids: AnyArray, expert_map: AnyArray | None) -> AnyArray:
    return ids if expert_map is None else np.where(ids >= 0, expert_map[np.maximum(ids, 0)], -1)


def _groups(ids: AnyArray, inputs: dict[str, Any]) -> tuple[AnyArray, AnyArray, list[Group]]:
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


def _formats(stores: Numerics, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(getattr(stores, name) for name in names)
