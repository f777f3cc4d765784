"""Signals 2 and 4: departures above those of legal variants fail, the variants themselves pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")

from moecheck.errors import HarnessError
from moecheck.evals.backends.records import Generation, Scored
from moecheck.evals.signals.divergence import Divergence, compare, kl_rows, summarise, teacher_forced
from moecheck.evals.signals.limits import LIMITS
from moecheck.evals.signals.signal import Outcome
from moecheck.evals.signals.texts import TextAgreement, agree, first_divergence, identical_texts


def scored(noise: float, *, seed: int = 0, tokens: int = 40, rows: bool = True) -> list[Scored]:
    """Six answers over 50 words; noise: standard deviation added to the logits."""
    draw = np.random.default_rng(3)
    answers = []
    for question in range(6):
        logits = draw.normal(scale=3, size=(tokens, 50))
        logits += noise * np.random.default_rng([seed, question]).normal(size=logits.shape)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        gold = np.arange(tokens) % 50
        answers.append(
            Scored(
                token_ids=tuple(map(int, gold)),
                logprobs=logprobs[np.arange(tokens), gold],
                rows=logprobs.astype(np.float32) if rows else None,
            )
        )
    return answers


def divergence(noise: float, *, seed: int = 1, rows: bool = True) -> Divergence:
    pairs = zip(scored(0.0, rows=rows), scored(noise, seed=seed, rows=rows), strict=True)
    return summarise([compare(index, *pair) for index, pair in enumerate(pairs)])


def test_kl_is_its_formula() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.25, 0.5]])
    found = kl_rows(np.log(p).astype(np.float32), np.log(q).astype(np.float32))
    assert found == pytest.approx(0.25 * np.log(2))


def test_a_word_that_the_reference_excludes_adds_nothing() -> None:
    with np.errstate(divide="ignore"):
        rows = np.log(np.array([[1.0, 0.0]])).astype(np.float32)
    assert kl_rows(rows, np.log(np.array([[0.5, 0.5]])).astype(np.float32)) == pytest.approx(np.log(2))


def test_small_divergences_are_not_drowned_by_fp32_rows() -> None:
    """Logits moved by 1e-5 have a KL of about 1e-10 / 2, far below the rounding of an fp32 row's sum."""
    assert 1e-11 < (divergence(1e-5).kl_mean or 0) < 1e-10


def test_no_difference_is_exact() -> None:
    found = divergence(0.0)
    assert found.exact
    assert (found.kl_mean, found.top1, found.gold.p) == (0.0, 1.0, 1.0)
    assert teacher_forced(found, [], "fp32").outcome is Outcome.PASS


def test_noise_of_the_size_of_a_legal_variant_passes() -> None:
    assert teacher_forced(divergence(2e-3, seed=1), [divergence(2e-3, seed=2)], "bf16").outcome is Outcome.PASS


def test_ten_floors_fail() -> None:
    signal = teacher_forced(divergence(2e-2, seed=1), [divergence(2e-3, seed=2)], "bf16")
    assert signal.outcome is Outcome.FAIL
    assert "times the floor" in signal.message
    assert signal.limit == pytest.approx(max(LIMITS["bf16"].kl, 10 * (signal.floor or 0)))


def test_where_legal_variants_diverge_widely_a_pass_says_nothing() -> None:
    assert teacher_forced(divergence(0.1, seed=1), [divergence(0.1, seed=2)], "bf16").outcome is Outcome.INCONCLUSIVE


def test_one_bad_token_in_many_fails() -> None:
    """A single token whose distribution is turned round moves the mean, where 239 others are exact."""
    base, other = scored(0.0), scored(0.0)
    assert other[2].rows is not None
    other[2].rows[7] = other[2].rows[7][::-1]
    found = summarise([compare(index, *pair) for index, pair in enumerate(zip(base, other, strict=True))])
    signal = teacher_forced(found, [divergence(2e-3)], "bf16")
    assert signal.outcome is Outcome.FAIL


def test_nan_fails() -> None:
    base, other = scored(0.0), scored(0.0)
    assert other[0].rows is not None
    other[0].rows[0, 0] = np.nan
    found = summarise([compare(0, base[0], other[0])])
    assert teacher_forced(found, [], "fp8").outcome is Outcome.FAIL


def test_two_other_top_tokens_of_six_hundred_are_chance() -> None:
    """As a correct kernel in bf16 had them in a model whose best tokens are nearly ties."""
    found, floor = (replace(divergence(1e-4), top1=top1, tokens=620) for top1 in (1 - 2 / 620, 1.0))
    assert teacher_forced(found, [floor], "bf16").outcome is Outcome.PASS
    many = replace(found, tokens=20_000)
    assert teacher_forced(many, [replace(floor, tokens=20_000)], "bf16").outcome is Outcome.FAIL


def test_other_top_tokens_fail_though_the_mean_is_small() -> None:
    found = replace(divergence(1e-4), top1=0.98, tokens=6000)
    signal = teacher_forced(found, [], "fp8")
    assert signal.outcome is Outcome.FAIL
    assert "most probable token" in signal.message
    assert teacher_forced(found, [replace(found, top1=0.975)], "fp8").outcome is Outcome.PASS


def test_without_rows_the_gold_tokens_decide_against_a_measured_floor() -> None:
    floor, near, far = (divergence(noise, seed=seed, rows=False) for noise, seed in [(2e-3, 1), (2e-3, 2), (0.1, 3)])
    assert near.kl_mean is None
    assert teacher_forced(near, [floor], "bf16").outcome is Outcome.PASS
    assert teacher_forced(far, [floor], "bf16").outcome is Outcome.FAIL
    assert teacher_forced(near, [], "bf16").outcome is Outcome.INCONCLUSIVE


def test_no_log_probabilities_no_signal() -> None:
    assert teacher_forced(None, [], "bf16").outcome is Outcome.ABSENT


def test_arms_that_scored_different_tokens_are_refused() -> None:
    one, two = scored(0.0)[0], scored(0.0, tokens=39)[0]
    with pytest.raises(HarnessError, match="question 4"):
        compare(4, one, two)


def answer(text: str, ids: tuple[int, ...] | None = None) -> Generation:
    return Generation(text=text, finish="stop", token_ids=ids)


@pytest.mark.parametrize(
    ("one", "two", "place"),
    [
        pytest.param(answer("a", (1, 2, 3)), answer("a", (1, 2, 3)), None, id="the same"),
        pytest.param(answer("a", (1, 2, 3)), answer("a", (1, 9, 3)), 1, id="another token"),
        pytest.param(answer("a", (1, 2, 3)), answer("a", (1, 2)), 2, id="a shorter one"),
        pytest.param(answer("abc"), answer("abd"), 2, id="characters where tokens are unknown"),
        pytest.param(answer("ab"), answer("abc"), 2, id="a longer text"),
    ],
)
def test_the_first_divergence(one: Generation, two: Generation, place: int | None) -> None:
    assert first_divergence(one, two) == place


def texts(same: int, n: int = 200, *, distinct: int = 150) -> TextAgreement:
    return TextAgreement(same=same, n=n, divergences=tuple(range(n - same)), distinct=distinct)


def test_answers_are_counted() -> None:
    found = agree([answer("a"), answer("bc"), answer("a")], [answer("a"), answer("bd"), answer("a")])
    assert found == TextAgreement(same=2, n=3, divergences=(1,), distinct=2)
    with pytest.raises(HarnessError):
        agree([answer("a")], [])


@pytest.mark.parametrize(
    ("same", "floor", "outcome"),
    [
        pytest.param(197, 198, Outcome.PASS, id="like a legal variant"),
        pytest.param(184, 198, Outcome.FAIL, id="shared expert x 1.1 on the prototype"),
        pytest.param(140, 198, Outcome.FAIL, id="shared expert x 0.4 on the prototype"),
        pytest.param(175, 180, Outcome.PASS, id="where legal variants differ a lot too"),
    ],
)
def test_identical_texts_against_the_ensemble(same: int, floor: int, outcome: Outcome) -> None:
    assert identical_texts(texts(same), [texts(floor)], "bf16", white_box=True).outcome is outcome


def test_a_server_counts_only_against_itself() -> None:
    assert identical_texts(texts(200), [], "bf16", white_box=False).outcome is Outcome.INCONCLUSIVE
    assert identical_texts(texts(199), [texts(200)], "bf16", white_box=False).outcome is Outcome.PASS
    assert identical_texts(texts(120), [texts(110)], "bf16", white_box=False).outcome is Outcome.INCONCLUSIVE
    assert identical_texts(texts(60), [texts(110)], "bf16", white_box=False).outcome is Outcome.FAIL


def test_a_model_that_always_says_the_same_shows_nothing() -> None:
    found = identical_texts(texts(200, distinct=2), [], "bf16", white_box=True)
    assert found.outcome is Outcome.INCONCLUSIVE
