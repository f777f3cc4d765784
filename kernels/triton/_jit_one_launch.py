# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
# (a Triton function is written in Triton's own language: its arguments are pointers and its types are tiles)
"""Device code: both GEMMs of fp8 experts, the activation and the requantisation between them, in one launch.

Programs take tasks by a ticket, in order: first all tiles of h = act(gate) * up, block by block, then all tiles of
W2 h. A program that multiplies h waits until its block's tiles of h are stored; these have smaller tickets, so programs
that run hold them and never wait: there is no deadlock, however few programs run at a time.
"""

import triton
import triton.language as tl

from ._jit_align import experts_of
from ._jit_gemm import gated


@triton.jit
def hidden_tile(
    x, x_scale, w13, w13_scale, h, pairs, num_pairs, expert, tile, inter, hidden,
    stride_x, stride_xs, stride_we, stride_wn, stride_se, stride_sn,
    TOP_K: tl.constexpr, CHUNK: tl.constexpr, SCALES_IN_TURNS: tl.constexpr, GROUP: tl.constexpr,
    NATIVE: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, UP_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h[pair, UP_N columns] = act(W_gate x) * (W_up x) in fp32, of codes whose scales are applied group by group.

    The product's columns are gate and up in turns, so that `split` moves nothing between threads. CHUNK: rows of gates
    ahead of as many of ups in w13, 0 for halves. SCALES_IN_TURNS: scales of blocks of gates and of ups alternate.
    """
    valid = pairs < num_pairs
    turns = 2 * tile * UP_N + tl.arange(0, 2 * UP_N)
    unit, is_up = turns // 2, turns % 2
    existing = unit < inter
    if CHUNK == 0:
        w_rows = unit + is_up * inter
    else:
        start = unit // CHUNK * CHUNK
        w_rows = unit + start + is_up * tl.minimum(CHUNK, inter - start)
    scale_rows = 2 * (unit // GROUP) + is_up if SCALES_IN_TURNS else w_rows // GROUP

    tokens = (pairs // TOP_K).to(tl.int64)
    x_rows = x + tokens[:, None] * stride_x
    of_rows = x_scale + tokens * stride_xs
    w_columns = w13 + expert * stride_we + w_rows.to(tl.int64)[None, :] * stride_wn
    of_columns = w13_scale + expert * stride_se + scale_rows.to(tl.int64) * stride_sn
    total = tl.zeros((ROWS, 2 * UP_N), dtype=tl.float32)
    for first in range(0, hidden, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        a = tl.load(x_rows + k[None, :], mask=valid[:, None] & (k < hidden)[None, :], other=0.0)
        b = tl.load(w_columns + k[:, None], mask=(k < hidden)[:, None] & existing[None, :], other=0.0)
        if not NATIVE:
            a, b = a.to(tl.float16), b.to(tl.float16)
        a_scale = tl.load(of_rows + first // GROUP, mask=valid, other=0.0)
        b_scale = tl.load(of_columns + first // GROUP, mask=existing, other=0.0)
        total += tl.dot(a, b) * (a_scale[:, None] * b_scale[None, :])
    gate, up = tl.split(tl.reshape(total, (ROWS, UP_N, 2)))
    columns = tile * UP_N + tl.arange(0, UP_N)
    mask = valid[:, None] & (columns < inter)[None, :]
    value = gated(gate, up, LIMIT, ALPHA, BETA, ACTIVATION)
    tl.store(h + pairs.to(tl.int64)[:, None] * inter + columns[None, :], value, mask=mask)


@triton.jit
def output_tile(
    h, w2, w2_scale, pairs, num_pairs, expert, columns, inter, hidden, stride_we, stride_wn, stride_se, stride_sn,
    LARGEST: tl.constexpr, LEAST_AMAX: tl.constexpr, GROUP: tl.constexpr, NATIVE: tl.constexpr,
    ROWS: tl.constexpr, DOWN_N: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """[ROWS, DOWN_N]: W2 q(h), each GROUP columns of h rounded to e4m3 by a scale of their own; BLOCK_H <= GROUP.

    Other programs wrote h: it is read past the first-level cache.
    """
    valid, inside = pairs < num_pairs, columns < hidden
    h_rows = h + pairs.to(tl.int64)[:, None] * inter
    w_columns = w2 + expert * stride_we + columns.to(tl.int64)[None, :] * stride_wn
    of_columns = w2_scale + expert * stride_se + (columns // GROUP).to(tl.int64) * stride_sn
    total = tl.zeros((ROWS, DOWN_N), dtype=tl.float32)
    for first in range(0, inter, GROUP):
        k = first + tl.arange(0, BLOCK_H)
        value = tl.load(
            h_rows + k[None, :], mask=valid[:, None] & (k < inter)[None, :], other=0.0, cache_modifier=".cg"
        )
        amax = tl.maximum(tl.max(tl.abs(value), axis=1), LEAST_AMAX)
        scale = tl.div_rn(amax, tl.zeros_like(amax) + LARGEST)
        quotient = tl.div_rn(value, tl.zeros_like(value) + scale[:, None])
        a = tl.minimum(tl.maximum(quotient, -LARGEST), LARGEST).to(w2.dtype.element_ty)
        b = tl.load(w_columns + k[:, None], mask=(k < inter)[:, None] & inside[None, :], other=0.0)
        if not NATIVE:
            a, b = a.to(tl.float16), b.to(tl.float16)
        b_scale = tl.load(of_columns + first // GROUP, mask=inside, other=0.0)
        total += tl.dot(a, b) * (scale[:, None] * b_scale[None, :])
    return total


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def one_launch_kernel(
    x, x_scale, w13, w13_scale, w2, w2_scale, topk_weights, topk_ids, expert_map, h, parts, out,
    ticket, ready, arrived, sorted_token_ids, expert_ids, num_tokens_post_padded, num_pairs, num_blocks, inter, hidden,
    stride_x, stride_xs, stride_w13e, stride_w13n, stride_s13e, stride_s13n,
    stride_w2e, stride_w2n, stride_s2e, stride_s2n,
    TOP_K: tl.constexpr, SLOTS: tl.constexpr, HAS_MAP: tl.constexpr, WEIGHTED: tl.constexpr, ORDERED: tl.constexpr,
    CHUNK: tl.constexpr, SCALES_IN_TURNS: tl.constexpr, GROUP: tl.constexpr, NATIVE: tl.constexpr,
    LARGEST: tl.constexpr, LEAST_AMAX: tl.constexpr,
    LIMIT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, ROWS: tl.constexpr, UP_N: tl.constexpr, DOWN_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """out[token] = sum over its slots of weight * W2 q(act(W_gate x) * W_up x), rounded once.

    x, x_scale: codes [T, hidden] and scales of GROUP columns each. h: [pairs, inter] fp32, written before it is read.
    ORDERED: parts [pairs, hidden] takes each slot's share, and the last program to arrive at a token adds them in the
    order of the slots; else parts [T, hidden] holds zeros, to which programs add in any order. ticket, ready [blocks],
    arrived [T, column tiles]: zeros. out: zeros, for tokens without an expert here. SLOTS: a power of two >= TOP_K.
    """
    task = tl.atomic_add(ticket, 1)
    used = tl.load(num_tokens_post_padded) // BLOCK_M
    up_tiles, down_tiles = tl.cdiv(inter, UP_N), tl.cdiv(hidden, DOWN_N)
    of_hidden = task < used * up_tiles
    later = task - used * up_tiles
    if later >= used * down_tiles:
        return
    block = tl.where(of_hidden, task // up_tiles, later // down_tiles)
    tile = tl.where(of_hidden, task % up_tiles, later % down_tiles)
    row = tl.arange(0, ROWS)
    pairs = tl.load(sorted_token_ids + block * BLOCK_M + row, mask=row < BLOCK_M, other=num_pairs)
    expert = tl.load(expert_ids + block).to(tl.int64)
    if of_hidden:
        hidden_tile(
            x, x_scale, w13, w13_scale, h, pairs, num_pairs, expert, tile, inter, hidden,
            stride_x, stride_xs, stride_w13e, stride_w13n, stride_s13e, stride_s13n,
            TOP_K, CHUNK, SCALES_IN_TURNS, GROUP, NATIVE, LIMIT, ALPHA, BETA, ACTIVATION, ROWS, UP_N, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()  # all of the tile is stored before it counts
        tl.atomic_add(ready + block, 1, sem="acq_rel")
        return

    while tl.atomic_add(ready + block, 0, sem="acq_rel") < up_tiles:
        pass
    tl.debug_barrier()
    valid = pairs < num_pairs
    columns = tile * DOWN_N + tl.arange(0, DOWN_N)
    share = output_tile(
        h, w2, w2_scale, pairs, num_pairs, expert, columns, inter, hidden,
        stride_w2e, stride_w2n, stride_s2e, stride_s2n, LARGEST, LEAST_AMAX, GROUP, NATIVE, ROWS, DOWN_N, BLOCK_H,
    )  # fmt: skip
    if WEIGHTED:
        share *= tl.load(topk_weights + pairs, mask=valid, other=0.0)[:, None]

    tokens = (pairs // TOP_K).to(tl.int64)
    inside = (columns < hidden)[None, :]
    if ORDERED:
        tl.store(parts + pairs.to(tl.int64)[:, None] * hidden + columns[None, :], share, mask=valid[:, None] & inside)
    else:
        tl.atomic_add(
            parts + tokens[:, None] * hidden + columns[None, :], share, mask=valid[:, None] & inside, sem="relaxed"
        )
    tl.debug_barrier()
    before = tl.atomic_add(arrived + tokens * down_tiles + tile, 1, mask=valid, sem="acq_rel")
    slots = tl.arange(0, SLOTS)[None, :]
    at = tl.where(slots < TOP_K, tokens[:, None] * TOP_K + slots, num_pairs)
    here = experts_of(topk_ids, expert_map, at, num_pairs, HAS_MAP, True) >= 0
    last = valid & (before == tl.sum(here.to(tl.int32), axis=1) - 1)
    tl.debug_barrier()
    mask = last[:, None] & inside
    if ORDERED:
        total = tl.zeros((ROWS, DOWN_N), dtype=tl.float32)
        for slot in range(TOP_K):
            pair = tokens * TOP_K + slot
            taken = tl.sum((here & (slots == slot)).to(tl.int32), axis=1) > 0
            total += tl.load(
                parts + pair[:, None] * hidden + columns[None, :], mask=mask & taken[:, None], other=0.0,
                cache_modifier=".cg",
            )  # fmt: skip
    else:
        total = tl.load(parts + tokens[:, None] * hidden + columns[None, :], mask=mask, other=0.0, cache_modifier=".cg")
    tl.store(out + tokens[:, None] * hidden + columns[None, :], total.to(out.dtype.element_ty), mask=mask)
