"""Where a kernel is, and how a process gets hold of it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from moecheck.errors import Unsupported, UsageError, near
from moecheck.kernel import BACKENDS, Declaration, describe
from moecheck.ops import OPS
from moecheck.tuning import Tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kernel by its location, before anything of it is imported.

    spec_string: `path/to/file.py:function` or `package.module:function`. op, backend: for a function without the
    `@moecheck.kernel` decorator; None to infer them.
    """

    spec_string: str
    op: str | None = None
    backend: str | None = None
    name: str | None = None

    @property
    def place(self) -> str:
        return self.spec_string.rpartition(":")[0]

    @property
    def function(self) -> str:
        return self.spec_string.rpartition(":")[2]


def load(target: Target) -> tuple[Callable[..., Any], Declaration]:
    """Import the kernel and read its declaration; UsageError when it is not there or cannot serve."""
    module = import_place(target.place)
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") == "1":
        _correct_interpreter(module)
    function = getattr(module, target.function, None)
    if function is None:
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UsageError(f"{target.place} has no function {target.function!r}.{near(target.function, names)}")
    if not callable(function):
        raise UsageError(f"{target.function!r} in {target.place} is not a function.")
    declaration = getattr(function, "__moecheck__", None)
    if declaration is None:
        op = target.op or _infer_op(function)
        backend = target.backend or _infer_backend(function)
        declaration = describe(function, op=op, backend=backend)
    elif target.op not in (None, declaration.op):
        raise UsageError(f"{target.spec_string} declares op={declaration.op!r}, not {target.op!r}.")
    name = target.name or (target.spec_string if is_file(target.place) else declaration.name)
    return function, replace(declaration, name=name, spec_string=target.spec_string)


def _correct_interpreter(module: ModuleType) -> None:
    """Stock Triton's interpreter is wrong in bf16 and fp8: uncorrected, a verdict would be about the interpreter.

    Raises Unsupported where it cannot be corrected, unless the module does not use Triton: torch imports it, too.
    """
    try:
        importlib.import_module("moecheck.runner.triton_interpreter").correct()
    except Unsupported:
        if "triton" in _packages(vars(module).values()):
            raise


def is_file(place: str) -> bool:
    return place.endswith(".py")


def import_place(place: str) -> ModuleType:
    """The module of a dotted name or of a .py file. A wrong file of configurations for a kernel of it is a UsageError.

    A module may lie in the current folder. ModuleNotFoundError of something that it imports passes; a file that cannot
    be read or parsed is a UsageError, and so is a module that does not exist.
    """
    module = _import_file(place) if is_file(place) else _import_module(place)
    for value in vars(module).values():
        # A run ends before it begins; a call would warn and do without.
        if isinstance(value, FunctionType) and isinstance(tuning := vars(value).get("__moecheck_tuning__"), Tuning):
            tuning.check()
    return module


def _import_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    name = f"moecheck_user_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot read the kernel file {place}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The kernel file {place} is not UTF-8 text: {error}.") from error
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # a kernel file may import its neighbours
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"The kernel file {place} does not parse: line {error.lineno}: {error.msg}.") from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(f"There is no module {name}: {error.name!r} is neither installed nor here.") from error
        raise


def place_of(error: BaseException, file: str | None = None) -> str:
    """`file.py:12`: where an exception was raised, preferring the kernel's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file and Path(frame.filename).name == Path(file).name]
    frame = (own or list(frames))[-1] if frames else None
    return f"{Path(frame.filename).name}:{frame.lineno}" if frame else "unknown place"


def _infer_op(function: Callable[..., Any]) -> str:
    """The one op whose arguments include all that the function names."""
    code = getattr(function, "__code__", None)
    names = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]) - {"spec", "out"} if code else set()
    fitting = [op.name for op in OPS.values() if names and names <= set(op.arg_names)]
    if "num_ranks" not in names and "moe_layer" in fitting:  # without that argument a layer lies on one rank
        fitting.remove("expert_parallel_moe")
    if len(fitting) == 1:
        return fitting[0]
    found = f"its arguments fit {', '.join(fitting)}" if fitting else "its arguments fit none"
    raise UsageError(f"Which op is {getattr(function, '__name__', 'the function')!r}? Say --op ({found}).")


def _infer_backend(function: Callable[..., Any]) -> str:
    """torch, jax or numpy: the first of them that the names around the function refer to."""
    packages = _packages(getattr(inspect.unwrap(function), "__globals__", {}).values())
    return next((backend for backend in ("torch", "jax", "numpy") if backend in packages), BACKENDS[0])


def _packages(values: Iterable[object]) -> set[str]:
    """Names of the packages that modules, functions and classes among `values` come from."""
    found = set()
    for value in values:
        found.add(str(getattr(value, "__name__", "")).partition(".")[0])
        found.add(str(getattr(value, "__module__", None) or "").partition(".")[0])
    return found
