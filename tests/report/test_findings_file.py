"""findings.jsonl through crashes: nothing lost, nothing twice, strict JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from moecheck.checks.finding import Finding, Verdict
from moecheck.errors import HarnessError, UsageError
from moecheck.report.findings_file import append_findings, read_findings, repair_findings
from tests.report import sample

FIRST = sample.run("k", "a", Verdict.PASS, numbers={"max_z": 1.0})
SECOND = sample.run("k", "b", Verdict.FAIL, "wrong")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "findings.jsonl"


def test_findings_come_back_as_they_were_written(path: Path) -> None:
    append_findings(path, FIRST)
    append_findings(path, SECOND)

    assert read_findings(path) == FIRST + SECOND


def test_a_missing_file_has_no_findings(path: Path) -> None:
    assert read_findings(path) == []
    assert repair_findings(path) == []
    assert not path.exists()


def test_every_cut_of_the_file_keeps_exactly_the_finished_groups_and_can_go_on(path: Path) -> None:
    append_findings(path, FIRST)
    first_size = path.stat().st_size
    append_findings(path, SECOND)
    whole = path.read_bytes()

    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        # A group whose last line lacks only its newline is finished too.
        expected = [] if size < first_size - 1 else FIRST if size < len(whole) - 1 else FIRST + SECOND
        assert repair_findings(path) == expected
        for group in (FIRST, SECOND):
            if group[0] not in expected:
                append_findings(path, group)
        assert path.read_bytes() == whole


def test_a_repeated_case_counts_once_and_the_later_judgement_wins(path: Path) -> None:
    later = sample.run("k", "a", Verdict.FAIL, "now wrong")
    for group in (FIRST, SECOND, later):
        append_findings(path, group)

    assert read_findings(path) == later + SECOND


@pytest.mark.parametrize("junk", [b"[]", b"null", b"\xff\xfe", b'{"kernel": "k"}', b"0"])
def test_a_line_that_is_no_finding_is_left_out(path: Path, junk: bytes) -> None:
    append_findings(path, FIRST)
    path.write_bytes(path.read_bytes() + junk + b"\n")
    append_findings(path, SECOND)

    assert repair_findings(path) == FIRST + SECOND
    assert junk + b"\n" not in path.read_bytes()


def test_nan_and_infinity_are_written_as_strings_and_read_as_numbers(path: Path) -> None:
    numbers = {"max_z": math.inf, "max_diff": math.nan, "low": -math.inf}
    append_findings(path, sample.run("k", "\ud800 \u2028", Verdict.FAIL, numbers=numbers))

    line = json.loads(path.read_text().splitlines()[0], parse_constant=_refuse)

    assert line["numbers"] == {"max_z": "Infinity", "max_diff": "NaN", "low": "-Infinity"}
    assert repr(read_findings(path)[0].numbers) == repr(numbers)


@pytest.mark.parametrize(
    "findings",
    [
        pytest.param([], id="nothing"),
        pytest.param(FIRST[:1], id="no case line"),
        pytest.param(FIRST[::-1], id="case line first"),
        pytest.param(FIRST + SECOND, id="two cases"),
    ],
)
def test_only_one_closed_group_is_taken(path: Path, findings: list[Finding]) -> None:
    with pytest.raises(HarnessError, match="end with"):
        append_findings(path, findings)
    assert not path.exists()


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot write .*findings\.jsonl: No such file or directory\."):
        append_findings(tmp_path / "gone" / "findings.jsonl", FIRST)
    with pytest.raises(UsageError, match="Cannot read"):
        read_findings(tmp_path)


def test_a_full_disk_is_one_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.write", lambda _, block: len(block) - 1)

    with pytest.raises(UsageError, match=r"the disk took \d+ of \d+ bytes"):
        append_findings(path, FIRST)


def test_a_failed_repair_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_findings(path, FIRST)
    path.write_bytes(path.read_bytes() + b'{"cut')
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)

    with pytest.raises(UsageError, match="No space left on device"):
        repair_findings(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")
