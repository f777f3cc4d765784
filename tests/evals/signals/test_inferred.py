"""The choice of experts of a kernel that hides it, read from its output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")

from moecheck.evals.backends.records import LayerCapture
from moecheck.evals.signals.inferred import with_inferred_choice
from moecheck.evals.signals.routing import agreement, router_agreement
from moecheck.evals.signals.signal import Outcome
from moecheck.formats import store, to_float64
from tests.evals.signals.layers import FACTS, reference, rows

EXPERTS = rows(np.random.default_rng(7).normal(size=(256, FACTS.num_experts, FACTS.hidden_size)))


def mixed(capture: LayerCapture) -> LayerCapture:
    """The capture with its routed part made of EXPERTS by its ids and weights."""
    assert capture.topk_ids is not None
    assert capture.topk_weights is not None
    chosen = np.take_along_axis(EXPERTS, capture.topk_ids[:, :, None], axis=1)
    routed = rows((capture.topk_weights[:, :, None] * chosen).sum(axis=1))
    whole = routed if capture.shared is None else routed + capture.shared
    return replace(capture, routed=routed, output=whole)


def hidden_choice(capture: LayerCapture, dtype: str = "bf16") -> LayerCapture:
    """What a kernel of the whole layer shows: its stored output."""
    output = rows(to_float64(store(capture.output.astype(np.float64), dtype)))
    return replace(capture, output=output, topk_ids=None, topk_weights=None, routed=None, shared=None, choice_gap=None)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("shared", [True, False], ids=["a shared expert", "none"])
def test_the_reference_choice_is_read_from_a_right_output(dtype: str, shared: bool) -> None:
    known = mixed(reference(shared=shared))
    found = with_inferred_choice(known, hidden_choice(known, dtype), EXPERTS)
    assert found.choice_seen is not None
    assert found.choice_seen.all()
    one = agreement(known, found)
    assert one is not None
    assert one.inferred
    assert one.isolated == 1.0
    assert router_agreement([one], []).outcome is Outcome.PASS


def test_another_choice_is_seen_though_its_ids_are_hidden() -> None:
    known = mixed(reference())
    assert known.topk_ids is not None
    swapped = np.where(known.topk_ids == 0, 1, np.where(known.topk_ids == 1, 0, known.topk_ids)).astype(np.int32)
    wrong = mixed(replace(known, topk_ids=swapped))
    one = agreement(known, with_inferred_choice(known, hidden_choice(wrong), EXPERTS))
    exact = agreement(known, replace(wrong, choice_gap=None))
    assert one is not None
    assert exact is not None
    clear = np.arange(len(swapped)) != 5
    assert one.tokens == clear.sum()
    signal = router_agreement([one], [])
    assert signal.outcome is Outcome.FAIL
    assert "as its output tells" in signal.message


def test_a_dropped_slot_is_an_expert_that_is_missing() -> None:
    known = mixed(reference())
    assert known.topk_weights is not None
    dropped = known.topk_weights.copy()
    dropped[:, -1] = 0.0
    found = with_inferred_choice(known, hidden_choice(mixed(replace(known, topk_weights=dropped))), EXPERTS)
    one = agreement(known, found)
    assert one is not None
    assert one.isolated == pytest.approx(1 - 1 / FACTS.top_k)


def test_a_weight_of_a_component_changes_no_choice() -> None:
    known = mixed(reference())
    assert known.shared is not None
    one = agreement(
        known, with_inferred_choice(known, hidden_choice(replace(known, output=known.output + known.shared)), EXPERTS)
    )
    assert one is not None
    assert one.isolated == 1.0


def test_what_is_no_mixture_of_experts_tells_nothing() -> None:
    known = mixed(reference())
    noise = rows(np.random.default_rng(1).normal(size=known.output.shape))
    one = agreement(known, with_inferred_choice(known, hidden_choice(replace(known, output=noise)), EXPERTS))
    assert one is not None
    assert one.tokens == 0
    assert router_agreement([one], []).outcome is Outcome.ABSENT


def test_a_layer_with_more_experts_than_its_width_can_tell_apart_is_left_alone() -> None:
    known = mixed(reference())
    hidden = hidden_choice(known)
    assert with_inferred_choice(known, hidden, np.repeat(EXPERTS, 2, axis=1)) is hidden
