"""Kernels under the TPU interpreter: a read before the wait is seen, by a race or by other bits."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.relations.relation import Call, Subject, relations
from moecheck.runner.target import Target
from moecheck.runner.worker import Outcome, _run, inspect_target, run_relation
from moecheck.schedules import OTHERS, USUAL, Schedule

pytest.importorskip("jax")

CASE = Case(op="shuffle_rows", num_tokens=8, hidden_size=128, dtype="fp32")
COPIER = """
import jax
import moecheck
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


def body(x, out, buffer, semaphore):
    copy = pltpu.make_async_copy(x, buffer, semaphore)
    copy.start()
    {wait_first}
    out[...] = buffer[...]
    {wait_last}


@moecheck.kernel("shuffle_rows", backend="pallas_tpu", dtypes=("fp32",), deterministic=True)
def copier(*, x, row_map):
    rows = x[row_map]
    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct(rows.shape, rows.dtype),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        scratch_shapes=[pltpu.VMEM(rows.shape, rows.dtype), pltpu.SemaphoreType.DMA],
    )(rows)
"""


def target_of(folder: Path, *, waits: bool) -> Target:
    name = "waits" if waits else "reads_early"
    path = folder / f"{name}.py"
    lines = {"wait_first": "copy.wait()" if waits else "pass", "wait_last": "pass" if waits else "copy.wait()"}
    path.write_text(textwrap.dedent(COPIER).format(**lines))
    return Target(spec_string=f"{path}:copier")


def outcome_of(target: Target, schedule: Schedule) -> Outcome:
    (outcome,) = _run(target, lambda: [Call(case=CASE, inputs=CASE.inputs(), schedule=schedule)])
    return outcome


@pytest.mark.parametrize("schedule", [USUAL, *OTHERS], ids=str)
def test_a_kernel_that_waits_gives_the_same_bits_on_every_schedule(tmp_path: Path, schedule: Schedule) -> None:
    target = target_of(tmp_path, waits=True)
    rows = CASE.inputs()["x"][CASE.inputs()["row_map"]]

    outcome = outcome_of(target, schedule)

    assert outcome.problem is None
    assert outcome.outputs[0].tobytes() == rows.tobytes()


@pytest.mark.parametrize("schedule", [s for s in (USUAL, *OTHERS) if s.watched], ids=str)
def test_a_read_before_the_wait_is_a_race_with_its_place(tmp_path: Path, schedule: Schedule) -> None:
    outcome = outcome_of(target_of(tmp_path, waits=False), schedule)

    assert outcome.problem is not None
    verdict, message = outcome.problem
    assert verdict is Verdict.PROVEN_WRONG
    assert "reads_early.py:" in message


def test_where_no_race_is_watched_for_the_schedules_differ(tmp_path: Path) -> None:
    target = target_of(tmp_path, waits=False)
    late, early = (outcome_of(target, Schedule(dma=dma, watched=False)) for dma in ("on_wait", "eager"))

    assert late.outputs[0].tobytes() != early.outputs[0].tobytes()


def test_the_relation_is_of_interpreted_kernels(tmp_path: Path) -> None:
    target = target_of(tmp_path, waits=True)
    (declaration,) = inspect_target(target).declarations
    law = relations()["copy_schedules"]

    assert law.missing(Subject(declaration=declaration, case=CASE)) is None
    outcomes = run_relation(target, CASE, "copy_schedules")
    assert len(outcomes) == len(OTHERS)
    assert all(outcome.problem is None for outcome in outcomes)


def test_a_kernel_that_reads_early_breaks_the_relation(tmp_path: Path) -> None:
    target = target_of(tmp_path, waits=False)
    outcomes = run_relation(target, CASE, "copy_schedules")
    told = [outcome.problem for outcome in outcomes if outcome.problem is not None]
    assert told, "a race that is watched for is a problem"
    assert {verdict for verdict, _ in told} == {Verdict.PROVEN_WRONG}
