"""Records that come from files, held against their own annotations."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = sys.float_info.max


def check_types(record: Any) -> None:
    """Raise TypeError, naming the field, unless each field of a dataclass record is of the type that it declares.

    An integer may stand for a float that can be so large, true and false for neither.
    """
    hints = _hints(type(record))  # type: ignore[arg-type]  # classes are hashable, typeshed has not heard
    for one in fields(record):
        value = getattr(record, one.name)
        if not fits(value, hints[one.name]):
            raise TypeError(f"{one.name} is {_short(value)}")


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of an annotation made of plain types, records, Literal, unions, tuples, lists and mappings."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return isinstance(value, tuple) and all(fits(one, inner[0]) for one in value)
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin is list:
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, float) or (type(value) is int and abs(value) <= LARGEST)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, hint):
        return False
    if is_dataclass(value):
        check_types(value)
    return True


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
