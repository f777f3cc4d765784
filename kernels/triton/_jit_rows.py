# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
# (a Triton function is written in Triton's own language: its arguments are pointers and its types are tiles)
"""Device code: row-wise kernels around the GEMMs."""

import triton
import triton.language as tl

from ._jit_gemm import gated


@triton.jit(do_not_specialize=["num_rows"])
def gather_rows_kernel(
    x, rows, out, num_rows, width, stride_x, stride_out, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr
):
    """out[i] = x[rows[i]]."""
    i = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    mask = (i < num_rows)[:, None] & (column < width)[None, :]
    source = tl.load(rows + i, mask=i < num_rows, other=0).to(tl.int64)
    values = tl.load(x + source[:, None] * stride_x + column[None, :], mask=mask)
    tl.store(out + i.to(tl.int64)[:, None] * stride_out + column[None, :], values, mask=mask)


@triton.jit(do_not_specialize=["num_tokens"])
def scatter_rows_kernel(
    x, inverse, out, num_tokens, width, column_tiles, stride_x, stride_out,
    TOP_K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """out[inverse[t, slot]] = x[t], which is read once; a negative index writes nothing.

    Neighbouring programs write neighbouring columns of the same rows, and nothing that is written is read again here.
    """
    token = tl.program_id(0) // column_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.program_id(0) % column_tiles * BLOCK_W + tl.arange(0, BLOCK_W)
    known, inside = token < num_tokens, (column < width)[None, :]
    values = tl.load(x + token.to(tl.int64)[:, None] * stride_x + column[None, :], mask=known[:, None] & inside)
    for slot in tl.static_range(TOP_K):
        row = tl.load(inverse + token * TOP_K + slot, mask=known, other=-1).to(tl.int64)
        place = out + row[:, None] * stride_out + column[None, :]
        tl.store(place, values, mask=(row >= 0)[:, None] & inside, cache_modifier=".cs")


@triton.jit(do_not_specialize=["num_tokens"])
def sum_rows_kernel(
    rows, index, weights, expert_map, out, num_tokens, width, stride_rows, stride_out,
    TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, BY_SLOT: tl.constexpr, HAS_MAP: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """out[t] = sum over slots of rows[index[t, slot]], weighted if WEIGHTED, in fp32; a negative index adds nothing.

    BY_SLOT: index holds expert ids; the rows lie in the slots' order, and those of experts elsewhere hold nothing.
    """
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    inside, known = (column < width)[None, :], token < num_tokens
    total = tl.zeros((BLOCK_T, BLOCK_W), dtype=tl.float32)
    for slot in tl.static_range(TOP_K):
        row = tl.load(index + token * TOP_K + slot, mask=known, other=-1).to(tl.int64)
        if BY_SLOT:
            here = row >= 0
            if HAS_MAP:
                here = here & (tl.load(expert_map + row, mask=here, other=-1) >= 0)
            row = tl.where(here, (token * TOP_K + slot).to(tl.int64), -1)
        mask = (row >= 0)[:, None] & inside
        values = tl.load(rows + row[:, None] * stride_rows + column[None, :], mask=mask, other=0.0).to(tl.float32)
        if WEIGHTED:
            values *= tl.load(weights + token * TOP_K + slot, mask=known, other=0.0)[:, None]
        total += tl.where(mask, values, 0.0)
    place = out + token.to(tl.int64)[:, None] * stride_out + column[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=known[:, None] & inside)


@triton.jit(do_not_specialize=["num_rows"])
def act_and_mul_kernel(
    x, h, num_rows, inter, stride_x, stride_h,
    INTERLEAVED: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """h[i] = act(gate) * (up + beta) in fp32, stored once."""
    i = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    mask = (i < num_rows)[:, None] & (column < inter)[None, :]
    if INTERLEAVED:
        gate_column, up_column = 2 * column, 2 * column + 1
    else:
        gate_column, up_column = column, column + inter
    row = x + i.to(tl.int64)[:, None] * stride_x
    gate = tl.load(row + gate_column[None, :], mask=mask, other=0.0).to(tl.float32)
    up = tl.load(row + up_column[None, :], mask=mask, other=0.0).to(tl.float32)
    out = gated(gate, up, LIMIT, ALPHA, BETA, ACTIVATION)
    tl.store(h + i.to(tl.int64)[:, None] * stride_h + column[None, :], out.to(h.dtype.element_ty), mask=mask)
