"""Strictly valid JSON: the numbers that JSON lacks are written as strings.

NaN and the infinities become "NaN", "Infinity" and "-Infinity" (the JSON mapping of Protocol Buffers); null means
"not measured". `float()` reads all three strings back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import Enum

import numpy as np


def dumps(value: object, *, indent: int | None = None) -> str:
    """`value` as strict JSON; NumPy scalars and arrays, enums, tuples and mappings are welcome."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=True)


def number(value: object) -> float:
    """A number as `dumps` wrote it, back as a float."""
    if not isinstance(value, int | float | str):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    return float(value)


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _name(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)


def _name(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
