"""Tests of vLLM as data: what they demand, and on which inputs.

Facts about other projects' tests, read in their sources; each preset names its file. What a test draws is kept:
standard deviations, scales, routing, the sizes that decide how large the output is. What only adds rows or experts is
made smaller (`scaled`). A test that hands reference and output over the other way round has relative_to="output".
"""

from __future__ import annotations

from moecheck.numerics import INPUT, Numerics
from moecheck.spec import MoESpec, RoutingSpec

from .criterion import Criterion
from .preset import Preset, Setting
from .preset_parts import BLOCK_FP8, BLOCKS, EAGER, FIFTEENTH, FP8, PER_TOKEN, ROWS, SOFTMAX, TENTH
from .recipe import Draw, Recipe
from .subject import TRITON


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


VLLM = (
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
            a1_quant=FP8,
            a2_quant=FP8,
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
)
