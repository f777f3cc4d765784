"""Published tests of MoE kernels as data: what they demand, and on which inputs.

Facts about other projects' tests, read in their sources; each preset names its file. What a test draws is kept:
standard deviations, scales, routing, the sizes that decide how large the output is. What only adds rows or experts is
made smaller (`scaled`). A test that hands reference and output over the other way round has relative_to="output".
"""

from __future__ import annotations

from moecheck.numerics import INPUT, Numerics
from moecheck.quantizer import Quantizer
from moecheck.spec import MoESpec, RoutingSpec

from .criterion import Criterion
from .preset import Preset, Setting
from .recipe import Draw, Recipe
from .subject import TRITON

TENTH = Draw(std=0.1)
FIFTEENTH = Draw(std=1 / 15)
HUNDREDTH = Draw(std=0.01)
BLOCKS = (128, 128)
ROWS = (1, 0)  # one scale for each row
GROUPS = (1, 128)
SOFTMAX = MoESpec(routing=RoutingSpec())
OVER_SELECTED = MoESpec(routing=RoutingSpec(softmax_over_selected=True))
# References in the input's format, as torch computes them.
EAGER = Numerics(gate_up=INPUT, act=INPUT, act_times_up=INPUT, per_expert=INPUT)
LOW_WEIGHTS = Numerics(
    gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT, topk_weights=INPUT, weighted=INPUT
)  # SGLang's: the fused activation keeps act(g)
PER_TOKEN = Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT, a1_quant=Quantizer(), a2_quant=Quantizer())
BLOCK_FP8 = Numerics(
    gate_up=INPUT,
    act=INPUT,
    act_times_up=INPUT,
    weighted=INPUT,
    a1_quant=Quantizer(group=128),
    a2_quant=Quantizer(group=128),
)


def _deepseek(scoring: str, experts_groups: int, groups: int, *, renormalize: bool, factor: float) -> MoESpec:
    """Grouped routing with a correction bias, as in vLLM's grouped_topk."""
    return MoESpec(
        routing=RoutingSpec(
            scoring=scoring,  # type: ignore[arg-type]  # softmax or sigmoid
            correction_bias="select",
            num_expert_groups=experts_groups,
            topk_groups=groups,
            group_score="top2_sum" if experts_groups > 1 else "max",
            renormalize=renormalize,
            routed_scaling_factor=factor,
        )
    )


_TABLE = (
    Preset(
        name="vllm-fused-moe",
        source="vllm-project/vllm tests/kernels/moe/test_moe.py::test_fused_moe",
        criterion=Criterion(atol=2e-2, rtol=0.0),
        op="moe_layer",
        dtype="bf16",
        spec=SOFTMAX,
        recipe=Recipe(hidden=TENTH, w13=TENTH, w2=TENTH, logits_dtype="bf16"),
        contract=TRITON,
        expected=EAGER,
        settings=(
            Setting(tokens=1, experts=64, top_k=6, hidden=128, intermediate=128),
            Setting(tokens=1, experts=8, top_k=2, hidden=128, intermediate=2048, narrow=(1, 8)),
            Setting(tokens=33, experts=8, top_k=2, hidden=128, intermediate=2048, narrow=(1, 8)),
            Setting(tokens=16, experts=64, top_k=6, hidden=128, intermediate=2048, narrow=(1, 8)),
            Setting(tokens=33, experts=8, top_k=2, hidden=511, intermediate=2048, narrow=(1, 8)),
            Setting(tokens=33, experts=8, top_k=6, hidden=1024, intermediate=1024, narrow=(4, 4)),
        ),
        scaled="33 tokens instead of 32768 and 40000; no E = 192, no expert map",
    ),
    Preset(
        name="vllm-cutlass-fp8",
        source="vllm-project/vllm tests/kernels/moe/test_cutlass_moe.py::test_cutlass_moe_8_bit_no_graph",
        criterion=Criterion(atol=5.5e-2, rtol=1e-2, relative_to="output"),
        op="fused_experts",
        dtype="fp16",
        spec=SOFTMAX,
        recipe=Recipe(
            hidden=TENTH,
            w13=Draw(std=0.1, fp8="scaled", block=ROWS),
            w2=Draw(std=0.1, fp8="scaled", block=ROWS),
            logits_dtype="fp16",
            router_experts=40,
        ),
        contract=PER_TOKEN,
        expected=TRITON,
        expected_recipe=Recipe(
            hidden=Draw(std=0.1, fp8="scaled", block=ROWS, stored=True),
            w13=Draw(std=0.1, fp8="scaled", block=ROWS, stored=True),
            w2=Draw(std=0.1, fp8="scaled", block=ROWS, stored=True),
            logits_dtype="fp16",
            router_experts=40,
        ),
        settings=(
            Setting(tokens=2, experts=12, top_k=6, hidden=1024, intermediate=1024, narrow=(4, 4)),
            Setting(tokens=16, experts=12, top_k=6, hidden=1536, intermediate=3072, narrow=(6, 12)),
        ),
        scaled="routing weights of 40 experts, of which 12 are there; 16 tokens instead of up to 32768",
    ),
    Preset(
        name="vllm-block-fp8",
        source="vllm-project/vllm tests/kernels/moe/test_block_fp8.py::test_w8a8_block_fp8_fused_moe",
        criterion=Criterion(atol=3.5e-2, rtol=3.5e-2),
        op="fused_experts",
        dtype="bf16",
        spec=SOFTMAX,
        recipe=Recipe(
            hidden=TENTH,
            w13=Draw(std=1 / 15, fp8="scaled", block=BLOCKS),
            w2=Draw(std=1 / 15, fp8="scaled", block=BLOCKS),
            logits_dtype="bf16",
        ),
        contract=BLOCK_FP8,
        expected=Numerics(
            gate_up=INPUT,
            act=INPUT,
            act_times_up=INPUT,
            per_expert=INPUT,
            topk_weights=INPUT,
            weighted=INPUT,
            a1_quant=Quantizer(group=128),
            a2_quant=Quantizer(group=128),
        ),
        settings=(
            Setting(tokens=1, experts=8, top_k=2, hidden=128, intermediate=128),
            Setting(tokens=32, experts=16, top_k=6, hidden=512, intermediate=512, narrow=(2, 4)),
            Setting(tokens=16, experts=8, top_k=2, hidden=7168, intermediate=1024, narrow=(28, 8)),
            Setting(tokens=16, experts=2, top_k=1, hidden=7168, intermediate=4608, narrow=(14, 18)),
        ),
        scaled="at most 32 tokens instead of 8192",
    ),
    Preset(
        name="vllm-moe-layer",
        source="vllm-project/vllm tests/kernels/moe/test_moe_layer.py::test_moe_layer_no_parallel",
        criterion=Criterion(atol=3.5e-2, rtol=3.5e-2, relative_to="output"),
        op="moe_layer",
        dtype="bf16",
        spec=SOFTMAX,
        recipe=Recipe(hidden=TENTH, w13=FIFTEENTH, w2=FIFTEENTH, logits_dtype="bf16"),
        contract=TRITON,
        expected=TRITON,
        settings=(
            Setting(tokens=1, experts=8, top_k=2, hidden=256, intermediate=128, shared=128),
            Setting(tokens=32, experts=8, top_k=2, hidden=512, intermediate=512, narrow=(2, 2)),
            Setting(tokens=32, experts=8, top_k=6, hidden=512, intermediate=512, shared=512, narrow=(4, 4)),
            Setting(
                tokens=32,
                experts=8,
                top_k=2,
                hidden=2048,
                intermediate=1024,
                narrow=(8, 8),
                criterion=Criterion(atol=7.6e-2, rtol=7.6e-2, relative_to="output"),
            ),
        ),
        scaled="32 tokens instead of 222 in the last one; no E = 64, no gate and no input transform",
    ),
    Preset(
        name="vllm-grouped-topk",
        source="vllm-project/vllm tests/kernels/moe/test_grouped_topk.py::test_grouped_topk",
        criterion=Criterion(atol=2e-2, rtol=0.0),
        op="topk_routing",
        dtype="fp32",
        spec=_deepseek("softmax", 1, 1, renormalize=False, factor=1.0),
        recipe=Recipe(),
        contract=Numerics(),
        expected=None,
        settings=tuple(
            Setting(
                tokens=64,
                experts=experts,
                top_k=top_k,
                spec=_deepseek(scoring, groups, of, renormalize=renormalize, factor=factor),
            )
            for experts, top_k, groups, of in ((16, 2, 8, 2), (256, 8, 8, 4), (512, 22, 1, 1))
            for scoring in ("softmax", "sigmoid")
            for renormalize, factor in ((True, 1.0), (False, 2.5))
        ),
        scaled="fp32 logits only (bf16 ones have exact ties); 12 of the 40 combinations",
    ),
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
        contract=Numerics(a1_quant=Quantizer(group=128), a2_quant=Quantizer(group=128)),
        expected=Numerics(
            gate_up=INPUT,
            act_times_up=INPUT,
            weighted=INPUT,
            a1_quant=Quantizer(group=128),
            a2_quant=Quantizer(group=128),
        ),
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
        contract=Numerics(a2_quant=Quantizer(group=128)),
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
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _TABLE}
