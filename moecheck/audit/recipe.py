"""How a test draws its inputs, as data: distributions, quantised weights, and what the router sees."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from moecheck import draw
from moecheck.cases import Case
from moecheck.formats import Float64, round_to
from moecheck.oracle import reference_modules

Slots = Literal["router", "raw_logits", "with_replacement"]
FP8_MAX = 448.0  # of e4m3fn
LEAST_AMAX = 1e-10
FIRST_BOOST = 30.0  # of raw_logits: added to the logit of a token's first expert, one less to each further one


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Normal numbers of standard deviation `std`, in the case's format, or as fp8 codes with scales.

    clip: largest magnitude. zeros: share of elements set to 0. fp8: None, `scaled`: quantised to e4m3 with scale
    amax / 448 of each block, or `codes`: rounded to e4m3 as they are and multiplied by scales that are drawn, normal of
    standard deviation scale_std. block: rows and columns that share a scale; 0 for all of them. Such values are what
    the codes stand for, float64, exactly; `stored` rounds them to the case's format.
    """

    std: float = 1.0
    clip: float | None = None
    zeros: float = 0.0
    fp8: Literal["scaled", "codes"] | None = None
    block: tuple[int, int] = (0, 0)
    scale_std: float = 0.0
    stored: bool = False

    def matrix(self, key: tuple[object, ...], shape: tuple[int, int], dtype: str) -> Float64:
        """[rows, columns] float64. dtype: the format that the numbers are first rounded to; codes are drawn in fp32."""
        table = draw.normal_table_float64(self.std, "fp32" if self.fp8 == "codes" else dtype)
        values = draw.look_up(draw.philox(*key), table, shape)
        if self.clip is not None:
            values = np.clip(values, -self.clip, self.clip)
        if self.zeros:
            values = np.where(draw.uniforms((*key, "zeros"), shape) < self.zeros, 0.0, values)
        if self.fp8 is None:
            return values
        scale = self._scales(key, values)
        codes = values if self.fp8 == "codes" else (values.astype(np.float32) / scale).astype(np.float64)
        dequantised = fp8_rounded(codes) * scale
        return round_to(dequantised, dtype) if self.stored else dequantised

    def times(self, factor: float) -> Draw:
        """The same with numbers so much larger."""
        if self.fp8 == "codes":
            return replace(self, scale_std=self.scale_std * factor)
        return replace(self, std=self.std * factor, clip=None if self.clip is None else self.clip * factor)

    def _scales(self, key: tuple[object, ...], values: Float64) -> npt.NDArray[np.float32]:
        """The fp32 scale of each element, [rows, columns]."""
        rows, columns = values.shape
        high, wide = self.block[0] or rows, self.block[1] or columns
        tall, across = -(-rows // high), -(-columns // wide)
        if self.fp8 == "codes":
            small = draw.normals((*key, "scale"), (tall, across), scale=self.scale_std, dtype="fp32")
        else:
            padded = np.zeros((tall * high, across * wide), np.float32)
            padded[:rows, :columns] = np.abs(values)
            amax = padded.reshape(tall, high, across, wide).max(axis=(1, 3))
            small = np.maximum(amax, np.float32(LEAST_AMAX)) / np.float32(FP8_MAX)
        spread = np.repeat(np.repeat(small, high, axis=0), wide, axis=1)
        return np.asarray(spread[:rows, :columns], np.float32)


def fp8_rounded(values: Float64) -> Float64:
    """Values rounded to the nearest e4m3fn number and saturated, float64."""
    codes = np.clip(values, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
    return np.asarray(codes.astype(np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a test draws. hidden, w13, w2: the matrices (w2 also of shared experts, w13 also of their first GEMM).

    logits_std, logits_dtype: the router's. bias_std: of the correction bias. slots: how ids and weights come about for
    ops that are given them. `router`: a router chooses among router_experts (0: the experts there are) by these logits,
    and the chosen ids are laid out anew over the experts there are, so that weights keep the size that they have among
    many experts. `raw_logits`: distinct experts, whose logits are 30, 29, ... + a normal number, and these logits are
    the weights, divided by their sum where the spec renormalises. `with_replacement`: ids drawn uniformly, repeats
    included, and the last expert in the last slot; weights are the softmax of normal numbers, one for each slot.
    weights_dtype: what the weights are rounded to. weights_factor: multiplies them.
    """

    hidden: Draw = field(default_factory=Draw)
    w13: Draw = field(default_factory=Draw)
    w2: Draw = field(default_factory=Draw)
    logits_std: float = 1.0
    logits_dtype: str = "fp32"
    bias_std: float = 1.0
    slots: Slots = "router"
    router_experts: int = 0
    weights_dtype: str = "fp32"
    weights_factor: float = 1.0

    def widened(self, hidden: int, intermediate: int) -> Recipe:
        """The recipe for layers so many times narrower: sums of fewer terms, each of them larger, of the same size."""
        return replace(self, w13=self.w13.times(hidden**0.5), w2=self.w2.times(intermediate**0.5))

    def inputs(self, case: Case) -> dict[str, Any]:
        """The op's arguments by name: float64 values of floating-point ones, int32 indices; a function of the case."""
        return {
            "topk_routing": self._router_inputs,
            "grouped_gemm": self._grouped_gemm,
            "fused_experts": self._fused_experts,
            "moe_layer": self._moe_layer,
        }[case.op](case)

    def _matrix(self, case: Case, which: Draw, name: str, shape: tuple[int, int]) -> Float64:
        return which.matrix((case.key, "audit", name), shape, case.dtype)

    def _stack(self, case: Case, which: Draw, name: str, count: int, shape: tuple[int, int]) -> Float64:
        stack = np.empty((count, *shape))
        for e in range(count):
            stack[e] = self._matrix(case, which, f"{name}/{e}", shape)
        return stack

    def _experts(self, case: Case) -> dict[str, Any]:
        H, E = case.hidden_size, case.num_experts
        rows = (2 if case.spec.experts.gated else 1) * case.intermediate_size
        return {
            "hidden_states": self._matrix(case, self.hidden, "hidden_states", (case.num_tokens, H)),
            "w13": self._stack(case, self.w13, "w13", E, (rows, H)),
            "w2": self._stack(case, self.w2, "w2", E, (H, case.intermediate_size)),
        }

    def _logits(self, case: Case, experts: int) -> Float64:
        shape = (case.num_tokens, experts)
        return Draw(std=self.logits_std).matrix((case.key, "audit", "logits"), shape, self.logits_dtype)

    def _router_inputs(self, case: Case) -> dict[str, Any]:
        inputs: dict[str, Any] = {"router_logits": self._logits(case, case.num_experts)}
        if case.spec.routing.correction_bias != "none":
            bias = Draw(std=self.bias_std).matrix((case.key, "audit", "bias"), (1, case.num_experts), "fp32")
            inputs["correction_bias"] = bias[0]
        return inputs

    def _moe_layer(self, case: Case) -> dict[str, Any]:
        inputs = {**self._experts(case), **self._router_inputs(case)}
        if case.spec.shared_experts != "none":
            S, H = case.shared_intermediate_size, case.hidden_size
            inputs["shared_w13"] = self._matrix(case, self.w13, "shared_w13", (2 * S, H))
            inputs["shared_w2"] = self._matrix(case, self.w2, "shared_w2", (H, S))
        return inputs

    def _fused_experts(self, case: Case) -> dict[str, Any]:
        weights, ids = _SLOTS[self.slots](self, case)
        weights = round_to(weights, self.weights_dtype) * self.weights_factor
        slots = {"topk_weights": weights.astype(np.float32), "topk_ids": ids.astype(np.int32)}
        return {**self._experts(case), **slots}

    def _grouped_gemm(self, case: Case) -> dict[str, Any]:
        # Groups of 0.7 to 1.3 times the mean, as DeepGEMM's tests draw them.
        share = 0.7 + 0.6 * draw.uniforms((case.key, "audit", "groups"), (case.num_experts,))
        counts = np.maximum((share * case.num_tokens / case.num_experts).astype(np.int64), 1)
        shape = (2 * case.intermediate_size, case.hidden_size)
        return {
            "x": self._matrix(case, self.hidden, "x", (int(counts.sum()), case.hidden_size)),
            "w": self._stack(case, self.w13, "w", case.num_experts, shape),
            "expert_ends": np.cumsum(counts).astype(np.int32),
        }


def _routed(recipe: Recipe, case: Case) -> tuple[Float64, npt.NDArray[np.int64]]:
    among = recipe.router_experts or case.num_experts
    top_k = case.spec.routing.top_k
    arguments: dict[str, Any] = {"router_logits": recipe._logits(case, among), "spec": case.spec.routing}
    weights, ids = reference_modules()["topk_routing"].topk_routing(**arguments)
    if among != case.num_experts:
        ids = draw.orders((case.key, "audit", "ids"), case.num_tokens, case.num_experts)[:, :top_k]
    return weights, ids


def _raw_logits(recipe: Recipe, case: Case) -> tuple[Float64, npt.NDArray[np.int64]]:
    T, E, top_k = case.num_tokens, case.num_experts, case.spec.routing.top_k
    ids = draw.orders((case.key, "audit", "ids"), T, E)[:, :top_k]
    noise = np.take_along_axis(replace(recipe, logits_dtype="fp32")._logits(case, E), ids, 1)
    weights = round_to(noise + FIRST_BOOST - np.arange(top_k), recipe.logits_dtype)
    if case.spec.routing.renormalize:
        weights = weights / weights.sum(axis=1, keepdims=True)
    order = np.argsort(-weights, axis=1, kind="stable")
    return np.take_along_axis(weights, order, 1), np.take_along_axis(ids, order, 1)


def _with_replacement(recipe: Recipe, case: Case) -> tuple[Float64, npt.NDArray[np.int64]]:
    T, E, top_k = case.num_tokens, case.num_experts, case.spec.routing.top_k
    ids = draw.integers((case.key, "audit", "ids"), (T, top_k), below=max(E - 1, 1))
    ids[:, -1] = E - 1
    logits = replace(recipe, logits_dtype="fp32")._logits(case, top_k)
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), ids


_SLOTS = {"router": _routed, "raw_logits": _raw_logits, "with_replacement": _with_replacement}
