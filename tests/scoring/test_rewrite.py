"""Programs changed at the level of their parse tree."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from moecheck.errors import HarnessError
from moecheck.scoring.pallas_sources import PALLAS_MUTANTS
from moecheck.scoring.rewrite import Replacement, Rewrite, replaced, rewritten
from moecheck.scoring.source_kernels import changed
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
    found = rewritten(SOURCE, (Rewrite(function="f", find="x < n", put="x <= n"),))
    assert run(found, "f", 3, 3) is True
    assert run(found, "g", 3, 3) is False


def test_one_of_several_occurrences() -> None:
    found = rewritten(SOURCE, (Rewrite(function="f", find="x < n", put="x <= n", which=0),))
    assert run(found, "f", 3, 3) is False
    assert found.count("x <= n") == 1


def test_a_statement_is_deleted() -> None:
    found = rewritten(SOURCE, (Rewrite(function="f", find="total = x + 1", put=""),))
    assert "total" not in found
    assert run(found, "f", 1, 3) is True


@pytest.mark.parametrize(
    ("function", "find"), [("h", "x < n"), ("f", "x > n")], ids=["no such function", "no such expression"]
)
def test_what_is_not_there_cannot_be_changed(function: str, find: str) -> None:
    with pytest.raises(HarnessError, match=r"no function 'h'|no longer holds `x > n`"):
        rewritten(SOURCE, (Rewrite(function=function, find=find, put="x"),))


@pytest.mark.parametrize("text", ["int x = b;", "int x = a + a;"], ids=["nowhere", "twice"])
def test_a_piece_of_text_is_replaced_where_it_stands_once(text: str) -> None:
    assert replaced("int x = a;", (Replacement(find="a;", put="0;"),)) == "int x = 0;"
    with pytest.raises(HarnessError, match=r"`a` stands \d times in what is to be changed, not once"):
        replaced(text, (Replacement(find="a", put="0"),))


@pytest.mark.parametrize("one", [*SOURCE_MUTANTS, *PALLAS_MUTANTS], ids=lambda one: one.name)
def test_every_kernel_still_holds_what_is_changed(one: SourceMutant) -> None:
    folder = Path(next(iter(import_module("moecheck.kernels").__path__)))
    text = (folder / one.file).read_text(encoding="utf-8")
    assert changed(text, one) != rewritten(text, ())
