"""Finds the kernel under test by what `moecheck kernels --kernel` takes, and imports it into this process.

The registry imports every kernel in processes of their own to know their names; a model needs one kernel, here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moecheck.errors import MoecheckError, Unsupported, UsageError, check_known
from moecheck.kernel import Declaration
from moecheck.registry import ENTRY_POINTS, builtin_modules
from moecheck.runner.arrays import device_of
from moecheck.runner.missing import missing_package
from moecheck.runner.target import Target, import_place, is_file, load

NAMED = re.compile(r'\bname="([^"]+)"')


def find_kernel(spec_string: str, op: str | None) -> tuple[Callable[..., Any], Declaration]:
    """The kernel and its declaration.

    spec_string: a built-in name, an entry point, `path/to/file.py:function` or `package.module:function`.
    Raises UsageError where there is none, and Unsupported where it cannot be imported on this machine.
    """
    _interpret_triton_without_gpu()
    target = _target(spec_string, op)
    try:
        return load(target)
    except MoecheckError:
        raise
    except ModuleNotFoundError as error:
        reason = missing_package(error)
        if reason is None:
            raise UsageError(f"Importing {target.place} fails: {error}.") from error
        raise Unsupported(f"{spec_string} {reason}") from error
    except Exception as error:  # a kernel's module may fail in any way: one sentence about it, no traceback of ours
        raise UsageError(f"Importing {target.place} fails: {type(error).__name__}: {error}.") from error


def _interpret_triton_without_gpu() -> None:
    """Triton reads this once, when it is imported; with a GPU it compiles."""
    if "triton" not in sys.modules and device_of("triton") != "cuda":
        os.environ["TRITON_INTERPRET"] = "1"


def kernel_file(declaration: Declaration) -> Path:
    """The source file that defines it."""
    return Path(declaration.origin.rpartition(":")[0])


def _target(spec_string: str, op: str | None) -> Target:
    if ":" in spec_string:
        target = Target(spec_string=spec_string, op=op)
        if is_file(target.place) and not Path(target.place).exists():
            raise UsageError(f"There is no kernel file {target.place}.")
        return target
    if is_file(spec_string):
        raise UsageError(f"{spec_string!r} names a file; say which function of it: {spec_string}:FUNCTION.")
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == spec_string:
            return Target(spec_string=point.value, op=op, name=point.name)
    modules = _builtin_names()
    check_known("kernel", spec_string, modules)
    return Target(spec_string=f"{modules[spec_string]}:{_function(modules[spec_string], spec_string)}", op=op)


def _builtin_names() -> dict[str, str]:
    """Kernel name -> module, read from the sources without importing them."""
    names = {}
    for module in builtin_modules():
        spec = find_spec(module.rpartition(".")[0])
        if spec is None or spec.origin is None:
            continue
        source = Path(spec.origin).with_name(f"{module.rpartition('.')[2]}.py")
        names.update(dict.fromkeys(NAMED.findall(source.read_text(encoding="utf-8")), module))
    return names


def _function(module: str, name: str) -> str:
    """The function of that module which declares the name."""
    try:
        members = vars(import_place(module))
    except ModuleNotFoundError as error:
        reason = missing_package(error)
        raise Unsupported(f"{name} {reason}" if reason else f"{name}: importing {module} fails: {error}") from error
    for value in members.values():
        declaration = getattr(value, "__moecheck__", None)
        if declaration is not None and declaration.name == name:
            return str(declaration.spec_string.rpartition(":")[2])
    raise UsageError(f"{module} has no kernel named {name!r}.")
