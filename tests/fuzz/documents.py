"""Strategies for files that people, disks and other programs damage: bytes near a valid document, and far from any."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Document = st.SearchStrategy[bytes]

TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(codec=None), max_size=4),  # surrogates too
    st.sampled_from(
        ["", "\0", "../../x", "a:b", "NaN", "-1", "1e999", "x" * 5000, "ｆｐ３２", "⁹", "</script>", "a\nb"]
    ),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([-(2**63), 2**31, 2**63, 2**64, 10**30, 10**400]),
    st.floats(),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
# What no encoder writes and every decoder meets one day.
ODDITIES = st.sampled_from(
    [
        b"",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        b"[NaN]",
        b"null",
        b'"\\ud800"',
    ]
)


@st.composite
def changed(draw: st.DrawFn, data: Any) -> Any:
    """JSON data with one to three places replaced, removed, renamed or doubled."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = _place(draw, data)
        if holder is None:
            return draw(VALUES)
        action = draw(st.sampled_from(["replace", "replace", "remove", "rename", "double"]))
        if action == "replace":
            holder[key] = draw(VALUES)
        elif action == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            value = holder.pop(key) if action == "rename" else copy.deepcopy(holder[key])
            holder[draw(TEXTS)] = value
        else:
            holder.insert(key, copy.deepcopy(holder[key]))
    return data


def _place(draw: st.DrawFn, data: Any) -> tuple[Any, Any]:
    """A container somewhere in the data and one of its keys; (None, None) where there is none."""
    found: tuple[Any, Any] = (None, None)
    while isinstance(data, dict | list) and data:
        key = (
            draw(st.sampled_from(sorted(data, key=str)))
            if isinstance(data, dict)
            else draw(st.integers(0, len(data) - 1))
        )
        found, data = (data, key), data[key]
        if not draw(st.booleans()):
            break
    return found


@st.composite
def broken(draw: st.DrawFn, document: bytes) -> bytes:
    """The document cut, or with bytes replaced, inserted, removed or doubled."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(document)))
        end = min(len(document), start + draw(st.sampled_from([0, 1, 2, 8, 100, len(document)])))
        middle = draw(st.sampled_from(["", "doubled"]) | st.binary(max_size=6))
        inserted = document[start:end] * 2 if middle == "doubled" else b"" if middle == "" else middle
        assert isinstance(inserted, bytes)
        document = document[:start] + inserted + document[end:]
    return document


def encoded(data: Any) -> bytes:
    """As JSON, with what strict JSON lacks; lone surrogates as bytes that are no UTF-8."""
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")


def json_near(*documents: Any, lines: bool = False) -> Document:
    """JSON near some valid documents, or lines of it."""
    one = st.one_of(*(changed(document).map(encoded) for document in documents), VALUES.map(encoded))
    if lines:
        whole = b"\n".join(map(encoded, documents)) + b"\n"
        return st.one_of(st.lists(one, max_size=4).map(b"\n".join), broken(whole), ODDITIES, st.binary(max_size=80))
    return st.one_of(one, *(broken(encoded(document)) for document in documents), ODDITIES, st.binary(max_size=80))


def toml_near(write: Callable[[Any], str], *documents: Any) -> Document:
    """TOML near some valid documents. write: the text of one."""

    def text(data: Any) -> bytes:
        return write(data).encode("utf-8", "surrogatepass")

    return st.one_of(
        *(changed(document).map(text) for document in documents),
        *(broken(text(document)) for document in documents),
        ODDITIES,
        st.binary(max_size=80),
    )


def toml(data: Any) -> str:
    """Tables as TOML, values as JSON writes them, which TOML reads where it can."""
    if not isinstance(data, dict):
        return json.dumps(data)
    plain = {key: value for key, value in data.items() if not isinstance(value, dict)}
    lines = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in plain.items() if not _tables(value)]
    for key, value in plain.items():
        if _tables(value):
            lines += [f"[[{key}]]\n{toml(table)}" for table in value]
    lines += [f"[{json.dumps(key)}]\n{toml(value)}" for key, value in data.items() if isinstance(value, dict)]
    return "\n".join(lines) + "\n"


def _tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
