"""How much there is to do in one call: floating-point operations and bytes, counted from shapes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moecheck.cases import Case
from moecheck.elements import ELEMENTS
from moecheck.formats import FORMATS
from moecheck.inputs import build
from moecheck.sampled_inputs import experts_of_tokens, lazy_inputs

ID_BYTES, WEIGHT_BYTES = 4, 4  # int32 ids, float32 routing weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """flops: multiplications and additions of matrix products. bytes: read and written once each, at least."""

    flops: float
    bytes: float


def work_of(case: Case) -> Work:
    """The work of a case, whatever a kernel does: intermediate results that it stores or pads are not counted.

    With R (token, slot) pairs that have an expert here, A experts with such pairs, U rows of w13 (2 I, or I ungated),
    and e bytes of an activation: experts take 2 R (U H + H I) flops, and A (U H + H I) weights, T H e bytes of input,
    T H e of output, and ids and routing weights. permute moves (T + R) H e bytes, unpermute as many, act_and_mul
    T (U + I) e, shuffle_rows 2 R H e, topk_routing T E e + 8 T top_k; ops on ids alone the ids and what they return.
    A whole layer is its experts, its router logits in fp32, and its shared experts for every token.
    """
    e, T, H = FORMATS[case.dtype].storage.itemsize, case.num_tokens, case.hidden_size
    top_k, inner = case.spec.routing.top_k, case.intermediate_size
    wide = inner * (2 if case.spec.experts.gated else 1)
    if case.op in ("fused_experts", "moe_layer"):
        return _layer(case)
    pairs = T * top_k
    moved = {
        "topk_routing": T * case.num_experts * e + pairs * (ID_BYTES + WEIGHT_BYTES),
        "permute": (T + pairs) * H * e + 2 * pairs * ID_BYTES,
        "unpermute": (T + pairs) * H * e + pairs * (ID_BYTES + WEIGHT_BYTES),
        "shuffle_rows": 2 * pairs * H * e + pairs * ID_BYTES,
        "act_and_mul": T * (wide + inner) * e,
        "align_block_size": 2 * pairs * ID_BYTES,
        "expert_counts": (pairs + case.num_experts) * ID_BYTES,
        "problem_sizes": (pairs + 7 * case.num_experts) * ID_BYTES,
    }
    flops = 2 * pairs * H if case.op == "unpermute" else 0
    return Work(flops=float(flops), bytes=float(moved[case.op]))


def _layer(case: Case) -> Work:
    experts = experts_of_tokens(case, lazy_inputs(case) if case.sampled else build(case))
    assert experts is not None
    held = experts[experts >= 0]
    e, T, H = FORMATS[case.dtype].storage.itemsize, case.num_tokens, case.hidden_size
    width = case.latent_size or H
    of_expert = case.intermediate_size * width * (3 if case.spec.experts.gated else 2)
    flops = 2.0 * held.size * of_expert
    total = len(np.unique(held)) * of_expert * _bytes_of_weight(case) + 2.0 * T * H * e
    total += T * case.spec.routing.top_k * (ID_BYTES + WEIGHT_BYTES) if case.op == "fused_experts" else 0.0
    if case.op == "moe_layer":
        total += 4.0 * T * case.num_experts
        shared = case.shared_intermediate_size * H * (3 if case.spec.shared.gated else 2)
        flops += 2.0 * T * shared
        total += shared * e
        flops += 4.0 * T * H * case.latent_size
        total += 2.0 * H * case.latent_size * e
    return Work(flops=flops, bytes=total)


def _bytes_of_weight(case: Case) -> float:
    """Of one expert's weight, with its share of a scale of four bytes."""
    quantization = case.spec.experts.quantization
    if quantization is None:
        return float(FORMATS[case.dtype].storage.itemsize)
    block = (quantization.rows or case.hidden_size) * (quantization.columns or case.hidden_size)
    scale = {"e8m0": 1, "e4m3": 1, "input": FORMATS[case.dtype].storage.itemsize}.get(quantization.scale, 4)
    bits = ELEMENTS[quantization.weights].bits
    return (0.5 if bits == 4 else 1.0) + scale / block
