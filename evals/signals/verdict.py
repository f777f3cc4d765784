"""The verdict of a run from its signals, and whether the candidate's kernel ran at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moecheck.evals.backends.records import Evidence, ModelFacts

from .accuracy import NAME as ACCURACY
from .signal import Outcome, Signal
from .texts import NAME as TEXTS

EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """outcome: PASS, FAIL or INCONCLUSIVE. reason: one sentence. deciding: name of the signal that decided, if one."""

    outcome: Outcome
    reason: str
    deciding: str | None = None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


def verdict(signals: Sequence[Signal], *, missing: str | None) -> Verdict:
    """By precedence: without evidence nothing counts; any failure decides; a pass needs signals 1 to 4.

    signals: most sensitive first. missing: why there is no evidence that the candidate ran, None where there is.
    """
    if missing is not None:
        return Verdict(outcome=Outcome.INCONCLUSIVE, reason=f"No evidence that the candidate ran: {missing}.")
    failed = [signal for signal in signals if signal.outcome is Outcome.FAIL]
    if failed:
        as_well = ", ".join(signal.name for signal in failed[1:])
        reason = _sentence(failed[0]) + (f" Failed as well: {as_well}." if as_well else "")
        return Verdict(outcome=Outcome.FAIL, reason=reason, deciding=failed[0].name)
    sensitive = [one for one in signals if one.name != ACCURACY and one.outcome is not Outcome.ABSENT]
    undecided = [signal for signal in sensitive if signal.outcome is Outcome.INCONCLUSIVE]
    if undecided:
        return Verdict(outcome=Outcome.INCONCLUSIVE, reason=_sentence(undecided[0]), deciding=undecided[0].name)
    if not sensitive:
        reason = "Accuracy alone never shows that a kernel is right; no other signal could be had."
        return Verdict(outcome=Outcome.INCONCLUSIVE, reason=reason, deciding=ACCURACY)
    names = ", ".join(signal.name for signal in sensitive)
    others = [one.message for one in signals if one.name == ACCURACY and one.outcome is Outcome.INCONCLUSIVE]
    accuracy = f" Accuracy decides nothing: {others[0]}." if others else ""
    reason = f"{names[:1].upper()}{names[1:]}: as legal variants of the baseline.{accuracy}"
    return Verdict(outcome=Outcome.PASS, reason=reason, deciding=TEXTS if len(sensitive) == 1 else None)


def missing_evidence(evidence: Evidence, facts: ModelFacts) -> str | None:
    """Why `evidence` does not show that the kernel computed every MoE layer; None where it does."""
    silent = [layer for layer in facts.moe_layers if not evidence.calls.get(layer)]
    if silent:
        return f"its kernel was never called in layer {', '.join(map(str, silent))}"
    blind = [layer for layer in facts.moe_layers if not evidence.watermark.get(layer)]
    if blind:
        return f"changing its kernel's result in layer {', '.join(map(str, blind))} changed nothing"
    return None


def _sentence(signal: Signal) -> str:
    return f"{signal.name[:1].upper()}{signal.name[1:]}: {signal.message}."
