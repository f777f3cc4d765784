"""JAX kernels against their references under each kernel's declared contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from moecheck import ExpertSpec, RoutingSpec, Unsupported
from moecheck.formats import to_float64
from moecheck.kernels.jax import activation, permute, ragged_dot, routing
from moecheck.references.topk_routing import topk_routing as reference
from moecheck.references.topk_routing import weights_of_ids
from moecheck.spec import SWIGLUOAI
from tests.bounds import AGREEMENT, U32, routing_weight_bound
from tests.kernels import plumbing
from tests.kernels.experts_case import ExpertsCase, Kernel, bit_agreement, declaration, worst_z, z_bound
from tests.kernels.layouts import as_declared
from tests.kernels.routing_cases import LARGEST, SPECS, routing_inputs

DTYPES = ("fp32", "fp16", "bf16")


def numpy_call(kernel: Kernel) -> plumbing.Call:
    """The kernel as a function of NumPy arrays."""

    def call(**arguments: Any) -> Any:
        declared = as_declared(kernel, arguments)
        given = {n: jnp.asarray(value) if isinstance(value, np.ndarray) else value for n, value in declared.items()}
        out = kernel(**given)
        if isinstance(out, tuple):
            return tuple(None if value is None else np.asarray(value) for value in out)
        return np.asarray(out)

    return call


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(ExpertsCase(), id="eight experts"),
        pytest.param(ExpertsCase(tokens=0), id="no token"),
        pytest.param(ExpertsCase(tokens=1, top_k=8), id="one token and all experts"),
        pytest.param(ExpertsCase(experts=60, top_k=4, padding=True), id="padding ids of -1"),
        pytest.param(ExpertsCase(expert_map=True, padding=True), id="half of the experts are elsewhere"),
        pytest.param(ExpertsCase(hidden=90, intermediate=44, spec=SWIGLUOAI), id="swigluoai with odd sizes"),
        pytest.param(ExpertsCase(spec=ExpertSpec(activation="relu2", gated=False)), id="no gate"),
        pytest.param(ExpertsCase(spec=ExpertSpec(activation="gelu")), id="gelu by erf"),
        pytest.param(ExpertsCase(top_k=1, spec=ExpertSpec(weight_on_input=True)), id="weighted input"),
    ],
)
def test_ragged_dot_experts_agree_with_the_reference(case: ExpertsCase, dtype: str) -> None:
    kernel = ragged_dot.fused_experts
    inputs = case.inputs(dtype)
    out = numpy_call(kernel)(**inputs, spec=case.spec)
    assert out.dtype == inputs["hidden_states"].dtype
    assert worst_z(out, inputs, case=case, kernel=kernel, dtype=dtype) <= z_bound(out)


@pytest.mark.parametrize("spec", [ExpertSpec(), SWIGLUOAI], ids=["silu", "swigluoai"])
def test_bf16_outputs_are_the_declared_contract_bit_for_bit(spec: ExpertSpec) -> None:
    kernel = ragged_dot.fused_experts
    case = ExpertsCase(tokens=32, hidden=256, intermediate=128, experts=16, top_k=4, spec=spec)
    inputs = case.inputs("bf16")
    out = numpy_call(kernel)(**inputs, spec=spec)
    assert bit_agreement(out, inputs, case=case, kernel=kernel, dtype="bf16") >= AGREEMENT


def test_a_second_call_with_the_same_shapes_does_not_trace_again() -> None:
    case = ExpertsCase(tokens=3)
    inputs = case.inputs("bf16")
    call = numpy_call(ragged_dot.fused_experts)
    traced = ragged_dot._fused_experts._cache_size  # type: ignore[attr-defined]  # of every jitted function
    call(**inputs, spec=case.spec)
    before = traced()
    call(**inputs | {"topk_ids": inputs["topk_ids"][::-1]}, spec=replace(case.spec))
    assert traced() == before


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        pytest.param(RoutingSpec(), (0, 16), id="no token"),
        pytest.param(RoutingSpec(top_k=8), (5, 256), id="256 experts"),
        *(
            pytest.param(spec, (17, 60), id=name)
            for name, spec in SPECS.items()
            if spec.selection == "topk" and not spec.per_expert_scale and not spec.num_fused_shared_experts
        ),
    ],
)
def test_routing_agrees_with_the_reference(spec: RoutingSpec, sizes: tuple[int, int]) -> None:
    tokens, experts = sizes
    arrays: dict[str, Any] = dict(routing_inputs(spec, tokens=tokens, experts=experts))
    weights, ids = numpy_call(routing.topk_routing)(**arrays, spec=spec)
    assert weights.dtype == np.float32
    assert ids.dtype == np.int32
    assert np.array_equal(ids, reference(**arrays, spec=spec)[1])
    expected = weights_of_ids(topk_ids=ids, spec=spec, **arrays)
    bound = routing_weight_bound(num_experts=experts, top_k=spec.top_k, largest_logit=LARGEST, unit=U32)
    assert np.all(np.abs(to_float64(weights) - expected) <= bound * np.abs(expected))


def test_equal_scores_go_to_the_lowest_ids() -> None:
    _, ids = routing.topk_routing(router_logits=jnp.zeros((3, 40)), spec=RoutingSpec(top_k=3))
    assert np.asarray(ids).tolist() == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (RoutingSpec(selection="sparsemixer"), "selection"),
        (RoutingSpec(num_fused_shared_experts=1), "num_fused_shared_experts"),
        (RoutingSpec(per_expert_scale=True), "per_expert_scale"),
        (RoutingSpec(correction_bias="select"), "correction_bias"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_routing_lacks_is_declined(spec: RoutingSpec, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        routing.topk_routing(router_logits=jnp.zeros((1, 8)), spec=spec)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("tokens", [0, 17])
def test_permute(tokens: int, mapped: bool, dtype: str) -> None:
    plumbing.check_permute(numpy_call(permute.permute), tokens=tokens, experts=9, mapped=mapped, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpermute(dtype: str) -> None:
    numerics = declaration(permute.unpermute).numerics
    plumbing.check_unpermute(numpy_call(permute.unpermute), tokens=17, dtype=dtype, numerics=numerics)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", [[5, 0, 9, 1], [0, 0, 0], [0, 33]], ids=str)
def test_grouped_gemm(counts: list[int], dtype: str) -> None:
    kernel = ragged_dot.grouped_gemm
    numerics = declaration(kernel).numerics
    plumbing.check_grouped_gemm(numpy_call(kernel), counts=counts, tail=3, dtype=dtype, numerics=numerics)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "spec",
    [
        ExpertSpec(activation="gelu_tanh", swiglu_limit=2.0),
        ExpertSpec(activation="situ", situ_beta=4.0, swiglu_limit=1.0, limit_position="after"),
        SWIGLUOAI,
    ],
    ids=lambda spec: spec.activation,
)
def test_act_and_mul(spec: ExpertSpec, dtype: str) -> None:
    kernel = activation.act_and_mul
    numerics = declaration(kernel).numerics
    plumbing.check_act_and_mul(numpy_call(kernel), spec, rows=31, dtype=dtype, numerics=numerics)
