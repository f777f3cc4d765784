"""Tries a relation on a kernel written as a plain function of a case and its inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moecheck.cases import Case
from moecheck.checks.finding import Judgement
from moecheck.checks.judge import VALUE_OPS
from moecheck.formats import store
from moecheck.kernel import Declaration
from moecheck.ops import OPS
from moecheck.oracle import Oracle, call_reference, reference_modules
from moecheck.relations.relation import Inputs, Outputs, Subject, Trial, relations
from moecheck.relations.verdict import Setting, judge_relation
from moecheck.runner.arrays import overwritten

Kernel = Callable[[Case, Inputs], Outputs]
ORACLE = Oracle()


def honest(case: Case, inputs: Inputs) -> Outputs:
    """The reference on these inputs, rounded once."""
    with np.errstate(invalid="ignore"):
        results = call_reference(getattr(reference_modules()[case.op], case.op), case, inputs)
    if case.op in VALUE_OPS:
        return (store(results, case.dtype),)
    if case.op == "topk_routing":
        return results[0].astype(np.float32), results[1]
    if case.op == "shuffle_rows":
        return (store(results, case.dtype),)
    if case.op == "permute":
        return store(results[0], case.dtype), np.zeros(0, np.float32), results[2], results[3]
    return results if isinstance(results, tuple) else (results,)


def declaration(op: str, *, declared: bool) -> Declaration:
    """A kernel of the op that takes everything; declared: whether it promises determinism and batch invariance."""
    promise = True if declared else None
    return Declaration(
        name="mine",
        op=op,
        backend="numpy",
        dtypes=("bf16", "fp16", "fp32"),
        numerics=None,
        deterministic=promise,
        batch_invariant=promise,
        tie=None,
        specs=(),
        arguments=(*OPS[op].arg_names, "spec"),
        required=(),
        origin="mine.py:1",
        spec_string="mine.py:mine",
    )


def missing(name: str, case: Case, *, declared: bool = False) -> str | None:
    """Why the relation cannot be tried on such a kernel and case."""
    return relations()[name].missing(Subject(declaration=declaration(case.op, declared=declared), case=case))


def judged(name: str, case: Case, kernel: Kernel, *, declared: bool = False) -> Judgement:
    """What the relation says of the kernel on the case, whose premises must hold."""
    assert missing(name, case, declared=declared) is None
    inputs = ORACLE.inputs(case)
    relation = relations()[name]
    trial = relation.trial(case, inputs)
    kept = {key: value.copy() for key, value in inputs.items() if isinstance(value, np.ndarray)}
    base = kernel(case, inputs)
    further = _called(kernel, trial)
    for key, value in kept.items():
        assert np.array_equal(value.view(f"u{value.itemsize}"), inputs[key].view(f"u{value.itemsize}")), key
    subject = Subject(declaration=declaration(case.op, declared=declared), case=case)
    setting = Setting(subject=subject, oracle=ORACLE, numerics=None)
    return judge_relation(relation, trial, base, further, setting)


def _called(kernel: Kernel, trial: Trial) -> tuple[Outputs, ...]:
    """The outputs of a trial's calls, in the arrays of the call before where that is wanted."""
    outputs: list[Outputs] = []
    buffers: Inputs = {}
    for call in trial.calls:
        inputs = call.inputs
        if call.in_place:
            inputs = {name: overwritten(buffers.get(name), value) for name, value in inputs.items()}
        outputs.append(kernel(call.case, inputs))
        buffers = inputs
    return tuple(outputs)
