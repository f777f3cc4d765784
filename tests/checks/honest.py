"""What a flawless kernel returns: the reference's own outputs, stored as the op says."""

from __future__ import annotations

import numpy as np

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Verdict
from moecheck.checks.judge import SOME_ROWS, VALUE_OPS, Judged
from moecheck.formats import AnyArray, store
from moecheck.oracle import Oracle


def honest_outputs(case: Case, oracle: Oracle) -> tuple[AnyArray, ...]:
    """The outputs of a kernel that computes exactly and rounds once, at the store."""
    if case.op in VALUE_OPS:
        out = store(oracle.values(case, None).true, case.dtype)
        return (
            out.reshape(
                *oracle.inputs(case)["topk_ids" if case.op == "expert_outputs" else "hidden_states"].shape[:2],
                case.hidden_size,
            )
            if case.op in SOME_ROWS
            else out,
        )
    results = oracle.outputs(case)
    if case.op == "topk_routing":
        return results[0].astype(np.float32), results[1]
    if case.op == "shuffle_rows":
        return (store(results[0], case.dtype),)
    if case.op == "permute":
        scale = np.zeros(0, np.float32) if results[1] is None else results[1].astype(np.float32)
        return store(results[0], case.dtype), scale, results[2], results[3]
    return results


def verdict_of(judged: Judged) -> Verdict:
    """One verdict for a run, as the runner forms it: a failure first, then whatever is no pass."""
    verdicts = [judgement.verdict for judgement in judged.judgements]
    for wanted in (*FAILURES, Verdict.VACUOUS, Verdict.INCONCLUSIVE):
        if wanted in verdicts:
            return wanted
    assert set(verdicts) == {Verdict.PASS}
    return Verdict.PASS
