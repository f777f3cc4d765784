"""Programs changed at the level of their parse tree."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from moecheck.errors import HarnessError
from moecheck.scoring.rewrite import Rewrite, rewritten
from moecheck.scoring.sources import SOURCE_MUTANTS, SourceMutant

SOURCE = """
def f(x, n):
    if x < n:  # kept
        total = x + 1
    return x < n


def g(x, n):
    return x < n
"""


def run(source: str, name: str, *arguments: int) -> object:
    names: dict[str, object] = {}
    exec(compile(source, "<changed>", "exec"), names)
    function = names[name]
    assert callable(function)
    return function(*arguments)


def test_an_expression_is_replaced_in_its_function_only() -> None:
    changed = rewritten(SOURCE, (Rewrite(function="f", find="x < n", put="x <= n"),))
    assert run(changed, "f", 3, 3) is True
    assert run(changed, "g", 3, 3) is False


def test_one_of_several_occurrences() -> None:
    changed = rewritten(SOURCE, (Rewrite(function="f", find="x < n", put="x <= n", which=0),))
    assert run(changed, "f", 3, 3) is False
    assert changed.count("x <= n") == 1


def test_a_statement_is_deleted() -> None:
    changed = rewritten(SOURCE, (Rewrite(function="f", find="total = x + 1", put=""),))
    assert "total" not in changed
    assert run(changed, "f", 1, 3) is True


@pytest.mark.parametrize(
    ("function", "find"), [("h", "x < n"), ("f", "x > n")], ids=["no such function", "no such expression"]
)
def test_what_is_not_there_cannot_be_changed(function: str, find: str) -> None:
    with pytest.raises(HarnessError, match=r"no function 'h'|no longer holds `x > n`"):
        rewritten(SOURCE, (Rewrite(function=function, find=find, put="x"),))


@pytest.mark.parametrize("one", SOURCE_MUTANTS, ids=lambda one: one.name)
def test_every_kernel_still_holds_what_is_changed(one: SourceMutant) -> None:
    folder = Path(next(iter(import_module("moecheck.kernels").__path__)))
    text = (folder / one.file).read_text(encoding="utf-8")
    assert rewritten(text, one.rewrites) != rewritten(text, ())
