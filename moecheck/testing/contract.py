"""The contract of one call: its rounding points, as far as a single output tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moecheck.checks.contract import judge_contract
from moecheck.checks.finding import Judgement, Verdict
from moecheck.formats import AnyArray
from moecheck.identify import identify, is_near, judge_numerics
from moecheck.identify.candidates import VALUE_OPS as IDENTIFIED_VALUES
from moecheck.identify.search import pool_of
from moecheck.numerics import Numerics

from .given import Given, given

# op -> its inputs with a row for each row of the output
_ROWS = {
    "unpermute": ("topk_weights", "inv_permuted_idx"),
    "act_and_mul": ("x",),
    "fused_experts": ("hidden_states", "topk_weights", "topk_ids"),
    "moe_layer": ("hidden_states", "router_logits", "token_ids"),
}
MOST_ROWS, LEAST_ROWS = 64, 4
MULTIPLICATIONS = 1 << 29  # of the rows that are looked at; a few large rows tell as much as many small ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """numerics: what to judge under, None where nothing is declared and none was found. judgement: of the contract."""

    numerics: Numerics | None
    judgement: Judgement | None = None


def contract_of(described: Given, outputs: tuple[AnyArray, ...], declared: Numerics | None) -> Contract:
    """The contract that explains a call's output best, and whether it is the declared one or may go undeclared.

    Only ops with one floating-point output have one, and only an output of the right shape and dtype tells it.
    """
    case = described.case
    if case.op not in IDENTIFIED_VALUES or judge_contract(case, described.inputs, outputs).verdict is not Verdict.PASS:
        return Contract(numerics=declared)
    some, out = _some_rows(described, outputs[0])
    if not out.size:
        return Contract(numerics=declared)
    identified = identify([(some.case, out)], some.oracle())
    pool_of.cache_clear()  # it is kept for further kernels on the same case, which a captured call does not have
    found = identified.numerics if identified.known or is_near(identified) else None
    return Contract(numerics=declared or found, judgement=judge_numerics(declared, identified))


def _some_rows(described: Given, out: AnyArray) -> tuple[Given, AnyArray]:
    """As many rows of a call as are worth looking at, from all over it, as a call of their own."""
    case, inputs = described.case, described.inputs
    rows = np.arange(len(out))
    if "topk_ids" in inputs:  # padding gives zeros under every contract
        rows = np.flatnonzero((inputs["topk_ids"] >= 0).any(axis=1))
    row_cost = case.spec.routing.top_k * 3 * case.hidden_size * case.intermediate_size
    count = min(MOST_ROWS, max(LEAST_ROWS, MULTIPLICATIONS // row_cost))
    if case.op not in _ROWS or len(out) <= count or not len(rows):
        return described, out
    picked = np.unique(rows[np.linspace(0, len(rows) - 1, count).astype(np.intp)])
    some: dict[str, Any] = {**inputs, **{name: inputs[name][picked] for name in _ROWS[case.op] if name in inputs}}
    return given(some, op=case.op, spec=case.spec), out[picked]
