"""Which kernels round where, in words: equal contracts together."""

from __future__ import annotations

from moecheck.checks.finding import Verdict
from moecheck.identify.floor import UNKNOWN, store_words
from moecheck.report.evidence import CONTRACT
from moecheck.report.results import KernelSummary, RunSummary
from moecheck.report.text import count

NAMED = 3  # kernels of a group that are named one by one


def contract_words(kernel: KernelSummary) -> str | None:
    """A kernel's contract with its agreement and runner-up; None where it has none."""
    if kernel.contract is None:
        return None
    agreement = kernel.contract_agreement
    shown = "" if agreement is None else f"{agreement:.4f}"
    if kernel.contract == UNKNOWN:
        return f"unknown: the best of those tried reproduces {shown} of the bits"
    text = kernel.contract + (f"; agreement {shown}" if shown and not kernel.contract.startswith("changes") else "")
    if kernel.contract_runner_up:
        text += f", runner-up {kernel.contract_runner_up_agreement:.3f} ({kernel.contract_runner_up})"
    return text


def odd_contract(kernel: KernelSummary) -> str | None:
    """What a failing kernel's reader should know of its contract beyond the message; None where all is as declared."""
    if kernel.contract_problem is not None and kernel.check != CONTRACT:
        return kernel.contract_problem
    return f"contract {contract_words(kernel)}" if kernel.contract == UNKNOWN else None


def contract_lines(summary: RunSummary) -> list[str]:
    """One line for each distinct contract of the kernels that passed, the most common first; unknown ones last."""
    groups: dict[str, list[KernelSummary]] = {}
    for kernel in summary.kernels:
        if kernel.verdict is Verdict.PASS and kernel.contract is not None:
            groups.setdefault(kernel.contract, []).append(kernel)
    return [_group(groups[text]) for text in sorted(groups, key=lambda text: (text == UNKNOWN, -len(groups[text])))]


def floor_line(summary: RunSummary) -> str | None:
    """The kernels that round below the floor because they declare it, by what they round there; None for none."""
    groups: dict[str, list[str]] = {}
    for kernel in summary.kernels:
        if kernel.below_floor and kernel.verdict is not Verdict.SKIP:
            groups.setdefault(store_words(kernel.below_floor), []).append(kernel.name)
    parts = [f"{what}: {', '.join(names)}" for what, names in groups.items()]
    return f"Declared to round below the floor: {'; '.join(parts)}." if parts else None


def _group(kernels: list[KernelSummary]) -> str:
    agreements = [kernel.contract_agreement for kernel in kernels if kernel.contract_agreement is not None]
    names = ", ".join(kernel.name for kernel in kernels)
    if kernels[0].contract == UNKNOWN:
        best = f" (the best of those tried reproduces {_listed(agreements)} of the bits)" if agreements else ""
        return f"contract unknown: {names}{best}"
    who = names if len(kernels) <= NAMED else count(len(kernels), "kernel")
    text = f"{who}: {kernels[0].contract}"
    if not agreements:
        return text
    least, most = f"{min(agreements):.4f}", f"{max(agreements):.4f}"
    return f"{text}; agreement {least}" + (" or better" if least != most else "")


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
