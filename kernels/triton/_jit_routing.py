# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
# (a Triton function is written in Triton's own language: its arguments are pointers and its types are tiles)
"""Device code: top-k routing by top_k rounds of argmax over one tile of all experts."""

import triton
import triton.language as tl


@triton.jit
def capped(logits, CAP: tl.constexpr):
    """CAP tanh(logits / CAP), by its series near 0, where (1 - e) / (1 + e) would cancel."""
    z = logits / CAP
    square = z * z
    series = 1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835))))
    power = tl.exp(-2.0 * tl.abs(z))
    far = tl.where(z < 0, -1.0, 1.0) * (1.0 - power) / (1.0 + power)
    return CAP * tl.where(tl.abs(z) < 0.25, z * series, far)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), with log1p(t) = log(u) t / (u - 1) for u = 1 + t rounded."""
    power = tl.exp(-tl.abs(x))
    rounded = 1.0 + power
    steps = rounded - 1.0
    log1p = tl.where(steps == 0, power, tl.log(rounded) * power / tl.where(steps == 0, 1.0, steps))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def best_groups(
    choice, GROUPS: tl.constexpr, TOPK_GROUPS: tl.constexpr, TOP2: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Whether each place is of one of the best TOPK_GROUPS groups, by their best or the sum of their best two.

    choice: [BLOCK_T, BLOCK_G * BLOCK_P], -Inf where no expert is. Equal groups: the lowest first.
    """
    grouped = tl.reshape(choice, (BLOCK_T, BLOCK_G, BLOCK_P))
    score = tl.max(grouped, axis=2)
    if TOP2:
        inner = tl.arange(0, BLOCK_P)[None, None, :]
        first = tl.min(tl.where(grouped == score[:, :, None], inner, BLOCK_P), axis=2)
        score += tl.max(tl.where(inner == first[:, :, None], float("-inf"), grouped), axis=2)
    group = tl.arange(0, BLOCK_G)[None, :]
    left = (score == score) & (group < GROUPS)
    kept = left & (group < 0)
    for _ in range(TOPK_GROUPS):
        best = tl.max(tl.where(left, score, float("-inf")), axis=1)[:, None]
        chosen = tl.min(tl.where(left & (score == best), group, BLOCK_G), axis=1)[:, None]
        kept = kept | (group == chosen)
        left = left & (group != chosen)
    each = tl.broadcast_to(kept.to(tl.int32)[:, :, None], (BLOCK_T, BLOCK_G, BLOCK_P))
    return tl.reshape(each, (BLOCK_T, BLOCK_G * BLOCK_P)) > 0


@triton.jit(do_not_specialize=["num_tokens"])
def topk_routing_kernel(
    logits, bias, scale, topk_weights, topk_ids, num_tokens, num_experts, stride_logits, eps, factor, shared_weight,
    TOP_K: tl.constexpr, SHARED: tl.constexpr, SCORING: tl.constexpr, CAP: tl.constexpr, BY_LOGITS: tl.constexpr,
    OVER_SELECTED: tl.constexpr, BIAS: tl.constexpr, HAS_SCALE: tl.constexpr,
    GROUPS: tl.constexpr, TOPK_GROUPS: tl.constexpr, TOP2: tl.constexpr, GROUP_FILL: tl.constexpr,
    RENORMALIZE: tl.constexpr, NORM: tl.constexpr, EPS_RULE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Scores in fp32, ties to the lowest id, non-finite scores as 0; fused shared experts in the slots after TOP_K.

    A tile holds GROUPS groups of experts in BLOCK_G >= GROUPS parts of BLOCK_P places, of which some are empty.
    """
    BLOCK_E: tl.constexpr = BLOCK_G * BLOCK_P
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    place = tl.arange(0, BLOCK_E)
    if GROUPS > 1:
        size = num_experts // GROUPS
        column = tl.where(place % BLOCK_P < size, place // BLOCK_P * size + place % BLOCK_P, num_experts)
    else:
        column = place
    known, is_expert = (token < num_tokens)[:, None], (column < num_experts)[None, :]
    source = logits + token.to(tl.int64)[:, None] * stride_logits + column[None, :]
    given = tl.load(source, mask=known & is_expert, other=float("-inf")).to(tl.float32)
    if CAP > 0:
        given = tl.where(is_expert, capped(given, CAP), float("-inf"))
    if BIAS == "logits":
        given += tl.load(bias + column, mask=column < num_experts, other=0.0)[None, :]

    is_nan = given != given
    ordered = tl.where(is_nan, float("-inf"), given)
    largest = tl.max(ordered, axis=1)[:, None]
    finite = (largest > float("-inf")) & (largest < float("inf")) & (tl.sum(is_nan.to(tl.int32), axis=1) == 0)[:, None]
    if SCORING == "sigmoid":
        scores = tl.where(is_nan, 0.0, 1.0 / (1.0 + tl.exp(-ordered)))
    elif SCORING == "sqrt_softplus":
        scores = tl.where(is_nan | (ordered == float("inf")), 0.0, tl.sqrt(softplus(ordered)))
    else:
        powers = tl.exp(tl.where(finite, ordered - largest, float("-inf")))
        scores = tl.where(finite, powers / tl.sum(powers, axis=1)[:, None], 0.0)
    choice = tl.where(finite, ordered, 0.0) if BY_LOGITS else scores
    if BIAS == "select":
        choice += tl.load(bias + column, mask=column < num_experts, other=0.0)[None, :]
    if GROUPS > 1:
        candidates = tl.where(is_expert, choice, float("-inf"))
        kept = best_groups(candidates, GROUPS, TOPK_GROUPS, TOP2, BLOCK_T, BLOCK_G, BLOCK_P)
        choice = tl.where(kept, choice, GROUP_FILL)

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
        chosen = tl.where(finite & is_slot, weights - largest, float("-inf"))
        powers = tl.exp(chosen)
        weights = tl.where(finite & is_slot, powers / tl.sum(powers, axis=1)[:, None], 0.0)
    if RENORMALIZE:
        routed = tl.where(is_slot, weights, 0.0)
        total = tl.sqrt(tl.sum(routed * routed, axis=1))[:, None] if NORM == 2 else tl.sum(routed, axis=1)[:, None]
        if EPS_RULE == "add":
            total += eps
        elif EPS_RULE == "clamp_min":
            total = tl.maximum(total, eps)
        elif EPS_RULE == "where_positive":
            total = tl.where(total > 0, total, 1.0)
        weights = weights / total
    if HAS_SCALE:
        weights *= tl.load(scale + ids, mask=known & is_slot, other=0.0)
    weights = weights * factor
    if SHARED:
        weights = tl.where(is_slot, weights, shared_weight)
        ids = tl.where(is_slot, ids, num_experts + slot - TOP_K)
    at = token.to(tl.int64)[:, None] * (TOP_K + SHARED) + slot
    tl.store(topk_weights + at, weights, mask=known & (slot < TOP_K + SHARED))
    tl.store(topk_ids + at, ids, mask=known & (slot < TOP_K + SHARED))
