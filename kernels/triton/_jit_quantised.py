# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
# (a Triton function is written in Triton's own language: its arguments are pointers and its types are tiles)
"""Device code: quantising rows in groups, and grouped GEMMs of codes whose scales are applied block by block."""

import triton
import triton.language as tl

from ._jit_gemm import tile_of_program


@triton.jit
def quantise_rows_kernel(
    x, weights, codes, scales, width, stride_x, stride_codes, stride_scales,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr, LEAST_AMAX: tl.constexpr, INTEGER: tl.constexpr,
    STATIC: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """codes[row, group] = sat(round(x / s)), scales[row, group] = s = max(amax, LEAST_AMAX) / LARGEST; fp32.

    STATIC: scales holds the one s that is given. WEIGHTED: x is weights[row] x, stored in its own dtype first.
    """
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    offsets = tl.arange(0, BLOCK)
    columns = group * GROUP + offsets
    inside = (offsets < GROUP) & (columns < width)
    values = tl.load(x + row * stride_x + columns, mask=inside, other=0.0).to(tl.float32)
    if WEIGHTED:
        values = (values * tl.load(weights + row)).to(x.dtype.element_ty).to(tl.float32)
    if STATIC:
        scale = tl.load(scales)
    else:
        amax = tl.maximum(tl.max(tl.abs(values), axis=0), LEAST_AMAX)
        scale = tl.div_rn(amax, tl.full((), LARGEST, tl.float32))
    quotient = tl.div_rn(values, tl.zeros_like(values) + scale)
    quotient = tl.minimum(tl.maximum(quotient, -LARGEST), LARGEST)
    if INTEGER:  # adding and subtracting 1.5 * 2^23 leaves the nearest integer, ties to even
        quotient = (quotient + 12582912.0) - 12582912.0
    tl.store(codes + row * stride_codes + columns, quotient.to(codes.dtype.element_ty), mask=inside)
    if not STATIC:
        tl.store(scales + row * stride_scales + group, scale)


@triton.jit(do_not_specialize=["num_pairs", "group_m"])
def quantised_gemm_kernel(
    x, x_scale, w, w_scale, bias, topk_weights, y,
    sorted_token_ids, expert_ids, num_tokens_post_padded, num_pairs, outputs, inputs,
    stride_x, stride_xs, stride_we, stride_wn, stride_se, stride_sn, stride_bias, stride_y, group_m,
    PAIRS_PER_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, WEIGHTED: tl.constexpr, INTEGER: tl.constexpr,
    SCALE_ROWS: tl.constexpr, GROUP: tl.constexpr, NATIVE: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y[pair] = sum over groups of GROUP columns of (codes of W) (codes of x) times both scales, + bias, weighted.

    GROUP: a multiple of BLOCK_K, or 0 for one scale a row. SCALE_ROWS: rows of W that share a scale; strides of 0 are
    those of scales that all rows share. NATIVE: fp8 tensor cores, which keep 14 bits of a sum, up to 128 terms of it in
    groups; else fp16, which holds e4m3 exactly, and sums in fp32.
    """
    padded_rows = tl.load(num_tokens_post_padded)
    block, column_tile = tile_of_program(padded_rows, tl.cdiv(outputs, BLOCK_N), group_m, BLOCK_M)
    if block * BLOCK_M >= padded_rows:
        return
    pairs = tl.load(sorted_token_ids + block * BLOCK_M + tl.arange(0, BLOCK_M))
    valid = pairs < num_pairs
    expert = tl.load(expert_ids + block).to(tl.int64)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < outputs

    rows = (pairs // PAIRS_PER_ROW).to(tl.int64)
    x_rows = x + rows[:, None] * stride_x
    w_columns = w + expert * stride_we + columns.to(tl.int64)[None, :] * stride_wn
    of_rows = x_scale + rows * stride_xs
    of_columns = w_scale + expert * stride_se + (columns // SCALE_ROWS).to(tl.int64) * stride_sn
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32 if INTEGER else tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if EVEN_K:
            a = tl.load(x_rows + k[None, :], mask=valid[:, None], other=0.0)
        else:
            a = tl.load(x_rows + k[None, :], mask=valid[:, None] & (k < inputs)[None, :], other=0.0)
        if EVEN_K and EVEN_N:
            b = tl.load(w_columns + k[:, None])
        else:
            b = tl.load(w_columns + k[:, None], mask=(k < inputs)[:, None] & inside[None, :], other=0.0)
        if INTEGER:
            total = tl.dot(a, b, total, out_dtype=tl.int32)
        else:
            if not NATIVE:
                a, b = a.to(tl.float16), b.to(tl.float16)
            if GROUP:
                a_scale = tl.load(of_rows + start // GROUP, mask=valid, other=0.0)
                b_scale = tl.load(of_columns + start // GROUP, mask=inside, other=0.0)
                total += tl.dot(a, b) * (a_scale[:, None] * b_scale[None, :])
            else:
                total = tl.dot(a, b, total)
    if GROUP:
        out = total
    else:
        a_scale, b_scale = tl.load(of_rows, mask=valid, other=0.0), tl.load(of_columns, mask=inside, other=0.0)
        out = total.to(tl.float32) * (a_scale[:, None] * b_scale[None, :])
    if HAS_BIAS:
        out += tl.load(bias + expert * stride_bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if WEIGHTED:
        out *= tl.load(topk_weights + pairs, mask=valid, other=0.0)[:, None]
    y_rows = y + pairs.to(tl.int64)[:, None] * stride_y
    tl.store(y_rows + columns[None, :], out.to(y.dtype.element_ty), mask=valid[:, None] & inside[None, :])
