"""Draws what routing needs: logits and correction biases, or the chosen ids and weights themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import draw
from .cases import Case
from .formats import Float64, round_to
from .ops import LAYERS

LOGIT_SCALE = 1.5


def router_logits(case: Case) -> Float64:
    """[T, E] float64 values that the case's logits dtype represents after one rounding, by `case.load`."""
    T, E = case.num_tokens, case.num_experts
    rank = draw.orders((case.key, "router_logits"), T, E)
    values = draw.look_up(draw.philox(case.key, "logits"), draw.normal_quantiles() * LOGIT_SCALE, (T, E))
    if case.load == "gapped":  # every pair differs by far more than any score's rounding, and softmax keeps the tail
        return (rank.astype(np.float64) - E / 2) * (8.0 / E)
    if case.load == "one_rank":
        last = np.arange(E) >= E - E // case.num_ranks
        return np.asarray((rank + E * last - E) * (8.0 / E))
    if case.load == "ties":
        return np.asarray(np.rint(values * 2) / 2)
    if case.load == "near_ties":
        return _near_ties(rank, case.dtype if case.op == "topk_routing" else "fp32")
    if case.load == "negative":
        return -np.abs(values) - 0.25
    if case.load == "extreme":
        return _extreme_rows(values)
    return values


def correction_bias(case: Case) -> npt.NDArray[np.float32]:
    """[E] float32: normal, not constant, one expert at -1.5, one well above 1; all below -1 for `negative` logits.

    Negative choice scores are what shows a masked group that was given the score 0.
    """
    bias = draw.normals((case.key, "correction_bias"), (case.num_experts,), scale=0.3, dtype="fp32")
    bias[0] = -1.5
    bias[-1] = 2.5 if case.num_experts > 1 else bias[-1]
    if case.load == "negative":
        bias = -1.5 - np.abs(bias) / 4
    return bias.astype(np.float32)


def topk_ids(case: Case) -> npt.NDArray[np.int32]:
    """[T, top_k] int32: distinct experts per token, by `case.load`; -1 only under `padding`."""
    T, E, top_k = case.num_tokens, case.num_experts, case.spec.routing.top_k
    order = draw.orders((case.key, "topk_ids"), T, E)
    if case.load == "skewed":  # weighted sampling without replacement: the smallest of uniform / probability
        likelihood = np.exp2(-8.0 * np.arange(E) / E)
        order = np.argsort(-np.log(draw.uniforms((case.key, "skew"), (T, E))) / likelihood, axis=1, kind="stable")
    ids = order[:, :top_k].astype(np.int32)
    if case.stratum == "one_hot" and case.load == "random":  # in turn, so that every probe has its token
        ids = ((np.arange(T)[:, None] + np.arange(top_k)) % E).astype(np.int32)
    if case.load == "one_expert":
        first = int(draw.integers((case.key, "expert"), (1,), below=E)[0])
        ids = np.tile(((first + np.arange(top_k)) % E).astype(np.int32), (T, 1))
    if case.load == "block_edges":
        ids = _block_edges(case)
    if case.load == "padding":
        chance = draw.integers((case.key, "padding"), (T, top_k + 1), below=8)
        ids = np.where((chance[:, :1] < 2) | (chance[:, 1:] < 1), np.int32(-1), ids)
    if case.load == "padding_zero":
        ids = np.where(_padding_tokens(case), np.int32(0), ids)
    return np.ascontiguousarray(ids, dtype=np.int32)


def _padding_tokens(case: Case) -> npt.NDArray[np.bool_]:
    """[T, 1]: one token in four, never the only one."""
    chance = draw.integers((case.key, "padding_zero"), (case.num_tokens, 1), below=4)
    return np.asarray((chance == 0) & (case.num_tokens > 1))


def topk_weights(case: Case) -> npt.NDArray[np.float32]:
    """[T, top_k] float32: distinct, of a different sum for each token; powers of two when `integer`.
    1 and then 0 when `one_hot`.

    The sums lie about the routed scaling factor, between half and one and a half of it, so that a kernel which
    normalises them again is seen, with one expert per token too. Where a token has several slots, one in eight is 0.
    """
    T, top_k = case.num_tokens, case.spec.routing.top_k
    if case.stratum == "integer":
        exponents = draw.integers((case.key, "topk_weights"), (T, top_k), below=3) - 1
        return np.exp2(exponents).astype(np.float32)
    if case.stratum == "one_hot":  # the first slot alone is the output
        return np.tile((np.arange(top_k) == 0).astype(np.float32), (T, 1))
    shares = 0.25 + draw.uniforms((case.key, "topk_weights"), (T, top_k))
    if top_k > 1:
        shares[draw.integers((case.key, "zero_weights"), (T, top_k), below=8) == 0] = 0.0
        shares[shares.sum(axis=1) == 0] = 1.0
    sums = (0.5 + draw.uniforms((case.key, "weight_sums"), (T, 1))) * case.spec.routing.routed_scaling_factor
    weights: Float64 = shares / shares.sum(axis=1, keepdims=True) * sums
    if case.load == "padding_zero":
        weights = np.where(_padding_tokens(case), 0.0, weights)
    return weights.astype(np.float32)


def weight_norm(case: Case) -> float:
    """Typical root of the sum of squared routing weights: what the second GEMM's weights are scaled against."""
    routing, top_k = case.spec.routing, case.spec.routing.top_k
    factor = routing.routed_scaling_factor
    if case.op not in LAYERS or routing.renormalize or routing.softmax_over_selected:
        return float(factor * np.sqrt(1.1 / top_k))
    logits = router_logits(case)
    logits = np.where(np.isfinite(logits), logits, 0.0)
    scores = 1 / (1 + np.exp(-logits))
    if routing.scoring == "softmax":
        scores = np.exp(logits) / np.maximum(np.exp(logits).sum(axis=1, keepdims=True), 1e-30)
    best = np.sort(scores, axis=1)[:, -top_k:]
    return float(factor * np.sqrt((best**2).sum(axis=1).mean())) if best.size else factor


def _near_ties(rank: npt.NDArray[np.int64], dtype: str) -> Float64:
    """Rank r lies r ulps above 1: neighbours cannot be told apart by a score of lower precision."""
    precision = {"fp32": 23, "fp16": 10, "bf16": 7}[dtype]
    return round_to(1.0 + rank.astype(np.float64) * 2.0**-precision, dtype)


def _extreme_rows(values: Float64) -> Float64:
    """Every eighth row ordinary; the others equal, tiny, huge (exp overflows in fp32), or not finite."""
    rows = np.arange(values.shape[0])
    out = values.copy()
    out[rows % 8 == 1] = 0.75
    out[rows % 8 == 2] = -80.0 + values[rows % 8 == 2]
    out[rows % 8 == 3] = 60.0 + values[rows % 8 == 3]
    out[rows % 8 == 7] = 300.0 + 8 * values[rows % 8 == 7]
    out[rows % 8 == 4, ::2] = -np.inf
    out[rows % 16 == 5] = np.nan
    out[rows % 16 == 13, -1] = np.nan  # one is enough to make a softmax undefined
    out[rows % 8 == 6, 0] = np.inf
    return out


def _block_edges(case: Case) -> npt.NDArray[np.int32]:
    """Counts block - 1, block, block + 1, 0, 2 block, 1 in turn; a run of one expert never meets a token twice."""
    T, E, top_k, block = case.num_tokens, case.num_experts, case.spec.routing.top_k, case.block_size
    wanted = [min(c, T) for c in (block - 1, block, block + 1, 0, 2 * block, 1)]
    counts, left = np.zeros(E, np.int64), T * top_k
    for e in range(E):
        counts[e] = min(wanted[e % len(wanted)], left)
        left -= counts[e]
    for e in range(E):  # what remains fills up the later experts, never beyond one row per token
        more = min(T - counts[E - 1 - e], left)
        counts[E - 1 - e] += more
        left -= more
    return np.repeat(np.arange(E), counts).reshape(top_k, T).T.astype(np.int32)
