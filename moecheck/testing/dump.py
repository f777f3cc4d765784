"""One kernel call kept as a file: its arguments, its outputs, and what they mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from moecheck.errors import MoecheckError, UsageError, check_known, near
from moecheck.formats import AnyArray
from moecheck.json_text import loads
from moecheck.kernel import TieRule
from moecheck.numerics import Numerics
from moecheck.ops import OPS
from moecheck.spec import MoESpec

from .given import Given, given
from .names import check_tie, required, shown
from .tensor_file import TensorFile, open_tensors, save_tensors

KEY = "moecheck"  # of the record in the file's metadata
SCHEMA = 1
_ABSENT = "permuted_scale"  # the only output that an op may lack


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """A dump that was read. outputs: in the op's order. unused: tensors of the file that the op does not know."""

    given: Given
    outputs: tuple[AnyArray, ...]
    kernel: str = ""
    numerics: Numerics | None = None
    note: str = ""
    tie: TieRule | None = None
    unused: tuple[str, ...] = ()


def write_dump(path: Path, dump: Dump) -> None:
    """Write tensors by the names of moecheck.ops, and everything else as JSON under the metadata key `moecheck`."""
    case, inputs = dump.given.case, dump.given.inputs
    record = {
        "schema": SCHEMA,
        "version": _version(),
        "op": case.op,
        "spec": case.spec.to_json(),
        "integers": {name: value for name, value in inputs.items() if isinstance(value, int)},
        "kernel": dump.kernel,
        "numerics": asdict(dump.numerics) if dump.numerics else None,
        "note": dump.note,
        "tie": dump.tie,
    }
    tensors = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
    for arg, output in zip(OPS[case.op].outputs, dump.outputs, strict=True):
        if arg.name != _ABSENT or "hidden_scale" in inputs:
            tensors[arg.name] = output
    save_tensors(path, tensors, {KEY: json.dumps(record)})


def read_dump(path: Path, *, op: str | None = None, spec: MoESpec | None = None) -> Dump:
    """Read a dump, written by `write_dump` or by hand with the same names.

    op, spec: of a dump that does not say them; the file's own op must agree, its spec is overruled.
    Raises UsageError: one sentence with the file's name, what is wrong, and where.
    """
    try:
        file = open_tensors(path)
        record = _record(file.metadata)
        op = _op(op, record, file)
        integers = record.get("integers", {})
        names = [arg.name for arg in OPS[op].args if arg.name in file.entries or arg.name in integers]
        _check_complete(op, names, file)
        inputs = {name: integers[name] if name in integers else file.tensor(name) for name in names}
        described = given(inputs, op=op, spec=spec or _spec(record))
        outputs = [arg.name for arg in OPS[op].outputs]
        return Dump(
            given=described,
            outputs=tuple(file.tensor(name) if name in file.entries else np.zeros(0) for name in outputs),
            kernel=_text(record, "kernel"),
            numerics=_numerics(record.get("numerics")),
            note=_text(record, "note"),
            tie=_tie(record),
            unused=tuple(sorted(file.entries.keys() - {*names, *outputs})),
        )
    except MoecheckError as error:
        raise UsageError(f"{path}: {error}") from error


def _record(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What `write_dump` wrote; empty for a file of someone else."""
    if KEY not in metadata:
        return {}
    try:
        record = loads(metadata[KEY])
    except ValueError as error:
        raise UsageError(f"its metadata {KEY!r} is not complete JSON ({error}).") from error
    if not isinstance(record, dict) or not isinstance(record.get("integers", {}), dict):
        raise UsageError(f"its metadata {KEY!r} is not a record that moecheck wrote.")
    if record.get("schema", SCHEMA) != SCHEMA:
        raise UsageError(f"it has schema {record['schema']!r}, this moecheck reads schema {SCHEMA}.")
    return record


def _op(wanted: str | None, record: Mapping[str, Any], file: TensorFile) -> str:
    """The op that was asked for, that the file says, or the only one whose tensors are all there."""
    own = record.get("op")
    for op in (wanted, own):
        if op is not None:
            check_known("op", str(op), OPS)
    if wanted is not None and own is not None and wanted != own:
        raise UsageError(f"it holds a call of {own}, not of {wanted}.")
    if wanted or own:
        return str(wanted or own)
    fitting = [name for name in OPS if not _missing(name, file.entries)]
    if "fused_experts" in fitting and "expert_outputs" in fitting:  # whose weighted sum the other is
        fitting.remove("expert_outputs")
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(f"its tensors fit {', '.join(fitting[:-1])} and {fitting[-1]}; say which one with --op.")
    # Of those that lack least, the one that uses most of what is there.
    nearest = min(OPS, key=lambda name: (len(_missing(name, file.entries)), -len(required(name))))
    lacking = ", ".join(_missing(nearest, file.entries))
    raise UsageError(f"its tensors fit no op; {nearest}, the nearest, also needs {lacking}. Say which one with --op.")


def _missing(op: str, names: Iterable[str]) -> list[str]:
    """Arguments and outputs of an op that are not there."""
    present = set(names)
    outputs = [arg.name for arg in OPS[op].outputs if arg.name != _ABSENT or "hidden_scale" in present]
    return [name for name in (*required(op), *outputs) if name not in present]


def _check_complete(op: str, names: list[str], file: TensorFile) -> None:
    missing = _missing(op, {*names, *file.entries})
    if missing:
        others = sorted(file.entries.keys() - set(OPS[op].arg_names))
        hint = near(missing[0], others) or f" It holds {', '.join(file.entries) or 'no tensors'}."
        raise UsageError(f"it lacks {', '.join(missing)} of {op}.{hint}")


def _text(record: Mapping[str, Any], name: str) -> str:
    """What was said for people; UsageError where it is no text."""
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"its {name} is {shown(value)}, which is no text.")
    return value or ""


def _tie(record: Mapping[str, Any]) -> TieRule | None:
    tie: TieRule | None = record.get("tie")
    check_tie(tie)
    return tie


def _spec(record: Mapping[str, Any]) -> MoESpec | None:
    return MoESpec.from_json(record["spec"]) if record.get("spec") is not None else None


def _numerics(record: object) -> Numerics | None:
    if record is None:
        return None
    try:
        return Numerics(**record)  # type: ignore[arg-type]  # what does not fit raises
    except TypeError as error:
        raise UsageError(f"its numerics do not fit: {error}.") from error


def _version() -> str:
    """Of the moecheck that writes; a copy on the path that nobody installed has none."""
    try:
        return version("moecheck")
    except PackageNotFoundError:
        return ""
