"""An op's arguments as NumPy arrays in storage dtype, their dtypes and indices checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moecheck.errors import CaseError
from moecheck.formats import FORMATS, AnyArray, format_of
from moecheck.ops import OPS, Arg

from .axes import Axes
from .host import host_array, host_integer

# Arguments that may be of another format than the activations: the reference reads them exactly.
_ANY_FLOAT = frozenset({"bias", "w13_bias", "w2_bias", "shared_gate"})


def read_arguments(op: str, values: Mapping[str, object]) -> dict[str, Any]:
    """The op's arguments by name, in its order: floats as they are stored, indices as int32, and integers."""
    return {arg.name: _read(arg, values[arg.name]) for arg in OPS[op].args if arg.name in values}


def common_format(op: str, arrays: Mapping[str, Any]) -> str:
    """The format of the activations and weights, which must be one; bf16 for an op without any."""
    names = [arg.name for arg in OPS[op].args if arg.kind == "input" and arg.name not in _ANY_FLOAT]
    formats = {name: format_of(arrays[name].dtype) for name in names if name in arrays}
    first = next(iter(formats), None)
    for name, fmt in formats.items():
        if first is not None and fmt != formats[first]:
            raise CaseError(f"{name} is {fmt} and {first} is {formats[first]}; {op} takes both in one format.")
    return formats[first] if first is not None else "bf16"


def check_indices(op: str, arrays: Mapping[str, Any], axes: Axes) -> None:
    """CaseError for the first index out of its range: -1 means none where the op knows that."""
    sizes = axes.sizes
    hint = " (if the ids are global, pass expert_map)" if "w13" in arrays and "expert_map" not in arrays else ""
    _check_range(arrays, "topk_ids", -1, sizes.get("E", 0), f"experts{hint}")
    _check_range(arrays, "expert_map", -1, sizes.get("L", sizes.get("E", 0)), "local experts")
    _check_range(arrays, "inv_permuted_idx", -1, sizes.get("R", 0), "permuted rows")
    _check_range(arrays, "token_ids", 0, sizes.get("D", 0), "rows of tid2eid")
    _check_range(arrays, "tid2eid", 0, sizes.get("E", 0), "experts")
    if op == "shuffle_rows":
        _check_range(arrays, "row_map", 0, len(arrays["x"]), "rows of x")
    _check_range(arrays, "expert_placement", 0, sizes.get("E", 0), "experts")
    if "rank_tokens" in arrays and (arrays["rank_tokens"].sum() != sizes["T"] or (arrays["rank_tokens"] < 0).any()):
        raise CaseError(f"rank_tokens={arrays['rank_tokens'].tolist()} must be shares of the {sizes['T']} tokens.")
    if "expert_placement" in arrays:
        _check_places(arrays["expert_placement"], sizes)
    _check_range(arrays, "expert_counts", 0, sizes.get("C", 0) + 1, "counts that there is room for")
    if op == "grouped_gemm":
        ends = arrays["expert_ends"]
        _check_range(arrays, "expert_ends", 0, sizes["R"] + 1, "ends that x has rows for")
        falling = np.flatnonzero(np.diff(ends) < 0)
        if len(falling):
            at = int(falling[0]) + 1
            raise CaseError(
                f"expert_ends[{at}]={ends[at]} is less than the one before it, {ends[at - 1]}; these are prefix sums."
            )


def _check_places(placement: AnyArray, sizes: Mapping[str, int]) -> None:
    """CaseError for an expert without a place, and for ranks that would hold different numbers of them."""
    absent = np.setdiff1d(np.arange(sizes["E"]), placement)
    if len(absent):
        raise CaseError(f"expert_placement names no place of expert {absent[0]}.")
    if len(placement) % sizes["P"]:
        raise CaseError(f"expert_placement has {len(placement)} places, which {sizes['P']} ranks cannot share evenly.")


def _read(arg: Arg, value: object) -> Any:
    if arg.kind == "int":
        return host_integer(arg.name, value)
    array = host_array(arg.name, value)
    if arg.kind == "int32":
        return _indices(arg.name, array)
    allowed = [fmt.storage.name for fmt in FORMATS.values()]
    if arg.name == "hidden_scale":  # its rows are compared bit by bit
        allowed = ["float32"]
    elif arg.kind == "float32" or arg.name in _ANY_FLOAT:
        allowed.append("float64")
    if array.dtype.name not in allowed:
        raise CaseError(f"{arg.name} has dtype {array.dtype.name}, expected {' or '.join(allowed)}.")
    return array


def _indices(name: str, array: AnyArray) -> AnyArray:
    """Any integers as int32; what does not fit is no index, but for the -1 of unsigned ones."""
    if array.dtype.kind not in "iu":
        raise CaseError(f"{name} has dtype {array.dtype.name}, expected int32 or another integer.")
    narrow = array.astype(np.int32)
    wrong = narrow != array
    if array.dtype == np.uint32:
        wrong &= array != np.uint32(0xFFFFFFFF)
    if wrong.any():
        place = [int(i) for i in np.argwhere(wrong)[0]]
        raise CaseError(f"{name}{place} is {array[tuple(place)]}, which is no index.")
    return narrow


def _check_range(arrays: Mapping[str, Any], name: str, least: int, end: int, what: str) -> None:
    if name not in arrays:
        return
    array = arrays[name]
    wrong = (array < least) | (array >= end)
    if wrong.any():
        place = [int(i) for i in np.argwhere(wrong)[0]]
        raise CaseError(
            f"{name}{place}={array[tuple(place)]} must lie between {least} and {end - 1}: there are {end} {what}."
        )
