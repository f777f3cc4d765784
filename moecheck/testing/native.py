"""A case's inputs as arrays of the framework that a test calls its kernel with."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from moecheck.cases import Case
from moecheck.errors import UsageError, check_known
from moecheck.runner.arrays import to_native

from .names import check_text, shown

Framework = Literal["torch", "jax", "numpy"]


@np.errstate(all="ignore")  # drawing large inputs may overflow, which is meant
def inputs_for(case: Case, framework: Framework = "torch", device: object = None) -> dict[str, Any]:
    """The op's arguments by name, with the very bits that the reference reads; integers stay integers.

    device: `"cuda:1"`, `"cpu"`, a torch or jax device; None for the framework's own choice, a GPU where there is one.
    Rows that the case wants wider in memory than their width stay so in torch and NumPy.
    """
    if not isinstance(case, Case):
        raise UsageError(f"case={shown(case)} must be a moecheck.testing.Case.")
    check_text(framework=framework)
    check_known("framework", framework, ("torch", "jax", "numpy"))
    if framework == "numpy" and device not in (None, "cpu"):
        raise UsageError(f"NumPy arrays have no device {device!r}.")
    try:
        return {
            name: _native(value, framework, device) if isinstance(value, np.ndarray) else value
            for name, value in case.inputs().items()
        }
    except ModuleNotFoundError as error:
        if error.name != framework:
            raise
        raise UsageError(f"{framework} is not installed: pip install 'moecheck[{framework}]'.") from error


def _native(array: Any, framework: str, device: object) -> Any:
    if framework == "jax" and device is not None:
        import jax

        return jax.device_put(np.array(array), jax.devices(device)[0] if isinstance(device, str) else device)
    if framework == "torch" and device is not None:
        return _on_torch_device(array, device)
    return to_native(array, framework)


def _on_torch_device(array: Any, device: Any) -> Any:
    """As to_native, on a device of the caller's choice, with the array's strides."""
    import torch

    host = to_native(array, "torch").cpu()
    tensor = torch.empty_strided(host.shape, _strides(array), dtype=host.dtype, device=device)
    return tensor.copy_(host)


def _strides(array: Any) -> tuple[int, ...]:
    return tuple(stride // array.itemsize for stride in array.strides)
