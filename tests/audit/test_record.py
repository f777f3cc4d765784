"""Records of audits, put together from trials that are made by hand."""

from __future__ import annotations

from moecheck.audit import Criterion
from moecheck.audit.record import AuditRecord, MutantRecord, ranking, record_of
from moecheck.audit.trial import BLANKS, MutantTrial, Trial
from moecheck.audit.view import lines_of, ranking_grid, records_grid, settings_grid
from moecheck.checks.finding import Verdict

LOOSE, TIGHT = Criterion(atol=1.0), Criterion(atol=1e-9)


def trial(
    mutants: dict[str, tuple[tuple[bool, ...], Verdict]], refused: tuple[int, ...] = (0,), zeros: bool = False
) -> Trial:
    return Trial(
        case="a case",
        note="its sizes",
        rms=0.5,
        largest=2.0,
        sigmas=(None,) * len(refused),
        honest=6,
        refused=refused,
        false_alarms=0,
        blanks={name: (name == "zeros" and zeros,) * len(refused) for name in BLANKS},
        mutants=tuple(MutantTrial(mutant=name, accepted=a, verdict=v) for name, (a, v) in mutants.items()),
        equal=(),
        untried=("bare",),
    )


def record(trials: list[list[Trial]], own: list[list[Trial]] | None = None) -> AuditRecord:
    criteria = [LOOSE] * len(trials[0])
    return record_of(
        name="a test", source="there", scaled="", criteria=criteria, op="fused_experts", dtype="bf16", trials=trials,
        own=own or [],
    )  # fmt: skip


def test_a_test_catches_what_any_of_its_settings_catches() -> None:
    passes, fails = ((True,), Verdict.PASS), ((False,), Verdict.FAIL)
    found = record([[trial({"a": passes, "b": passes}), trial({"a": fails})]])
    assert found.passing == ("b",)
    assert found.unseen == ("b",)
    assert found.mutants == (
        MutantRecord(mutant="a", seeds=1, caught=1, seen=1, own_seeds=0, own_caught=0),
        MutantRecord(mutant="b", seeds=1, caught=0, seen=0, own_seeds=0, own_caught=0),
    )
    assert found.untried == ("bare",)
    assert [setting.passing for setting in found.settings] == [2, 0]


def test_a_bug_counts_as_caught_when_it_is_caught_in_every_seed_that_shows_it() -> None:
    passes, fails = ((True,), Verdict.PASS), ((False,), Verdict.PROVEN_WRONG)
    found = record([[trial({"a": fails, "b": fails})], [trial({"a": passes})]])
    assert found.passing == ("a",)
    assert found.unseen == ("a",)


def test_an_undecided_case_is_not_caught() -> None:
    found = record([[trial({"a": ((True,), Verdict.VACUOUS), "b": ((True,), Verdict.INCONCLUSIVE)})]])
    assert found.unseen == ("a", "b")


def test_own_inputs_are_counted_apart() -> None:
    passes, fails = ((True,), Verdict.PASS), ((False,), Verdict.FAIL)
    found = record([[trial({"a": passes, "b": passes})]], own=[[trial({"a": fails, "c": fails})]])
    assert [one.mutant for one in found.own] == ["a"]
    assert found.own_unseen == ()
    assert found.own_honest == 6


def test_a_criterion_that_refuses_a_right_output_comes_last_however_much_it_catches() -> None:
    both = trial({"a": ((True, False), Verdict.FAIL), "b": ((False, False), Verdict.FAIL)}, refused=(0, 1), zeros=True)
    rows = ranking(["loose", "tight"], [LOOSE, TIGHT], [[both]])
    assert [(row.origin, row.caught, row.counts) for row in rows] == [
        ("moecheck", 2, True),
        ("loose", 1, True),
        ("tight", 2, False),
    ]
    assert [row.zeros for row in rows] == [False, True, True]
    assert "(2 of 2 (100 %))" in ranking_grid(rows, hindsight="none").rows[-1]


def test_only_the_best_tolerances_of_those_chosen_with_hindsight_are_shown() -> None:
    one = trial({"a": ((False, True), Verdict.FAIL)}, refused=(0, 0))
    rows = ranking(["hindsight", "hindsight"], [TIGHT, LOOSE], [[one]])
    shown = ranking_grid(rows, hindsight="hindsight", most=1).rows
    assert [row[:2] for row in shown] == [
        ("hindsight", TIGHT.words()),
        ("moecheck", "derived from the error model"),
    ] or [row[0] for row in shown] == ["moecheck", "hindsight"]


def test_sentences_and_tables_say_it() -> None:
    passes = ((True,), Verdict.PASS)
    found = record([[trial({"expert_dropped": passes}, refused=(2,), zeros=True)]])
    lines = "\n".join(lines_of(found))
    assert "False alarm: it refuses 2 of 6 outputs of right kernels" in lines
    assert "An all-zeros output passes in 1 of 1 setting." in lines
    assert "lets pass: 1 of 1 (100 %) over 1 seed: expert_dropped." in lines
    assert "Not simulated for a kernel that requantises: 1 bugs." in lines
    (row,) = records_grid([found]).rows
    assert "passes" in row
    assert settings_grid(found).rows == (("its sizes", "0.5", "2", "–", "2/6", "yes", "no", "1/1"),)
    assert records_grid([found]).markdown().count("\n") == 3
