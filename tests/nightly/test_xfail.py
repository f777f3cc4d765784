"""Known findings: what the file may say, what an entry covers, and what it is called when it covers nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from moecheck.checks.finding import Verdict
from moecheck.errors import UsageError
from moecheck.history import Failure
from moecheck.nightly.xfail import LONGEST, Entry, read_xfail, tally
from tests.history.sample import result, run

TODAY = date(2026, 11, 22)
ISSUE = "https://example.org/1"


def entry(subject: str = "mine", **changes: object) -> Entry:
    values = {"subject": subject, "issue": ISSUE, "expires": date(2026, 12, 1), **changes}
    return Entry(**values)  # type: ignore[arg-type]  # the fields' types are those of the tests


def read(text: str, folder: Path) -> tuple[Entry, ...]:
    path = folder / "xfail.toml"
    path.write_text(text, encoding="utf-8")
    return read_xfail(path)


def test_entries_are_read(tmp_path: Path) -> None:
    soon = datetime.now(UTC).date() + timedelta(days=9)
    text = f'[[xfail]]\nkernel = "a*"\ncase = "*/padding*"\nissue = "{ISSUE}"\nexpires = {soon}\nreason = "it is old"\n'
    (one,) = read(text, tmp_path)
    assert one == entry("a*", case="*/padding*", expires=soon)
    assert read("", tmp_path) == read_xfail(None) == ()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (f'issue = "{ISSUE}"\nexpires = 2026-12-01', "needs a kernel or a subject"),
        (f'kernel = "a"\nsubject = "b"\nissue = "{ISSUE}"\nexpires = 2026-12-01', "needs a kernel or a subject"),
        ('kernel = "a"\nexpires = 2026-12-01', "link of its issue"),
        ('kernel = "a"\nissue = "#12"\nexpires = 2026-12-01', "link of its issue"),
        (f'kernel = "a"\nissue = "{ISSUE}"', "day on which it runs out"),
        (f'kernel = "a"\nissue = "{ISSUE}"\nexpires = "soon"', "day on which it runs out"),
        (f'kernel = "a"\nissue = "{ISSUE}"\nexpires = 2026-12-01T00:00:00', "day on which it runs out"),
        (f'kernel = "a"\nissue = "{ISSUE}"\nexpires = 9999-12-31', f"more than {LONGEST.days} days"),
        (f'kernel = 3\nissue = "{ISSUE}"\nexpires = 2026-12-01', "must be a text"),
        (f'kernel = "a"\nissue = "{ISSUE}"\nexpires = 2026-12-01\nsometimes = "no"', "true or false"),
        (f'kernel = "a"\nissue = "{ISSUE}"\nexpires = 2026-12-01\ncases = "b"', "Did you mean 'case'"),
    ],
)
def test_an_entry_that_says_too_little_is_refused(table: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        read(f"[[xfail]]\n{table}\n", tmp_path)


@pytest.mark.parametrize("text", ["xfail = 3", "xfail = [3]", "[[xfails]]", "[["])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"xfail\.toml"):
        read(text, tmp_path)


FAILING, PASSING = result(verdict=Verdict.FAIL), result()


@pytest.mark.parametrize(
    ("one", "subject", "status"),
    [
        (entry(), FAILING, "known"),
        (entry("m*"), FAILING, "known"),
        (entry(check="values"), FAILING, "known"),
        (entry(check="statistics"), FAILING, "matches nothing"),
        (entry(case="*/case-2"), FAILING, "known"),
        (entry(case="*/case-9"), FAILING, "matches nothing"),
        (entry(device="cuda*"), FAILING, "matches nothing"),
        (entry(label="other"), FAILING, "matches nothing"),
        (entry("min"), FAILING, "matches nothing"),
        (entry(), PASSING, "unexpected pass"),
        (entry(case="*/case-2"), PASSING, "unexpected pass"),
        (entry(case="*/case-9"), PASSING, "matches nothing"),
        (entry(sometimes=True), PASSING, "known, passed tonight"),
        (entry(sometimes=True), FAILING, "known"),
        (entry(), result(verdict=Verdict.SKIP), "not run"),
        (entry(), result(verdict=Verdict.INCONCLUSIVE), "known"),
        (entry(expires=date(2026, 11, 21)), FAILING, "expired"),
        (entry(expires=TODAY), FAILING, "known"),
        (entry(check="drift:*"), PASSING, "matches nothing"),
    ],
)
def test_what_an_entry_meets(one: Entry, subject: object, status: str) -> None:
    assert tally(one, [run(subject)], [], TODAY).status == status  # type: ignore[arg-type]


def test_an_entry_of_a_drift() -> None:
    one, night = entry(check="drift:max_diff"), run(PASSING)
    moved = Failure(check="drift:max_diff")
    assert tally(one, [night], [(night, PASSING, moved)], TODAY).status == "known"
    assert tally(one, [night], [(night, PASSING, None)], TODAY).status == "unexpected pass"
    assert tally(entry(), [night], [(night, PASSING, moved)], TODAY).status == "known"
