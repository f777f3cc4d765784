"""Logits far beyond the soft cap are equal once capped in fp32, whichever a kernel then chooses."""

from __future__ import annotations

from typing import Any

import numpy as np

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.checks.routing import judge_routing
from moecheck.references.topk_routing import weights_of_ids
from moecheck.spec import MoESpec, RoutingSpec


def test_saturated_logits_are_ties() -> None:
    routing = RoutingSpec(top_k=4, softcap=30.0)
    case = Case(op="topk_routing", spec=MoESpec(routing=routing), num_tokens=2, num_experts=40, dtype="fp32")
    inputs: dict[str, Any] = {"router_logits": (300.0 + np.arange(80.0).reshape(2, 40)).astype(np.float32)}
    ids = np.tile(np.arange(4), (2, 1))
    weights = weights_of_ids(**inputs, topk_ids=ids, spec=routing)

    judgements = judge_routing(case, inputs, weights, ids, numerics=None, tol=1e-2)

    assert [judgement.verdict for judgement in judgements] == [Verdict.PASS] * len(judgements)
