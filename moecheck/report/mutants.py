"""The score of `moecheck mutants` on disk: mutants.json, mutants.md and environment.json in a folder of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from moecheck.errors import UsageError
from moecheck.report.environment import environment
from moecheck.report.findings_file import replace_file
from moecheck.report.mutants_view import coverage_tables
from moecheck.report.names import folder_name
from moecheck.report.strict_json import dumps
from moecheck.report.text import count, duration
from moecheck.scoring.result import BARS, Score, share_killed


def mutants_folder(parent: Path) -> Path:
    """A new folder `mutants-<time>-<id>` under `parent`; raises UsageError where it cannot be written."""
    path = parent / f"mutants-{folder_name()}"
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"Cannot write a report into {parent}: {error.strerror}.") from error
    return path


def publish(folder: Path, score: Score) -> None:
    """Write mutants.json and a mutants.md without the lists of every mutant and every combination."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "mutants.json", dumps(score.to_json(), indent=1) + "\n")
    replace_file(folder / "mutants.md", "\n".join(summary(score)).rstrip() + "\n")


def write_score(folder: Path, score: Score, options: Mapping[str, object]) -> None:
    """Write mutants.json (everything), mutants.md (for people) and environment.json."""
    replace_file(folder / "mutants.json", dumps(score.to_json(), indent=1) + "\n")
    replace_file(folder / "mutants.md", markdown(score))
    replace_file(folder / "environment.json", dumps(environment(options), indent=2) + "\n")


def summary(score: Score) -> list[str]:
    """The score as Markdown: the classes, survivors, correct kernels, what is just seen, the checks, the time."""
    lines = [
        f"# moecheck mutants: {'passed' if score.passed else 'FAILED'}",
        "",
        f"`{score.command}`, {score.started}, commit {score.git or 'unknown'}: {duration(score.seconds)}, "
        f"{duration(score.cpu_seconds)} of one core.",
        "",
        f"Score {score.overall:.1%}, macro average over the classes {score.macro:.1%}; the bar of the {score.profile} "
        f"profile is {BARS[score.profile]:.0%} and no false alarm. A mutant is killed if it is caught in 95 % of "
        f"{count(score.seeds, 'seed')}, in each of its ops.",
        "",
        *classes(score),
    ]
    if score.survivors:
        lines += [
            "## Survivors",
            "",
            *(f"* `{one.id}`: {one.words}. {_sentence(one.why)}" for one in score.survivors),
            "",
        ]
    if score.alarms:
        lines += ["## Correct kernels", ""]
        rows = [(one.name, one.trials, one.variants, len(one.alarms), one.undecided) for one in score.alarms]
        lines += _table(("numerics", "judged", "distinct variants", "false alarms", "undecided"), rows)
        lines += [*(f"* {text}" for text in score.false_alarms), ""]
    if score.limits:
        lines += ["## What is just seen, in 95 % of the seeds", ""]
        rows_of_limits = [
            (one.name, _factor(one.factor), _or_none(one.sigmas), _or_none(one.elements)) for one in score.limits
        ]
        lines += _table(
            (
                "numerics",
                "factor on all routing weights",
                "one element, in sigmas",
                "elements off by 4 sigmas of 65,536",
            ),
            rows_of_limits,
        )
    lines += ["## Checks", ""]
    unique = score.unique_kills
    rows_of_checks = [(check, number, unique.get(check, 0)) for check, number in score.kills.most_common()]
    lines += _table(("check", "mutants seen", "by no other check"), rows_of_checks)
    if score.cpu_by_part:
        lines += ["## Time, in seconds of one core", ""]
        parts = sorted(score.cpu_by_part.items(), key=lambda part: -part[1])
        lines += _table(("part", "seconds"), [(name, f"{seconds:.0f}") for name, seconds in parts])
    return lines


def markdown(score: Score) -> str:
    """The whole score as Markdown."""
    lines = summary(score)
    equivalent = [one for one in score.mutants if one.equivalent]
    if equivalent:
        lines += ["## Equivalent: the right output, bit for bit, on every case", ""]
        lines += [
            f"* `{one.id}`: {one.words}. {one.equivalent}" + (" **The outputs differ.**" if one.differed else "")
            for one in equivalent
        ]
        lines += [""]
    lines += ["## Coverage: cases / mutants that died there", ""]
    for title, header, rows_of_matrix in coverage_tables(score.coverage):
        lines += [f"### {title}", "", *_table(header, rows_of_matrix)]
    lines += ["## Every mutant", ""]
    lines += _table(
        ("mutant", "class", "what is wrong", "happened in", "p_kill", "seen by", "first seen on"),
        [
            (
                f"`{one.id}`",
                one.kind,
                one.words,
                " ".join(one.sources),
                f"{one.p_kill:.2f}",
                ", ".join(one.checks[:4]) + (" ..." if len(one.checks) > 4 else ""),
                one.seen_on,
            )
            for one in score.mutants
        ],
    )
    return "\n".join(lines).rstrip() + "\n"


def classes(score: Score) -> list[str]:
    """The table of the classes, and what is seen only where the contract is known."""
    names = ("class", "mutants", "killed", "survived", "equivalent", "score", "killed in kernels that declare nothing")
    rows = [
        (
            kind,
            len(own),
            sum(one.killed for one in own),
            sum(one.survived for one in own),
            sum(bool(one.equivalent) for one in own),
            f"{share_killed(own):.1%}",
            "{} of {}".format(*score.undeclared(kind)) if score.undeclared(kind)[1] else "not tried",
        )
        for kind in score.kinds
        for own in [score.of(kind)]
    ]
    lines = _table(names, rows)
    if score.unseen_undeclared:
        known = ", ".join(f"`{name}`" for name in score.unseen_undeclared)
        lines += [f"Killed only in kernels whose contract is declared: {known}.", ""]
    return lines


def _table(header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> list[str]:
    """A Markdown table, and an empty line."""
    if not rows:
        return []
    lines = [header, tuple("---" for _ in header), *rows]
    return [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines] + [""]


def _factor(value: float | None) -> str:
    return "none tried" if value is None else f"1 + {value:.2g}"


def _or_none(value: float | None) -> str:
    return "none tried" if value is None else f"{value:g}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
