"""A run whose arms are servers: one after the other where commands start them, so that one GPU is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from moecheck.evals.backends.records import Fingerprint, Generation, ModelFacts, Scored
from moecheck.evals.backends.server import ServerBackend
from moecheck.evals.gsm8k.answers import pair_answers
from moecheck.evals.signals.attribution import NAME as ATTRIBUTION
from moecheck.evals.signals.divergence import AnswerDivergence, summarise, teacher_forced
from moecheck.evals.signals.routing import NAME as ROUTING
from moecheck.evals.signals.signal import Signal, absent
from moecheck.evals.signals.texts import agree, identical_texts
from moecheck.evals.signals.verdict import verdict
from moecheck.evals.statistics.paired import PairedTable

from .forced import AGAIN, compared_scores, gold_scores
from .generated import TaskFiles, generate, generate_otherwise, generate_through_lm_eval, scored
from .journal import Journal, Journalled
from .judged import accuracy_signal
from .result import RunResult, Throughput, Variant
from .settings import Settings
from .watcher import Watcher

BLACK_BOX = "a server cannot be looked into"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswers:
    """What one arm said. gold: None without log-probabilities. again, gold_again: the baseline asked once more.

    ran: whether its log had the words that show what ran, None where none were asked for.
    """

    fingerprint: Fingerprint
    answers: dict[int, Generation]
    gold: dict[int, Scored] | None
    throughput: Throughput | None
    ran: bool | None
    table: str | None
    again: dict[int, Generation] | None = None
    gold_again: dict[int, Scored] | None = None


def run_server_pair(
    open_arm: Callable[[str], ServerBackend],
    settings: Settings,
    *,
    journal: Journal,
    watcher: Watcher,
    log_has: dict[str, str | None],
    files: TaskFiles | None = None,
) -> RunResult:
    """open_arm: `baseline` or `candidate` -> its server, started if a command starts it. log_has: words by arm."""
    arms = {
        name: _asked(name, open_arm, settings, journal, watcher, words=log_has[name], files=files)
        for name in ("baseline", "candidate")
    }
    base, cand = arms["baseline"], arms["candidate"]
    assert base.again is not None
    answers = pair_answers(scored(settings, base.answers), scored(settings, cand.answers))
    null_texts = agree(
        [base.answers[index] for index in sorted(base.again)], [base.again[i] for i in sorted(base.again)]
    )
    null_gold = _gold(base.gold, base.gold_again)
    forced = _gold(base.gold, cand.gold)
    again = Variant(
        name=AGAIN,
        divergence=None if null_gold is None else summarise(null_gold),
        texts=null_texts,
        flips=_flips(settings, base.answers, base.again),
    )
    divergence = None if forced is None else summarise(forced)
    signals: list[Signal] = [
        absent(ATTRIBUTION, BLACK_BOX),
        teacher_forced(divergence, [again.divergence] if again.divergence else [], settings.precision),
        absent(ROUTING, BLACK_BOX),
        identical_texts(
            agree(list(base.answers.values()), [cand.answers[index] for index in base.answers]),
            [null_texts],
            settings.precision,
            white_box=False,
        ),
        accuracy_signal(answers, settings, null=again.flips, flexible=True),
    ]
    return RunResult(
        facts=ModelFacts(
            name=base.fingerprint.model, moe_layers=(), num_experts=0, top_k=0, hidden_size=0, vocab_size=0
        ),
        data=settings.data,
        few_shot=len(settings.shots),
        batch_size=settings.batch_size,
        precision=settings.precision,
        margin=settings.margin,
        harness=settings.harness,
        baseline=base.fingerprint,
        candidate=cand.fingerprint,
        candidate_arm=None,
        verdict=verdict(signals, missing=_missing(arms, again, forced)),
        signals=tuple(signals),
        evidence=None,
        pairs=tuple(answers),
        asked=len(settings.questions),
        divergence=divergence,
        divergences=tuple(forced or ()),
        variants=(again,),
        lm_eval={name: arm.table for name, arm in arms.items() if arm.table},
        throughput={name: arm.throughput for name, arm in arms.items() if arm.throughput},
        notes=_notes(arms),
    )


def throughput_of(settings: Settings, answers: dict[int, Generation]) -> Throughput | None:
    """Of one arm; a batch lasts as long as its slowest request. None where no answer has its times.

    Tokens are counted as chunks of the streams: one each with the servers that we know.
    """
    timings = {index: answer.timing for index, answer in answers.items() if answer.timing and answer.timing.arrivals}
    if not timings:
        return None
    seconds = sum(
        max((timings[index].total for index in batch if index in timings), default=0.0) for batch in settings.batches
    )
    first = [timing.first_token for timing in timings.values()]
    gaps = np.concatenate([np.diff(timing.arrivals) for timing in timings.values()])
    between = gaps if gaps.size else np.zeros(1)
    return Throughput(
        tokens_per_second=sum(len(timing.arrivals) for timing in timings.values()) / seconds,
        first_token_median=float(np.median(first)),
        first_token_p99=float(np.quantile(first, 0.99)),
        between_tokens_median=float(np.median(between)),
        between_tokens_p99=float(np.quantile(between, 0.99)),
        requests=len(timings),
    )


def _asked(
    name: str,
    open_arm: Callable[[str], ServerBackend],
    settings: Settings,
    journal: Journal,
    watcher: Watcher,
    *,
    words: str | None,
    files: TaskFiles | None,
) -> ServerAnswers:
    """Everything that one arm is asked; its server is closed after it, whatever happens."""
    with watcher.phase(f"starting the {name}", 1):
        server = open_arm(name)
    with closing(Journalled(server, journal)) as arm:
        table = None
        with watcher.phase(f"generating, {name}", len(settings.questions)):
            if settings.harness == "lm-eval" and files is not None:
                answers, result = generate_through_lm_eval(arm, settings, files, watcher)
                table = result.table
            else:
                answers = generate(arm, settings, watcher)
        forced = min(settings.forced, len(settings.questions))
        with watcher.phase(f"teacher forcing, {name}", forced):
            gold = gold_scores(arm, settings, watcher)
        again, gold_again = None, None
        if name == "baseline":
            steps = sum(map(len, settings.floor_batches)) + (forced if gold is not None else 0)
            with watcher.phase("the baseline once more", steps):
                again = generate_otherwise(arm, settings, watcher, settings.floor_batches)
                gold_again = None if gold is None else gold_scores(arm, settings, watcher, again=True)
        return ServerAnswers(
            fingerprint=arm.fingerprint,
            answers=answers,
            gold=gold,
            throughput=throughput_of(settings, answers),
            ran=None if words is None or server.process is None else server.process.log_has(words),
            table=table,
            again=again,
            gold_again=gold_again,
        )


def _gold(one: dict[int, Scored] | None, two: dict[int, Scored] | None) -> list[AnswerDivergence] | None:
    return None if one is None or two is None else compared_scores(one, two)


def _flips(settings: Settings, base: dict[int, Generation], again: dict[int, Generation]) -> PairedTable:
    right = [
        [answer.score.flexible_right for answer in scored(settings, {index: arm[index] for index in again})]
        for arm in (base, again)
    ]
    return PairedTable.of(*right)


def _missing(arms: dict[str, ServerAnswers], again: Variant, forced: Sequence[AnswerDivergence] | None) -> str | None:
    """Why nothing shows that the candidate ran another kernel than the baseline; None where something does.

    Words in its log show it; so does any difference where the baseline, asked again, has none.
    """
    for name, arm in arms.items():
        if arm.ran is False:
            return f"the {name}'s log does not have the words of --{name}-log-has"
    if arms["candidate"].ran:
        return None
    quiet = again.texts is not None and again.texts.same == again.texts.n
    quiet = quiet and (again.divergence is None or again.divergence.exact)
    if not quiet:
        return "the baseline differs from itself as well, and no --candidate-log-has was given"
    base, cand = arms["baseline"].answers, arms["candidate"].answers
    if forced is not None and not summarise(forced).exact:
        return None
    if any(base[index].text != cand[index].text for index in base):
        return None
    return "both servers answer bit for bit the same, and no --candidate-log-has was given"


def _notes(arms: dict[str, ServerAnswers]) -> tuple[str, ...]:
    models = {arm.fingerprint.model for arm in arms.values()}
    return (f"The servers name their models differently: {', '.join(sorted(models))}.",) if len(models) > 1 else ()
