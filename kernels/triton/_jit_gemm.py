# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
# (a Triton function is written in Triton's own language: its arguments are pointers and its types are tiles)
"""Device code: grouped GEMMs over blocks of one expert each.

A block's rows are pairs = token * top_k + slot from sorted_token_ids, its weights are those of expert_ids[block].
EVEN_K, EVEN_N: the sizes are multiples of the tiles, so that the loops need no masks on them.
"""

import triton
import triton.language as tl


@triton.jit
def activate(gate, ALPHA: tl.constexpr, ACTIVATION: tl.constexpr):
    """silu(gate) = gate * sigmoid(alpha * gate), or gelu by tanh, where 0.5 (1 + tanh z) = sigmoid(2 z)."""
    if ACTIVATION == "silu":  # noqa: SIM108  # a branch at compile time
        z = ALPHA * gate
    else:
        z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    return gate / (1.0 + tl.exp(-z))


@triton.jit
def gated(gate, up, LIMIT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, ACTIVATION: tl.constexpr):
    """act(min(gate, L)) * (clip(up, -L, L) + beta); LIMIT = 0 is no limit; float32."""
    if LIMIT > 0:
        gate = tl.minimum(gate, LIMIT)
        up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
    return activate(gate, ALPHA, ACTIVATION) * (up + BETA)


@triton.jit
def tile_of_program(padded_rows, column_tiles, group_m, BLOCK_M: tl.constexpr):
    """Block of rows and tile of columns of this program; a block beyond the last one where it has nothing to do.

    group_m blocks of rows take turns at one tile of columns, so that blocks of one expert share its weights in L2.
    """
    blocks = padded_rows // BLOCK_M
    program = tl.program_id(0)
    group = program // (group_m * column_tiles)
    size = tl.maximum(tl.minimum(blocks - group * group_m, group_m), 1)
    inside = program % (group_m * column_tiles)
    return tl.where(program < blocks * column_tiles, group * group_m + inside % size, blocks), inside // size


@triton.jit
def gate_up_tile(
    x, w13, bias, topk_weights, h, sorted_token_ids, expert, column_tile, num_pairs, inter, hidden,
    stride_x, stride_we, stride_wn, stride_bias, stride_h,
    TOP_K: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_BIAS: tl.constexpr, WEIGHTED: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    LIMIT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h[pair] = act(W_gate x) * (W_up x), both products accumulated in fp32 and stored once, as h.

    One product with the rows of gate and up taken in turns: an accumulator's neighbours are then a gate and its up.
    WEIGHTED: the routing weight multiplies x, which is stored in its own dtype.
    """
    pairs = tl.load(sorted_token_ids + tl.arange(0, BLOCK_M))
    valid = pairs < num_pairs
    turns = 2 * column_tile * BLOCK_N + tl.arange(0, 2 * BLOCK_N)
    existing = turns < 2 * inter
    w_rows = turns if INTERLEAVED else turns // 2 + turns % 2 * inter

    x_rows = x + (pairs // TOP_K).to(tl.int64)[:, None] * stride_x
    w_columns = w13 + expert * stride_we + w_rows.to(tl.int64)[None, :] * stride_wn
    weight = tl.load(topk_weights + pairs, mask=valid, other=0.0)[:, None] if WEIGHTED else 1.0
    total = tl.zeros((BLOCK_M, 2 * BLOCK_N), dtype=tl.float32)
    for start in range(0, hidden, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if EVEN_K:
            a = tl.load(x_rows + k[None, :], mask=valid[:, None], other=0.0)
        else:
            a = tl.load(x_rows + k[None, :], mask=valid[:, None] & (k < hidden)[None, :], other=0.0)
        if WEIGHTED:
            a = (a * weight).to(x.dtype.element_ty)
        if EVEN_K and EVEN_N:
            b = tl.load(w_columns + k[:, None])
        else:
            b = tl.load(w_columns + k[:, None], mask=(k < hidden)[:, None] & existing[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + expert * stride_bias + w_rows, mask=existing, other=0.0).to(tl.float32)[None, :]
    gate, up = tl.split(tl.reshape(total, (BLOCK_M, BLOCK_N, 2)))
    out = gated(gate, up, LIMIT, ALPHA, BETA, ACTIVATION)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < inter
    h_rows = h + pairs.to(tl.int64)[:, None] * stride_h
    tl.store(h_rows + columns[None, :], out.to(h.dtype.element_ty), mask=valid[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["num_pairs", "group_m"])
def gate_up_kernel(
    x, w13, bias, topk_weights, h, sorted_token_ids, expert_ids, num_tokens_post_padded, num_pairs, inter, hidden,
    stride_x, stride_we, stride_wn, stride_bias, stride_h, group_m,
    TOP_K: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_BIAS: tl.constexpr, WEIGHTED: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    LIMIT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LEAST_M: tl.constexpr,
):  # fmt: skip
    """gate_up_tile for each block and tile of columns; with LEAST_M rows where a block's last pairs are padding."""
    padded_rows = tl.load(num_tokens_post_padded)
    block, column_tile = tile_of_program(padded_rows, tl.cdiv(inter, BLOCK_N), group_m, BLOCK_M)
    if block * BLOCK_M >= padded_rows:
        return
    first_pair = sorted_token_ids + block * BLOCK_M
    expert = tl.load(expert_ids + block).to(tl.int64)
    if LEAST_M < BLOCK_M:  # noqa: SIM102  # a branch at compile time
        if tl.load(first_pair + LEAST_M) >= num_pairs:
            gate_up_tile(
                x, w13, bias, topk_weights, h, first_pair, expert, column_tile, num_pairs, inter, hidden,
                stride_x, stride_we, stride_wn, stride_bias, stride_h,
                TOP_K, INTERLEAVED, HAS_BIAS, WEIGHTED, EVEN_N, EVEN_K, LIMIT, ALPHA, BETA, ACTIVATION,
                LEAST_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            return
    gate_up_tile(
        x, w13, bias, topk_weights, h, first_pair, expert, column_tile, num_pairs, inter, hidden,
        stride_x, stride_we, stride_wn, stride_bias, stride_h,
        TOP_K, INTERLEAVED, HAS_BIAS, WEIGHTED, EVEN_N, EVEN_K, LIMIT, ALPHA, BETA, ACTIVATION,
        BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip


@triton.jit
def grouped_gemm_tile(
    x, w, bias, topk_weights, y, sorted_token_ids, expert, column_tile, num_pairs, outputs, inputs,
    stride_x, stride_we, stride_wn, stride_bias, stride_y,
    PAIRS_PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, WEIGHTED: tl.constexpr, ON_INPUT: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y[pair] = W x[pair // PAIRS_PER_ROW] + bias, times topk_weights[pair] if WEIGHTED; fp32 until the one store.

    ON_INPUT: the weight multiplies x instead, which is stored in its own dtype.
    """
    pairs = tl.load(sorted_token_ids + tl.arange(0, BLOCK_M))
    valid = pairs < num_pairs
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < outputs

    x_rows = x + (pairs // PAIRS_PER_ROW).to(tl.int64)[:, None] * stride_x
    w_columns = w + expert * stride_we + columns.to(tl.int64)[None, :] * stride_wn
    weight = tl.load(topk_weights + pairs, mask=valid, other=0.0)[:, None] if ON_INPUT else 1.0
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if EVEN_K:
            a = tl.load(x_rows + k[None, :], mask=valid[:, None], other=0.0)
        else:
            a = tl.load(x_rows + k[None, :], mask=valid[:, None] & (k < inputs)[None, :], other=0.0)
        if ON_INPUT:
            a = (a * weight).to(x.dtype.element_ty)
        if EVEN_K and EVEN_N:
            b = tl.load(w_columns + k[:, None])
        else:
            b = tl.load(w_columns + k[:, None], mask=(k < inputs)[:, None] & inside[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + expert * stride_bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if WEIGHTED:
        total *= tl.load(topk_weights + pairs, mask=valid, other=0.0)[:, None]
    y_rows = y + pairs.to(tl.int64)[:, None] * stride_y
    tl.store(y_rows + columns[None, :], total.to(y.dtype.element_ty), mask=valid[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["num_pairs", "group_m"])
def grouped_gemm_kernel(
    x, w, bias, topk_weights, y, sorted_token_ids, expert_ids, num_tokens_post_padded, num_pairs, outputs, inputs,
    stride_x, stride_we, stride_wn, stride_bias, stride_y, group_m,
    PAIRS_PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, WEIGHTED: tl.constexpr, ON_INPUT: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LEAST_M: tl.constexpr,
):  # fmt: skip
    """grouped_gemm_tile for each block and tile of columns, as gate_up_kernel."""
    padded_rows = tl.load(num_tokens_post_padded)
    block, column_tile = tile_of_program(padded_rows, tl.cdiv(outputs, BLOCK_N), group_m, BLOCK_M)
    if block * BLOCK_M >= padded_rows:
        return
    first_pair = sorted_token_ids + block * BLOCK_M
    expert = tl.load(expert_ids + block).to(tl.int64)
    if LEAST_M < BLOCK_M:  # noqa: SIM102  # a branch at compile time
        if tl.load(first_pair + LEAST_M) >= num_pairs:
            grouped_gemm_tile(
                x, w, bias, topk_weights, y, first_pair, expert, column_tile, num_pairs, outputs, inputs,
                stride_x, stride_we, stride_wn, stride_bias, stride_y,
                PAIRS_PER_ROW, HAS_BIAS, WEIGHTED, ON_INPUT, EVEN_N, EVEN_K, LEAST_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            return
    grouped_gemm_tile(
        x, w, bias, topk_weights, y, first_pair, expert, column_tile, num_pairs, outputs, inputs,
        stride_x, stride_we, stride_wn, stride_bias, stride_y,
        PAIRS_PER_ROW, HAS_BIAS, WEIGHTED, ON_INPUT, EVEN_N, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
