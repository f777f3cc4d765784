"""What the pytest plugin does once a test uses it: choose the cases, and draw the error of a failing comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.curated import DTYPES, cases_for
from moecheck.errors import MoecheckError, UsageError, check_known
from moecheck.formats import FORMATS
from moecheck.ops import OPS
from moecheck.report.replay import picture_view
from moecheck.report.terminal import render
from moecheck.testing.close import MoeMismatch

PROFILE, SEED = "quick", 0
WIDTH = 100
_KNOWN = ("profile", "seed", "dtypes", "model", "specs", "examples", "small")
_chosen = pytest.StashKey[set[tuple[str, int]]]()  # (profile, seed) of the tests that were collected


def parametrize(metafunc: pytest.Metafunc, fixture: str, marker: str) -> None:
    """One test for each case that the marker asks for; options of the command line overrule it."""
    mark = metafunc.definition.get_closest_marker(marker)
    assert mark is not None
    try:
        cases = marked_cases(mark.args, mark.kwargs, metafunc.config)
    except (MoecheckError, TypeError) as error:
        pytest.fail(f"@pytest.mark.{marker} of {metafunc.definition.name}: {error}", pytrace=False)
    metafunc.parametrize(fixture, cases, ids=[case.id for case in cases])


def marked_cases(args: tuple[Any, ...], kwargs: Mapping[str, Any], config: pytest.Config) -> list[Case]:
    """The cases of a marker's arguments; UsageError names the argument that does not fit."""
    if len(args) != 1 or not isinstance(args[0], str):
        raise UsageError(f"it takes one op by name, not {args!r}.")
    check_known("op", args[0], OPS)
    for name in kwargs:
        check_known("argument", name, _KNOWN)
    chosen = {**kwargs}
    for name, default in (("profile", PROFILE), ("seed", SEED)):
        asked = config.getoption(f"moecheck_{name}")
        chosen[name] = asked if asked is not None else kwargs.get(name, default)
    dtypes = chosen["dtypes"] = tuple(kwargs.get("dtypes") or DTYPES)
    for dtype in dtypes:
        check_known("dtype", dtype, FORMATS)
    config.stash.setdefault(_chosen, set()).add((chosen["profile"], chosen["seed"]))
    return cases_for(args[0], **chosen)


def summary(config: pytest.Config, cases: int) -> str:
    """`moecheck: 27 cases, profile quick, seed 0`."""
    chosen: set[tuple[str, int]] = config.stash.setdefault(_chosen, set())
    return f"moecheck: {cases} cases, " + "; ".join(f"profile {name}, seed {seed}" for name, seed in sorted(chosen))


def vacuity(error: BaseException) -> str:
    """Why a comparison shows nothing; empty for any other error."""
    if not isinstance(error, MoeMismatch) or error.examined.verdict is not Verdict.VACUOUS:
        return ""
    return error.examined.decisive.message


def section(error: BaseException | None) -> str:
    """What a failing comparison looks like and where its error is; empty for anything else."""
    if not isinstance(error, MoeMismatch) or error.examined.verdict not in FAILURES:
        return ""
    examined = error.examined
    picture = examined.picture("")
    drawn = "" if picture is None else render(picture_view(picture, width=WIDTH), width=WIDTH, color=False)
    looks = f"{examined.diagnosis}\n\n" if examined.diagnosis else ""
    return (looks + drawn).strip("\n")
