"""A tutorial as a list of steps, and how a step is run; `python tests/docs/tutorial.py FILE.md` prints what happens.

A fenced block with a title is a file that the reader writes. A block `console` has commands behind `$`, and what they
print: `...` stands for anything, and white space does not count. A comment `skip: REASON` before a block says what it
needs that a plain machine lacks.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from moecheck.cli import run

_BLOCK = re.compile(
    r"(?:<!-- skip: (?P<skip>[^\n]+) -->\n)?```(?P<kind>\w+)(?P<rest>[^\n]*)\n(?P<text>.*?)```", re.DOTALL
)
_TITLE = re.compile(r'title="([^"]+)"')
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A file to write (path, text), or a command with the output that it should have. skip: why it is not run."""

    path: str = ""
    text: str = ""
    command: str = ""
    expected: str = ""
    skip: str = ""


def read_steps(path: Path) -> list[Step]:
    """The steps of a tutorial, in order; blocks without a title that are no console are for reading only."""
    steps = []
    for block in _BLOCK.finditer(path.read_text(encoding="utf-8")):
        title, skip = _TITLE.search(block["rest"]), block["skip"] or ""
        if title:
            steps.append(Step(path=title[1], text=block["text"], skip=skip))
        elif block["kind"] == "console":
            for part in re.split(r"^\$ ", block["text"], flags=re.MULTILINE)[1:]:
                command, _, expected = part.replace("\\\n", "").partition("\n")
                steps.append(Step(command=command, expected=expected, skip=skip))
    return steps


class Reader:
    """Does in the working directory what a reader does, and remembers the last exit code."""

    def __init__(self) -> None:
        self.code = 0

    def do(self, step: Step) -> str:
        """Write the step's file, or run its command and return what it prints."""
        if step.path:
            Path(step.path).write_text(step.text, encoding="utf-8")
            return ""
        if step.command == "echo $?":
            return f"{self.code}\n"
        words = shlex.split(step.command)
        if words[0] == "moecheck":
            return self._moecheck([part for word in words[1:] for part in _expanded(word)])
        if words[0] in ("python", "pytest"):
            module = ["-m", "pytest", "-p", "no:cacheprovider"] if words[0] == "pytest" else []
            done = subprocess.run([sys.executable, *module, *words[1:]], capture_output=True, text=True, check=False)
        else:
            done = subprocess.run(step.command, shell=True, capture_output=True, text=True, check=False)
        self.code = done.returncode
        return done.stdout + done.stderr

    def _moecheck(self, words: list[str]) -> str:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self.code = run(words)
        # Progress goes to standard error as well.
        said = [line for line in err.getvalue().splitlines(keepends=True) if line.startswith("moecheck: ")]
        return out.getvalue() + "".join(said)


def difference(step: Step, got: str) -> str:
    """How the output differs from what the tutorial shows; empty where it does not."""
    checker = doctest.OutputChecker()
    if checker.check_output(step.expected, got, FLAGS):
        return ""
    return f"$ {step.command}\n{checker.output_difference(doctest.Example('', step.expected), got, FLAGS)}"


def _expanded(word: str) -> list[str]:
    """File names for a pattern, as a shell has it."""
    return sorted(str(path) for path in Path().glob(word)) or [word] if "*" in word else [word]


def main() -> None:
    reader = Reader()
    for step in read_steps(Path(sys.argv[1])):
        if step.skip:
            sys.stdout.write(f"(skipped: {step.skip})\n")
            continue
        got = reader.do(step)
        if step.command:
            sys.stdout.write(f"$ {step.command}\n{got}")


if __name__ == "__main__":
    main()
