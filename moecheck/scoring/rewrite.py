"""Changes a program: an expression or statement of a Python function, or a piece of another language's text."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from moecheck.errors import HarnessError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """Where `find` stands in `function`, `put` stands afterwards.

    find, put: an expression or one statement, as source; put="" deletes a statement. function: name of a function or
    method anywhere in the file. which: the number of the occurrence in the order of the text, None for all of them.
    """

    function: str
    find: str
    put: str
    which: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A change of a text that is no Python: `find` stands in it exactly once, and becomes `put`."""

    find: str
    put: str


def replaced(text: str, replacements: tuple[Replacement, ...]) -> str:
    """The text with every replacement made; HarnessError where one does not fit exactly once."""
    for replacement in replacements:
        times = text.count(replacement.find)
        if times != 1:
            raise HarnessError(f"`{replacement.find}` stands {times} times in what is to be changed, not once.")
        text = text.replace(replacement.find, replacement.put)
    return text


def rewritten(source: str, rewrites: tuple[Rewrite, ...]) -> str:
    """The program with every rewrite applied. Comments and formatting are lost.

    Raises HarnessError where a function or what is sought in it is no longer there.
    """
    tree = ast.parse(source)
    for rewrite in rewrites:
        functions = [
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == rewrite.function
        ]
        if not functions:
            raise HarnessError(f"There is no function {rewrite.function!r} to rewrite.")
        visitor = _Replace(rewrite)
        for function in functions:
            visitor.visit(function)
        if visitor.seen <= (rewrite.which or 0):
            raise HarnessError(f"{rewrite.function!r} no longer holds `{rewrite.find}` ({visitor.seen} times).")
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


class _Replace(ast.NodeTransformer):
    """Replaces nodes that are equal to a rewrite's `find`; `seen` counts them."""

    def __init__(self, rewrite: Rewrite) -> None:
        self.rewrite = rewrite
        self.sought = ast.dump(_parsed(rewrite.find))
        self.seen = 0

    def visit(self, node: ast.AST) -> ast.AST | list[ast.stmt]:
        """The node, or what takes its place."""
        if ast.dump(node) == self.sought:
            self.seen += 1
            if self.rewrite.which in (None, self.seen - 1):
                return _parsed(self.rewrite.put) if self.rewrite.put else ast.Pass()
        found: ast.AST = self.generic_visit(node)
        return found


def _parsed(text: str) -> ast.AST:
    """The expression of a text that is one, else its statement."""
    (statement,) = ast.parse(text).body
    return statement.value if isinstance(statement, ast.Expr) else statement
