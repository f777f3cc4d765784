"""Calls as engines make them on a device: replayed from a graph with new values, and on a stream beside the default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.relations.relation import Inputs
from moecheck.relations.rows import PER_ROW
from moecheck.runner.cuda_graph import CapturedCall, NotCapturable

Function = Callable[..., Any]
Arrays = dict[str, Any]
DELAY = 40_000_000  # cycles, about 20 ms: launches on another stream are long done by then
BETWEEN = 256  # bytes: PyTorch's tensors begin at multiples of 512
LAWS = {
    "graph_replay": "a captured call replayed with new values in its buffers gives what these values give",
    "side_stream": "a call on another stream than the default one waits for what was written on that stream",
    "busy_default_stream": "a call on another stream than the default one does not leave work to the default one",
}


class Device(Protocol):
    """What the calls below need of a device; tests have one of their own."""

    def copy(self, array: Any) -> Any:
        """The array's values in memory of their own."""

    def write(self, buffer: Any, array: Any) -> None:
        """Copy values into a buffer, on the current stream."""

    def capture(self, function: Function, arguments: Arrays) -> Callable[[], Any]:
        """A call as a graph; calling what is returned replays it. Raises NotCapturable."""

    def aside(self) -> AbstractContextManager[None]:
        """Within it, the current stream is another one than the default."""

    def delay(self) -> None:
        """Keep the current stream busy for a while."""

    def read(self, result: Any) -> Any:
        """What a call returned, as soon as the current stream has done its work."""

    def finish(self) -> None:
        """Wait for all streams."""


def graph_replay(device: Device, function: Function, arguments: Arrays, others: Arrays) -> Any:
    """Captured while the buffers hold `others`, replayed when they hold the arguments."""
    buffers = _buffers(device, arguments, others)
    for name, value in others.items():
        device.write(buffers[name], value)
    replay = device.capture(function, buffers)
    for name in others:
        device.write(buffers[name], arguments[name])
    result = device.read(replay())
    device.finish()
    return result


def side_stream(device: Device, function: Function, arguments: Arrays, others: Arrays) -> Any:
    """The arguments come late, on the call's own stream; until then the buffers hold `others`."""
    buffers = _buffers(device, arguments, others)
    for name, value in others.items():
        device.write(buffers[name], value)
    device.finish()
    with device.aside():
        device.delay()
        for name in others:
            device.write(buffers[name], arguments[name])
        result = device.read(function(**buffers))
    device.finish()
    return result


def busy_default_stream(device: Device, function: Function, arguments: Arrays, others: Arrays) -> Any:
    """The default stream is busy for a while, and the result is read before it is done."""
    buffers = _buffers(device, arguments, others)
    device.finish()
    device.delay()
    with device.aside():
        result = device.read(function(**buffers))
    device.finish()
    return result


# The one that may leave a device in disorder, where a capture fails, is the last.
TRIALS: dict[str, Callable[[Device, Function, Arrays, Arrays], Any]] = {
    "side_stream": side_stream,
    "busy_default_stream": busy_default_stream,
    "graph_replay": graph_replay,
}


def other_values(case: Case, inputs: Inputs) -> dict[str, AnyArray]:
    """Inputs that a call may see first, of the same shapes: each row's are its neighbour's; for ops on ids, others."""
    if case.op in ("align_block_size", "expert_counts", "problem_sizes"):
        ids = inputs["topk_ids"]
        return {"topk_ids": np.where(ids < 0, ids, case.num_experts - 1 - ids).astype(ids.dtype)}
    names = PER_ROW.get(case.op) or {"unpermute": ("permuted", "topk_weights"), "grouped_gemm": ("x",)}.get(case.op, ())
    return {name: np.roll(inputs[name], 1, axis=0) for name in names if name in inputs}


class CudaDevice:
    """The current CUDA device, through torch.

    Copies lie where no tensor has been, each in a place of its own as long as the device is in use: a kernel that keeps
    a plan by the address of its input would else find there what a call before made of the same values.
    """

    def __init__(self) -> None:
        self._copies: list[Any] = []

    def copy(self, array: Any) -> Any:
        reach = sum((size - 1) * stride for size, stride in zip(array.shape, array.stride(), strict=True)) + 1
        memory = array.new_empty(BETWEEN // array.element_size() + (reach if array.numel() else 0))
        place = memory[BETWEEN // array.element_size() :]
        self._copies.append(place.as_strided(array.shape, array.stride(), place.storage_offset()).copy_(array))
        return self._copies[-1]

    def write(self, buffer: Any, array: Any) -> None:
        buffer.copy_(array)

    def capture(self, function: Function, arguments: Arrays) -> Callable[[], Any]:
        return CapturedCall(function, arguments).replay

    @contextmanager
    def aside(self) -> Iterator[None]:
        import torch

        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]  # torch leaves it untyped
            yield

    def delay(self) -> None:
        import torch

        torch.cuda._sleep(DELAY)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def read(self, result: Any) -> Any:
        import torch

        torch.cuda.current_stream().synchronize()
        if isinstance(result, tuple | list):
            return tuple(part.cpu() if isinstance(part, torch.Tensor) else part for part in result)
        return result.cpu() if isinstance(result, torch.Tensor) else result

    def finish(self) -> None:
        import torch

        torch.cuda.synchronize()


def _buffers(device: Device, arguments: Arrays, others: Arrays) -> Arrays:
    return {**arguments, **{name: device.copy(arguments[name]) for name in others}}


__all__ = ["LAWS", "TRIALS", "CudaDevice", "Device", "NotCapturable", "other_values"]
