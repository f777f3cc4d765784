"""The workflows and scripts of continuous integration: GitHub's own schema, and what they call exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = [ROOT / ".ci" / "run", *sorted((ROOT / "tools").glob("*.sh"))]


def valid(*paths: Path) -> bool:
    """By the schema of GitHub's workflows that check-jsonschema brings."""
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        *map(str, paths),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0


def test_workflows_are_valid() -> None:
    pytest.importorskip("check_jsonschema", reason="needs the package check-jsonschema")
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "nightly.yml"]
    assert valid(*WORKFLOWS)


def test_an_invalid_workflow_is_seen(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="needs the package check-jsonschema")
    bad = tmp_path / "bad.yml"
    bad.write_text("on: push\njobs: {a: {steps: [{run: 'true'}]}}\n", encoding="utf-8")  # no runs-on
    assert not valid(bad)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_scripts_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    called = re.findall(r"run: ((?:tools|\.ci)/\S+)(?: (\S+\.toml))?", text)
    assert called
    for script, config in called:
        assert (ROOT / script).stat().st_mode & 0o111
        assert not config or (ROOT / config).is_file()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("code", [0, 1, 4])
def test_the_script_ends_with_the_code_of_the_night(code: int, tmp_path: Path) -> None:
    fake, said = tmp_path / "moecheck", tmp_path / "said.txt"
    fake.write_text(f'#!/bin/sh\necho "$@" >{said}\nexit {code}\n', encoding="utf-8")
    fake.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "MOECHECK": str(fake)}
    done = subprocess.run([ROOT / "tools" / "nightly.sh", "other.toml"], env=environment, check=False)
    assert (done.returncode, said.read_text(encoding="utf-8")) == (code, "nightly other.toml\n")
