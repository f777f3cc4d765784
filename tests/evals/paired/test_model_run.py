"""A whole paired run on a model made of NumPy: each verdict, the journal, early stopping, lm-eval."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")

from moecheck.errors import HarnessError, UsageError
from moecheck.evals.backends.records import Arm
from moecheck.evals.gsm8k.data import Question
from moecheck.evals.paired.generated import TaskFiles
from moecheck.evals.paired.journal import Journal
from moecheck.evals.paired.model_run import run_model
from moecheck.evals.paired.result import RunResult
from moecheck.evals.paired.settings import Settings
from moecheck.evals.paired.watcher import Watcher
from moecheck.evals.signals.signal import Outcome
from moecheck.report.strict_json import dumps
from tests.evals.fake_model import FakeModel

PASS, FAIL, UNSURE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE


def questions(count: int) -> list[Question]:
    return [
        Question(doc_id=index, question=f"What is the number {index}?", answer=f"{index}.\n#### {index}")
        for index in range(count)
    ]


def settings(count: int = 160, **changes: object) -> Settings:
    base = Settings(questions=questions(count), data="test", batch_size=16, captured=2, forced=6, floor_questions=32)
    return replace(base, **changes)  # type: ignore[arg-type]


def run(candidate: Arm, folder: Path, model: FakeModel | None = None, **changes: object) -> RunResult:
    return run_model(
        model or FakeModel(),
        candidate,
        settings(**changes),  # type: ignore[arg-type]
        journal=Journal(folder / "answers.jsonl"),
        watcher=Watcher(),
    )


def outcomes(result: RunResult) -> list[Outcome]:
    return [signal.outcome for signal in result.signals]


def test_a_right_kernel_passes(tmp_path: Path) -> None:
    result = run(Arm(kernel="good", precision="bf16"), tmp_path)
    assert result.verdict.outcome is PASS
    assert outcomes(result) == [PASS] * 5
    assert {fit.plan for fit in result.fits} == {"whole", "129 tokens a call", "65 tokens a call", "1 token a call"}
    assert [layer.layer for layer in result.depth] == [0, 1]
    assert result.table("strict").both == 160


def test_the_shared_expert_at_one_over_factor_is_named(tmp_path: Path) -> None:
    result = run(Arm(kernel="good", precision="bf16", mutant="shared-0.4"), tmp_path)
    assert result.verdict.outcome is FAIL
    assert result.verdict.deciding == "component attribution"
    assert "shared expert weighted 0.400 = 1/routed_scaling_factor, in every MoE layer" in result.verdict.reason
    assert outcomes(result)[1] is FAIL
    assert outcomes(result)[2] is PASS


@pytest.mark.parametrize("mutant", ["whole-0.4", "routed-1.05"])
def test_other_weights_fail_without_any_kernel_too(tmp_path: Path, mutant: str) -> None:
    assert run(Arm(precision="bf16", mutant=mutant), tmp_path).verdict.outcome is FAIL


def test_a_legal_variant_is_not_its_own_floor(tmp_path: Path) -> None:
    result = run(Arm(precision="bf16"), tmp_path)
    assert [variant.name for variant in result.variants] == ["baseline in other batches"]
    assert outcomes(result)[0] is PASS


def test_the_baseline_against_itself_passes(tmp_path: Path) -> None:
    result = run(Arm(), tmp_path, precision="fp32")
    assert result.verdict.outcome is PASS
    assert result.divergence is not None
    assert result.divergence.exact


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        pytest.param("never-called", "never called in layer 0, 1", id="another path was taken"),
        pytest.param("ignored", "changed nothing", id="its result is thrown away"),
    ],
)
def test_a_kernel_that_did_not_run_decides_nothing(tmp_path: Path, kernel: str, words: str) -> None:
    result = run(Arm(kernel=kernel, precision="bf16", mutant="shared-0.4"), tmp_path)
    assert result.verdict.outcome is UNSURE
    assert words in result.verdict.reason


def test_few_questions_leave_accuracy_open_and_the_rest_decides(tmp_path: Path) -> None:
    result = run(Arm(kernel="good", precision="bf16"), tmp_path, count=40)
    assert result.signals[-1].outcome is UNSURE
    assert result.verdict.outcome is PASS
    assert "Accuracy decides nothing" in result.verdict.reason


def test_a_second_run_takes_its_answers_from_the_journal(tmp_path: Path) -> None:
    first = run(Arm(kernel="good", precision="bf16"), tmp_path)
    model = FakeModel()
    again = run(Arm(kernel="good", precision="bf16"), tmp_path, model)
    assert [arm.asked for arm in model.opened] == [0, 0, 0]
    assert again.pairs == first.pairs


def test_a_killed_run_goes_on_and_another_arm_gets_nothing_of_it(tmp_path: Path) -> None:
    first = run(Arm(kernel="good", precision="bf16"), tmp_path)
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-300])
    model = FakeModel()
    again = run(Arm(kernel="good", precision="bf16"), tmp_path, model)
    assert sum(arm.asked for arm in model.opened) == 1
    assert again.pairs == first.pairs
    other = FakeModel()
    run(Arm(kernel="good", precision="fp16"), tmp_path, other)
    assert other.opened[0].asked == 0  # the baseline
    assert other.opened[1].asked == 10


def test_early_stopping_fails_a_bad_arm_after_few_batches(tmp_path: Path) -> None:
    result = run(Arm(precision="bf16", mutant="whole-0.4"), tmp_path, early_stop=True)
    assert result.stopped == "fail"
    assert len(result.pairs) < 160
    assert result.signals[-1].outcome is FAIL


def test_early_stopping_passes_a_good_arm_before_the_end(tmp_path: Path) -> None:
    result = run(Arm(kernel="good", precision="bf16"), tmp_path, count=400, early_stop=True)
    assert result.stopped == "pass"
    assert len(result.pairs) < 400
    assert result.signals[-1].outcome is PASS


def test_through_lm_eval_the_answers_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="needs moecheck[e2e]: lm-eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    test = tmp_path / "test.jsonl"
    rows = [{"question": one.question, "answer": one.answer} for one in questions(20)]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = run(Arm(kernel="good", precision="bf16"), tmp_path, count=20)
    result = run_model(
        FakeModel(),
        Arm(kernel="good", precision="bf16"),
        settings(20, harness="lm-eval"),
        journal=Journal(tmp_path / "other.jsonl"),
        watcher=Watcher(),
        files=TaskFiles(test=test, shots=None),
    )
    assert result.pairs == own.pairs
    assert "exact_match" in result.lm_eval["candidate"]


def test_a_result_is_plain_data(tmp_path: Path) -> None:
    data = json.loads(dumps(run(Arm(kernel="good", precision="bf16"), tmp_path, count=20).to_json()))
    assert data["schema"] == 1
    assert data["verdict"]["exit_code"] == 0
    assert data["tables"]["exact_match,strict-match"]["both"] == 20
    assert len(data["pairs"]) == 20


def test_an_unknown_kernel_is_the_models_to_refuse(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown kernel 'x'"):
        run(Arm(kernel="x"), tmp_path)


def test_a_replay_that_writes_on_its_input_is_the_harness_broken(tmp_path: Path) -> None:
    class Scribbler(FakeModel):
        def open(self, arm: Arm):  # type: ignore[no-untyped-def]  # a FakeArm with one method replaced
            opened = super().open(arm)
            replay = opened.replay

            def scribble(layer, hidden):  # type: ignore[no-untyped-def]
                found = replay(layer, hidden)
                hidden.hidden[:] = 0
                return found

            opened.replay = scribble  # type: ignore[method-assign]
            return opened

    with pytest.raises(HarnessError, match="changed the hidden states"):
        run(Arm(kernel="good"), tmp_path, Scribbler())
