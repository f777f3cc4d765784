"""The pytest plugin gives marked tests their cases, draws what fails, and leaves other projects alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import moecheck.pytest_plugin  # noqa: F401  # pytester forgets what a run imports first; compiled modules mind that
from moecheck.curated import cases_for

pytest_plugins = ["pytester"]

KERNEL = """
import numpy as np
import pytest
from moecheck.formats import store
from moecheck.oracle import Oracle
from moecheck.testing import assert_moe_close, inputs_for

def right(case):
    return store(Oracle().values(case, None).true, case.dtype)
"""
MARKED = (
    KERNEL
    + """
@pytest.mark.moecheck("act_and_mul", dtypes=("fp32",), examples=0)
def test_mine(moecheck_case):
    assert inputs_for(moecheck_case, "numpy")["x"].dtype == np.float32
    assert_moe_close(right(moecheck_case), moecheck_case)
"""
)
CASES = cases_for("act_and_mul", profile="quick", seed=0, examples=0, dtypes=("fp32",))


@pytest.fixture(autouse=True)
def _without_inherited_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def test_a_marked_test_runs_once_for_each_case(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MARKED)
    result = pytester.runpytest("-v", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist")
    empty = [case for case in CASES if case.num_tokens == 0]

    result.assert_outcomes(passed=len(CASES) - len(empty), skipped=len(empty))
    result.stdout.fnmatch_lines([f"moecheck: {len(CASES)} cases, profile quick, seed 0"])
    assert all(f"test_mine[{case.id}]" in result.stdout.str() for case in CASES)
    assert "This case shows nothing" in result.stdout.str()


def test_options_overrule_the_marker(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MARKED)
    result = pytester.runpytest("--collect-only", "-q", "--moecheck-seed", "7", "--moecheck-profile", "default")
    result.stdout.fnmatch_lines(["moecheck: * cases, profile default, seed 7"])


def test_a_failing_case_is_drawn(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        KERNEL
        + """
@pytest.mark.moecheck("act_and_mul", dtypes=("bf16",), examples=0)
def test_mine(moecheck_case):
    out = right(moecheck_case)
    assert_moe_close(np.zeros_like(out), moecheck_case)
"""
    )
    result = pytester.runpytest("-k", "plain-bf16", "-p", "no:cacheprovider", "-p", "no:xdist")

    result.assert_outcomes(
        failed=1, deselected=len(cases_for("act_and_mul", profile="quick", seed=0, examples=0, dtypes=("bf16",))) - 1
    )
    result.stdout.fnmatch_lines(
        [
            "E *MoeMismatch: ✘ proven wrong act_and_mul*",
            "E *values: row *got 0, expected*",
            "E *again: *Case.from_json*",
            "*-- moecheck --*",
            "*above the bound*",
            "*largest |out - ref| / allowed of each cell*",
        ]
    )
    assert "def assert_moe_close" not in result.stdout.str()


BAD_MARKERS = {
    '"act_and_mull"': "Unknown op 'act_and_mull'. Did you mean 'act_and_mul'?",
    "": "it takes one op by name, not ().",
    '"permute", profile="fast"': "Unknown profile 'fast'.",
    '"permute", dtype="bf16"': "Unknown argument 'dtype'. Did you mean 'dtypes'?",
    '"permute", dtypes=("bf61",)': "Unknown dtype 'bf61'.",
    '"permute", model="mixtral"': "Unknown model 'mixtral'. Did you mean 'mixtral-8x7b'?",
}


def test_markers_that_do_not_fit_are_one_sentence_each(pytester: pytest.Pytester) -> None:
    code = "import pytest\n@pytest.mark.moecheck({})\ndef test_mine(moecheck_case): pass\n"
    pytester.makepyfile(**{f"test_{i}": code.format(marker) for i, marker in enumerate(BAD_MARKERS)})
    result = pytester.runpytest("-p", "no:cacheprovider")

    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=len(BAD_MARKERS))
    lines = result.stdout.str()
    assert "Traceback" not in lines
    for sentence in BAD_MARKERS.values():
        assert f"\n@pytest.mark.moecheck of test_mine: {sentence}" in lines


def test_a_fixture_without_marker_and_a_marker_without_fixture_are_errors(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_a="def test_mine(moecheck_case): pass")
    pytester.makepyfile(test_b="import pytest\n@pytest.mark.moecheck('permute')\ndef test_mine(): pass")
    first, second = (pytester.runpytest(f"{name}.py", "-p", "no:cacheprovider") for name in ("test_a", "test_b"))

    first.assert_outcomes(errors=1)
    first.stdout.fnmatch_lines(["*needs a marker that names an op: @pytest.mark.moecheck('fused_experts')"])
    second.assert_outcomes(errors=1)
    second.stdout.fnmatch_lines(["test_mine is marked moecheck and does not take moecheck_case"])


def test_a_module_mark_leaves_tests_without_the_fixture_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\npytestmark = pytest.mark.moecheck('permute')\ndef test_other(): pass")
    pytester.runpytest("--strict-markers", "-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_a_vacuous_comparison_of_anyones_own_still_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        KERNEL
        + """
from moecheck.testing import Case
def test_mine():
    case = Case(op="act_and_mul", num_tokens=0)
    assert_moe_close(right(case), case)
"""
    )
    pytester.runpytest("-p", "no:cacheprovider").assert_outcomes(failed=1)


def test_projects_that_do_not_use_it_see_and_load_nothing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        """
import sys
def test_other():
    assert "moecheck_pytest" in sys.modules
    assert not {"moecheck", "numpy", "ml_dtypes"} & set(sys.modules)
def test_failing():
    assert 1 == 2
"""
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # those of other packages load what they like
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "moecheck_pytest", "-W", "error")

    result.assert_outcomes(passed=1, failed=1)
    body = [line for line in result.outlines if "plugins:" not in line]
    assert not [line for line in body if "moecheck" in line.replace(str(pytester.path), "")]


def test_the_plugin_itself_imports_pytest_only() -> None:
    code = "import sys, pytest; before = set(sys.modules); import moecheck_pytest; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["moecheck_pytest"]
