"""Signals 1 and 3: each catches its faults by name and lets rounding pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")

from moecheck.errors import HarnessError
from moecheck.evals.backends.records import LayerCapture, Precision
from moecheck.evals.signals.attribution import LayerFit, attribution, fit_layer
from moecheck.evals.signals.factors import name_factor, name_weights
from moecheck.evals.signals.limits import LIMITS, TIE_GAP
from moecheck.evals.signals.routing import agreement, router_agreement
from moecheck.evals.signals.signal import Outcome, Signal
from tests.evals.signals.layers import FACTS, candidate, reference, rows


def fit(capture: LayerCapture, output: LayerCapture, precision: Precision = "bf16") -> LayerFit:
    return fit_layer(capture, output, plan="whole", row_limit=LIMITS[precision].row)


def judge(alpha: float, beta: float, dtype: str = "bf16", *, shared: bool = True) -> Signal:
    """The signal of two layers with that fault in both."""
    fits = [fit(one, candidate(one, alpha=alpha, beta=beta, dtype=dtype)) for one in map_layers(shared)]
    return attribution(fits, [], FACTS, "bf16" if dtype == "bf16" else "fp16")


def map_layers(shared: bool = True) -> list[LayerCapture]:
    return [reference(layer, shared=shared) for layer in FACTS.moe_layers]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("shared", [True, False])
def test_rounding_alone_passes(dtype: str, shared: bool) -> None:
    signal = judge(1.0, 1.0, dtype, shared=shared)
    assert signal.outcome is Outcome.PASS
    assert "2 MoE layers" in signal.message


@pytest.mark.parametrize(
    ("alpha", "beta", "words"),
    [
        pytest.param(1.0, 0.4, "shared expert weighted 0.400 = 1/routed_scaling_factor", id="shared at 1/factor"),
        pytest.param(1.0, 2.5, "shared expert weighted 2.500 = routed_scaling_factor", id="shared at factor"),
        pytest.param(1.0, 5.0, "shared expert weighted 5.000 = routed_scaling_factor x 2 ranks", id="factor x ranks"),
        pytest.param(1.0, 8.0, "shared expert weighted 8.000 = 8 ranks", id="shared by every rank"),
        pytest.param(1.0, 0.0, "shared expert dropped", id="shared dropped"),
        pytest.param(1.0, 1.1, "shared expert weighted 1.100, in", id="a factor without a name"),
        pytest.param(0.4, 1.0, "routed experts weighted 0.400 = 1/routed_scaling_factor", id="factor missing"),
        pytest.param(2.5, 1.0, "routed experts weighted 2.500 = routed_scaling_factor", id="factor twice"),
        pytest.param(0.0, 1.0, "routed experts dropped", id="routed dropped"),
        pytest.param(0.4, 0.4, "whole layer weighted 0.400 = 1/routed_scaling_factor", id="whole layer"),
        pytest.param(2.5 / 3.5, 1.0, "as if the shared expert were among the renormalised", id="renormalised with it"),
        pytest.param(1.01, 1.0, "routed experts weighted 1.010", id="one percent"),
        pytest.param(0.4, 2.5, "; shared expert weighted 2.500", id="both"),
    ],
)
def test_a_component_with_another_weight_is_named(alpha: float, beta: float, words: str) -> None:
    signal = judge(alpha, beta)
    assert signal.outcome is Outcome.FAIL
    assert words in signal.message
    assert "every MoE layer" in signal.message
    assert signal.value == pytest.approx(max(abs(alpha - 1), abs(beta - 1)), abs=LIMITS["bf16"].factor)


def test_few_tokens_and_a_small_component_leave_its_weight_open() -> None:
    """Routed at a hundredth of the shared part: its fitted weight is noisy, as its standard error says."""
    one = reference(tokens=6)
    assert one.routed is not None
    assert one.shared is not None
    small = replace(one, routed=rows(one.routed / 100), output=rows(one.routed / 100 + one.shared))
    noise = 0.003 * np.random.default_rng(4).normal(size=small.output.shape)
    found = fit(small, replace(small, output=rows(small.output + noise)))
    assert abs(found.alpha - 1) > LIMITS["bf16"].factor
    assert found.alpha_error > found.beta_error
    assert attribution([found], [], FACTS, "bf16").outcome is Outcome.PASS
    wrong = replace(small, output=rows(3 * one.routed / 100 + one.shared + noise))
    assert attribution([fit(small, wrong)], [], FACTS, "bf16").outcome is Outcome.FAIL


def test_a_fault_in_one_layer_says_which() -> None:
    good, bad = map_layers()
    signal = attribution([fit(good, candidate(good)), fit(bad, candidate(bad, beta=0.4))], [], FACTS, "bf16")
    assert signal.outcome is Outcome.FAIL
    assert "in layer 2" in signal.message


def test_a_lost_row_is_found_though_the_whole_is_near() -> None:
    one = reference(tokens=4096)
    output = candidate(one)
    output.output[63] = 0
    signal = attribution([fit(one, output)], [], FACTS, "fp8")
    assert signal.outcome is Outcome.FAIL
    assert "token 63" in signal.message


def test_rows_at_the_end_of_each_tile_are_listed() -> None:
    one = reference()
    output = candidate(one)
    output.output[63::64] = 0
    assert fit(one, output).bad_rows == (63, 127, 191, 255)


def test_another_mixture_of_experts_is_no_combination() -> None:
    one = reference()
    other = np.random.default_rng(9).normal(size=one.output.shape)
    output = replace(candidate(one), output=(one.output + 0.1 * other).astype(np.float32))
    signal = attribution([fit(one, output)], [], FACTS, "bf16")
    assert signal.outcome is Outcome.FAIL
    assert "no combination" in signal.message


def test_a_nan_is_a_failure() -> None:
    one = reference()
    output = candidate(one)
    output.output[7, 3] = np.nan
    signal = attribution([fit(one, output)], [], FACTS, "bf16")
    assert signal.outcome is Outcome.FAIL
    assert "token 7 is not finite" in signal.message


def test_tokens_with_other_experts_are_left_out_of_the_fit() -> None:
    one = reference()
    output = candidate(one)
    assert output.topk_ids is not None
    ids = output.topk_ids.copy()
    ids[10] = (ids[10] + 1) % FACTS.num_experts
    output.output[10] = 0
    found = fit(one, replace(output, topk_ids=ids))
    assert (found.used, found.left_out, found.ids_known) == (255, 1, True)
    assert attribution([found], [], FACTS, "bf16").outcome is Outcome.PASS


def test_where_ids_are_hidden_ties_are_left_out() -> None:
    one = reference()
    output = replace(candidate(one), topk_ids=None)
    output.output[5] = 0  # the tie went the other way
    found = fit(one, output)
    assert (found.left_out, found.ids_known) == (1, False)
    assert attribution([found], [], FACTS, "bf16").outcome is Outcome.PASS


def test_no_common_expert_decides_nothing() -> None:
    one = reference()
    assert one.topk_ids is not None
    output = replace(candidate(one), topk_ids=one.topk_ids + FACTS.num_experts)
    assert attribution([fit(one, output)], [], FACTS, "bf16").outcome is Outcome.INCONCLUSIVE


def test_without_fits_the_signal_is_absent() -> None:
    assert attribution([], [], FACTS, "bf16").outcome is Outcome.ABSENT


def test_a_black_box_reference_is_refused() -> None:
    with pytest.raises(HarnessError, match="summands"):
        fit(candidate(reference()), candidate(reference()))


def test_limits_widen_with_legal_variants() -> None:
    """A declared fp8 of which a legal variant already has alpha off by 2 % is not failed at 3 %."""
    one = reference()
    output = fit(one, candidate(one, alpha=1.03))
    floor = fit(one, candidate(one, alpha=1.02))
    assert attribution([output], [], FACTS, "fp8").outcome is Outcome.FAIL
    assert attribution([output], [floor], FACTS, "fp8").outcome is Outcome.PASS


def test_a_model_without_factor_has_no_factor_names() -> None:
    facts = replace(FACTS, routed_scaling_factor=1.0)
    assert name_factor(0.4, facts, 1e-3) == ""
    assert name_weights(1.0, None, facts, 1e-3) == ""


def test_two_formulas_of_one_number_are_both_told() -> None:
    facts = replace(FACTS, routed_scaling_factor=2.0)
    name = name_factor(2.0, facts, 1e-3)
    assert name.startswith("routed_scaling_factor or ")
    assert name.endswith(" or 2 (added twice, or by 2 ranks)")


def test_the_same_experts_in_another_order_agree() -> None:
    one = reference()
    output = candidate(one)
    assert output.topk_ids is not None
    assert output.topk_weights is not None
    turned = replace(output, topk_ids=output.topk_ids[:, ::-1], topk_weights=output.topk_weights[:, ::-1])
    found = agreement(one, turned, turned)
    assert found is not None
    assert (found.isolated, found.propagated, found.weight_error) == (1.0, 1.0, 0.0)
    assert router_agreement([found], []).outcome is Outcome.PASS


def test_a_tie_may_go_either_way() -> None:
    one = reference()
    found = agreement(one, replace(candidate(one), topk_ids=with_ids(one, [5])))
    assert found is not None
    assert (found.ties, found.isolated) == (1, 1.0)


def test_other_experts_on_clear_tokens_fail() -> None:
    one = reference()
    found = agreement(one, replace(candidate(one), topk_ids=with_ids(one, [1, 2])))
    assert found is not None
    signal = router_agreement([found], [])
    assert signal.outcome is Outcome.FAIL
    assert signal.value == pytest.approx(1 - 2 / 255)
    assert router_agreement([found], [found]).outcome is Outcome.PASS  # a legal variant does as much


def test_an_invalid_id_equals_nothing() -> None:
    one = reference()
    assert one.topk_ids is not None
    ids = one.topk_ids.copy()
    ids[:, 0] = -1
    found = agreement(one, replace(candidate(one), topk_ids=ids))
    assert found is not None
    assert found.isolated == pytest.approx(3 / 4)


def test_only_ties_decide_nothing() -> None:
    one = reference()
    tied = replace(one, choice_gap=np.full(256, TIE_GAP / 2, np.float32))
    found = agreement(tied, candidate(one))
    assert found is not None
    assert router_agreement([found], []).outcome is Outcome.INCONCLUSIVE


def test_hidden_ids_make_the_signal_absent() -> None:
    one = reference()
    assert agreement(one, replace(candidate(one), topk_ids=None)) is None
    assert router_agreement([], []).outcome is Outcome.ABSENT


def with_ids(capture: LayerCapture, tokens: list[int]) -> np.ndarray:
    """The capture's ids with all experts replaced at these tokens by ones that were not chosen."""
    assert capture.topk_ids is not None
    ids = capture.topk_ids.copy()
    for token in tokens:
        others = [expert for expert in range(FACTS.num_experts) if expert not in ids[token]]
        ids[token] = others[: FACTS.top_k]
    return ids
