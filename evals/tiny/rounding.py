"""Stores in another precision, on float32 tensors: values are rounded where a kernel of that precision stores them."""

from __future__ import annotations

from collections.abc import Callable

import torch

Store = Callable[[torch.Tensor], torch.Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
LARGEST_E4M3 = 448.0


def store_of(precision: str) -> Store:
    """What storing in the precision does to float32 values; kernels of fp8 weights store bf16."""
    dtype = DTYPES[precision]
    if dtype is torch.float32:
        return lambda x: x
    return lambda x: x.to(dtype).float()


def operand_of(precision: str) -> Store:
    """What becomes of a GEMM's operands [..., rows, k]: as stored, or e4m3 with a scale for each row of fp8."""
    return _row_wise_e4m3 if precision == "fp8" else store_of(precision)


def _row_wise_e4m3(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST_E4M3
    return (x / scale).to(torch.float8_e4m3fn).float() * scale
