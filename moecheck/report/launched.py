"""Which device kernels a sweep reached, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from moecheck.checks.finding import Finding
from moecheck.report.text import count


def launched_lines(findings: Iterable[Finding]) -> list[str]:
    """For each kernel a line with the device kernels that it launched, those of few cases last, and in how many."""
    cases: Counter[str] = Counter()
    reached: dict[str, Counter[str]] = {}
    for finding in findings:
        if finding.check == "case":
            cases[finding.kernel] += 1
        for name in finding.facts.get("launched", "").split(", ") if finding.check == "launched" else ():
            reached.setdefault(finding.kernel, Counter())[name] += 1
    lines = []
    for kernel, total in cases.items():
        names = reached.get(kernel)
        if names is None:
            lines.append(f"{kernel}: what it launches cannot be seen here, or none of its {count(total, 'case')} ran.")
            continue
        listed = ", ".join(f"{name} ({number})" for name, number in names.most_common())
        lines.append(f"{kernel}: {count(len(names), 'device kernel')} in {count(total, 'case')}: {listed}")
    return lines
