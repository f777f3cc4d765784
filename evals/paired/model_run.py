"""A run whose arms live in this process and share one model: embedded or transformers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from moecheck.evals.backends.backend import Backend, Model, WhiteBox
from moecheck.evals.backends.records import Arm, Evidence, Generation
from moecheck.evals.gsm8k.answers import pair_answers
from moecheck.evals.signals.attribution import attribution
from moecheck.evals.signals.divergence import AnswerDivergence, summarise, teacher_forced
from moecheck.evals.signals.routing import router_agreement
from moecheck.evals.signals.signal import Signal
from moecheck.evals.signals.texts import agree, identical_texts
from moecheck.evals.signals.verdict import missing_evidence, verdict
from moecheck.evals.statistics.paired import PairedTable

from .early import until_decided
from .forced import AGAIN, compare_rows, layer_divergences
from .generated import TaskFiles, generate, generate_otherwise, generate_through_lm_eval, scored
from .isolated import Isolated, References, worst_by_layer
from .journal import Journal, Journalled
from .judged import accuracy_signal
from .result import RunResult, Variant
from .settings import Settings
from .watcher import Watcher

BASELINE = Arm()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """The open arms of a run; variants by name."""

    baseline: Journalled
    candidate: Journalled
    variants: dict[str, Journalled]


def run_model(
    model: Model,
    candidate: Arm,
    settings: Settings,
    *,
    journal: Journal,
    watcher: Watcher,
    files: TaskFiles | None = None,
    flexible: bool = False,
) -> RunResult:
    """Baseline (the reference path) against `candidate`. files: for lm-eval, if settings.harness says so.

    flexible: judge accuracy by flexible-extract instead of strict-match.
    """
    with ExitStack() as stack:

        def opened(arm: Arm) -> Journalled:
            backend = Journalled(model.open(arm), journal)
            stack.callback(backend.close)
            return backend

        arms = Arms(
            baseline=opened(BASELINE),
            candidate=opened(candidate),
            # A candidate that is itself a legal variant must not be its own floor.
            variants={arm.words: opened(arm) for arm in model.variants(settings.precision) if arm != candidate},
        )
        isolated = _isolated(arms, settings, watcher)
        forced = _forced(arms, settings, watcher)
        return _judged(
            model, candidate, arms, settings, isolated, forced, watcher=watcher, files=files, flexible=flexible
        )


def _white(arm: Journalled) -> WhiteBox | None:
    return arm.backend if isinstance(arm.backend, WhiteBox) else None


def _isolated(arms: Arms, settings: Settings, watcher: Watcher) -> dict[str, Isolated]:
    """By arm; empty where no arm can be looked into."""
    baseline, candidate = _white(arms.baseline), _white(arms.candidate)
    if baseline is None or candidate is None:
        return {}
    with watcher.phase("capturing", 1):
        references = References(baseline, settings)
        watcher.step()
    white = {"": candidate, **{name: _white(arm) for name, arm in arms.variants.items()}}
    with watcher.phase("replaying layers", len(references.captures) * len(white)):
        found = {name: references.against(arm, watcher) for name, arm in white.items() if arm is not None}
    layers = [capture.layer for capture in references.captures]
    kl = layer_divergences(arms.baseline.backend, arms.candidate.backend, settings, layers)
    own = tuple(replace(layer, kl=kl.get(layer.layer)) for layer in found[""].depth)
    return {**found, "": replace(found[""], depth=own)}


def _forced(arms: Arms, settings: Settings, watcher: Watcher) -> dict[str, list[AnswerDivergence]]:
    others: dict[str, Backend] = {"": arms.candidate, **arms.variants}
    with watcher.phase("teacher forcing", min(settings.forced, len(settings.questions))):
        return compare_rows(arms.baseline, others, settings, watcher)


def _judged(
    model: Model,
    candidate: Arm,
    arms: Arms,
    settings: Settings,
    isolated: dict[str, Isolated],
    forced: dict[str, list[AnswerDivergence]],
    *,
    watcher: Watcher,
    files: TaskFiles | None,
    flexible: bool,
) -> RunResult:
    """Generation, and everything put together."""
    tables: dict[str, str] = {}
    stopped = None
    if settings.early_stop:
        with watcher.phase("generating, both arms", 2 * len(settings.questions)):
            decided = until_decided(arms.baseline, arms.candidate, settings, watcher, flexible=flexible)
        base, cand, stopped = decided.baseline, decided.candidate, decided.outcome
        floor_batches = settings.floor_batches[:1]
    else:
        base = _generated("baseline", arms.baseline, settings, watcher, files, tables)
        cand = _generated("candidate", arms.candidate, settings, watcher, files, tables)
        floor_batches = settings.floor_batches
    texts = _floor_texts(arms, settings, watcher, floor_batches)
    answers = pair_answers(scored(settings, base), scored(settings, cand))
    variants = tuple(_variant(name, base, texts[name], forced.get(name), settings) for name in texts)
    evidence, missing = _evidence(model, candidate, arms, settings)
    own, rest = isolated.get(""), [one for name, one in isolated.items() if name]
    divergence = summarise(forced[""])
    null = next((variant.flips for variant in variants if variant.name == AGAIN), None)
    signals: list[Signal] = [
        attribution(
            own.fits if own else (), [fit for one in rest for fit in one.fits], model.facts, settings.precision
        ),
        teacher_forced(divergence, [one.divergence for one in variants if one.divergence], settings.precision),
        router_agreement(own.agreements if own else (), [layer for one in rest for layer in one.agreements]),
        identical_texts(
            agree([base[index] for index in sorted(base)], [cand[index] for index in sorted(cand)]),
            [one.texts for one in variants if one.texts],
            settings.precision,
            white_box=own is not None,
        ),
        accuracy_signal(answers, settings, null=null, stopped=stopped, flexible=flexible),
    ]
    return RunResult(
        facts=model.facts,
        data=settings.data,
        few_shot=len(settings.shots),
        batch_size=settings.batch_size,
        precision=settings.precision,
        margin=settings.margin,
        harness=settings.harness,
        baseline=arms.baseline.fingerprint,
        candidate=arms.candidate.fingerprint,
        candidate_arm=candidate,
        verdict=verdict(signals, missing=missing),
        signals=tuple(signals),
        evidence=evidence,
        pairs=tuple(answers),
        asked=len(settings.questions),
        fits=own.fits if own else (),
        agreements=own.agreements if own else (),
        depth=own.depth if own else (),
        depth_band=tuple(worst_by_layer(rest)) if rest else (),
        divergence=divergence,
        divergences=tuple(forced[""]),
        variants=variants,
        lm_eval=tables,
        stopped=stopped,
    )


def _generated(
    name: str,
    arm: Journalled,
    settings: Settings,
    watcher: Watcher,
    files: TaskFiles | None,
    tables: dict[str, str],
) -> dict[int, Generation]:
    with watcher.phase(f"generating, {name}", len(settings.questions)):
        if settings.harness == "own" or files is None:
            return generate(arm, settings, watcher)
        found, result = generate_through_lm_eval(arm, settings, files, watcher)
        tables[name] = result.table
        return found


def _floor_texts(
    arms: Arms, settings: Settings, watcher: Watcher, batches: list[tuple[int, ...]]
) -> dict[str, dict[int, Generation]]:
    """Answers of the legal variants, and of the baseline in other batches, to some of the questions."""
    steps = sum(map(len, batches)) * (1 + len(arms.variants))
    with watcher.phase("generating, legal variants", steps):
        found = {AGAIN: generate_otherwise(arms.baseline, settings, watcher, batches)}
        for name, arm in arms.variants.items():
            found[name] = generate(arm, settings, watcher, batches)
    return found


def _variant(
    name: str,
    base: dict[int, Generation],
    texts: dict[int, Generation],
    forced: list[AnswerDivergence] | None,
    settings: Settings,
) -> Variant:
    common = sorted(base.keys() & texts.keys())
    right = [
        [answer.score.strict_right for answer in scored(settings, {index: arm[index] for index in common})]
        for arm in (base, texts)
    ]
    return Variant(
        name=name,
        divergence=None if forced is None else summarise(forced),
        texts=agree([base[index] for index in common], [texts[index] for index in common]),
        flips=PairedTable.of(*right),
    )


def _evidence(model: Model, candidate: Arm, arms: Arms, settings: Settings) -> tuple[Evidence | None, str | None]:
    """What shows that the candidate's kernel ran, and what is missing; a reference path needs no proof."""
    if candidate.kernel is None:
        return None, None
    white = _white(arms.candidate)
    if white is None:
        return None, "this backend does not count its kernel's calls"
    found = white.evidence([settings.pair(index) for index in settings.sample[:2]])
    return found, missing_evidence(found, model.facts)
