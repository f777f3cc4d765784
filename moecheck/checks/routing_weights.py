"""The check of all routing weights together: deviations that no single weight shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moecheck.bounds import FP32_UNIT
from moecheck.cases import Case
from moecheck.checks.finding import Judgement
from moecheck.checks.statistics import judge_statistics, reproduces
from moecheck.formats import Float64, to_float64, ulp
from moecheck.identify.result import declaration_sentence
from moecheck.numerics import INPUT, Numerics
from moecheck.oracle import Oracle, Values, call_reference, reference_modules

Ids = npt.NDArray[np.integer[Any]]
# How far honest fp32 arithmetic may be off to one side, in units of 2^-24: approximate instructions (ex2.approx,
# div.full, each up to 2 ulps), a rounded log2 e, and an eps of 1e-6 where the divisor is about 1.
BIAS_UNITS = 16.0
NEAR_SIGMAS = 2.5  # from half way between two numbers: generous, as sigma is of fp32 weights


def judge_weight_statistics(
    case: Case, inputs: dict[str, Any], weights: Float64, ids: Ids, numerics: Numerics | None
) -> Judgement | None:
    """The statistics of the routed weights; None where there are too few. Fused shared slots are constants, left out.

    weights, ids: [T, slots]. numerics: the contract, None where nothing is declared.
    """
    defined, values = _values(case, inputs, weights, ids, numerics)
    stored_as = _stored_as(case, numerics)
    return judge_statistics(
        defined,
        values,
        step=ulp(values.rounded, stored_as),
        bias=BIAS_UNITS * FP32_UNIT,
        row="token",
        bits=stored_as != "fp32",
        elementwise=True,
    )


def keeps_contract(case: Case, inputs: dict[str, Any], weights: Float64, ids: Ids, numerics: Numerics) -> bool:
    """Whether most of the weights have the bits that this contract gives them. Arguments as above."""
    return _stored_as(case, numerics) == "fp32" or reproduces(*_values(case, inputs, weights, ids, numerics))


def declaration_that_explains(case: Case, inputs: dict[str, Any], weights: Float64, ids: Ids) -> str | None:
    """The declaration under which the weights of a kernel that declares nothing have the right bits, if there is one.

    Arguments as above.
    """
    for fmt in (INPUT, "bf16", "fp16"):
        for scores in ("fp32", fmt):
            numerics = Numerics(scores=scores, topk_weights=fmt)
            low = _stored_as(case, numerics) != "fp32"
            if low and keeps_contract(case, inputs, weights, ids, numerics):
                return declaration_sentence(numerics)
    return None


def _values(
    case: Case, inputs: dict[str, Any], weights: Float64, ids: Ids, numerics: Numerics | None
) -> tuple[Float64, Values]:
    """The routed weights of the rows whose weights are defined, [rows, top_k], and what they should be.

    Where scores and weights are both stored low, the steps between them may be in fp32 or low too: what explains more
    of the weights counts.
    """
    top_k = case.spec.routing.top_k
    weights_of_ids = reference_modules()["topk_routing"].weights_of_ids
    expected = call_reference(weights_of_ids, case, inputs, topk_ids=ids[:, :top_k])
    defined = np.isfinite(to_float64(inputs["router_logits"]).max(axis=1)) & np.isfinite(expected).all(axis=1)
    some = {**inputs, "router_logits": inputs["router_logits"][defined]}
    routed, chosen = weights[defined, :top_k], ids[defined, :top_k]
    values = Oracle.weight_values(case, some, numerics, chosen)
    if numerics is None or numerics.topk_weights == "fp32":
        return routed, values
    routing = case.spec.routing
    scored = routing.selection != "sparsemixer" and not routing.softmax_over_selected
    if numerics.scores == "fp32" or not scored:
        kept = Oracle.weight_values(case, some, None, chosen)
        _accept_either(values.rounded, routed, kept, step=ulp(kept.true, _stored_as(case, numerics)))
        return routed, values
    low = Oracle.weight_values(case, some, numerics, chosen, low_steps=True)
    return routed, max((low, values), key=lambda one: int(np.count_nonzero(one.rounded == routed)))


def _accept_either(rounded: Float64, weights: Float64, kept: Values, *, step: Float64) -> None:
    """Put the kernel's weight into `rounded` where fp32 arithmetic decides which of two neighbours is nearest.

    kept: the weights before their store, spaced by `step`. Many may be equal and round alike: the softmax of two logits
    that are 3 fp16 ulps apart is within 2^-30 of half way between two fp16 numbers.
    """
    with np.errstate(invalid="ignore"):
        near = np.abs(kept.true - rounded) > step / 2.0 - NEAR_SIGMAS * kept.sigma
        other = rounded + np.copysign(step, kept.true - rounded)
    np.copyto(rounded, weights, where=near & (weights == other))


def _stored_as(case: Case, numerics: Numerics | None) -> str:
    """The format that the weights are stored in."""
    return (numerics or Numerics()).resolve(case.dtype).topk_weights
