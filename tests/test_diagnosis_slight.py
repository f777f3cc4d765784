"""Errors of the size of rounding are named: factors, truncating stores, low sums, a constant in the normalisation."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.diagnosis import Diagnosis, diagnose
from moecheck.diagnosis.parts import parts_of
from moecheck.formats import Float64, round_to, store, to_float64
from moecheck.mutants.call import call_of, slots_of
from moecheck.mutants.expert_maths import Maths, right_hidden, value_by
from moecheck.mutants.rounding import LOW_SUMS, truncated_to
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.spec import RoutingSpec
from tests.mutants.small_cases import TOP4, case

STORES = Numerics(gate_up="input", act_times_up="input")
LARGE = case("fused_experts", TOP4, num_tokens=64, hidden_size=256, intermediate_size=128)
FP32 = replace(LARGE, dtype="fp32")


@cache
def oracle() -> Oracle:
    return Oracle()


def right(which: Case, numerics: Numerics = STORES) -> Float64:
    """A right kernel's output before its last store."""
    return oracle().values(which, replace(numerics, out="fp32")).rounded


def known(which: Case, out: Float64, numerics: Numerics | None) -> Diagnosis:
    found = diagnose(which, (store(out, which.dtype),), oracle(), numerics)
    assert found is not None
    return found


def noise(which: Case, out: Float64) -> Float64:
    """Errors of fp32 arithmetic, so that no hypothesis fits better than one of a kernel does."""
    sigma = oracle().values(which, Numerics()).sigma
    return out + 0.9 * sigma * np.random.default_rng(0).normal(size=out.shape)


def test_one_factor_is_preferred_to_a_weight_for_every_slot() -> None:
    found = known(FP32, noise(FP32, 1.00003 * right(FP32, Numerics())), Numerics())
    assert found.hypothesis == "factor"
    assert "the output is 1.0000300 ± " in found.sentence or "the output is 1.000030" in found.sentence
    assert found.location == "The error is spread over all tokens and columns."


def test_a_factor_within_rounding_is_located_nowhere() -> None:
    found = known(LARGE, 1.0008 * right(LARGE), STORES)
    assert found.hypothesis == "factor"
    assert found.rms_z_reference < 1.1
    assert found.location == "The error is spread over all tokens and columns."


@pytest.mark.parametrize("numerics", [None, STORES], ids=["undeclared", "declared"])
def test_the_output_is_truncated(numerics: Numerics | None) -> None:
    found = known(LARGE, truncated_to(right(LARGE), "bf16"), numerics)
    assert found.hypothesis == "truncating_store"
    assert found.sentence.startswith("looks like: the output's store truncates instead of rounding to nearest;")


def truncated_hidden(maths: Maths, gate: Float64, up: Float64, *, every: bool) -> Float64:
    cut = truncated_to if every else round_to
    return truncated_to(right_hidden(maths, cut(gate, "bf16"), cut(up, "bf16")), "bf16")


@pytest.mark.parametrize("numerics", [None, STORES], ids=["undeclared", "declared"])
def test_h_is_truncated(numerics: Numerics | None) -> None:
    out = value_by(call_of(LARGE, oracle()), partial(truncated_hidden, every=False))
    found = known(LARGE, out, numerics)
    assert found.hypothesis == "truncating_store"
    assert "the store of h, the second GEMM's input, truncates" in found.sentence


def test_every_store_truncates() -> None:
    out = value_by(
        call_of(LARGE, oracle()),
        partial(truncated_hidden, every=True),
        second=lambda x, w: truncated_to(x @ w.T, "bf16"),
    )
    found = known(LARGE, truncated_to(out, "bf16"), None)
    assert found.hypothesis == "truncating_store"
    assert "every store (of both GEMMs' outputs, h and the output) truncates" in found.sentence


@pytest.mark.parametrize("numerics", [None, STORES], ids=["undeclared", "declared"])
@pytest.mark.parametrize("low", LOW_SUMS, ids=lambda low: f"{low.name} {low.variant}")
def test_sums_that_are_kept_low(low: object, numerics: Numerics | None) -> None:
    assert low in LOW_SUMS
    which = next(one for one in LOW_SUMS if one == low)
    product = partial(which.product, name="bf16")

    def hidden(maths: Maths, gate: Float64, up: Float64) -> Float64:
        return round_to(right_hidden(maths, round_to(gate, "bf16"), round_to(up, "bf16")), "bf16")

    call = call_of(LARGE, oracle())
    out = value_by(call, hidden, second=product)
    if which.where == "both":
        out = value_by(call, hidden, first=product, second=product)
    assert known(LARGE, out, numerics).hypothesis == which.name


def sums_of(which: Case) -> Float64:
    """[T, 1]: the sum of the best four sigmoids of each token."""
    logits = to_float64(oracle().inputs(which)["router_logits"])
    best: Float64 = np.sort(1.0 / (1.0 + np.exp(-logits)), axis=1)[:, -4:]
    return np.asarray(best.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_a_constant_in_the_normalisation(eps: float) -> None:
    routing = RoutingSpec(top_k=4, renormalize=True, scoring="sigmoid")
    layer = case("moe_layer", routing, num_tokens=64, dtype="fp32")
    sums = sums_of(layer)
    found = known(layer, noise(layer, right(layer, Numerics()) * sums / (sums + eps)), None)
    assert found.hypothesis == "renorm_eps"
    text = f"{eps:.0e}".replace("e-0", "e-")
    assert f"looks like: {text} is added to the sum that the weights are divided by" in found.sentence

    router = replace(layer, op="topk_routing")
    sums = sums_of(router)
    weights, ids = slots_of(call_of(router, oracle()))
    outputs = ((weights * sums / (sums + eps)).astype(np.float32), ids.astype(np.int32))
    of_router = diagnose(router, outputs, oracle(), None)
    assert of_router is not None
    assert of_router.hypothesis == "renorm_eps"
    assert f"looks like: {text} is added to the sum" in of_router.sentence


def test_an_experts_factor_is_preferred_to_one_of_the_output() -> None:
    parts = parts_of(call_of(LARGE, oracle()))
    assert parts is not None
    found = known(LARGE, right(LARGE) + 0.01 * parts.of_expert(3), STORES)
    assert found.hypothesis == "expert_factor"
    assert "expert 3 contributes 1.0" in found.sentence


def test_one_tokens_factor_is_named() -> None:
    out = right(LARGE).copy()
    out[63] *= 1.02
    found = known(LARGE, out, STORES)
    assert found.hypothesis == "row_factor"
    assert "token 63 is 1.02" in found.sentence
    assert "spread over all" not in found.location


@pytest.mark.parametrize("stores", [STORES, replace(STORES, per_expert="input"), replace(STORES, act="input")])
@pytest.mark.parametrize("known_as", [None, STORES], ids=["undeclared", "declared"])
def test_an_honest_kernel_of_another_contract_has_no_bug(stores: Numerics, known_as: object) -> None:
    """Its roundings are biased where all values have one sign; no hypothesis of rounding may take them for its own."""
    which = case("fused_experts", num_tokens=64, hidden_size=256, intermediate_size=128, stratum="positive")
    numerics = STORES if known_as is STORES else None
    found = diagnose(which, (store(right(which, stores), which.dtype),), oracle(), numerics)
    assert found is None or found.hypothesis in (None, "factor"), found.words()


def test_what_removes_little_of_the_error_is_not_named() -> None:
    """A factor that is certain, in an error most of which it leaves."""
    out = right(FP32, Numerics()) * (1 + 1e-5 * np.random.default_rng(0).choice([-1.0, 1.0], size=(64, 256)))
    found = known(FP32, noise(FP32, 1.000002 * out), Numerics())
    assert found.hypothesis is None
