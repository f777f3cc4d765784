"""fused_experts in PyTorch, ours and transformers', against the reference under each kernel's declared contract."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moecheck import ExpertSpec, Unsupported
from moecheck.kernels.third_party import transformers_experts
from moecheck.kernels.torch import grouped_mm, index_add
from moecheck.spec import SWIGLUOAI
from tests.bounds import AGREEMENT
from tests.kernels.experts_case import ExpertsCase, Kernel, bit_agreement, name_of, worst_z, z_bound
from tests.kernels.torch_bridge import numpy_call, on_torch, to_numpy

GATED = (
    index_add.fused_experts,
    grouped_mm.fused_experts,
    transformers_experts.mixtral_eager,
    transformers_experts.qwen3_moe_eager,
    transformers_experts.mixtral_batched_mm,
    transformers_experts.mixtral_grouped_mm,
)
GPT_OSS = (
    index_add.fused_experts,
    transformers_experts.gpt_oss_eager,
    transformers_experts.gpt_oss_batched_mm,
    transformers_experts.gpt_oss_grouped_mm,
)
OURS = (index_add.fused_experts, grouped_mm.fused_experts)
DTYPES = ("fp32", "fp16", "bf16")
RELU2 = ExpertSpec(activation="relu2", gated=False)


def check(kernel: Kernel, case: ExpertsCase, dtype: str) -> None:
    inputs = case.inputs(dtype)
    out = numpy_call(kernel)(**inputs, spec=case.spec)
    assert out.dtype == inputs["hidden_states"].dtype
    assert worst_z(out, inputs, case=case, kernel=kernel, dtype=dtype) <= z_bound(out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", GATED, ids=name_of)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(ExpertsCase(), id="eight experts"),
        pytest.param(ExpertsCase(tokens=0), id="no token"),
        pytest.param(ExpertsCase(tokens=1, top_k=8), id="one token and all experts"),
        pytest.param(ExpertsCase(experts=60, top_k=4, padding=True), id="padding ids of -1"),
        pytest.param(ExpertsCase(tokens=2, experts=256, top_k=8), id="most experts are empty"),
        pytest.param(ExpertsCase(spec=ExpertSpec(activation="gelu")), id="gelu by erf"),
        pytest.param(ExpertsCase(spec=ExpertSpec(activation="gelu_tanh")), id="gelu by tanh"),
    ],
)
def test_gated_experts_agree_with_the_reference(kernel: Kernel, case: ExpertsCase, dtype: str) -> None:
    check(kernel, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", GPT_OSS, ids=name_of)
def test_swigluoai_experts_agree_with_the_reference(kernel: Kernel, dtype: str) -> None:
    check(kernel, ExpertsCase(spec=SWIGLUOAI), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(ExpertsCase(expert_map=True, padding=True), id="half of the experts are elsewhere"),
        pytest.param(ExpertsCase(spec=RELU2), id="no gate"),
        pytest.param(ExpertsCase(spec=replace(SWIGLUOAI, w13_bias=False, w2_bias=False)), id="interleaved gate and up"),
        pytest.param(ExpertsCase(spec=ExpertSpec(swiglu_limit=1.5, limit_position="after")), id="limit after silu"),
        pytest.param(ExpertsCase(spec=ExpertSpec(activation="situ", situ_beta=2.0)), id="situ"),
    ],
)
@pytest.mark.parametrize("kernel", OURS, ids=name_of)
def test_our_experts_implement_the_whole_spec(kernel: Kernel, case: ExpertsCase, dtype: str) -> None:
    check(kernel, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kernel", "case"),
    [
        pytest.param(
            index_add.fused_experts,
            ExpertsCase(top_k=1, spec=ExpertSpec(weight_on_input=True)),
            id="index_add weighs the input unrounded",
        ),
        pytest.param(
            index_add.fused_experts,
            ExpertsCase(hidden=90, intermediate=44, spec=SWIGLUOAI),
            id="index_add has no alignment",
        ),
        pytest.param(
            transformers_experts.mixtral_batched_mm,
            ExpertsCase(hidden=90, intermediate=44),
            id="batched_mm has no alignment",
        ),
        pytest.param(transformers_experts.nemotron_h_eager, ExpertsCase(spec=RELU2), id="Nemotron-H has no gate"),
    ],
)
def test_further_capabilities_agree_with_the_reference(kernel: Kernel, case: ExpertsCase, dtype: str) -> None:
    check(kernel, case, dtype)


@pytest.mark.parametrize(
    ("kernel", "spec"),
    [
        *((kernel, ExpertSpec()) for kernel in GATED),
        (transformers_experts.nemotron_h_eager, RELU2),
        (index_add.fused_experts, SWIGLUOAI),
    ],
    ids=name_of,
)
def test_bf16_outputs_are_the_declared_contract_bit_for_bit(kernel: Kernel, spec: ExpertSpec) -> None:
    case = ExpertsCase(tokens=32, hidden=256, intermediate=128, experts=16, top_k=4, spec=spec)
    inputs = case.inputs("bf16")
    out = to_numpy(kernel(**on_torch(inputs), spec=spec))
    assert bit_agreement(out, inputs, case=case, kernel=kernel, dtype="bf16") >= AGREEMENT


@pytest.mark.parametrize(
    ("kernel", "case", "reason"),
    [
        pytest.param(grouped_mm.fused_experts, ExpertsCase(hidden=90), "16 bytes", id="rows of 180 bytes"),
        pytest.param(
            transformers_experts.mixtral_grouped_mm, ExpertsCase(intermediate=44), "16 bytes", id="rows of 88 bytes"
        ),
        pytest.param(transformers_experts.mixtral_eager, ExpertsCase(spec=RELU2), "gated=True", id="ungated Mixtral"),
        pytest.param(
            transformers_experts.mixtral_eager,
            ExpertsCase(spec=ExpertSpec(swiglu_limit=7.0)),
            "swiglu_limit=None",
            id="Mixtral with a limit",
        ),
        pytest.param(
            transformers_experts.gpt_oss_eager,
            ExpertsCase(padding=True, spec=SWIGLUOAI),
            "absent",
            id="GPT-OSS padding",
        ),
        pytest.param(
            transformers_experts.nemotron_h_eager,
            ExpertsCase(padding=True, spec=RELU2),
            "absent",
            id="Nemotron-H padding",
        ),
    ],
)
def test_what_a_library_lacks_is_declined_with_the_reason(kernel: Kernel, case: ExpertsCase, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        kernel(**on_torch(case.inputs("bf16")), spec=case.spec)


@pytest.mark.parametrize("kernel", GATED, ids=name_of)
def test_inputs_are_left_unmodified(kernel: Kernel) -> None:
    case = ExpertsCase(padding=True)
    inputs = case.inputs("bf16")
    tensors = on_torch(inputs)
    kernel(**tensors, spec=case.spec)
    assert all(np.array_equal(to_numpy(tensors[name]), inputs[name]) for name in inputs)
