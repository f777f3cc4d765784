# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
# (a Triton function is written in Triton's own language: its arguments are pointers and its types are tiles)
"""Device code: quantising rows in groups, and grouped GEMMs of codes whose scales are applied block by block."""

import triton
import triton.language as tl


@triton.jit
def quantise_rows_kernel(
    x, codes, scales, width, stride_x, stride_codes, stride_scales,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr, LEAST_AMAX: tl.constexpr, INTEGER: tl.constexpr,
):  # fmt: skip
    """codes[row, group] = sat(round(x / s)), scales[row, group] = s = max(amax, LEAST_AMAX) / LARGEST; fp32."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    offsets = tl.arange(0, BLOCK)
    columns = group * GROUP + offsets
    inside = (offsets < GROUP) & (columns < width)
    values = tl.load(x + row * stride_x + columns, mask=inside, other=0.0).to(tl.float32)
    amax = tl.maximum(tl.max(tl.abs(values), axis=0), LEAST_AMAX)
    scale = tl.div_rn(amax, tl.full((), LARGEST, tl.float32))
    quotient = tl.div_rn(values, tl.zeros_like(values) + scale)
    quotient = tl.minimum(tl.maximum(quotient, -LARGEST), LARGEST)
    if INTEGER:  # adding and subtracting 1.5 * 2^23 leaves the nearest integer, ties to even
        quotient = (quotient + 12582912.0) - 12582912.0
    tl.store(codes + row * stride_codes + columns, quotient.to(codes.dtype.element_ty), mask=inside)
    tl.store(scales + row * stride_scales + group, scale)


@triton.jit
def quantised_gemm_kernel(
    x, x_scale, w, w_scale, bias, topk_weights, y,
    sorted_token_ids, expert_ids, num_tokens_post_padded, num_pairs, outputs, inputs,
    stride_x, stride_xs, stride_we, stride_wn, stride_se, stride_sn, stride_bias, stride_y,
    PAIRS_PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, WEIGHTED: tl.constexpr, INTEGER: tl.constexpr,
    SCALE_ROWS: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y[pair] = sum over groups of GROUP columns of (codes of W) (codes of x) times both scales, + bias, weighted.

    GROUP is a multiple of BLOCK_K, or as wide as the sum. SCALE_ROWS: rows of W that share a scale.
    """
    block = tl.program_id(0)
    if block * BLOCK_M >= tl.load(num_tokens_post_padded):
        return
    pairs = tl.load(sorted_token_ids + block * BLOCK_M + tl.arange(0, BLOCK_M))
    valid = pairs < num_pairs
    expert = tl.load(expert_ids + block).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < outputs

    rows = (pairs // PAIRS_PER_ROW).to(tl.int64)
    x_rows = x + rows[:, None] * stride_x
    w_columns = w + expert * stride_we + columns.to(tl.int64)[None, :] * stride_wn
    of_columns = w_scale + expert * stride_se + (columns // SCALE_ROWS).to(tl.int64) * stride_sn
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, inputs, GROUP):
        group = start // GROUP
        if INTEGER:
            part = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        else:
            part = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for first in range(start, min(start + GROUP, inputs), BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            a = tl.load(x_rows + k[None, :], mask=valid[:, None] & (k < inputs)[None, :], other=0.0)
            b = tl.load(w_columns + k[:, None], mask=(k < inputs)[:, None] & inside[None, :], other=0.0)
            if INTEGER:
                part = tl.dot(a, b, part, out_dtype=tl.int32)
            else:  # fp16 holds e4m3 exactly, and its products are summed in fp32 where those of fp8 keep 14 bits
                part = tl.dot(a.to(tl.float16), b.to(tl.float16), part)
        a_scale = tl.load(x_scale + rows * stride_xs + group, mask=valid, other=0.0)
        b_scale = tl.load(of_columns + group, mask=inside, other=0.0)
        total += part.to(tl.float32) * (a_scale[:, None] * b_scale[None, :])
    if HAS_BIAS:
        total += tl.load(bias + expert * stride_bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if WEIGHTED:
        total *= tl.load(topk_weights + pairs, mask=valid, other=0.0)[:, None]
    y_rows = y + pairs.to(tl.int64)[:, None] * stride_y
    tl.store(y_rows + columns[None, :], total.to(y.dtype.element_ty), mask=valid[:, None] & inside[None, :])
