"""The accuracy signal of paired answers."""

from __future__ import annotations

from collections.abc import Sequence

from moecheck.evals.gsm8k.answers import Answer
from moecheck.evals.signals.accuracy import accuracy, numbers_of
from moecheck.evals.signals.signal import Signal
from moecheck.evals.statistics.paired import PairedTable

from .settings import Settings


def accuracy_signal(
    pairs: Sequence[tuple[Answer, Answer]],
    settings: Settings,
    *,
    null: PairedTable | None,
    stopped: str | None = None,
    flexible: bool = False,
) -> Signal:
    """By one filter; clustered by template where every question tells its own."""
    right = [
        [answer.score.flexible_right if flexible else answer.score.strict_right for answer in pair] for pair in pairs
    ]
    clusters = [pair[0].question.cluster for pair in pairs]
    numbers = numbers_of(
        [one for one, _ in right],
        [two for _, two in right],
        clusters=None if any(cluster is None for cluster in clusters) else clusters,
        null=null,
    )
    return accuracy(numbers, margin=settings.margin, stopped=stopped)
