"""The pytest plugin: a marker, a fixture and two options, and nothing is imported until a test uses them.

It lies beside the package because pytest imports it in every run, and `import moecheck` imports NumPy.
"""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest

FIXTURE, MARKER = "moecheck_case", "moecheck"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("moecheck", "Mixture-of-Experts kernels")
    group.addoption(
        "--moecheck-profile",
        metavar="NAME",
        help="how many cases marked tests run: quick (default), default or nightly",
    )
    group.addoption("--moecheck-seed", type=int, metavar="N", help="seed of the cases of marked tests (default 0)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(op, *, profile='quick', seed=0, dtypes=None, model=None, specs=(), examples=None, small=False): "
        f"run the test once for each case of an op, given by the fixture {FIXTURE}",
    )


@pytest.fixture
def moecheck_case() -> None:
    """A Case of the op that `@pytest.mark.moecheck("fused_experts")` names; the test runs once for each."""
    pytest.fail(f"{FIXTURE} needs a marker that names an op: @pytest.mark.{MARKER}('fused_experts')", pytrace=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    takes = FIXTURE in metafunc.fixturenames
    if takes and metafunc.definition.get_closest_marker(MARKER) is not None:
        from moecheck.pytest_plugin import parametrize

        parametrize(metafunc, FIXTURE, MARKER)
    elif not takes and any(mark.name == MARKER for mark in metafunc.definition.own_markers):
        pytest.fail(f"{metafunc.definition.name} is marked {MARKER} and does not take {FIXTURE}", pytrace=False)


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """One line where any test has cases: projects that do not use moecheck see nothing of it."""
    cases = sum(map(_has_case, items))
    if not cases:
        return []
    from moecheck.pytest_plugin import summary

    return [summary(config, cases)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A case that shows nothing, because there are no tokens, was run and is skipped: neither passed nor failed."""
    try:
        yield
    except AssertionError as error:
        if _has_case(item):
            from moecheck.pytest_plugin import vacuity

            reason = vacuity(error)
            if reason:
                pytest.skip(reason)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show where the error is, below the message of a comparison that failed."""
    report = yield
    error = call.excinfo.value if call.excinfo is not None else None
    if report.failed and "moecheck.testing" in sys.modules:
        from moecheck.pytest_plugin import section

        text = section(error)
        if text:
            report.sections.append(("moecheck", text))
    return report


def _has_case(item: pytest.Item) -> bool:
    return FIXTURE in getattr(getattr(item, "callspec", None), "params", ())
