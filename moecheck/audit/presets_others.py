"""Tests of projects other than vLLM as data: what they demand, and on which inputs.

Facts about other projects' tests, read in their sources; each preset names its file. What a test draws is kept:
standard deviations, scales, routing, the sizes that decide how large the output is. What only adds rows or experts is
made smaller (`scaled`). A test that hands reference and output over the other way round has relative_to="output".
"""

from __future__ import annotations

from moecheck.numerics import INPUT, Numerics
from moecheck.spec import MoESpec, RoutingSpec

from .criterion import Criterion
from .preset import Preset, Setting
from .preset_parts import BLOCKS, FP8, GROUPS, HUNDREDTH, LOW_WEIGHTS, OVER_SELECTED, SOFTMAX, TENTH
from .recipe import Draw, Recipe
from .subject import TRITON

OTHERS = (
    Preset(
        name="sglang-fused-moe",
        source="sgl-project/sglang test/registered/moe/test_fused_moe.py",
        criterion=Criterion(atol=1e-2, rtol=1e-1),
        op="moe_layer",
        dtype="bf16",
        spec=SOFTMAX,
        recipe=Recipe(hidden=HUNDREDTH, w13=HUNDREDTH, w2=HUNDREDTH, logits_std=0.01, logits_dtype="bf16"),
        contract=TRITON,
        expected=LOW_WEIGHTS,
        settings=(
            Setting(tokens=1, experts=8, top_k=2, hidden=128, intermediate=128),
            Setting(tokens=33, experts=8, top_k=2, hidden=511, intermediate=128),
            Setting(tokens=33, experts=8, top_k=6, hidden=1024, intermediate=1024, narrow=(4, 8)),
        ),
        scaled="at most 33 tokens instead of 222; no E = 64",
    ),
    Preset(
        name="sglang-triton-fused-moe",
        source="sgl-project/sglang test/registered/moe/test_triton_fused_moe.py",
        criterion=Criterion(atol=1e-5, rtol=1e-5),
        op="moe_layer",
        dtype="bf16",
        spec=SOFTMAX,
        recipe=Recipe(hidden=HUNDREDTH, w13=HUNDREDTH, w2=HUNDREDTH, logits_std=0.01, logits_dtype="bf16"),
        contract=TRITON,
        expected=LOW_WEIGHTS,
        settings=(
            Setting(tokens=1, experts=8, top_k=2, hidden=128, intermediate=128),
            Setting(tokens=32, experts=8, top_k=4, hidden=512, intermediate=128, narrow=(2, 1)),
            Setting(tokens=32, experts=8, top_k=4, hidden=1024, intermediate=1024, narrow=(4, 8)),
        ),
        scaled="at most 32 tokens instead of 256; no E = 64",
    ),
    Preset(
        name="sgl-jax-fused-moe",
        source="sgl-project/sglang-jax python/sgl_jax/test/kernels/fused_moe_v1_test.py::test_basic",
        criterion=Criterion(atol=0.2, rtol=0.2),
        op="fused_experts",
        dtype="bf16",
        spec=SOFTMAX,
        recipe=Recipe(hidden=TENTH, w13=TENTH, w2=TENTH, logits_dtype="bf16", slots="raw_logits"),
        contract=Numerics(act_times_up=INPUT),
        expected=None,
        settings=(
            Setting(
                tokens=16,
                experts=16,
                top_k=8,
                hidden=1024,
                intermediate=1024,
                narrow=(4, 8),
                spec=MoESpec(routing=RoutingSpec(renormalize=True)),
            ),
            Setting(tokens=16, experts=16, top_k=8, hidden=1024, intermediate=1024, narrow=(4, 8)),
        ),
        scaled="16 tokens instead of 256, 16 experts instead of 128 (weights do not depend on their number)",
    ),
    Preset(
        name="alpha-moe",
        source="Aleph-Alpha/Alpha-MoE test/test_moe_correctness.py",
        criterion=Criterion(atol=2e-2, rtol=1e-1),
        op="fused_experts",
        dtype="bf16",
        spec=SOFTMAX,
        recipe=Recipe(
            hidden=Draw(std=0.05),
            w13=Draw(std=50.0, fp8="codes", block=BLOCKS, scale_std=0.001),
            w2=Draw(std=50.0, fp8="codes", block=BLOCKS, scale_std=0.001),
            slots="with_replacement",
            weights_factor=2.5,
        ),
        contract=Numerics(a1_quant=FP8, a2_quant=FP8),
        expected=Numerics(gate_up=INPUT, act_times_up=INPUT, weighted=INPUT, a1_quant=FP8, a2_quant=FP8),
        settings=(
            Setting(tokens=8, experts=16, top_k=9, hidden=4096, intermediate=128, narrow=(16, 1)),
            Setting(tokens=16, experts=16, top_k=9, hidden=7168, intermediate=256, narrow=(28, 1)),
        ),
        scaled="16 experts instead of 37 and 257, at most 16 tokens instead of 256",
    ),
    Preset(
        name="deepgemm-fp8",
        source="deepseek-ai/DeepGEMM tests/generators.py (QuantConfig.max_diff, generate_m_grouped_contiguous)",
        criterion=Criterion(max_calc_diff=1e-3),
        op="grouped_gemm",
        dtype="bf16",
        spec=SOFTMAX,
        recipe=Recipe(hidden=Draw(fp8="scaled", block=GROUPS), w13=Draw(fp8="scaled", block=BLOCKS)),
        expected_recipe=Recipe(),
        contract=Numerics(),
        expected=None,
        settings=(
            Setting(tokens=96, experts=4, top_k=1, hidden=2048, intermediate=128),
            Setting(tokens=192, experts=8, top_k=1, hidden=1024, intermediate=64),
        ),
        scaled="about 24 rows a group instead of 4096 and 8192, K and N smaller",
    ),
    Preset(
        name="deepgemm-bf16",
        source="deepseek-ai/DeepGEMM tests/test_bf16.py::test_m_grouped_gemm_contiguous",
        criterion=Criterion(max_calc_diff=1e-5),
        op="grouped_gemm",
        dtype="bf16",
        spec=SOFTMAX,
        recipe=Recipe(),
        contract=Numerics(),
        expected=None,
        settings=(Setting(tokens=96, experts=4, top_k=1, hidden=2048, intermediate=128),),
        scaled="about 24 rows a group instead of 4096 and 8192, K and N smaller",
    ),
    Preset(
        name="flashinfer-trtllm-bf16",
        source="flashinfer-ai/flashinfer tests/moe/test_trtllm_gen_fused_moe.py::test_renormalize_routing",
        criterion=Criterion(atol=0.1, rtol=0.85, share=0.925, relative_to="output", not_finite="reject"),
        op="moe_layer",
        dtype="bf16",
        spec=OVER_SELECTED,
        recipe=Recipe(hidden=Draw(std=2.0), logits_dtype="bf16"),
        contract=Numerics(act_times_up=INPUT, per_expert=INPUT),
        expected=None,
        settings=(
            Setting(tokens=8, experts=32, top_k=8, hidden=1024, intermediate=384, narrow=(4, 3)),
            Setting(tokens=16, experts=32, top_k=8, hidden=1024, intermediate=1024, narrow=(4, 8)),
        ),
        scaled="32 experts instead of 128, at most 16 tokens instead of 3072",
    ),
    Preset(
        name="flashinfer-fuzz-bf16",
        source="flashinfer-ai/flashinfer tests/moe/test_unified_moe_fuzz.py",
        criterion=Criterion(atol=1e-3, atol_of_max=0.05, rtol=0.05, not_finite="reject"),
        op="fused_experts",
        dtype="bf16",
        spec=OVER_SELECTED,
        recipe=Recipe(
            hidden=Draw(zeros=0.75),
            w13=Draw(zeros=0.75),
            w2=Draw(zeros=0.75),
            logits_dtype="bf16",
            weights_dtype="bf16",
        ),
        contract=Numerics(act_times_up=INPUT, per_expert=INPUT),
        expected=Numerics(act_times_up=INPUT, per_expert=INPUT),
        settings=(
            Setting(tokens=17, experts=8, top_k=2, hidden=256, intermediate=256),
            Setting(tokens=64, experts=16, top_k=4, hidden=512, intermediate=256, narrow=(2, 2)),
        ),
        scaled="the small end of what it draws",
    ),
    Preset(
        name="flashinfer-bench-moe",
        source="flashinfer-ai/flashinfer-bench flashinfer_bench/bench/evaluators/lowbit.py",
        criterion=Criterion(atol=1e-2, rtol=1e-2, either=True, share=0.95, not_finite="reject"),
        op="moe_layer",
        dtype="bf16",
        spec=MoESpec(
            routing=RoutingSpec(
                scoring="sigmoid",
                correction_bias="select",
                num_expert_groups=8,
                topk_groups=4,
                group_score="top2_sum",
                renormalize=True,
                routed_scaling_factor=2.5,
            )
        ),
        recipe=Recipe(
            hidden=Draw(clip=2.0, fp8="codes", block=GROUPS, scale_std=1.0),
            w13=Draw(clip=2.0, fp8="codes", block=BLOCKS, scale_std=1.0),
            w2=Draw(clip=2.0, fp8="codes", block=BLOCKS, scale_std=1.0),
        ),
        contract=Numerics(a2_quant=FP8),
        expected=None,
        settings=(
            Setting(tokens=1, experts=32, top_k=8, hidden=7168, intermediate=2048, narrow=(28, 16)),
            Setting(tokens=16, experts=32, top_k=8, hidden=7168, intermediate=2048, narrow=(28, 16)),
        ),
        scaled="32 experts instead of 256",
    ),
    Preset(
        name="liger-bf16",
        source="linkedin/Liger-Kernel test/transformers/test_fused_moe.py::test_correctness",
        criterion=Criterion(atol=1e-1, rtol=1e-2),
        op="fused_experts",
        dtype="bf16",
        spec=OVER_SELECTED,
        recipe=Recipe(w13=Draw(std=0.02), w2=Draw(std=0.02), weights_dtype="bf16"),
        contract=Numerics(gate_up=INPUT, act_times_up=INPUT),
        expected=Numerics(
            gate_up=INPUT,
            act=INPUT,
            act_times_up=INPUT,
            per_expert=INPUT,
            weighted=INPUT,
            combine=INPUT,
            combine_order="expert",
        ),
        settings=(
            Setting(tokens=7, experts=4, top_k=2, hidden=64, intermediate=32),
            Setting(tokens=64, experts=8, top_k=2, hidden=256, intermediate=128, narrow=(2, 2)),
            Setting(tokens=64, experts=7, top_k=3, hidden=128, intermediate=64),
            Setting(tokens=64, experts=8, top_k=8, hidden=256, intermediate=64),
        ),
        scaled="64 tokens instead of 128 and 512",
    ),
    Preset(
        name="liger-fp32",
        source="linkedin/Liger-Kernel test/transformers/test_fused_moe.py::test_correctness",
        criterion=Criterion(atol=1e-3, rtol=1e-4),
        op="fused_experts",
        dtype="fp32",
        spec=OVER_SELECTED,
        recipe=Recipe(w13=Draw(std=0.02), w2=Draw(std=0.02)),
        contract=Numerics(),
        expected=None,
        settings=(
            Setting(tokens=7, experts=4, top_k=2, hidden=64, intermediate=32),
            Setting(tokens=64, experts=8, top_k=2, hidden=256, intermediate=128),
            Setting(tokens=64, experts=8, top_k=8, hidden=256, intermediate=64),
        ),
        scaled="64 tokens instead of 128 and 512",
    ),
)
