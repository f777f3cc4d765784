"""What the page and the summary show of a run, ready to be written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moecheck.evals.gsm8k.answers import Answer
from moecheck.evals.paired.result import RunResult
from moecheck.evals.signals.attribution import describe
from moecheck.evals.signals.limits import LIMITS
from moecheck.evals.signals.signal import Outcome

from .tables import number

TONES = {Outcome.PASS: "good", Outcome.FAIL: "bad", Outcome.INCONCLUSIVE: "unsure", Outcome.ABSENT: "soft"}
WORDS = {
    Outcome.PASS: "✔ pass",
    Outcome.FAIL: "✘ fail",
    Outcome.INCONCLUSIVE: "? inconclusive",
    Outcome.ABSENT: "- none",
}
WORST_TOKENS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionView:
    """One question. same: the common beginning of both texts; left, right: what follows it in each arm.

    place: index of the first character that differs, None for identical texts. kind: `lost`, `gained`, `other text`
    or `identical`.
    """

    doc_id: int
    question: str
    gold: str
    kind: str
    baseline_right: bool
    candidate_right: bool
    flexible: str
    same: str
    left: str
    right: str
    place: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer and plan of calls."""

    layer: int
    plan: str
    alpha: str
    beta: str
    residual: str
    worst_row: str
    tokens: str
    router: str
    kl: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One token of a gold answer, among those with the largest divergence."""

    question: int
    token: int
    kl: str
    gold_change: str


def headline(result: RunResult) -> str:
    """`FAIL: shared expert ...` in one line."""
    arm = result.candidate.arm
    return f"{result.verdict.outcome.value.upper()}: {arm} in {result.facts.name}"


def facts_line(result: RunResult) -> str:
    """Model, data and settings in one line."""
    facts = result.facts
    shape = (
        f"{len(facts.moe_layers)} MoE layers, top {facts.top_k} of {facts.num_experts} experts"
        if facts.num_experts
        else ""
    )
    parts = [
        facts.name,
        shape,
        result.data,
        f"{result.few_shot}-shot",
        f"{len(result.pairs)} of {result.asked} questions",
    ]
    parts += [f"batches of {result.batch_size}", f"limits of {result.precision}", f"scored by {result.harness}"]
    return " · ".join(part for part in parts if part)


def question_views(result: RunResult) -> list[QuestionView]:
    """Lost ones first, then gained, then other texts, then identical ones."""
    order = {"lost": 0, "gained": 1, "other text": 2, "identical": 3}
    views = [_question(*pair) for pair in result.pairs]
    return sorted(views, key=lambda view: (order[view.kind], view.doc_id))


def layer_rows(result: RunResult) -> list[LayerRow]:
    """Every layer and plan, with what is wrong in words."""
    limits = LIMITS[result.precision]  # type: ignore[index]  # a Precision
    routers = {one.layer: one for one in reversed(result.agreements)}
    kl = {layer.layer: layer.kl for layer in result.depth}
    rows = []
    for fit in result.fits:
        router = routers.get(fit.layer) if fit.plan == "whole" else None
        rows.append(
            LayerRow(
                layer=fit.layer,
                plan=fit.plan,
                alpha=f"{fit.alpha:.5f} ± {fit.alpha_error:.0e}",
                beta="–" if fit.beta is None else f"{fit.beta:.5f} ± {fit.beta_error:.0e}",
                residual=number(fit.residual),
                worst_row=f"{number(fit.worst_row)} at token {fit.row}",
                tokens=f"{fit.used}" + (f" (+{fit.left_out} left out)" if fit.left_out else ""),
                router="" if router is None else f"{100 * router.isolated:.4g} %" + _propagated(router.propagated),
                kl=number(kl.get(fit.layer)) if fit.plan == "whole" else "",
                words=describe(fit, result.facts, limits),
            )
        )
    return rows


def worst_tokens(result: RunResult) -> list[TokenRow]:
    """The tokens of gold answers whose distributions are farthest apart."""
    found = [
        (float(kl), answer.question, token, float(answer.gold_change[token]))
        for answer in result.divergences
        for token, kl in enumerate(answer.kl)
        if not kl <= 0
    ]
    found.sort(key=lambda row: -np.inf if np.isnan(row[0]) else -row[0])
    return [
        TokenRow(question=question, token=token, kl=number(kl), gold_change=number(change))
        for kl, question, token, change in found[:WORST_TOKENS]
    ]


def kl_by_position(result: RunResult, bins: int = 24) -> list[tuple[float, float, float]]:
    """(middle position, mean, largest) of KL over bins of token positions; empty without rows."""
    pairs = [(place, kl) for answer in result.divergences for place, kl in enumerate(answer.kl)]
    if not pairs:
        return []
    places, values = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    edges = np.linspace(0, places.max() + 1, min(bins, int(places.max()) + 1) + 1)
    index = np.digitize(places, edges) - 1
    return [
        (float((edges[i] + edges[i + 1]) / 2), float(values[index == i].mean()), float(values[index == i].max()))
        for i in range(len(edges) - 1)
        if (index == i).any()
    ]


def variant_rows(result: RunResult) -> Iterator[tuple[str, str, str, str, str]]:
    """Name, mean KL (or half the mean squared change), top-1 agreement, identical texts, flips."""
    for variant in result.variants:
        one, texts, flips = variant.divergence, variant.texts, variant.flips
        kl = None if one is None else one.proxy if one.kl_mean is None else one.kl_mean
        yield (
            variant.name,
            number(kl),
            "–" if one is None or one.top1 is None else f"{100 * one.top1:.4g} %",
            "–" if texts is None else f"{texts.same} of {texts.n}",
            "–" if flips is None else f"{flips.lost} lost, {flips.gained} gained of {flips.n}",
        )


def _question(baseline: Answer, candidate: Answer) -> QuestionView:
    left, right = baseline.generation.text, candidate.generation.text
    place = _first_difference(left, right)
    before, after = baseline.score, candidate.score
    if before.strict_right != after.strict_right:
        kind = "lost" if before.strict_right else "gained"
    else:
        kind = "identical" if place is None else "other text"
    return QuestionView(
        doc_id=baseline.question.doc_id,
        question=baseline.question.question,
        gold=baseline.question.answer.rpartition("#### ")[2],
        kind=kind,
        baseline_right=before.strict_right,
        candidate_right=after.strict_right,
        flexible=f"{_mark(before.flexible_right)} → {_mark(after.flexible_right)}",
        same=left[:place],
        left="" if place is None else left[place:],
        right="" if place is None else right[place:],
        place=place,
    )


def _first_difference(one: Sequence[str], two: Sequence[str]) -> int | None:
    if one == two:
        return None
    shorter = min(len(one), len(two))
    return next((index for index in range(shorter) if one[index] != two[index]), shorter)


def _mark(right: bool) -> str:
    return "✔" if right else "✘"


def _propagated(value: float | None) -> str:
    return "" if value is None else f", own states {100 * value:.4g} %"
