"""Simulated devices for kernels that spread a call over several: asked for before JAX opens its CPU."""

from __future__ import annotations

import os

from moecheck.errors import UsageError
from moecheck.kernel import Declaration
from moecheck.runner.arrays import JAX_BACKENDS

# Devices that wait for each other need a thread each, else the process hangs for ever. Read when the CPU is opened.
THREADS_VARIABLE = "NPROC"
THREADS = 32


def provide_devices(declaration: Declaration) -> None:
    """Give this process as many CPU devices as a JAX kernel declares; other backends get none and no change.

    Raises UsageError where JAX has opened its devices already, as by an array that a kernel's module makes on import.
    """
    if declaration.devices <= 1 or declaration.backend not in JAX_BACKENDS:
        return
    import jax

    os.environ.setdefault(THREADS_VARIABLE, str(max(THREADS, 2 * declaration.devices)))
    try:
        jax.config.update("jax_num_cpu_devices", declaration.devices)  # type: ignore[no-untyped-call]  # of jax
    except RuntimeError as error:
        if len(jax.devices("cpu")) >= declaration.devices:
            return
        raise UsageError(
            f"{declaration.name} declares devices={declaration.devices}, and its module opens JAX's devices when it is "
            "imported; make its arrays inside functions."
        ) from error
