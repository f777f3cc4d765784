"""Weights of a sampled case as arrays of a kernel's backend, made on its device, kept for the calls on one case."""

from __future__ import annotations

from typing import Any

import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.runner.arrays import JAX_BACKENDS, TORCH_BACKENDS, device_of, to_native, to_numpy
from moecheck.runner.layout import in_layout
from moecheck.weight_layout import WeightLayout
from moecheck.window_weights import WindowStack

LOOKED_AT = 8  # experts of rearranged weights that are compared with what they were


class NativeWeights:
    """The stacks of one case for one backend and arrangement; `arrays` by name."""

    def __init__(self, case: Case, inputs: dict[str, Any], backend: str, layout: WeightLayout | None) -> None:
        self._case, self._backend, self._layout = case, backend, layout
        self._stacks = {name: value for name, value in inputs.items() if isinstance(value, WindowStack)}
        self._banks: dict[str, Any] = {}
        self.arrays = {name: self._whole(name) for name in self._stacks}

    def changed(self) -> list[str]:
        """Names of the arrays that no longer hold what was drawn."""
        return [name for name in self._stacks if not self._as_drawn(name)]

    def _as_drawn(self, name: str) -> bool:
        count, array = self._stacks[name].count, self.arrays[name]
        experts = range(count)
        if not self._direct:  # drawing all of them again on the host would take longer than the call
            experts = sorted({*np.linspace(0, count - 1, LOOKED_AT).astype(int).tolist()})  # type: ignore[assignment]
        return all(_equal(array[e], self._one(name, e)) for e in experts)

    def _whole(self, name: str) -> Any:
        count, first = self._stacks[name].count, self._one(name, 0)
        if self._backend in JAX_BACKENDS or isinstance(first, np.ndarray):
            return to_native(np.stack([np.asarray(self._host(name, e)) for e in range(count)]), self._backend)
        whole = first.new_empty((count, *first.shape))
        whole[0] = first
        for e in range(1, count):
            whole[e] = self._one(name, e)
        return whole

    @property
    def _direct(self) -> bool:
        """Whether matrices are made on the device from the bank alone."""
        return self._layout is None and self._backend in TORCH_BACKENDS and device_of(self._backend) == "cuda"

    def _one(self, name: str, expert: int) -> Any:
        return self._on_device(name, expert) if self._direct else to_native(self._host(name, expert), self._backend)

    def _host(self, name: str, expert: int) -> AnyArray:
        """One expert's matrix in the kernel's arrangement, a NumPy array."""
        plain = self._stacks[name].expert(expert)
        if self._layout is None:
            return plain
        return np.ascontiguousarray(in_layout(self._case, {name: plain[None]}, self._layout)[name][0])

    def _on_device(self, name: str, expert: int) -> Any:
        """One expert's matrix made on the device."""
        import torch

        stack = self._stacks[name]
        if name not in self._banks:
            self._banks[name] = to_native(stack.bank, self._backend)
        bank = self._banks[name]
        starts = torch.from_numpy(stack.starts(expert)).to(bank.device)
        places = starts[:, None] + torch.arange(stack.columns, device=bank.device)
        bits = bank.view(_BITS[bank.element_size()](torch))[places]
        if stack.packed:
            bits = bits[:, 0::2] | (bits[:, 1::2] << 4)
        return bits.view(bank.dtype)


def _equal(now: Any, drawn: Any) -> bool:
    """Whether two arrays have the same bits."""
    if hasattr(now, "is_cuda"):
        import torch

        kind = _BITS[now.element_size()](torch)
        return bool(torch.equal(now.view(kind), drawn.view(kind)))
    return to_numpy(now).tobytes() == to_numpy(drawn).tobytes()


# Integers of an element's size, whose bits no operation changes.
_BITS: dict[int, Any] = {
    1: lambda torch: torch.uint8,
    2: lambda torch: torch.int16,
    4: lambda torch: torch.int32,
}
