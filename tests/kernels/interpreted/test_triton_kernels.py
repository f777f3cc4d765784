"""Triton kernels under the corrected interpreter, against their references and declared contracts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from moecheck import ExpertSpec, RoutingSpec, Unsupported
from moecheck.formats import to_float64
from moecheck.kernels.triton import align, experts, routing, rows
from moecheck.references.topk_routing import topk_routing as reference
from moecheck.references.topk_routing import weights_of_ids
from moecheck.spec import SWIGLUOAI
from tests.bounds import AGREEMENT, U32, routing_weight_bound
from tests.kernels import plumbing
from tests.kernels.experts_case import ExpertsCase, Kernel, bit_agreement, declaration, name_of, worst_z, z_bound
from tests.kernels.routing_cases import LARGEST, SPECS, routing_inputs
from tests.kernels.torch_bridge import numpy_call, on_torch, to_numpy

DTYPES = ("fp32", "fp16", "bf16")
EXPERTS = (experts.fused_gate_up, experts.separate)
ON_INPUT = ExpertSpec(weight_on_input=True, w13_bias=True, w2_bias=True)
ROUTING = tuple(name for name in SPECS if name != "sparsemixer")
SIGMOID = RoutingSpec(
    top_k=22,
    scoring="sigmoid",
    correction_bias="select",
    renormalize=True,
    renorm_eps=1e-20,
    renorm_eps_rule="add",
    routed_scaling_factor=2.5,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(ExpertsCase(tokens=0), id="no token"),
        pytest.param(ExpertsCase(tokens=1, top_k=8), id="one token and all experts"),
        pytest.param(ExpertsCase(tokens=70, experts=2, top_k=2, padding=True), id="ragged blocks and padding ids"),
        pytest.param(ExpertsCase(expert_map=True, padding=True), id="half of the experts are elsewhere"),
        pytest.param(ExpertsCase(hidden=90, intermediate=44, spec=SWIGLUOAI), id="swigluoai with odd sizes"),
        pytest.param(ExpertsCase(tokens=5, hidden=300, intermediate=272), id="several tiles"),
        pytest.param(ExpertsCase(spec=ExpertSpec(activation="gelu_tanh", swiglu_limit=2.0)), id="gelu and a limit"),
        pytest.param(ExpertsCase(top_k=1, spec=ON_INPUT), id="weights on inputs"),
    ],
)
@pytest.mark.parametrize("kernel", EXPERTS, ids=name_of)
def test_experts_agree_with_the_reference(kernel: Kernel, case: ExpertsCase, dtype: str) -> None:
    inputs = case.inputs(dtype)
    out = to_numpy(kernel(**on_torch(inputs), spec=case.spec))
    assert out.dtype == inputs["hidden_states"].dtype
    assert worst_z(out, inputs, case=case, kernel=kernel, dtype=dtype) <= z_bound(out)


@pytest.mark.parametrize("kernel", EXPERTS, ids=name_of)
def test_bf16_outputs_are_the_declared_contract_bit_for_bit(kernel: Kernel) -> None:
    case = ExpertsCase(tokens=32, hidden=256, intermediate=128, experts=8, top_k=2)
    inputs = case.inputs("bf16")
    out = to_numpy(kernel(**on_torch(inputs), spec=case.spec))
    assert bit_agreement(out, inputs, case=case, kernel=kernel, dtype="bf16") >= AGREEMENT


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ExpertSpec(activation="relu2", gated=False), "gated"),
        (ExpertSpec(activation="gelu"), "gelu_tanh"),
        (ExpertSpec(swiglu_limit=7.0, limit_position="after"), "inputs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_experts_lack_is_declined(spec: ExpertSpec, reason: str) -> None:
    case = ExpertsCase(top_k=1, spec=spec)
    with pytest.raises(Unsupported, match=reason):
        experts.separate(**on_torch(case.inputs("bf16")), spec=spec)


def check_routing(arrays: dict[str, Any], spec: RoutingSpec) -> None:
    weights, ids = numpy_call(routing.topk_routing)(**arrays, spec=spec)
    assert np.array_equal(ids, reference(**arrays, spec=spec)[1])
    expected = weights_of_ids(topk_ids=ids, spec=spec, **arrays)
    experts_count = arrays["router_logits"].shape[1]
    bound = routing_weight_bound(num_experts=experts_count, top_k=spec.top_k, largest_logit=LARGEST, unit=U32)
    assert np.all(np.abs(to_float64(weights) - expected) <= bound * np.abs(expected))


@pytest.mark.parametrize("sizes", [(0, 8), (17, 60), (2, 1024)], ids=str)
@pytest.mark.parametrize("name", ROUTING)
def test_routing_agrees_with_the_reference(name: str, sizes: tuple[int, int]) -> None:
    check_routing(routing_inputs(SPECS[name], tokens=sizes[0], experts=sizes[1]), SPECS[name])


@pytest.mark.parametrize(("experts_count", "groups", "kept"), [(36, 3, 2), (160, 8, 3), (50, 5, 1)])
def test_groups_of_any_number_and_size(experts_count: int, groups: int, kept: int) -> None:
    spec = replace(SPECS["noaux_tc"], num_expert_groups=groups, topk_groups=kept, num_fused_shared_experts=3)
    check_routing(routing_inputs(spec, tokens=9, experts=experts_count), spec)


@pytest.mark.parametrize("experts_count", [60, 384, 896])
def test_sigmoid_routing_with_bias_and_many_slots(experts_count: int) -> None:
    check_routing(routing_inputs(SIGMOID, tokens=5, experts=experts_count), SIGMOID)


def test_equal_scores_go_to_the_lowest_ids() -> None:
    _, ids = routing.topk_routing(router_logits=torch.zeros(3, 40), spec=RoutingSpec(top_k=3))
    assert ids.tolist() == [[0, 1, 2]] * 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "spec",
    [RoutingSpec(), RoutingSpec(scoring="sigmoid"), RoutingSpec(softmax_over_selected=True)],
    ids=["softmax", "sigmoid", "softmax over the selected"],
)
def test_non_finite_logits_give_the_reference_s_ids(spec: RoutingSpec, bad: float) -> None:
    logits = np.tile(np.linspace(-1, 1, 8, dtype=np.float32), (3, 1))
    logits[0, 5], logits[1] = bad, bad
    weights, ids = numpy_call(routing.topk_routing)(router_logits=logits, spec=spec)
    expected, expected_ids = reference(router_logits=logits, spec=spec)
    assert np.array_equal(ids, expected_ids)
    assert np.array_equal(weights == 0, expected == 0)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (RoutingSpec(selection="sparsemixer"), "sparsemixer"),
        (RoutingSpec(renormalize=True, renorm_norm=3.0), "renorm_norm"),
        (RoutingSpec(per_expert_scale=True), "per_expert_scale"),
        (RoutingSpec(top_k=33), "32 slots"),
        (RoutingSpec(correction_bias="select"), "not given"),
    ],
    ids=["sparsemixer", "another norm", "no scale", "too many slots", "no bias"],
)
def test_what_the_routing_lacks_is_declined(spec: RoutingSpec, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        routing.topk_routing(router_logits=torch.zeros(1, 64), spec=spec)


def test_rows_wider_than_the_experts_are_read_by_their_stride() -> None:
    wide = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    narrow = routing.topk_routing(router_logits=wide[:, :20], spec=RoutingSpec())
    copied = routing.topk_routing(router_logits=wide[:, :20].contiguous(), spec=RoutingSpec())
    assert all(torch.equal(a, b) for a, b in zip(narrow, copied, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("tokens", [0, 17])
def test_permute(tokens: int, mapped: bool, dtype: str) -> None:
    plumbing.check_permute(numpy_call(rows.permute), tokens=tokens, experts=9, mapped=mapped, dtype=dtype)


def test_permute_moves_scales_alike() -> None:
    x, ids = torch.randn(5, 40), torch.tensor([[0, 2], [1, -1], [2, 0], [0, 1], [2, 1]], dtype=torch.int32)
    permuted, scale, starts, inverse = rows.permute(
        hidden_states=x, topk_ids=ids, num_experts=3, hidden_scale=x[:, :3].contiguous()
    )
    used = int(starts[-1])
    assert used == (inverse >= 0).sum() == 9
    assert scale is not None
    assert torch.equal(permuted[:used, :3], scale[:used])


@pytest.mark.parametrize(
    "sizes", [(0, 9, 16), (17, 9, 16), (30, 40, 5), (60, 9, 16), (17, 70, 3), (1400, 9, 64)], ids=str
)
@pytest.mark.parametrize("mapped", [False, True])
def test_align_block_size(sizes: tuple[int, int, int], mapped: bool) -> None:
    tokens, experts_count, block_size = sizes
    call = numpy_call(align.align_block_size)
    plumbing.check_align_block_size(call, tokens=tokens, experts=experts_count, block_size=block_size, mapped=mapped)


@pytest.mark.parametrize("tokens", [0, 17, 1500])
@pytest.mark.parametrize("mapped", [False, True])
def test_problem_sizes(tokens: int, mapped: bool) -> None:
    plumbing.check_problem_sizes(numpy_call(align.problem_sizes), tokens=tokens, experts=9, mapped=mapped)


@pytest.mark.parametrize("tokens", [50, 1400])
def test_many_pairs_are_permuted_as_few_are(tokens: int) -> None:
    plumbing.check_permute(numpy_call(rows.permute), tokens=tokens, experts=9, mapped=True, dtype="bf16")


def test_no_expert_here_leaves_every_slot_without_a_row() -> None:
    ids = torch.tensor([[0, 1]], dtype=torch.int32)
    here = torch.full((2,), -1, dtype=torch.int32)
    _, _, starts, inverse = rows.permute(hidden_states=torch.ones(1, 16), topk_ids=ids, num_experts=2, expert_map=here)
    assert starts.tolist() == [0]
    assert inverse.tolist() == [[-1, -1]]


def test_shuffle_rows() -> None:
    x, row_map = torch.randn(7, 40), torch.tensor([3, 3, 0, 6], dtype=torch.int32)
    assert torch.equal(rows.shuffle_rows(x=x, row_map=row_map), x[row_map.long()])


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpermute(dtype: str) -> None:
    numerics = declaration(rows.unpermute).numerics
    plumbing.check_unpermute(numpy_call(rows.unpermute), tokens=17, dtype=dtype, numerics=numerics)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "spec", [ExpertSpec(), SWIGLUOAI, ExpertSpec(activation="gelu_tanh")], ids=["silu", "oai", "gelu"]
)
def test_act_and_mul(spec: ExpertSpec, dtype: str) -> None:
    kernel = rows.act_and_mul
    numerics = declaration(kernel).numerics
    plumbing.check_act_and_mul(numpy_call(kernel), spec, rows=31, dtype=dtype, numerics=numerics)
