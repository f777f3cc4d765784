"""The report folder: what it holds, `latest` under concurrency, and hostile names."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from moecheck.errors import UsageError
from moecheck.report import ReportFolder
from moecheck.report.names import point_latest, slug
from tests.report import sample


def test_a_finished_run_holds_all_files_and_is_the_latest(tmp_path: Path) -> None:
    folder = ReportFolder.create(tmp_path / "reports")
    for group in sample.findings():
        folder.append(group)
    folder.write_environment({"tol": 0.01, "out": tmp_path})
    case = folder.write_case(sample.HOSTILE, {"id": "../../x", "seed": 0})

    notes = folder.finish(sample.summary(), sample.pictures()[:1])

    assert notes == []
    (picture,) = (folder.path / "pictures").iterdir()
    names = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    names.remove(picture.relative_to(folder.path).as_posix())
    files = "environment.json findings.jsonl junit.xml report.html summary.json summary.md"
    assert names == {*files.split(), case.relative_to(folder.path).as_posix()}
    for path in folder.path.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    latest = ReportFolder.open(tmp_path / "reports" / "latest")
    assert latest == folder
    assert repr(latest.summary()) == repr(sample.summary())
    assert (
        repr(latest.findings())
        == repr(latest.resume())
        == repr([line for group in sample.findings() for line in group])
    )


def test_the_environment_names_versions_and_options(tmp_path: Path) -> None:
    folder = ReportFolder.create(tmp_path)
    folder.write_environment({"seed": 7})

    data = json.loads((folder.path / "environment.json").read_text())

    assert data["options"] == {"seed": 7}
    assert data["versions"]["numpy"]
    assert {"python", "platform", "cpu_count", "git"} <= set(data)


def test_latest_is_never_missing_while_runs_finish_together(tmp_path: Path) -> None:
    folders = [ReportFolder.create(tmp_path) for _ in range(8)]
    notes = [point_latest(folders[0].path)]
    missing: list[str] = []
    done = threading.Event()

    def finish(folder: ReportFolder) -> None:
        notes.extend(point_latest(folder.path) for _ in range(50))

    def watch() -> None:
        while not done.is_set():
            if not (tmp_path / "latest" / "findings.jsonl").is_file():
                missing.append("latest")

    watcher = threading.Thread(target=watch)
    runs = [threading.Thread(target=finish, args=(folder,)) for folder in folders]
    for thread in (watcher, *runs):
        thread.start()
    for thread in runs:
        thread.join()
    done.set()
    watcher.join()

    assert missing == []
    assert set(notes) == {None}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_where_latest_cannot_be_a_link_the_user_is_told(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    folder = ReportFolder.create(tmp_path)

    (note,) = folder.finish(sample.summary())

    assert "latest was not updated" in note
    assert str(folder.path) in note


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match=r"^Cannot write a report into .*\.$"):
        ReportFolder.create(tmp_path / "file")
    with pytest.raises(UsageError, match="is no report folder"):
        ReportFolder.open(tmp_path)


def test_an_unfinished_or_foreign_summary_is_a_usage_error(tmp_path: Path) -> None:
    folder = ReportFolder.create(tmp_path)
    with pytest.raises(UsageError, match="--resume"):
        folder.summary()
    (folder.path / "summary.json").write_text("{}")
    with pytest.raises(UsageError, match="schema 1"):
        folder.summary()


@pytest.mark.parametrize("text", ["../../etc/passwd", "", ".", "a/b:c", "/", "x" * 500, "\x00", "é\ud800"])
def test_slugs_stay_inside_their_folder(text: str) -> None:
    name = slug(text)

    assert name == Path(name).name
    assert not name.startswith(".")
    assert 0 < len(name) < 100


def test_different_names_have_different_slugs() -> None:
    assert slug("a/b") != slug("a:b")


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")
