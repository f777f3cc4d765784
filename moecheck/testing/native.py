"""A case's inputs as arrays of the framework that a test calls its kernel with."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from moecheck.cases import Case
from moecheck.errors import UsageError, check_known
from moecheck.runner.arrays import to_native
from moecheck.runner.layout import in_layout
from moecheck.weight_layout import WeightLayout

from .names import check_text, shown

Framework = Literal["torch", "jax", "numpy"]


@np.errstate(all="ignore")  # drawing large inputs may overflow, which is meant
def inputs_for(
    case: Case, framework: Framework = "torch", device: object = None, *, weight_layout: WeightLayout | None = None
) -> dict[str, Any]:
    """The op's arguments by name, with the very bits that the reference reads; integers stay integers.

    device: `"cuda:1"`, `"cpu"`, a torch or jax device; None for the framework's own choice, a GPU where there is one.
    Rows that the case wants wider in memory than their width stay so in torch and NumPy. weight_layout: weights are so
    arranged, and hidden states as wide; the first columns of a padded kernel's output are the case's.
    """
    if not isinstance(case, Case):
        raise UsageError(f"case={shown(case)} must be a moecheck.testing.Case.")
    check_text(framework=framework)
    check_known("framework", framework, ("torch", "jax", "numpy"))
    if framework == "numpy" and device not in (None, "cpu"):
        raise UsageError(f"NumPy arrays have no device {device!r}.")
    if not (weight_layout is None or isinstance(weight_layout, WeightLayout)):
        raise UsageError(f"weight_layout={shown(weight_layout)} must be a moecheck.WeightLayout or None.")
    inputs = case.inputs() if weight_layout is None else in_layout(case, case.inputs(), weight_layout)
    try:
        return {
            name: _native(value, framework, device) if isinstance(value, np.ndarray) else value
            for name, value in inputs.items()
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
