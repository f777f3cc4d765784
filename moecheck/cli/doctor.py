"""`moecheck doctor`: what this machine and installation can do, and the cure for what they cannot."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from moecheck.cli.options import cores
from moecheck.errors import HarnessError
from moecheck.oracle import reference_modules
from moecheck.registry import builtin_modules
from moecheck.runner.arrays import device_of
from moecheck.runner.missing import EXTRAS
from moecheck.runner.pool import GIB, KernelPool, WorkerDied, WorkerTimeout, default_memory

Line = tuple[str, str, str]  # ok / missing / broken, what, detail


@click.command()
def doctor() -> int:
    """Check this installation: packages, devices, worker processes, folders."""
    lines = [*_installation(), *_packages(), *_workers(), *_tools()]
    for state, what, detail in lines:
        click.echo(f"{state:8} {what:14} {detail}")
    return 1 if any(state == "broken" for state, _, _ in lines) else 0


def _installation() -> Iterator[Line]:
    try:
        yield "ok", "references", f"{len(reference_modules())} ops"
        yield "ok", "kernels", f"{len(builtin_modules())} modules"
    except HarnessError as error:
        yield "broken", "installation", str(error)
    try:
        with tempfile.TemporaryDirectory(dir=Path.cwd()):
            yield "ok", "folder", f"{Path.cwd()} can be written"
    except OSError as error:
        yield "missing", "folder", f"{Path.cwd()} cannot be written ({error.strerror}); give --out"


def _packages() -> Iterator[Line]:
    for package, extra in sorted(EXTRAS.items()):
        try:
            yield "ok", package, version(package.replace("_", "-"))
        except PackageNotFoundError:
            yield "missing", package, f"pip install 'moecheck[{extra}]'"


def _workers() -> Iterator[Line]:
    memory = default_memory(1)
    yield "ok", "machine", f"{cores()} cores, {memory / GIB:.1f} GiB for one kernel"
    for backend in ("torch", "triton", "jax"):
        with KernelPool(memory=memory, threads=1) as pool:
            try:
                device = pool.wait(pool.submit(device_of, backend, timeout=60.0))
                yield "ok", f"{backend} worker", f"runs on: {device}"
            except ModuleNotFoundError as error:
                yield "missing", f"{backend} worker", f"needs {error.name}"
            except (WorkerDied, WorkerTimeout, ImportError, RuntimeError) as error:
                yield "broken", f"{backend} worker", str(error) or "no answer after 60 s"


def _tools() -> Iterator[Line]:
    nvcc = shutil.which("nvcc")
    yield ("ok", "nvcc", nvcc) if nvcc else ("missing", "nvcc", "CUDA kernels cannot be compiled here")
