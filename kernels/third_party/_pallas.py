"""Pallas kernels of other projects where their device is not: interpreters, with race detection."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax

import moecheck

_GPU = "jax._src.pallas.mosaic_gpu.interpret"


class RaceFound(Exception):
    """The interpreter saw two accesses to the same memory that nothing orders."""


def require_tpu() -> None:
    """Raise Unsupported beside a GPU: what interprets Pallas TPU kernels simulates devices on a CPU."""
    if jax.default_backend() == "gpu":
        raise moecheck.Unsupported("Pallas' TPU interpreter simulates on a CPU: set JAX_PLATFORMS=cpu")


def on_gpu(call: Callable[[], Any]) -> Any:
    """What `call` returns; without a GPU its one Mosaic GPU kernel runs in the interpreter.

    Raises RaceFound where that reports a race.
    """
    if jax.default_backend() == "gpu":
        return call()
    # Exported by jax.experimental.pallas.mosaic_gpu from 0.11 on only.
    params, state = import_module(f"{_GPU}.params"), import_module(f"{_GPU}.gpu_callbacks")
    # What a bulk copy reads out of bounds counts nowhere: the device fills it with zeros.
    parameters = params.InterpretGPUParams(detect_races=True, out_of_bounds_reads="uninitialized")
    with params.force_gpu_interpret_mode(parameters):
        return _watched(call, lambda: state._races, state.reset_gpu_interpret_mode_state)


def _watched(call: Callable[[], Any], races: Callable[[], Any], reset: Callable[[], None]) -> Any:
    """The call's result when it is done; the interpreter's state goes, since after an exception it is of no use."""
    reset()
    try:
        result = jax.block_until_ready(call())  # type: ignore[no-untyped-call]  # jax leaves it untyped
        found = races()
        if found is not None and found.races_found:
            raise RaceFound("the interpreter reports a race: two accesses to the same memory that nothing orders")
        return result
    finally:
        reset()
