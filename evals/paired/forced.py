"""Signal 2: both arms on the gold answers of the sample."""

from __future__ import annotations

from collections.abc import Sequence

from moecheck.errors import Unsupported
from moecheck.evals.backends.backend import Backend, OneLayerAlone, ScoredPair
from moecheck.evals.backends.records import Scored
from moecheck.evals.gsm8k.prompts import batches_of
from moecheck.evals.signals.divergence import AnswerDivergence, compare, summarise

from .settings import Settings
from .watcher import Watcher

BATCH = 8
AGAIN = "baseline in other batches"


def batches(settings: Settings) -> list[tuple[int, ...]]:
    """Indices of the questions of each batch."""
    sample = settings.sample[: settings.forced]
    texts = ["".join(settings.pair(index)) for index in sample]
    return [tuple(sample[place] for place in batch) for batch in batches_of(texts, BATCH)]


def compare_rows(
    baseline: Backend, arms: dict[str, Backend], settings: Settings, watcher: Watcher
) -> dict[str, list[AnswerDivergence]]:
    """Each arm's divergences with whole rows, all arms batch by batch, so that few rows are held at a time.

    The baseline itself, in other batches, is among the results under AGAIN.
    """
    found: dict[str, list[AnswerDivergence]] = {name: [] for name in (*arms, AGAIN)}
    for batch in batches(settings):
        pairs = [settings.pair(index) for index in batch]
        reference = baseline.score(pairs, rows=True)
        for name, arm in arms.items():
            found[name] += _compared(batch, reference, arm.score(pairs, rows=True))
        found[AGAIN] += _compared(batch, reference, _otherwise(baseline, pairs, rows=True))
        watcher.step(len(batch))
    return found


def layer_divergences(
    baseline: Backend, candidate: Backend, settings: Settings, layers: Sequence[int]
) -> dict[int, float]:
    """Layer -> mean KL per token where that layer alone is the candidate's; empty where layers cannot be exchanged."""
    if not isinstance(candidate, OneLayerAlone):
        return {}
    pairs = [settings.pair(index) for index in settings.sample[:BATCH]]
    reference = baseline.score(pairs, rows=True)
    found = {}
    for layer in layers:
        scored = candidate.alone(layer, baseline).score(pairs, rows=True)
        kl = summarise(_compared(range(len(pairs)), reference, scored)).kl_mean
        found.update({} if kl is None else {layer: kl})
    return found


def gold_scores(arm: Backend, settings: Settings, watcher: Watcher, *, again: bool = False) -> dict[int, Scored] | None:
    """One arm's gold log-probabilities by question, without rows; None where it has none. again: in other batches."""
    found: dict[int, Scored] = {}
    for batch in batches(settings):
        pairs = [settings.pair(index) for index in batch]
        try:
            scored = _otherwise(arm, pairs, rows=False) if again else arm.score(pairs)
        except Unsupported:
            return None
        found.update(zip(batch, scored, strict=True))
        watcher.step(len(batch))
    return found


def compared_scores(baseline: dict[int, Scored], other: dict[int, Scored]) -> list[AnswerDivergence]:
    """Of two arms' gold_scores."""
    return [compare(index, baseline[index], other[index]) for index in sorted(baseline)]


def _otherwise(arm: Backend, pairs: Sequence[ScoredPair], *, rows: bool) -> list[Scored]:
    """The same pairs in two batches, so that padding and rows per call are other ones."""
    cut = -(-len(pairs) // 3)
    parts = [part for part in (pairs[:cut], pairs[cut:]) if part]
    return [scored for part in parts for scored in arm.score(part, rows=rows)]


def _compared(batch: Sequence[int], reference: Sequence[Scored], other: Sequence[Scored]) -> list[AnswerDivergence]:
    return [compare(index, one, two) for index, one, two in zip(batch, reference, other, strict=True)]
