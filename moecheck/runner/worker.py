"""What happens inside a kernel's own process: import it, build a case's inputs, call it, look at what it did."""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np
from threadpoolctl import threadpool_limits

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.errors import MoecheckError, Unsupported, UsageError
from moecheck.formats import AnyArray
from moecheck.kernel import Declaration
from moecheck.oracle import spec_part
from moecheck.relations.all_tokens import all_token_calls
from moecheck.relations.relation import Call, relations
from moecheck.runner.arguments import forget_weights, poisoned_output, weights_of
from moecheck.runner.arrays import (
    JAX_BACKENDS,
    changed,
    device_is_lost,
    device_of,
    overwritten,
    synchronize,
    to_native,
    to_numpy,
)
from moecheck.runner.devices import provide_devices
from moecheck.runner.input_store import shared_inputs
from moecheck.runner.launches import launches
from moecheck.runner.layout import as_declared, cut
from moecheck.runner.leash import bind
from moecheck.runner.missing import missing_package
from moecheck.runner.pallas_interpreter import interpreted
from moecheck.runner.poison import poisoned_allocations
from moecheck.runner.target import Target, import_place, load, place_of
from moecheck.sampled_inputs import lazy_inputs

_store: str | None = None


NOT_OUT = "It was given `out` and returned another array; `out` holds something else."
CLEAN_EXIT = 86  # stands for 0, see `_mark_clean_exits`
DEVICE_LOST = 87


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one call did. problem: None, or the verdict and sentence of what went wrong instead of an output.

    outputs: NumPy arrays. modified: names of inputs that the call changed. seconds: of the call. exhausted: whether
    memory ran out. launched: device kernels that it launched, where that was asked for.
    """

    outputs: tuple[AnyArray, ...] = ()
    seconds: float = 0.0
    problem: tuple[Verdict, str] | None = None
    modified: tuple[str, ...] = ()
    exhausted: bool = False
    launched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a process found at a target: declarations with their devices, or why there are none.

    skip: why they cannot run here, whether they could be read or not. seconds: what the import took.
    """

    declarations: tuple[Declaration, ...] = ()
    devices: dict[str, str] = field(default_factory=dict)
    skip: str | None = None
    error: str | None = None
    usage: str | None = None
    seconds: float = 0.0


def initialise(log: str, memory: int, threads: int, store: str | None, leash: Connection) -> None:
    """Set up the process: its output goes into a log file, and it may allocate `memory` bytes and use `threads`.

    leash: a pipe whose other end the run holds; the process ends with it.
    """
    global _store  # set once, before the process takes its first call
    _store = store
    bind(leash)
    _mark_clean_exits()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    faulthandler.enable(file=sys.stderr)
    threadpool_limits(threads, "blas")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    # The data segment, not the address space: CUDA reserves far more addresses than it uses.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _mark_clean_exits() -> None:
    """Give `os._exit(0)` another code: the pool takes a process that ends with 0 for one that was asked to."""
    leave, process = os._exit, os.getpid()

    def marked(status: int) -> NoReturn:
        leave(status or CLEAN_EXIT if os.getpid() == process else status)

    os._exit = marked


def inspect_target(target: Target) -> Loaded:
    """The declaration of one kernel, or the sentence that says why it cannot be had."""
    start = time.perf_counter()
    try:
        _, declaration = loaded(target)
        devices = {declaration.name: device_of(declaration.backend)}
        return Loaded(declarations=(declaration,), devices=devices, seconds=time.perf_counter() - start)
    except ModuleNotFoundError as error:
        return _import_failed(error, target.place, user=True)
    except UsageError as error:
        return Loaded(usage=str(error))
    except BaseException as error:
        return Loaded(usage=f"Importing {target.place} fails: {sentence_of(error, target.place)}")


def inspect_module(place: str) -> Loaded:
    """The declarations of all kernels that a module of moecheck.kernels defines.

    Where the module sets UNAVAILABLE to a sentence, none of them can run here, for that reason.
    """
    start = time.perf_counter()
    try:
        module = import_place(place)
        found = [
            value.__moecheck__
            for value in vars(module).values()
            if hasattr(value, "__moecheck__") and getattr(value, "__module__", None) == place
        ]
        devices = {declaration.name: device_of(declaration.backend) for declaration in found}
    except Unsupported as error:
        return Loaded(skip=str(error))
    except UsageError as error:  # a file of the user's that the module reads
        return Loaded(usage=str(error))
    except ModuleNotFoundError as error:
        return _import_failed(error, place, user=False)
    except Exception as error:
        return Loaded(error=f"importing {place} fails: {sentence_of(error, place)}")
    return Loaded(
        declarations=tuple(found),
        devices=devices,
        skip=getattr(module, "UNAVAILABLE", None),
        seconds=time.perf_counter() - start,
    )


def run_case(target: Target, case: Case, *, profile: bool = False) -> Outcome:
    """Call the kernel on a case's inputs. profile: note which device kernels it launches."""
    (outcome,) = _run(target, lambda: [Call(case=case, inputs=given_inputs(case))], profile=profile)
    return outcome


def run_all_tokens(target: Target, case: Case) -> list[Outcome]:
    """The further calls by which all tokens of a sampled case are checked."""
    return _run(target, lambda: all_token_calls(case))


def given_inputs(case: Case) -> dict[str, Any]:
    """The inputs of a case, from where this run keeps them; experts' weights of a sampled case as WindowStacks."""
    return lazy_inputs(case) if case.sampled else shared_inputs(case, _store)


def run_relation(target: Target, case: Case, name: str) -> list[Outcome]:
    """The further calls of a relation on a case, in order; after one that has a problem no other is made."""
    return _run(target, lambda: relations()[name].trial(case, given_inputs(case)).calls)


def _run(target: Target, calls: Callable[[], Sequence[Call]], *, profile: bool = False) -> list[Outcome]:
    """The outcome of each call up to the first that has a problem."""
    try:
        function, declaration = loaded(target)
    except BaseException as error:
        return [Outcome(problem=(Verdict.ERROR, f"Importing it fails: {sentence_of(error, target.place)}"))]
    outcomes: list[Outcome] = []
    buffers: dict[str, Any] = {}
    for call in calls():
        if not call.in_place:  # else the arrays of the call before stay in memory
            buffers.clear()
        outcomes.append(_attempt(function, declaration, call, target, buffers, profile))
        if outcomes[-1].problem is not None:
            break
    return outcomes


def _attempt(
    function: Callable[..., Any],
    declaration: Declaration,
    call: Call,
    target: Target,
    buffers: dict[str, Any],
    profile: bool,
) -> Outcome:
    try:
        with (
            launches(declaration.backend, wanted=profile) as launched,
            interpreted(declaration.backend, call.schedule) as watch,
        ):
            outcome = _call(function, declaration, call, buffers)
        if watch.race is not None:
            message = f"The interpreter's detector reports a race: {watch.race}, and nothing orders them."
            return replace(outcome, problem=(Verdict.PROVEN_WRONG, message))
        return replace(outcome, launched=tuple(launched))
    except Unsupported as error:
        return Outcome(problem=(Verdict.SKIP, str(error)))
    except BaseException as error:
        sentence = sentence_of(error, target.place)
        if _is_exhaustion(error):
            return Outcome(problem=(Verdict.CRASH, f"Ran out of memory: {sentence}"), exhausted=True)
        if device_is_lost(declaration.backend):  # every later call would fail here: a fresh process takes them
            os.write(2, f"{sentence}; the device takes no more work from that process.\n".encode())
            os._exit(DEVICE_LOST)
        return Outcome(problem=(Verdict.CRASH, sentence))


def _call(function: Callable[..., Any], declaration: Declaration, call: Call, buffers: dict[str, Any]) -> Outcome:
    """buffers: the arrays of the call before, by name; those of this call when it ends."""
    case, backend, layout = call.case, declaration.backend, declaration.weight_layout
    weights = weights_of(case, call.inputs, declaration) if case.sampled else None
    given = call.inputs if weights is None else {n: v for n, v in call.inputs.items() if n not in weights.arrays}
    inputs = as_declared(case, given, declaration)
    kept = {name: value.copy() for name, value in inputs.items() if isinstance(value, np.ndarray)}
    arguments = {
        name: _argument(value, backend, buffers.get(name) if call.in_place else None)
        for name, value in inputs.items()
        if name in declaration.arguments
    }
    native = {name: arguments[name] for name in kept if name in arguments}
    if weights is not None:
        arguments |= {name: value for name, value in weights.arrays.items() if name in declaration.arguments}
    reused = {name for name, value in native.items() if value is buffers.get(name)}
    buffers.update(native)
    if "spec" in declaration.arguments:
        arguments["spec"] = spec_part(case.op, case.spec if layout is None else layout.spec(case.spec))
    out = poisoned_output(case, inputs, declaration) if "out" in declaration.arguments else None
    if out is not None:
        arguments["out"] = out
    process, start = os.getpid(), time.perf_counter()
    try:
        with poisoned_allocations():
            result = function(**arguments)
    finally:
        if os.getpid() != process:  # the kernel forked; only the process that was asked may answer
            os._exit(0)
    result = _ready(result, backend)
    seconds = time.perf_counter() - start
    if out is not None:
        if result is not None and not _is_out(result, out):
            return Outcome(problem=(Verdict.PROVEN_WRONG, NOT_OUT), seconds=seconds)
        result = out
    results = result if isinstance(result, tuple | list) else (result,)
    outputs = []
    for value in results:
        try:
            output = np.zeros(0) if value is None and len(results) > 1 else to_numpy(value)
            outputs.append(output if layout is None else cut(case, output, layout))
        except (TypeError, NotImplementedError) as error:
            return Outcome(problem=(Verdict.PROVEN_WRONG, f"It returned no array: {error}."), seconds=seconds)
    modified = tuple(
        name for name, value in native.items() if name not in reused and changed(value, inputs[name], kept[name])
    )
    if weights is not None and (rewritten := weights.changed()):
        forget_weights()
        modified += tuple(rewritten)
    return Outcome(outputs=tuple(outputs), seconds=seconds, modified=modified)


def _is_out(result: Any, out: Any) -> bool:
    """Whether what a kernel returned is the array that it was to write, or holds the same bits."""
    if isinstance(result, tuple | list):
        return len(result) == 1 and _is_out(result[0], out)
    try:
        return result is out or to_numpy(result).tobytes() == to_numpy(out).tobytes()
    except (TypeError, NotImplementedError):
        return False


def _ready(result: Any, backend: str) -> Any:
    """The result with all of its work done, so that a fault of the device is raised here."""
    if backend in JAX_BACKENDS:
        import jax

        return jax.block_until_ready(result)  # type: ignore[no-untyped-call]  # jax leaves it untyped
    synchronize(backend)
    return result


def _argument(value: Any, backend: str, buffer: Any) -> Any:
    """An input as the kernel gets it: where a buffer of its shape is given, in that."""
    if not isinstance(value, np.ndarray):
        return value
    native = to_native(value, backend)
    return native if buffer is None else overwritten(buffer, native)


@lru_cache(maxsize=8)
def loaded(target: Target) -> tuple[Callable[..., Any], Declaration]:
    """The function and its declaration, imported once, and the devices that it declares."""
    function, declaration = load(target)
    provide_devices(declaration)
    return function, declaration


def _import_failed(error: ModuleNotFoundError, place: str, *, user: bool) -> Loaded:
    """A package that is not installed is a reason to skip a built-in kernel; anything else is an error."""
    reason = missing_package(error)
    if reason is None:
        return Loaded(error=f"importing {place} fails: {sentence_of(error, place)}")
    return Loaded(usage=f"Importing {place} fails: it {reason}") if user else Loaded(skip=reason)


def _is_exhaustion(error: BaseException) -> bool:
    """Frameworks report exhausted memory in their own ways, known by their words."""
    words = ("can't allocate memory", "out of memory", "RESOURCE_EXHAUSTED")
    return isinstance(error, MemoryError) or any(word in _text(error) for word in words)


def _text(error: BaseException) -> str:
    """An exception's text on one line; a hostile one may fail to give it."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""


def sentence_of(error: BaseException, file: str) -> str:
    """What was raised, and where in the kernel's file."""
    text = _text(error)[:300]
    if isinstance(error, MoecheckError):
        return text
    name = type(error).__name__
    return f"{name} at {place_of(error, file if file.endswith('.py') else None)}" + (f": {text}" if text else "")
