"""What the fork server imports once for all workers: the harness, torch, and where asked for JAX and transformers.

Importing this module is its effect; only the fork server does. Nothing but imports happens: a framework that starts
threads or opens a device could not be used after the fork.
"""

from __future__ import annotations

import gc
import importlib
import os
import warnings
from importlib.util import find_spec

from moecheck.runner import PRELOAD_VARIABLE

# The command line too: each worker imports the program that started the run.
ALWAYS = ("moecheck.cli", "moecheck.runner.worker", "torch")
# Importing these takes seconds in each worker that needs them.
THIRD_PARTY = ("jax", "jax.numpy", "transformers.modeling_utils", "transformers.integrations.moe")


def preload() -> None:
    """Import the packages that are installed; one that fails to import is left to the worker, which reports it."""
    # Asks the driver's management library, since the ordinary question opens the device.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # JAX warns at each fork that threads would be lost; it has none before its first computation.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
    wanted = ALWAYS + (THIRD_PARTY if os.environ.get(PRELOAD_VARIABLE) else ())
    for name in wanted:
        _import(name)
        if name == "torch" and not _has_cuda():
            os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is imported
    # Without this a worker's first garbage collections visit, and so copy, every object that was imported here.
    gc.collect()
    gc.freeze()


def _import(name: str) -> None:
    if find_spec(name.partition(".")[0]) is None:
        return
    try:
        importlib.import_module(name)
    except Exception as error:  # any import may fail in any way; the worker that needs it says so
        warnings.warn(f"preloading {name}: {error}", stacklevel=2)


def _has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


preload()
