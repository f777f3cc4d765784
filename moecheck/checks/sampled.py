"""What can be said of every token of a large case whose reference knows some tokens only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict
from moecheck.checks.place import names
from moecheck.formats import AnyArray
from moecheck.ops import LAYERS
from moecheck.sampled_inputs import experts_seen, lazy_inputs, sampled_rows

SAMPLED_TOKEN = "sampled token"  # what a row is called whose number is that in the sample
Bool = npt.NDArray[np.bool_]
# Exponent bits of the output formats: all set in an infinity and in NaN, which is faster seen than by np.isfinite.
_EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}


def judge_all_tokens(case: Case, out: AnyArray) -> Judgement:
    """PASS where every row of out [T, H] was written, is finite, and is zero if and only if nothing contributes to it.

    Inputs of a sampled case are finite and moderate, so any NaN is memory that was not written, or a wrong number.
    """
    numbers = {"tokens": float(len(out)), "sampled_tokens": float(len(sampled_rows(case)))}
    facts = {"sample": _words(case)}
    empty = _empty_rows(case)
    broken = ~finite_rows(out)
    zero = ~np.asarray(out.view(f"u{out.itemsize}") << 1, f"u{out.itemsize}").any(axis=1)  # -0 is zero
    for wrong, what in (
        (broken, "not finite: never written, or computed wrongly"),
        (zero & ~empty, "zero although experts contribute to them"),
        (~zero & empty, "not zero although no expert contributes to them"),
    ):
        if wrong.any():
            rows = np.flatnonzero(wrong)
            message = f"{len(rows)} of {len(out)} rows are {what}: {names('token', rows)}."
            return Judgement(
                check="all_tokens",
                verdict=Verdict.PROVEN_WRONG,
                message=message,
                numbers=numbers,
                where={"token": int(rows[0])},
                facts=facts,
            )
    return Judgement(check="all_tokens", verdict=Verdict.PASS, numbers=numbers, facts=facts)


def finite_rows(out: AnyArray) -> Bool:
    """[T]: whether all elements of a row are finite. out: [T, H] of fp32, fp16 or bf16."""
    bits = out.view(f"u{out.itemsize}")
    exponent = bits.dtype.type(_EXPONENTS[out.dtype.name])
    return np.asarray(~((bits & exponent) == exponent).any(axis=1))


def with_tokens(case: Case, judgement: Judgement) -> Judgement:
    """The judgement on sampled rows with the token that its row is."""
    row = judgement.where.get(SAMPLED_TOKEN)
    if row is None:
        return judgement
    token = int(sampled_rows(case)[row])
    where = {"token" if name == SAMPLED_TOKEN else name: place for name, place in judgement.where.items()}
    message = f"{judgement.message} {SAMPLED_TOKEN[0].upper()}{SAMPLED_TOKEN[1:]} {row} is token {token}."
    return replace(judgement, message=message, where={**where, "token": token})


def _empty_rows(case: Case) -> Bool:
    """[T]: tokens that nothing contributes to."""
    inputs = lazy_inputs(case)
    if case.op in LAYERS:
        return np.zeros(case.num_tokens, bool)
    if case.op == "unpermute":
        absent = inputs["inv_permuted_idx"] < 0
    else:
        ids = inputs["topk_ids"].astype(np.int64)
        here = inputs.get("expert_map")
        absent = (ids < 0) if here is None else (ids < 0) | (here[np.maximum(ids, 0)] < 0)
    experts = case.spec.experts
    if experts.weight_on_input and (experts.w13_bias or experts.w2_bias):  # an expert's output of 0 x is not 0
        return np.asarray(absent.all(axis=1))
    return np.asarray((absent | (inputs["topk_weights"] == 0)).all(axis=1))


def _words(case: Case) -> str:
    seen, used = experts_seen(case)
    experts = f", which go to {seen} of the {used} experts with tokens" if used else ""
    return f"{len(sampled_rows(case))} of {case.num_tokens} tokens{experts}"
