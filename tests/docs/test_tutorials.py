"""The tutorials, each run as it is written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.docs.tutorial import Reader, Step, difference, read_steps

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
FILES = sorted(TUTORIALS.glob("[a-z]*.md"))
SKIPPED = [(file.stem, step) for file in FILES for step in read_steps(file) if step.skip]
# A serving engine for the tutorial that starts one: the tests' own server, wrong where an environment variable asks.
ENGINE = """\
#!{python}
import os, sys
server = {server!r}
port = sys.argv[sys.argv.index("--port") + 1]
wrong = ["--wrong", "0.3", "--shift", "0.5"] if os.environ.get("VLLM_USE_NEW_MOE") == "1" else []
os.execv(sys.executable, [sys.executable, server, "--port", port, *wrong])
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a stand-in for vLLM."""
    programs, work = tmp_path / "bin", tmp_path / "work"
    programs.mkdir()
    work.mkdir()
    server = Path(__file__).parents[1] / "evals" / "backends" / "fake_server.py"
    engine = programs / "vllm"
    engine.write_text(ENGINE.format(python=sys.executable, server=str(server)), encoding="utf-8")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(work)
    return work


def test_each_user_of_the_design_has_a_tutorial() -> None:
    assert [file.stem for file in FILES] == ["engine-backend", "every-night", "kernel", "pull-request", "pytest"]
    assert all(any(step.command and not step.skip for step in read_steps(file)) for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_tutorial_does_what_it_says(file: Path, desk: Path) -> None:
    reader = Reader()
    for step in read_steps(file):
        if not step.skip:
            wrong = difference(step, reader.do(step))
            assert not wrong, wrong


@pytest.mark.parametrize(("name", "step"), SKIPPED, ids=[f"{name}: {step.command}" for name, step in SKIPPED])
def test_a_step_that_cannot_run_here_says_what_it_needs(name: str, step: Step) -> None:
    pytest.skip(step.skip)


def test_a_wrong_output_is_noticed() -> None:
    step = Step(command="c", expected="✔ 1 kernel passed\n... checks: 18 pass\n")

    assert difference(step, "✔ 1 kernel passed\n19 checks: 18 pass\n") == ""
    assert "18 pass" in difference(step, "✔ 1 kernel passed\n19 checks: 17 pass\n")
