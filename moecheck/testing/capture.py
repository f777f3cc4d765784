"""Keeps one call of a kernel inside somebody's engine, to be judged elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from moecheck.errors import UsageError
from moecheck.formats import AnyArray
from moecheck.kernel import TieRule
from moecheck.numerics import Numerics
from moecheck.ops import OPS

from .dump import Dump, write_dump
from .given import given
from .host import host_array
from .names import check_text, check_tie, shown
from .semantics import AnySpec


def capture(
    path: str | PathLike[str],
    *,
    inputs: Mapping[str, object],
    output: object,
    op: str | None = None,
    spec: AnySpec | None = None,
    kernel: str = "",
    numerics: Numerics | None = None,
    note: str = "",
    tie: TieRule | None = None,
) -> Path:
    """Write a call's arguments and outputs as a safetensors file that `moecheck check` judges on any machine.

    inputs: the op's arguments by the names of `moecheck list ops`: torch (CPU, CUDA), jax or NumPy arrays, integers,
    and None for absent ones; take them before a kernel that writes in place. output: the op's output, or all of them in
    order. op: inferred from the names where only one op takes them. spec: needed where the op routes. kernel, note:
    for people. numerics, tie: the rounding points and the rule for equal scores that the kernel declares.
    Arrays are copied to the host, so a call is not for a graph that is being captured or traced. An existing file is
    replaced, and no half of one is ever left. Returns the path.
    Raises UsageError or CaseError with one sentence when what is given could not be judged.
    """
    if not isinstance(path, str | PathLike):
        raise UsageError(f"path={shown(path)} must be the name of a file.")
    if not (numerics is None or isinstance(numerics, Numerics)):
        raise UsageError(f"numerics={shown(numerics)} must be a moecheck.Numerics or None.")
    check_tie(tie)
    check_text(kernel=kernel, note=note)
    described = given(inputs, op=op, spec=spec)
    outputs = host_outputs(described.case.op, output)
    target = Path(path)
    write_dump(target, Dump(given=described, outputs=outputs, kernel=kernel, numerics=numerics, note=note, tie=tie))
    return target


def host_outputs(op: str, output: object) -> tuple[AnyArray, ...]:
    """A call's outputs as NumPy arrays, one for each of the op's; UsageError when their number is another."""
    outputs = tuple(output) if isinstance(output, tuple | list) else (output,)
    wanted = OPS[op].outputs
    if len(outputs) != len(wanted):
        names = ", ".join(arg.name for arg in wanted)
        raise UsageError(f"{op} has {len(wanted)} outputs ({names}), not {len(outputs)}.")
    return tuple(
        np.zeros(0) if value is None and len(wanted) > 1 else host_array(arg.name, value)
        for arg, value in zip(wanted, outputs, strict=True)
    )
