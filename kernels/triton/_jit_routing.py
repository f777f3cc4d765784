# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
# (a Triton function is written in Triton's own language: its arguments are pointers and its types are tiles)
"""Device code: top-k routing by top_k rounds of argmax over one tile of all experts."""

import triton
import triton.language as tl


@triton.jit
def topk_routing_kernel(
    logits, bias, topk_weights, topk_ids, num_tokens, num_experts, stride_logits, eps, factor,
    TOP_K: tl.constexpr, SCORING: tl.constexpr, BY_LOGITS: tl.constexpr, OVER_SELECTED: tl.constexpr,
    HAS_BIAS: tl.constexpr, RENORMALIZE: tl.constexpr, EPS_RULE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Scores in fp32, ties to the lowest id, non-finite scores as 0. BLOCK_E >= num_experts, BLOCK_S >= TOP_K."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, BLOCK_E)
    known, is_expert = (token < num_tokens)[:, None], (column < num_experts)[None, :]
    place = logits + token.to(tl.int64)[:, None] * stride_logits + column[None, :]
    given = tl.load(place, mask=known & is_expert, other=float("-inf")).to(tl.float32)

    is_nan = given != given
    ordered = tl.where(is_nan, float("-inf"), given)
    largest = tl.max(ordered, axis=1)[:, None]
    finite = (largest > float("-inf")) & (largest < float("inf")) & (tl.sum(is_nan.to(tl.int32), axis=1) == 0)[:, None]
    if SCORING == "sigmoid":
        scores = tl.where(is_nan, 0.0, 1.0 / (1.0 + tl.exp(-ordered)))
    else:
        powers = tl.exp(tl.where(finite, ordered - largest, float("-inf")))
        scores = tl.where(finite, powers / tl.sum(powers, axis=1)[:, None], 0.0)
    choice = tl.where(finite, ordered, 0.0) if BY_LOGITS else scores
    if HAS_BIAS:
        choice += tl.load(bias + column, mask=column < num_experts, other=0.0)[None, :]

    # A chosen expert leaves by its mark, not by -Inf, which an expert that is switched off may have as well.
    left = is_expert & known
    slot = tl.arange(0, BLOCK_S)[None, :]
    weights = tl.zeros((BLOCK_T, BLOCK_S), dtype=tl.float32)
    ids = tl.zeros((BLOCK_T, BLOCK_S), dtype=tl.int32)
    source = ordered if OVER_SELECTED else scores
    for i in range(TOP_K):
        best = tl.max(tl.where(left, choice, float("-inf")), axis=1)[:, None]
        first = tl.min(tl.where(left & (choice == best), column[None, :], BLOCK_E), axis=1)[:, None]
        taken = column[None, :] == first
        weights = tl.where(slot == i, tl.max(tl.where(taken, source, float("-inf")), axis=1)[:, None], weights)
        ids = tl.where(slot == i, first, ids)
        left = left & (column[None, :] != first)

    is_slot = slot < TOP_K
    if OVER_SELECTED:
        kept = tl.where(finite & is_slot, weights - largest, float("-inf"))
        powers = tl.exp(kept)
        weights = tl.where(finite & is_slot, powers / tl.sum(powers, axis=1)[:, None], 0.0)
    if RENORMALIZE:
        total = tl.sum(tl.where(is_slot, weights, 0.0), axis=1)[:, None]
        if EPS_RULE == "add":
            total += eps
        elif EPS_RULE == "clamp_min":
            total = tl.maximum(total, eps)
        elif EPS_RULE == "where_positive":
            total = tl.where(total > 0, total, 1.0)
        weights = weights / total
    at = token.to(tl.int64)[:, None] * TOP_K + slot
    tl.store(topk_weights + at, weights * factor, mask=known & is_slot)
    tl.store(topk_ids + at, ids, mask=known & is_slot)
