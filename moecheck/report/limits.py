"""What a pass is worth, in words: the smallest errors that it would have shown."""

from __future__ import annotations

from moecheck.checks.finding import Verdict
from moecheck.checks.judge import STRUCTURE_OPS, VALUE_OPS
from moecheck.report.results import KernelSummary, RunSummary
from moecheck.report.text import count

EXACT = "exact"
ROUTER = "topk_routing"


def factor(limit: float | None) -> str:
    """`1 ± 7.6e-05`; `–` where it is not known."""
    return "–" if limit is None else f"1 ± {limit:.1e}"


def sees_cell(kernel: KernelSummary) -> str:
    """The smallest factor that a kernel's passing cases would have shown, for a table."""
    return sees_text(kernel.op, kernel.detection_limit, passed=kernel.passed_cases > 0)


def sees_text(op: str, limit: float | None, *, passed: bool) -> str:
    """What the passing cases of an op would have shown; limit: the smallest factor, less 1."""
    if op in STRUCTURE_OPS and passed:
        return EXACT
    return "–" if limit is None else f"1 ± {limit:.0e}"


def sees_words(kernel: KernelSummary) -> str | None:
    """A sentence on what the kernel's passing cases would have shown; None where nothing passed."""
    if not kernel.passed_cases:
        return None
    if kernel.op in STRUCTURE_OPS:
        return "Every element is compared exactly: any wrong one shows."
    if kernel.detection_limit is None:
        return "How small an error would have shown is not known: too few elements passed."
    what = "on all routing weights" if kernel.op == ROUTER else "on the whole output"
    text = f"Sees a factor of {_by_dtype(kernel)} {what}"
    if kernel.op == ROUTER:
        return f"{text}, and any illegal choice of experts."
    return text + (f", and one element off by {kernel.element_limit:.1f} sigma." if kernel.element_limit else ".")


def run_limits(summary: RunSummary) -> str | None:
    """One sentence on what every pass of the run would have shown; None where nothing passed that has a limit."""
    passed = [kernel for kernel in summary.kernels if kernel.verdict is Verdict.PASS]
    known = [kernel for kernel in passed if kernel.detection_limit is not None]
    outputs = _bluntest("an output", [kernel for kernel in known if kernel.op != ROUTER])
    weights = _bluntest("routing weights", [kernel for kernel in known if kernel.op == ROUTER])
    if not known:
        return None
    elements = [kernel.element_limit for kernel in known if kernel.element_limit is not None]
    single = f"one element off by {max(elements):.1f} sigma" if elements else None
    text = " and ".join(part for part in (outputs, single, weights) if part)
    blind = sum(kernel.op in (*VALUE_OPS, ROUTER) for kernel in passed) - len(known)
    exact = sum(kernel.op in STRUCTURE_OPS for kernel in passed)
    if exact:
        text += f"; {count(exact, 'kernel')} of exact ops: any wrong element"
    return f"Every pass would have seen {text}" + (f"; not known of {count(blind, 'kernel')}." if blind else ".")


def _bluntest(what: str, kernels: list[KernelSummary]) -> str | None:
    """The largest of the kernels' limits, and whose it is; None for no kernels."""
    if not kernels:
        return None
    worst = max(kernels, key=lambda kernel: kernel.detection_limit or 0.0)
    return f"a factor of {factor(worst.detection_limit)} on {what} (worst kernel: {worst.name})"


def _by_dtype(kernel: KernelSummary) -> str:
    limits = sorted(kernel.detection_limits.items(), key=lambda item: -item[1])
    if len(limits) < 2:
        return factor(kernel.detection_limit)
    return ", ".join(f"{factor(value)} ({dtype})" for dtype, value in limits)
