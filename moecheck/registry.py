"""Finds kernels: the built-in ones, those of other packages' entry points, and those that the user names.

Nothing is imported here. Modules are imported by worker processes, so that a broken or hostile one takes nothing down.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from .errors import HarnessError, UsageError, check_known
from .kernel import Declaration
from .runner.pool import KernelPool, WorkerDied, WorkerTimeout, preload_third_party, start_context
from .runner.target import Target, is_file
from .runner.worker import Loaded, inspect_module, inspect_target

KERNELS = "moecheck.kernels"
ENTRY_POINTS = "moecheck.kernels"
IMPORT_TIMEOUT = 120.0
COMPILING = 15.0  # seconds for a new shape in the interpreter of Pallas TPU kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A kernel that can be run: where it is, what it declares, and the device that it runs on here.

    import_seconds: what importing it took, which a fresh process pays again, and what a compilation takes.
    """

    target: Target
    declaration: Declaration
    device: str
    import_seconds: float


@dataclass(slots=True, kw_only=True)
class Discovery:
    """What was found. skipped: name -> why it cannot run here. broken: name -> why its import fails."""

    found: list[Found] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def builtin_modules() -> list[str]:
    """Dotted names of the modules under moecheck.kernels, by walking its folders.

    Raises HarnessError where the installation lost the folder.
    """
    try:
        package = importlib.import_module(KERNELS)
    except ModuleNotFoundError as error:
        raise HarnessError(
            "moecheck/kernels does not resolve: this copy lost its symbolic links; clone again with core.symlinks=true."
        ) from error
    files = [path for root in package.__path__ for path in Path(root).glob("*/*.py")]
    return sorted(f"{KERNELS}.{path.parent.name}.{path.stem}" for path in files if not path.stem.startswith("_"))


def discover_builtin(*, memory: int, jobs: int) -> Discovery:
    """Every kernel of moecheck.kernels, each module imported in a worker process.

    Raises UsageError where a module finds a file of the user's wrong.
    """
    modules = builtin_modules()
    preload_third_party()
    start_context()  # once, before threads ask for it
    shares = [modules[i::jobs] for i in range(jobs)]
    with ThreadPoolExecutor(max_workers=jobs) as threads:
        parts = threads.map(lambda share: _inspect_modules(share, memory), shares)
        loaded = {name: result for part in parts for name, result in part.items()}
    discovery = Discovery()
    for module in modules:
        result = loaded[module]
        short = module.removeprefix(f"{KERNELS}.")
        if result.usage is not None:
            raise UsageError(result.usage)
        if result.skip is not None:
            names = [declaration.name for declaration in result.declarations] or [short]
            discovery.skipped |= dict.fromkeys(names, result.skip)
            continue
        if result.error is not None:
            discovery.broken[short] = result.error
        for declaration in result.declarations:
            target = Target(spec_string=declaration.spec_string, name=declaration.name)
            discovery.found.append(_found(target, declaration, result))
    _check_unique(discovery.found)
    return discovery


def discover(specs: Sequence[str], *, op: str | None, backend: str | None, memory: int, jobs: int) -> Discovery:
    """The kernels that the user asked for by `--kernel`, or all built-in ones and entry points without any.

    Raises UsageError for an unknown name (offering the near one), an unreadable file, or a function that is not there.
    """
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    located = [spec for spec in specs if ":" in spec or is_file(spec)]
    named = [spec for spec in specs if spec not in located]
    discovery = Discovery()
    if not specs or named:
        builtin = discover_builtin(memory=memory, jobs=jobs)
        names = {found.declaration.name for found in builtin.found} | builtin.skipped.keys() | builtin.broken.keys()
        for name in named:
            check_known("kernel", name, {*names, *points})
        discovery = builtin if not specs else _only(builtin, set(named))
    for name, point in points.items():
        if not specs or name in named:
            try:
                discovery.found.extend(_inspect([_entry_target(point)], memory=memory))
            except UsageError as error:
                if name in named:
                    raise
                discovery.broken[name] = str(error)  # somebody else's package must not keep all others from running
    discovery.found.extend(_inspect([_located(spec, op, backend) for spec in located], memory=memory))
    _check_unique(discovery.found)
    return discovery


def _located(spec: str, op: str | None, backend: str | None) -> Target:
    if ":" not in spec:
        raise UsageError(f"{spec!r} names a file; say which function of it: {spec}:FUNCTION.")
    target = Target(spec_string=spec, op=op, backend=backend)
    if not target.place or not target.function:
        raise UsageError(f"{spec!r} must be PATH.py:FUNCTION or PACKAGE.MODULE:FUNCTION.")
    if is_file(target.place) and not Path(target.place).exists():
        raise UsageError(f"There is no kernel file {target.place}.")
    return target


def _entry_target(point: EntryPoint) -> Target:
    return Target(spec_string=point.value, name=point.name)


def _inspect(targets: Iterable[Target], *, memory: int) -> list[Found]:
    """Each target imported in a process of its own."""
    found = []
    for target in targets:
        with KernelPool(memory=memory, threads=1) as pool:
            try:
                result = pool.wait(pool.submit(inspect_target, target, timeout=IMPORT_TIMEOUT))
            except WorkerTimeout as error:
                raise UsageError(f"Importing {target.place} took longer than {IMPORT_TIMEOUT:g} s.") from error
            except WorkerDied as error:
                raise UsageError(f"Importing {target.place} ends the process. {error}") from error
        problem = result.usage or result.error or result.skip
        if problem:
            raise UsageError(problem)
        declaration = result.declarations[0]
        located = replace(target, op=declaration.op, backend=declaration.backend, name=declaration.name)
        found.append(_found(located, declaration, result))
    return found


def _found(target: Target, declaration: Declaration, loaded: Loaded) -> Found:
    device = loaded.devices[declaration.name]
    seconds = loaded.seconds + (COMPILING if declaration.backend == "pallas_tpu" else 0.0)
    return Found(target=target, declaration=declaration, device=device, import_seconds=seconds)


def _inspect_modules(modules: Sequence[str], memory: int) -> dict[str, Loaded]:
    results = {}
    with KernelPool(memory=memory, threads=1) as pool:
        for module in modules:
            try:
                results[module] = pool.wait(pool.submit(inspect_module, module, timeout=IMPORT_TIMEOUT))
            except WorkerTimeout:
                results[module] = Loaded(error=f"importing it took longer than {IMPORT_TIMEOUT:g} s")
            except WorkerDied as error:
                results[module] = Loaded(error=f"importing it ends the process: {error}")
    return results


def _only(builtin: Discovery, names: set[str]) -> Discovery:
    return Discovery(
        found=[found for found in builtin.found if found.declaration.name in names],
        skipped={name: reason for name, reason in builtin.skipped.items() if name in names},
        broken={name: reason for name, reason in builtin.broken.items() if name in names},
    )


def _check_unique(found: Iterable[Found]) -> None:
    seen: dict[str, str] = {}
    for kernel in found:
        declaration = kernel.declaration
        if declaration.name in seen and seen[declaration.name] != declaration.origin:
            raise UsageError(
                f"Two kernels are named {declaration.name!r}: {seen[declaration.name]} and {declaration.origin}; "
                "rename one of them."
            )
        seen[declaration.name] = declaration.origin
