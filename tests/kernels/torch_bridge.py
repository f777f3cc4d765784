"""NumPy arrays of a case as torch tensors with the same bits, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch

from moecheck.formats import AnyArray
from tests.kernels.layouts import as_declared, cut


def to_torch(values: AnyArray) -> torch.Tensor:
    """The same bits as a torch tensor that owns them."""
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(values.copy())


def to_numpy(values: torch.Tensor) -> AnyArray:
    """The same bits as a NumPy array."""
    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(values.numpy())


def on_torch(inputs: dict[str, AnyArray]) -> dict[str, torch.Tensor]:
    """All arrays of a case as torch tensors."""
    return {name: to_torch(values) for name, values in inputs.items()}


def numpy_call(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel as a function of NumPy arrays."""

    def call(**arguments: Any) -> Any:
        declared = as_declared(kernel, arguments)
        given = {n: to_torch(value) if isinstance(value, np.ndarray) else value for n, value in declared.items()}
        out = kernel(**given)
        if isinstance(out, tuple):
            return tuple(None if value is None else to_numpy(value) for value in out)
        return cut(kernel, arguments, to_numpy(out))

    return call
