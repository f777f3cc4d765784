"""How the kernels want arrays in memory."""

from __future__ import annotations

import torch


def side_by_side(x: torch.Tensor) -> torch.Tensor:
    """The matrix with the elements of a row side by side: itself wherever they are.

    Not `contiguous()`: that leaves a matrix without elements as it is, whatever its strides are.
    """
    if x.shape[1] <= 1 or x.stride(1) == 1:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def as_int32(indices: torch.Tensor) -> torch.Tensor:
    """Indices as the kernels read them: itself where they are contiguous int32."""
    return indices.to(torch.int32).contiguous()
