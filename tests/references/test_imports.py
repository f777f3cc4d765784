"""What references may import, and that each op has its reference."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from moecheck.ops import OPS

REFERENCES = Path(__file__).parents[2] / "references"
FILES = sorted(REFERENCES.glob("*.py"))
CORE = ("accumulators", "elements", "errors", "formats", "numerics", "quantization", "quantizer", "spec")
ALLOWED = {f"moecheck.{name}" for name in CORE}


def forbidden_imports(source: str) -> list[str]:
    """Modules that a reference with this source imports and may not."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.append(node.module or "")
        elif isinstance(node, ast.ImportFrom) and node.level > 1:
            modules.append("." * node.level + (node.module or ""))
    return [name for name in modules if not _allowed(name)]


def _allowed(name: str) -> bool:
    top = name.split(".")[0]
    return name in ALLOWED or top == "numpy" or top in sys.stdlib_module_names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_a_reference_imports_numpy_the_core_and_siblings_only(path: Path) -> None:
    assert forbidden_imports(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("import torch", id="a framework"),
        pytest.param("from torch.nn import functional", id="part of a framework"),
        pytest.param("from moecheck.kernels import x", id="a kernel"),
        pytest.param("from moecheck import cases", id="the harness"),
        pytest.param("from .. import cases", id="the harness, relatively"),
        pytest.param("import ml_dtypes", id="another library's formats"),
        pytest.param("def f():\n    import jax", id="inside a function"),
    ],
)
def test_a_forbidden_import_is_seen(line: str) -> None:
    assert len(forbidden_imports(line)) == 1


def test_there_is_no_package_file() -> None:
    assert not (REFERENCES / "__init__.py").exists()


@pytest.mark.parametrize("op", OPS)
def test_each_op_has_one_reference_of_its_name(op: str) -> None:
    holders = [path.stem for path in FILES if path.stem[0] != "_" and op in _public_functions(path)]
    assert holders == [op]


@pytest.mark.parametrize("op", OPS)
def test_a_reference_takes_the_op_s_arguments_by_name_only(op: str) -> None:
    function = _public_functions(REFERENCES / f"{op}.py")[op]
    names = {argument.arg for argument in function.args.kwonlyargs}
    assert function.args.args == []
    assert {argument.name for argument in OPS[op].args} <= names


def _public_functions(path: Path) -> dict[str, ast.FunctionDef]:
    body = ast.parse(path.read_text()).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
