# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
# (a Triton function is written in Triton's own language: its arguments are pointers and its types are tiles)
"""Device code: grouped GEMMs over blocks of one expert each.

A block's rows are pairs = token * top_k + slot from sorted_token_ids, its weights are those of expert_ids[block].
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
def gate_up_kernel(
    x, w13, bias, h, sorted_token_ids, expert_ids, num_tokens_post_padded, num_pairs, inter, hidden,
    stride_x, stride_we, stride_wn, stride_bias, stride_h,
    TOP_K: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_BIAS: tl.constexpr,
    LIMIT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h[pair] = act(W_gate x) * (W_up x), both products accumulated in fp32 and stored once, as h."""
    block = tl.program_id(0)
    if block * BLOCK_M >= tl.load(num_tokens_post_padded):
        return
    pairs = tl.load(sorted_token_ids + block * BLOCK_M + tl.arange(0, BLOCK_M))
    valid = pairs < num_pairs
    expert = tl.load(expert_ids + block).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < inter
    if INTERLEAVED:
        gate_rows, up_rows = 2 * columns, 2 * columns + 1
    else:
        gate_rows, up_rows = columns, columns + inter

    x_rows = x + (pairs // TOP_K).to(tl.int64)[:, None] * stride_x
    gate_w = w13 + expert * stride_we + gate_rows.to(tl.int64)[None, :] * stride_wn
    up_w = w13 + expert * stride_we + up_rows.to(tl.int64)[None, :] * stride_wn
    gate = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, hidden, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x_rows + k[None, :], mask=valid[:, None] & (k < hidden)[None, :], other=0.0)
        mask = (k < hidden)[:, None] & inside[None, :]
        gate = tl.dot(a, tl.load(gate_w + k[:, None], mask=mask, other=0.0), gate, input_precision="ieee")
        up = tl.dot(a, tl.load(up_w + k[:, None], mask=mask, other=0.0), up, input_precision="ieee")
    if HAS_BIAS:
        expert_bias = bias + expert * stride_bias
        gate += tl.load(expert_bias + gate_rows, mask=inside, other=0.0).to(tl.float32)[None, :]
        up += tl.load(expert_bias + up_rows, mask=inside, other=0.0).to(tl.float32)[None, :]
    out = gated(gate, up, LIMIT, ALPHA, BETA, ACTIVATION)
    h_rows = h + pairs.to(tl.int64)[:, None] * stride_h
    tl.store(h_rows + columns[None, :], out.to(h.dtype.element_ty), mask=valid[:, None] & inside[None, :])


@triton.jit
def grouped_gemm_kernel(
    x, w, bias, topk_weights, y, sorted_token_ids, expert_ids, num_tokens_post_padded, num_pairs, outputs, inputs,
    stride_x, stride_we, stride_wn, stride_bias, stride_y,
    PAIRS_PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, WEIGHTED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y[pair] = W x[pair // PAIRS_PER_ROW] + bias, times topk_weights[pair] if WEIGHTED; fp32 until the one store."""
    block = tl.program_id(0)
    if block * BLOCK_M >= tl.load(num_tokens_post_padded):
        return
    pairs = tl.load(sorted_token_ids + block * BLOCK_M + tl.arange(0, BLOCK_M))
    valid = pairs < num_pairs
    expert = tl.load(expert_ids + block).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < outputs

    x_rows = x + (pairs // PAIRS_PER_ROW).to(tl.int64)[:, None] * stride_x
    w_columns = w + expert * stride_we + columns.to(tl.int64)[None, :] * stride_wn
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x_rows + k[None, :], mask=valid[:, None] & (k < inputs)[None, :], other=0.0)
        b = tl.load(w_columns + k[:, None], mask=(k < inputs)[:, None] & inside[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + expert * stride_bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if WEIGHTED:
        total *= tl.load(topk_weights + pairs, mask=valid, other=0.0)[:, None]
    y_rows = y + pairs.to(tl.int64)[:, None] * stride_y
    tl.store(y_rows + columns[None, :], total.to(y.dtype.element_ty), mask=valid[:, None] & inside[None, :])
