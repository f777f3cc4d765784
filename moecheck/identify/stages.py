"""What an op gives under one contract after another; contracts that agree up to a stage share it.

The sums are those of the references (a test compares the two over all contracts). Only the order of the work differs:
a reference walks through one contract from start to end, here each stage is kept until a contract asks for another.

A replay may be `noisy`: then it is a kernel, whose GEMMs are off by what fp32 accumulation is off by. How often its
bits are those of the replay without noise is the agreement that an honest kernel of that contract reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray, Float64, to_float64, ulp
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle, call_reference, reference_modules
from moecheck.spec import ExpertSpec

from .candidates import EXPERT_OPS
from .experts import ACTIVATION, Experts, Group, Noise, formats_at, groups_of, rounded

MOST_COLUMNS = 256  # of an expert's output
WEIGHT_ULPS = 2.0  # standard deviation of a routing weight computed in fp32, as in the reference of moe_layer
EXACT = Numerics(out="fp32")


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
        self._by_expert = np.arange(len(self._ids))[:, None], np.argsort(self._ids, axis=1, kind="stable")
        self._width = inputs["w2"].shape[1]
        self._tokens, self._slots, groups = groups_of(self._ids, inputs)
        static = tuple(float(inputs[name][0]) if name in inputs else None for name in ("a1_scale", "a2_scale"))
        self._experts = Experts("routed", groups, spec, noise, (static[0], static[1]))
        self._weighted: tuple[Hashable, Float64] = (None, np.zeros(0))

    def value(self, stores: Numerics) -> Float64:
        names = ("topk_weights", "dequantised", "before_bias", "gate_up", *ACTIVATION, "per_expert", "weighted")
        key = (stores.a1_quant, stores.a2_quant, *formats_at(stores, names))
        if self._weighted[0] != key:
            self._weighted = (key, self._terms(stores))
        low_terms = not self._spec.weight_on_input and stores.weighted == stores.combine
        return _summed(self._weighted[1], self._by_expert, stores, low_terms=low_terms)

    def _terms(self, stores: Numerics) -> Float64:
        """What each slot adds to its token: [T, k, H], 0 for slots without an expert."""
        w = rounded(self._weights, stores.topk_weights)[self._tokens, self._slots][:, None]
        x = self._x[self._tokens]
        terms = np.zeros((*self._ids.shape, self._width))
        if not len(x):
            return terms
        if self._spec.weight_on_input:
            x_key = formats_at(stores, ("topk_weights", "weighted"))
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


def _summed(terms: Float64, by_expert: tuple[AnyArray, AnyArray], stores: Numerics, *, low_terms: bool) -> Float64:
    """Sum over slots, stored. terms: [T, k, H]. Returns [T, H], each partial sum rounded unless they form a tree.

    by_expert: the index that puts the slots into expert order. low_terms: whether the terms are numbers of the format
    of the partial sums. What is rounded already is not rounded again.
    """
    if stores.combine == "fp32" or stores.combine_order == "tree":
        return rounded(np.sum(terms, axis=1), stores.out)
    if stores.combine_order == "expert":
        terms = terms[by_expert]
    total = np.zeros((len(terms), terms.shape[2]))
    for slot in range(terms.shape[1]):
        total = total + terms[:, slot]
        if slot > 0 or not low_terms:
            total = rounded(total, stores.combine)
    return total if stores.out == stores.combine else rounded(total, stores.out)


def _local(ids: AnyArray, expert_map: AnyArray | None) -> AnyArray:
    return ids if expert_map is None else np.where(ids >= 0, expert_map[np.maximum(ids, 0)], -1)
