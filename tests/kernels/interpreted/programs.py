# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
# (a Triton function is written in Triton's own language: its arguments are pointers and its types are tiles)
"""The smallest Triton programs that show one operation of the interpreter each."""

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def _cast(x, y, count, ROUNDING: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < count)
    tl.store(y + at, values.to(y.dtype.element_ty, fp_downcast_rounding=ROUNDING), mask=at < count)


@triton.jit
def _dot(a, b, c, SIZE: tl.constexpr):
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    at = row * SIZE + column
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision="ieee"))


@triton.jit
def _product(a, b, c, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(c + at, tl.load(a + at) * tl.load(b + at))


def cast(x: torch.Tensor, dtype: torch.dtype, *, rounding: str | None = None) -> torch.Tensor:
    """X in `dtype` by Triton's cast. x: [n]."""
    y = torch.empty(len(x), dtype=dtype)
    block = max(BLOCK, triton.next_power_of_2(len(x)))
    _cast[(1,)](x, y, len(x), ROUNDING=rounding, BLOCK=block)
    return y


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A @ b by tl.dot, accumulated in float32. a, b: [n, n], n a power of two."""
    c = torch.empty(a.shape, dtype=torch.float32)
    _dot[(1,)](a, b, c, SIZE=len(a))
    return c


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A * b in their own dtype. a, b: [n], n a power of two."""
    c = torch.empty_like(a)
    _product[(1,)](a, b, c, BLOCK=len(a))
    return c
