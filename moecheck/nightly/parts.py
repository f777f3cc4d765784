"""Runs one part of a night as a process of its own, and reads what it found."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from moecheck.checks.finding import Verdict
from moecheck.errors import UsageError
from moecheck.history.ingest import RESULT_FILES, read_run
from moecheck.history.records import Failure, Result, Run, Status
from moecheck.nightly.config import Part
from moecheck.nightly.machine import lacking, missing_weights
from moecheck.report.findings_file import replace_file
from moecheck.report.strict_json import dumps
from moecheck.report.text import one_line

RESUMABLE = ("kernels", "e2e")
GRACE = 10.0  # seconds that a part has to end by itself
FINISHED = (0, 1, 4)  # exit codes of a command that came to an end
LAST_WORDS = 400  # characters of a log's last line in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a part ended. status: ran, skipped, broken or bad options. exit_code: None where it was skipped or killed.

    folder: its report, relative to the night's; None if it left none. reason: why it was skipped, or how it broke.
    log: its output, relative to the night's folder.
    """

    label: str
    command: str
    status: str
    started: str
    seconds: float = 0.0
    exit_code: int | None = None
    folder: str | None = None
    reason: str = ""
    log: str = ""


def why_not(part: Part) -> str | None:
    """Why the part cannot run here, None if it can."""
    reason = lacking(part.needs)
    if reason is None and part.command == "e2e" and "--baseline" not in part.arguments:
        reason = missing_weights(part.model)
    return reason


def words_of(part: Part, *, seed: int) -> list[str]:
    """The part as one would type it, without --out."""
    return [part.command, *part.arguments, *(["--seed", str(seed)] if part.seeded else [])]


def run_part(part: Part, folder: Path, *, seed: int) -> Done:
    """Run it, or go on with it where it was cut off; what is done is kept in the night's folder and not run again."""
    record = folder / "parts" / f"{part.label}.json"
    if record.is_file():
        return Done(**json.loads(record.read_text(encoding="utf-8")))
    words = words_of(part, seed=seed)
    done = Done(label=part.label, command=shlex.join(["moecheck", *words]), status="ran", started=_now())
    reason = why_not(part)
    skipped = replace(done, status="skipped", reason=reason or "")
    done = _run(part, words, folder, done) if reason is None else skipped
    replace_file(record, dumps(asdict(done), indent=1) + "\n")
    return done


def read_part(part: Part, done: Done, folder: Path, *, machine: str) -> Run | None:
    """What a part found, as the history keeps it; None where it found nothing."""
    if done.status != "ran":
        return None
    if done.folder is not None:
        run = read_run(folder / done.folder, label=part.label, machine=machine)
        return replace(run, started=done.started)
    # A command without a report of its own, such as a self-test: its exit code is its verdict.
    passed = done.exit_code == 0
    failure = Failure(check="exit code", message=f"exit code {done.exit_code}: {done.reason}")
    result = Result(
        subject=part.label,
        verdict=Verdict.PASS if passed else Verdict.FAIL if done.exit_code == 1 else Verdict.INCONCLUSIVE,
        judged=1,
        passed=int(passed),
        message="" if passed else done.reason,
        reproduce=done.command,
        failures=(failure,) if done.exit_code == 1 else (),
    )
    return Run(
        run=f"{folder.name}-{part.label}",
        part=part.command,
        label=part.label,
        started=done.started,
        seconds=done.seconds,
        command=done.command,
        machine=machine,
        folder=str(folder),
        results=(result,),
    )


def statuses_of(part: Part, done: Done, run: Run | None) -> list[Status]:
    """What is notable of a part as a whole."""
    found = []
    if done.status in ("broken", "bad options"):
        found.append((done.status, f"{done.reason}; see {done.log}"))
    if done.status == "skipped":
        found.append(("part skipped" if part.required else "skipped", done.reason))
    judged = [] if run is None else [one.verdict for one in run.results]
    if done.exit_code == 4 and not {Verdict.INCONCLUSIVE, Verdict.VACUOUS} & set(judged):
        found.append(("undecided", "some of its cases are undecided, or nothing was judged: see its report"))
    return [
        Status(label=part.label, subject=part.label, device="", status=status, message=one_line(message))
        for status, message in found
    ]


def _run(part: Part, words: list[str], folder: Path, done: Done) -> Done:
    out, log = folder / part.label, folder / "logs" / f"{part.label}.txt"
    out.mkdir(exist_ok=True)
    log.parent.mkdir(exist_ok=True)
    earlier = _unfinished(out) if part.command in RESUMABLE else None
    words = [*words, "--out", str(out)] if earlier is None else [part.command, "--resume", str(earlier)]
    start = time.monotonic()
    code, how = _call(words, log, limit=part.time_limit)
    reports = [one for one in _folders(out) if any((one / file).is_file() for file in RESULT_FILES)]
    status = "ran" if code in FINISHED else "bad options" if code == 2 else "broken"
    return replace(
        done,
        status=status,
        seconds=time.monotonic() - start,
        exit_code=code,
        folder=str(reports[-1].relative_to(folder)) if reports else None,
        reason="" if code == 0 or (reports and status == "ran") else how or _last_words(log),
        log=str(log.relative_to(folder)),
    )


def _call(words: list[str], log: Path, *, limit: float | None) -> tuple[int | None, str]:
    """The exit code, None for a part that was stopped, and how it ended where its last words do not tell."""
    reading, writing = Pipe(duplex=False)
    command = [sys.executable, "-m", "moecheck.nightly.child", str(reading.fileno()), *words]
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[reading.fileno()]
            )
        reading.close()
        try:
            code = child.wait(None if limit is None else 60 * limit)
        except subprocess.TimeoutExpired:
            _stop(child)
            return None, f"it took longer than its time_limit of {limit:g} minutes"
        except BaseException:
            _stop(child)
            raise
    except OSError as error:
        raise UsageError(f"Cannot write {log}: {error.strerror}.") from error
    finally:
        writing.close()
    return (code, "") if code >= 0 else (None, f"signal {-code} ended it")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask as Ctrl-C does, so that it ends its workers; then end it."""
    child.send_signal(signal.SIGINT)
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _unfinished(out: Path) -> Path | None:
    """The folder of a run that was cut off and can go on."""
    for folder in reversed(_folders(out)):
        try:
            data: Any = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # it was cut off before it had begun
        if "options" in data:
            return folder
    return None


def _folders(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if path.is_dir() and not path.is_symlink()) if out.is_dir() else []


def _last_words(log: Path) -> str:
    lines: Iterable[str] = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = [one_line(line) for line in lines if line.strip()]
    return last[-1][:LAST_WORDS] if last else "it printed nothing"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
