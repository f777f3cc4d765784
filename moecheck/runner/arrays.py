"""Moves arrays between NumPy and the frameworks of the kernels, bit for bit."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np

from moecheck.formats import AnyArray

TORCH_BACKENDS = ("torch", "triton", "cuda")
JAX_BACKENDS = ("jax", "pallas_tpu", "pallas_gpu")


def device_of(backend: str) -> str:
    """Where kernels of this backend run here: `cuda`, `cpu`, or `interpreter`."""
    if backend == "pallas_tpu":
        return "interpreter"
    if backend in TORCH_BACKENDS:
        import torch

        if torch.cuda.is_available():
            return "cuda"
        return "interpreter" if backend == "triton" else "cpu"
    if backend in ("jax", "pallas_gpu"):
        import jax

        if jax.default_backend() == "gpu":
            return "cuda"
        return "interpreter" if backend == "pallas_gpu" else "cpu"
    return "cpu"


def to_native(array: AnyArray, backend: str) -> Any:
    """A NumPy array as an array of the backend on its device; on the CPU torch shares the memory."""
    if backend in TORCH_BACKENDS:
        return _to_torch(array, "cuda" if device_of(backend) == "cuda" else "cpu")
    if backend in JAX_BACKENDS:
        import jax.numpy as jnp

        return jnp.asarray(np.array(array, copy=True))
    return array


def to_numpy(value: Any) -> AnyArray:
    """A kernel's output as a NumPy array of the same bits; TypeError when it is no array of a known framework."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().resolve_conj().resolve_neg()
        name = str(tensor.dtype).removeprefix("torch.")
        if name.startswith(("bfloat16", "float8")):  # which Tensor.numpy takes in no or not in all versions of torch
            bits = tensor.contiguous().view(torch.int16 if name == "bfloat16" else torch.uint8).numpy()
            return np.array(bits.view(getattr(ml_dtypes, name)), copy=True)
        return np.array(tensor.numpy(), copy=True)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array):
        return np.array(value, copy=True)
    if isinstance(value, np.ndarray | np.generic):
        return np.array(value, copy=True)
    raise TypeError(f"{type(value).__name__} is no torch, jax or NumPy array")


def changed(native: Any, passed: AnyArray, kept: AnyArray) -> bool:
    """Whether a kernel's input no longer has the bits of `kept`.

    native: what the kernel got; passed: the NumPy array that it was made from, kept: a copy of that. On the CPU torch
    writes into `passed` itself, which saves a copy.
    """
    torch = sys.modules.get("torch")
    shared = native is passed or (
        torch is not None and isinstance(native, torch.Tensor) and native.device.type == "cpu"
    )
    now = passed if shared else to_numpy(native)
    return now.shape != kept.shape or not np.array_equal(_bits(now), _bits(kept))


def _bits(array: AnyArray) -> AnyArray:
    """The same memory as unsigned integers, so that NaN equals itself; strides are kept."""
    return array.view(f"u{array.itemsize}")


def overwritten(buffer: Any, native: Any) -> Any:
    """The buffer with the values of another array of its kind and shape; that array where it cannot be written to."""
    torch = sys.modules.get("torch")
    writable = isinstance(buffer, np.ndarray) or (torch is not None and isinstance(buffer, torch.Tensor))
    if not writable or buffer is native or buffer.shape != native.shape or buffer.dtype != native.dtype:
        return native
    if not isinstance(buffer, np.ndarray) and buffer.data_ptr() == native.data_ptr():  # the same memory already
        return buffer
    buffer[...] = native
    return buffer


def synchronize(backend: str) -> None:
    """Wait for what was launched on the device; raises what went wrong there, a launch that was refused too."""
    if backend in TORCH_BACKENDS:
        import torch

        if torch.cuda.is_available():
            torch.empty(1, device="cuda").fill_(1.0)  # a refused launch shows at the next one
            torch.cuda.synchronize()


def device_is_lost(backend: str) -> bool:
    """Whether the device takes no more work from this process, as after a kernel's illegal memory access."""
    torch = sys.modules.get("torch")
    if backend not in TORCH_BACKENDS or torch is None or not torch.cuda.is_initialized():
        return False
    for _ in range(2):  # a refused launch is told once, by the first of them
        try:
            synchronize(backend)
            return False
        except Exception:
            continue
    return True


def _to_torch(array: AnyArray, device: str) -> Any:
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    elif array.dtype.name.startswith("float8"):  # 8-bit formats have the same names there
        tensor = torch.from_numpy(array.view(np.uint8)).view(getattr(torch, array.dtype.name))
    else:
        tensor = torch.from_numpy(array)
    if device == "cpu":
        return tensor
    if tensor.is_contiguous():
        return tensor.to(device)
    width = array.strides[-2] // array.itemsize  # rows wider than the array's width stay so on the device
    storage = torch.full((*tensor.shape[:-1], width), float("nan"), dtype=tensor.dtype, device=device)
    storage[..., : tensor.shape[-1]] = tensor.to(device)
    return storage[..., : tensor.shape[-1]]
