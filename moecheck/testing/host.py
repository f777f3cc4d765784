"""Reads arrays of any framework where they are, as NumPy arrays of the same bits."""

from __future__ import annotations

import operator
import sys
from typing import Any

import ml_dtypes
import numpy as np

from moecheck.errors import CaseError
from moecheck.formats import AnyArray


def host_array(name: str, value: object) -> AnyArray:
    """A torch (CPU or CUDA), jax or NumPy array as a NumPy array, sharing memory where it can; do not write to it.

    Raises CaseError naming the argument when it is none of these, or of a dtype that NumPy cannot hold.
    """
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    try:
        if torch is not None and isinstance(value, torch.Tensor):
            return _of_torch(torch, value)
        if isinstance(value, np.ndarray) or (jax is not None and isinstance(value, jax.Array)):
            array = np.asarray(value)
            return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    except (TypeError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise CaseError(f"{name} cannot be read: {getattr(value, 'dtype', type(value).__name__)}: {reason}.") from error
    raise CaseError(f"{name} must be a torch, jax or NumPy array, not {type(value).__name__}.")


def host_integer(name: str, value: object) -> int:
    """A Python integer from an integer, or from an array of one integer."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]  # what has no index raises TypeError
        except TypeError:
            pass
        if hasattr(value, "shape"):
            array = host_array(name, value)
            if array.size == 1 and array.dtype.kind in "iu":
                return int(array.reshape(()))
    raise CaseError(f"{name}={value!r} must be an integer.")


def _of_torch(torch: Any, value: Any) -> AnyArray:
    tensor = value.detach().cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name.startswith(("bfloat16", "float8")):  # NumPy knows them by ml_dtypes only; a view as integers keeps strides
        bits: AnyArray = tensor.view(torch.int16 if name == "bfloat16" else torch.uint8).numpy()
        return bits.view(getattr(ml_dtypes, name))
    return np.asarray(tensor.numpy())
