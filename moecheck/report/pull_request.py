"""The block that goes into the description of a pull request: accuracy, gsm8k in both arms, latency, environment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from moecheck.bench.entry import Bench, Entry
from moecheck.checks.finding import Verdict
from moecheck.report.bench import duration_words, groups
from moecheck.report.e2e_record import E2eRecord, Square
from moecheck.report.headline import headline, kernels_by_reason
from moecheck.report.limits import run_limits, sees_cell
from moecheck.report.markdown import block, code, escape
from moecheck.report.results import KernelSummary, RunSummary
from moecheck.report.runs import Run
from moecheck.report.text import count, duration, metric, place, verdict_words
from moecheck.scoring.result import Score

LONGEST = 100  # characters of a name
MOST = 15  # kernels that a table shows at once; of more, those that passed are folded away
Table = Iterable[Sequence[str]]


def pull_request(runs: Sequence[Run]) -> str:
    """Markdown of all runs together; what is not among them is named as missing.

    Texts of kernels are escaped: they cannot become markup, mentions or links.
    """
    parts: list[str] = ["## Numerical evidence (moecheck)", "", *_headlines(runs), ""]
    for part, section in _SECTIONS.items():
        for run in runs:
            if run.part == part:
                parts += [*section(run), ""]
    parts += [*_environment(runs)]
    return "\n".join(parts).rstrip() + "\n"


def _headlines(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        content = run.content
        if isinstance(content, RunSummary):
            yield f"* **Accuracy**: {escape(headline(content))}"
        elif isinstance(content, E2eRecord):
            yield f"* **gsm8k**: {content.words}: {escape(content.reason)}"
        elif isinstance(content, Bench):
            yield f"* **Latency**: {_speed(content)}"
        else:
            false = count(len(content.false_alarms), "correct kernel")
            share = f"{content.overall:.1%} of {len(content.mutants)} known bugs are seen, {false} accused"
            yield f"* **The checks themselves**: {share}"
    here = {run.part for run in runs}
    missing = [words for part, words in _WANTED.items() if part not in here]
    if missing:
        yield f"* Not shown here: {', '.join(missing)}"


def _kernels(run: Run) -> Iterator[str]:
    summary = run.content
    assert isinstance(summary, RunSummary)
    yield "### Accuracy against float64 references"
    yield ""
    tol = "" if summary.tol is None else f" (tol {summary.tol:g})"
    numbers = (">max diff", ">max rel diff", f">mismatch ratio{tol}", ">worst z", ">sees")
    names = ("kernel", "op", "device", "verdict", "cases", *numbers)
    tested = [kernel for kernel in reversed(summary.kernels) if kernel.verdict is not Verdict.SKIP]
    passed = [kernel for kernel in tested if kernel.verdict is Verdict.PASS] if len(tested) > MOST else []
    shown = [kernel for kernel in tested if kernel not in passed]
    if shown:
        yield from _table(names, [_kernel(kernel) for kernel in shown])
    if passed:
        yield from _folded(f"{count(len(passed), 'kernel')} passed", _table(names, map(_kernel, passed)))
    limits = run_limits(summary)
    if limits:
        yield escape(limits)
        yield ""
    for kernel in tested:
        if kernel.verdict is not Verdict.PASS:
            yield from _failure(kernel)
    reasons = kernels_by_reason(summary)
    if reasons:
        lines = [
            f"* {escape(reason)}: {', '.join(code(_clip(name)) for name in skipped)}"
            for reason, skipped in reasons.items()
        ]
        yield from _folded(f"{count(sum(map(len, reasons.values())), 'kernel')} not run", [*lines, ""])
    yield code(summary.command)


def _kernel(kernel: KernelSummary) -> list[str]:
    words = verdict_words(kernel.verdict)
    return [
        code(_clip(kernel.name)),
        escape(kernel.op),
        escape(kernel.device),
        f"**{words}**" if kernel.failed else words,
        kernel.tally,
        *(metric(value) for value in (kernel.max_diff, kernel.max_rel_diff, kernel.mismatch_ratio, kernel.max_z)),
        sees_cell(kernel),
    ]


def _failure(kernel: KernelSummary) -> Iterator[str]:
    where = f" Where: {escape(place(kernel.where))}." if kernel.where else ""
    yield f"**{verdict_words(kernel.verdict)}** {code(_clip(kernel.name))}: {escape(kernel.message)}{where}"
    yield ""
    if kernel.diagnosis:
        yield f"{escape(kernel.diagnosis)}"
        yield ""
    if kernel.reproduce:
        yield block(kernel.reproduce)
        yield ""


def _e2e(run: Run) -> Iterator[str]:
    record = run.content
    assert isinstance(record, E2eRecord)
    yield f"### gsm8k: {escape(record.model)}, {escape(record.data)}"
    yield ""
    arms = f"Baseline: {escape(record.baseline)}. Candidate: {escape(record.candidate)}."
    yield f"{arms} The same questions in both arms, paired."
    yield ""
    names = ("Tasks", "Filter", ">n-shot", "Metric", ">baseline", ">candidate", ">change", ">lost", ">gained", ">n")
    yield from _table(names, [_filter(square, record) for square in record.squares])
    for signal in record.signals:
        if signal.name == "accuracy":
            yield f"{escape(signal.message)}.{_statistic(signal.numbers)}"
            yield ""
    yield "More sensitive than the accuracy:"
    yield ""
    rows = [
        (
            escape(signal.name),
            f"**{signal.words}**" if signal.tone == "bad" else signal.words,
            metric(signal.value),
            metric(signal.limit),
            escape(signal.message),
        )
        for signal in record.signals
        if signal.name != "accuracy"
    ]
    yield from _table(("signal", "outcome", ">value", ">limit", "what was seen"), rows)
    if record.throughput:
        numbers = list(dict.fromkeys(name for arm in record.throughput.values() for name in arm))
        speeds = [
            (escape(arm), *(metric(values.get(name)) for name in numbers)) for arm, values in record.throughput.items()
        ]
        yield from _table(("server", *(f">{escape(name.replace('_', ' '))}" for name in numbers)), speeds)
    for arm, table in record.lm_eval.items():
        yield from _folded(f"lm-eval, {escape(arm)}", [block(table), ""])
    yield code(record.command)


def _filter(square: Square, record: E2eRecord) -> list[str]:
    metric_name, _, name = square.name.partition(",")
    shares = [square.share(arm) for arm in ("baseline", "candidate")]
    return [
        "gsm8k",
        escape(name),
        str(record.few_shot),
        f"{escape(metric_name)} ↑",
        *(f"{mean:.4f}" + (f" ± {error:.4f}" if math.isfinite(error) else "") for mean, error in shares),
        f"{shares[1][0] - shares[0][0]:+.4f}",
        str(square.lost),
        str(square.gained),
        str(square.n),
    ]


def _statistic(numbers: dict[str, float]) -> str:
    """McNemar's exact p and Tango's interval, where the run has them."""
    text = ""
    if "mcnemar_p" in numbers:
        text = f" McNemar, exact: one-sided p = {numbers['mcnemar_p']:.3g}"
        text += f", two-sided p = {numbers['mcnemar_two_sided_p']:.3g}" if "mcnemar_two_sided_p" in numbers else ""
        text += "."
    if {"tango_lower", "tango_upper"} <= numbers.keys():
        lower, upper = 100 * numbers["tango_lower"], 100 * numbers["tango_upper"]
        text += f" 90 % interval of the change: {lower:+.2f} to {upper:+.2f} points."
    return text


def _bench(run: Run) -> Iterator[str]:
    bench = run.content
    assert isinstance(bench, Bench)
    yield "### Latency"
    yield ""
    yield f"Median of a call, and {code(_clip(bench.baseline))}'s by it; only kernels that pass their checks are timed."
    yield ""
    for title, entries in groups(bench.entries):
        kernels = list(dict.fromkeys(entry.kernel for entry in entries if entry.status != "skipped"))
        if not kernels:
            continue
        kernels.sort(key=lambda name: name != bench.baseline)
        found = {(entry.tokens, entry.kernel): entry for entry in entries}
        yield f"**{escape(title)}**"
        yield ""
        rows = [
            (str(tokens), *(_time(found.get((tokens, kernel)), bench.baseline) for kernel in kernels))
            for tokens in dict.fromkeys(entry.tokens for entry in entries)
        ]
        yield from _table((">tokens", *(f">{code(_clip(kernel))}" for kernel in kernels)), rows)
    yield code(bench.command)


def _time(entry: Entry | None, baseline: str) -> str:
    if entry is None:
        return "–"
    if entry.timing is None:
        return f"**{entry.status}**: {escape(_clip(entry.reason))}" if entry.status != "skipped" else "skipped"
    text = duration_words(entry.timing.median)
    return text if entry.kernel == baseline or entry.ratio is None else f"{text} ({entry.ratio:.2f} ×)"


def _speed(bench: Bench) -> str:
    ratios = [entry.ratio for entry in bench.entries if entry.ratio is not None and entry.kernel != bench.baseline]
    wrong = sum(entry.status in ("wrong", "failed") for entry in bench.entries)
    text = count(sum(entry.status == "timed" for entry in bench.entries), "time")
    if ratios:
        ends = dict.fromkeys((f"{min(ratios):.2f}", f"{max(ratios):.2f}"))
        text += f", {' to '.join(ends)} times as fast as {code(_clip(bench.baseline))}"
    return text + (f", **{count(wrong, 'wrong or failed result')}**" if wrong else "")


def _mutants(run: Run) -> Iterator[str]:
    score = run.content
    assert isinstance(score, Score)
    yield "### The checks themselves"
    yield ""
    survivors = ", ".join(code(one.id) for one in score.survivors) or "none"
    seen = f"{score.overall:.1%} of {len(score.mutants)} known bugs are seen in 95 % of {count(score.seeds, 'seed')}"
    yield f"{seen}; not seen: {survivors}."
    yield ""
    yield code(score.command)


def _environment(runs: Sequence[Run]) -> Iterator[str]:
    """A column for each distinct environment, with the parts that ran in it."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in runs:
        found.setdefault(tuple(_facts(run).items()), []).append(run.part)
    names = list(dict.fromkeys(name for facts in found for name, _ in facts))
    yield "### Environment"
    yield ""
    columns = [dict(facts) for facts in found]
    rows = [(escape(name), *(escape(column.get(name, "–")) for column in columns)) for name in names]
    yield from _table(("", *(", ".join(dict.fromkeys(parts)) for parts in found.values())), rows)
    for run in runs:
        yield f"* {run.part}: {run.started:%Y-%m-%d %H:%M} UTC, {duration(run.seconds)}"


def _facts(run: Run) -> dict[str, str]:
    versions = run.environment.get("versions")
    known = versions.items() if isinstance(versions, dict) else ()
    facts = {
        "machine": run.machine,
        "platform": str(run.environment.get("platform") or ""),
        "commit": run.git or "",
        "python": str(run.environment.get("python") or ""),
        **{str(name): str(version) for name, version in known if version},
    }
    return {name: value for name, value in facts.items() if value}


def _table(names: Sequence[str], rows: Table) -> Iterator[str]:
    """A Markdown table and an empty line; a name that begins with > is of a column of numbers."""
    yield f"| {' | '.join(name.removeprefix('>') for name in names)} |"
    yield f"|{'|'.join('--:' if name.startswith('>') else '---' for name in names)}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _folded(title: str, lines: Iterable[str]) -> Iterator[str]:
    """Lines that a reader opens; title: escaped."""
    yield f"<details><summary>{title}</summary>"
    yield ""
    yield from lines
    yield "</details>"
    yield ""


def _clip(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


_WANTED = {"kernels": "accuracy (moecheck kernels)", "e2e": "gsm8k (moecheck e2e)", "bench": "latency (moecheck bench)"}
_SECTIONS: dict[str, Callable[[Run], Iterator[str]]] = {
    "kernels": _kernels,
    "e2e": _e2e,
    "bench": _bench,
    "mutants": _mutants,
}
