"""The null ensemble: simulated kernels of a contract, and limits that further ones do not exceed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moecheck import ExpertSpec, MoESpec, Numerics, Quantizer, RoutingSpec
from moecheck.cases import Case
from moecheck.checks.finding import FAILURES
from moecheck.checks.judge import Limits, judge
from moecheck.checks.statistics import reproduces
from moecheck.formats import store
from moecheck.null_ensemble import VARIANTS, limit_of, normal_numbers, usual_limit, usual_row
from moecheck.oracle import Oracle, call_reference, reference_modules
from moecheck.spec import SWIGLUOAI

PER_TOKEN, GROUPED = Quantizer(format="int8"), Quantizer(group=128, scale="power_of_two")
CONTRACTS = [
    pytest.param(Numerics(a2_quant=GROUPED), id="all in fp32"),
    pytest.param(Numerics(gate_up="input", act="input", act_times_up="input", a2_quant=GROUPED), id="stores before it"),
    pytest.param(Numerics(a1_quant=PER_TOKEN, a2_quant=PER_TOKEN, weighted="input"), id="int8 twice"),
]
SHARED = MoESpec(
    routing=RoutingSpec(top_k=2, routed_scaling_factor=1.5, scaling_placement="routed_output"),
    shared_experts="gated",
)


def case_of(op: str = "fused_experts", *, spec: MoESpec | None = None, seed: int = 0, tokens: int = 12) -> Case:
    return Case(
        op=op,
        spec=spec or MoESpec(routing=RoutingSpec(top_k=3)),
        num_tokens=tokens,
        num_experts=6,
        hidden_size=128,
        intermediate_size=192,
        shared_intermediate_size=64 if spec is SHARED else 0,
        load="gapped" if op == "moe_layer" else "random",
        dtype="bf16",
        seed=seed,
    )


def simulated(case: Case, numerics: Numerics, oracle: Oracle, *, key: str) -> Any:
    """Outputs of kernels that the ensemble does not hold, [V, T, H] in the case's format."""
    module = reference_modules()[case.op]
    contract = numerics.resolve(case.dtype)
    noise = module.Noise(VARIANTS, normal_numbers(replace(case, seed=case.seed + 1000, name=key)))
    values = call_reference(
        module.variants, case, oracle.inputs(case), numerics=contract, dtype=case.dtype, noise=noise
    )
    return store(values, case.dtype)


@pytest.mark.parametrize("numerics", CONTRACTS)
@pytest.mark.parametrize(
    ("op", "spec"),
    [
        pytest.param("fused_experts", None, id="experts"),
        pytest.param("fused_experts", MoESpec(routing=RoutingSpec(top_k=2), experts=SWIGLUOAI), id="biases"),
        pytest.param("moe_layer", None, id="layer"),
        pytest.param("moe_layer", SHARED, id="layer with a shared expert"),
    ],
)
def test_kernels_outside_the_ensemble_pass(op: str, spec: MoESpec | None, numerics: Numerics) -> None:
    case, oracle = case_of(op, spec=spec), Oracle()
    for out in simulated(case, numerics, oracle, key="others"):
        judged = judge(case, (out,), oracle, Limits(), numerics)
        assert [j.message for j in judged.judgements if j.verdict in FAILURES] == []


def test_weights_that_multiply_inputs_are_simulated_too() -> None:
    spec = MoESpec(routing=RoutingSpec(top_k=1), experts=ExpertSpec(weight_on_input=True))
    case, oracle, numerics = case_of(spec=spec), Oracle(), Numerics(a1_quant=GROUPED, a2_quant=GROUPED)
    assert oracle.values(case, numerics).ensemble is not None
    for out in simulated(case, numerics, oracle, key="others")[:2]:
        assert judge(case, (out,), oracle, Limits(), numerics).judgements[-1].verdict not in FAILURES


def test_each_simulated_layer_quantises_inputs_that_its_own_weights_multiplied() -> None:
    """Where the largest of a row is 7 2^n, bf16 numbers are ties of e4m3, and the last bit of w decides them all."""
    routing = RoutingSpec(top_k=1, scoring="sigmoid", choose_by_logits=True)
    spec = MoESpec(routing=routing, experts=ExpertSpec(weight_on_input=True))
    numerics = Numerics(a1_quant=Quantizer(), a2_quant=Quantizer())
    case = case_of("moe_layer", spec=spec, tokens=24)
    inputs = dict(case.inputs())
    x = np.clip(np.asarray(inputs["hidden_states"], np.float64), -3.0, 3.0)
    x[:, 0] = 3.5
    inputs["hidden_states"] = store(x, case.dtype)
    oracle = Oracle(load=lambda _: inputs)
    values = oracle.values(case, numerics)
    assert values.ensemble is not None
    differing = (values.ensemble.errors != 0.0).any(axis=2)
    assert 0.1 < differing.mean() < 0.9
    assert len({row.tobytes() for row in differing}) == VARIANTS
    for out in simulated(case, numerics, oracle, key="others"):
        assert reproduces(np.asarray(out, np.float64), values)
        judged = judge(case, (out,), oracle, Limits(), numerics, declared=False)
        assert [j.message for j in judged.judgements if j.verdict in FAILURES] == []


def test_an_ensemble_is_the_same_each_time_and_near_the_reference() -> None:
    case, numerics = case_of(), Numerics(a2_quant=GROUPED)
    first, again = (Oracle().values(case, numerics) for _ in range(2))
    assert first.ensemble is not None
    assert again.ensemble is not None
    assert np.array_equal(first.ensemble.errors, again.ensemble.errors)
    assert len(first.ensemble.errors) == VARIANTS
    assert np.abs(first.ensemble.errors).max() > 0.0
    assert np.sqrt(np.mean(np.square(first.ensemble.errors / first.sigma))) < np.mean(first.ensemble.flip)


def test_only_requantising_contracts_have_an_ensemble() -> None:
    case = case_of()
    assert Oracle().values(case, Numerics(gate_up="input")).ensemble is None
    assert Oracle().values(case, None).ensemble is None


def test_rows_of_an_ensemble_are_copied_and_replaced() -> None:
    case = replace(case_of(), dtype="fp32")
    values = Oracle().values(case, Numerics(a2_quant=GROUPED))
    copy = values.copy()
    assert copy.ensemble is not None
    assert values.ensemble is not None
    copy.replace_rows(np.array([0]), values.rows([3]), np.array([0]))
    assert np.array_equal(copy.ensemble.errors[:, 0], values.ensemble.errors[:, 3])
    assert copy.ensemble.flip[0] == values.ensemble.flip[3]
    assert not np.array_equal(values.ensemble.errors[:, 0], values.ensemble.errors[:, 3])


def test_a_limit_is_one_and_a_half_times_the_largest_and_a_flip() -> None:
    assert limit_of([1.0, 2.0], [1.0, 1.0], 1.0, 0.0) == 3.0
    assert limit_of([1.0, 2.0], [1.0, 4.0], 2.0, 0.0) == 3.0
    assert limit_of([0.0, 0.0], [1.0, 0.0], 1.0, 0.5) == 0.5
    assert limit_of([2.0], [1.0], 1.0, 4.0) == 5.0


def test_flips_in_a_few_rows_leave_the_usual_row_s_limit_low() -> None:
    pooled = np.full((VARIANTS, 40), 1e-5)
    pooled[:, 0] = 1.0  # one row in forty has a flip
    assert usual_limit(pooled) < 1e-4
    pooled[:, ::2] = 1.0  # every second one
    assert usual_limit(pooled) > 1.0
    assert usual_row(4) == 0
    assert usual_row(40) == 9
