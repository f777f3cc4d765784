"""Pallas kernels of other projects where their device is not: in an interpreter, with its race detector on."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
from jax._src import config
from jax.experimental.pallas import tpu as pltpu

import moecheck

# DMAs run as late as they may, the newest first; fresh memory is NaN. With the default size of its clocks the
# detector misses races (jax 0.10 and 0.11).
TPU_PARAMETERS = pltpu.InterpretParams(
    dma_execution_mode="on_wait", detect_races=True, uninitialized_memory="nan", vector_clock_size=64
)
_TPU = "jax._src.pallas.mosaic.interpret.interpret_pallas_call"
_GPU = "jax._src.pallas.mosaic_gpu.interpret"


class RaceFound(Exception):
    """The interpreter saw two accesses to the same memory that nothing orders."""


def on_tpu(call: Callable[[], Any]) -> Any:
    """What `call` returns, its one Pallas TPU kernel run by the interpreter; raises RaceFound where that races.

    Nothing changes on a TPU, or where an interpreter is in force already: whoever chose it looks for races.
    """
    if jax.default_backend() == "gpu":
        raise moecheck.Unsupported("Pallas' TPU interpreter simulates on a CPU: set JAX_PLATFORMS=cpu")
    if jax.default_backend() == "tpu" or config.pallas_tpu_interpret_mode_context_manager.value is not None:
        return call()
    state = import_module(_TPU)
    with pltpu.force_tpu_interpret_mode(TPU_PARAMETERS):
        return _watched(call, lambda: state.races, pltpu.reset_tpu_interpret_mode_state)


def on_gpu(call: Callable[[], Any]) -> Any:
    """The same for a kernel of Pallas' Mosaic GPU on a machine without a GPU."""
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
