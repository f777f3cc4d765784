"""The one sentence of a run, and its skips by reason."""

from __future__ import annotations

from collections import Counter

from moecheck.checks.finding import Verdict
from moecheck.report.results import RunSummary
from moecheck.report.text import SYMBOLS, count


def headline(summary: RunSummary) -> str:
    """`✘ 2 of 7 kernels failed`, `✔ 7 kernels passed`, with what is neither."""
    tested = [kernel for kernel in summary.kernels if kernel.verdict != Verdict.SKIP]
    failed = sum(kernel.failed for kernel in tested)
    verdicts = Counter(kernel.verdict for kernel in tested)
    if failed:
        text = f"{SYMBOLS[Verdict.FAIL]} {failed} of {count(len(tested), 'kernel')} failed"
    elif verdicts[Verdict.PASS]:
        text = f"{SYMBOLS[Verdict.PASS]} {count(verdicts[Verdict.PASS], 'kernel')} passed"
    else:
        text = f"{SYMBOLS[Verdict.INCONCLUSIVE]} nothing was judged"
    for verdict in (Verdict.INCONCLUSIVE, Verdict.VACUOUS):
        if verdicts[verdict]:
            text += f", {verdicts[verdict]} {verdict.value}"
    skips = sum(len(names) for names in kernels_by_reason(summary).values())
    return text + (f", {skips} skipped" if skips else "")


def totals_line(summary: RunSummary) -> str:
    """`134 checks: 130 pass, 4 fail · 12.3 checks/s`."""
    parts = [f"{number:,} {name.replace('_', ' ')}" for name, number in summary.totals.items() if number]
    text = f"{count(sum(summary.totals.values()), 'check')}: {', '.join(parts)}" if parts else "0 checks"
    speed = summary.checks_per_second
    return text + (f" · {speed:.3g} checks/s" if speed is not None else "")


def kernels_by_reason(summary: RunSummary) -> dict[str, list[str]]:
    """Reason -> kernels that were not run, or none of whose cases were; the most common reason first."""
    reasons: dict[str, list[str]] = {}
    for kernel in summary.kernels:
        if kernel.verdict == Verdict.SKIP:
            reasons.setdefault(kernel.message, []).append(kernel.name)
    for entry in summary.skipped:
        reasons.setdefault(entry.reason, []).append(entry.name)
    return dict(sorted(reasons.items(), key=lambda item: -len(item[1])))
