"""The layer reference against whole sparse-MoE blocks of transformers, run in float64 on the CPU.

The block's own router logits are handed to the reference, so that only the float32 softmax and sigmoid inside the
routers separate the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Required, TypedDict, cast

import numpy as np
import pytest
from _pytest.mark import ParameterSet

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # after the skips

from moecheck.formats import AnyArray, Float64
from moecheck.references.moe_layer import moe_layer
from moecheck.references.topk_routing import topk_routing
from moecheck.spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec, SharedExperts
from tests.bounds import moe_layer_bound
from tests.references.families import FAMILIES, NUM_EXPERTS, Family, Module, choice_bias

TOKENS, HIDDEN, INTERMEDIATE = 24, 32, 24
LATENT, VOCABULARY = 20, 31
WIDTHS = dict.fromkeys(
    (
        "intermediate_size",
        "moe_intermediate_size",
        "expert_ffn_hidden_size",
        "ffn_hidden_size",
        "shared_expert_intermediate_size",
        "share_expert_dim",
        "shared_intermediate_size",
        "moe_shared_expert_intermediate_size",
    ),
    INTERMEDIATE,
)
SILU = ExpertSpec()
OAI_HALVES = replace(SWIGLUOAI, gate_up_layout="halves", w13_bias=False, w2_bias=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A family's sparse-MoE block. args: what its constructor takes after the config. layer: more of its spec."""

    name: str
    family: Family
    shared: SharedExperts = "none"
    experts: ExpertSpec = SILU
    settings: tuple[tuple[str, object], ...] = ()
    args: tuple[object, ...] = ()
    layer: MoESpec = field(default_factory=MoESpec)

    @property
    def spec(self) -> MoESpec:
        routing = self.family.routing
        if self.layer.routing.selection == "hash":
            routing = replace(routing, selection="hash", correction_bias="none")
        return replace(self.layer, routing=routing, experts=self.experts, shared_experts=self.shared)


class Inputs(TypedDict, total=False):
    """Arguments of moe_layer by name, float64."""

    hidden_states: Required[Float64]
    router_logits: Required[Float64]
    correction_bias: Required[Float64]
    w13: Required[Float64]
    w2: Required[Float64]
    w13_bias: Float64
    w2_bias: Float64
    latent_down: Float64
    latent_up: Float64
    token_ids: AnyArray
    tid2eid: AnyArray


class Experts(TypedDict, total=False):
    """The experts' part of Inputs."""

    w13: Required[Float64]
    w2: Required[Float64]
    w13_bias: Float64
    w2_bias: Float64


class Shared(TypedDict, total=False):
    """The shared expert's arguments of moe_layer."""

    shared_w13: Float64
    shared_w2: Float64
    shared_gate: Float64


def _block(
    family: str,
    name: str,
    shared: SharedExperts = "none",
    experts: ExpertSpec = SILU,
    args: tuple[object, ...] = (),
    layer: MoESpec | None = None,
    **settings: object,
) -> ParameterSet:
    block = Block(
        name=name,
        family=FAMILIES[family],
        shared=shared,
        experts=experts,
        args=args,
        settings=tuple(settings.items()),
        layer=layer or MoESpec(),
    )
    return pytest.param(block, id=family if layer is None else f"{family}, {next(iter(settings))}")


BLOCKS = [
    _block("Mixtral", "MixtralSparseMoeBlock"),
    _block("MiniMax-Text-01", "MiniMaxSparseMoeBlock"),
    _block("Qwen2-MoE", "Qwen2MoeSparseMoeBlock", "gated"),
    _block("Qwen3-MoE", "Qwen3MoeSparseMoeBlock"),
    _block("Qwen3-Next", "Qwen3NextSparseMoeBlock", "gated"),
    _block("Qwen3.5-MoE", "Qwen3_5MoeSparseMoeBlock", "gated"),
    _block("OLMoE", "OlmoeSparseMoeBlock"),
    _block("FlexOlmo", "FlexOlmoSparseMoeBlock"),
    _block("Jamba", "JambaSparseMoeBlock"),
    _block("Hunyuan-A13B", "HunYuanMoEV1Moe", "ungated"),
    _block("DBRX", "DbrxFFN"),
    _block("Granite MoE", "GraniteMoeMoE"),
    _block("Granite MoE hybrid", "GraniteMoeHybridMoE"),
    _block("GPT-OSS", "GptOssMLP", experts=SWIGLUOAI),
    _block("Llama-4", "Llama4TextMoe", "ungated", ExpertSpec(weight_on_input=True)),
    _block(
        "Cohere2-MoE, sigmoid",
        "Cohere2MoeSparseMoeBlock",
        "ungated",
        num_shared_experts=1,
        shared_expert_combination_strategy="sum",
    ),
    _block(
        "Cohere2-MoE, sigmoid",
        "Cohere2MoeSparseMoeBlock",
        "ungated",
        layer=MoESpec(sum_factor=0.5),
        shared_expert_combination_strategy="average",
        num_shared_experts=1,
    ),
    _block("Phi-3.5-MoE", "PhimoeSparseMoeBlock"),
    _block("DeepSeek-V2-Lite", "DeepseekV2Moe", "ungated", n_shared_experts=2),
    _block("DeepSeek-V2", "DeepseekV2Moe", "ungated", n_shared_experts=1),
    _block("Mistral-4", "Mistral4MoE", "ungated", n_shared_experts=1),
    _block("DeepSeek-V3", "DeepseekV3MoE", "ungated", n_shared_experts=1),
    _block(
        "DeepSeek-V4",
        "DeepseekV4SparseMoeBlock",
        "ungated",
        ExpertSpec(swiglu_limit=1.0),
        args=(-1,),
        swiglu_limit=1.0,
    ),
    _block(
        "DeepSeek-V4",
        "DeepseekV4SparseMoeBlock",
        "ungated",
        ExpertSpec(swiglu_limit=1.0),
        args=(0,),
        layer=MoESpec(routing=RoutingSpec(selection="hash")),
        mlp_layer_types=["hash_moe"],
        swiglu_limit=1.0,
        vocab_size=VOCABULARY,
    ),
    _block("GLM-4 MoE", "Glm4MoeMoE", "ungated"),
    _block("GLM-4 MoE lite", "Glm4MoeLiteMoE", "ungated"),
    _block("GLM-5", "GlmMoeDsaMoE", "ungated"),
    _block("Ling (bailing hybrid)", "BailingHybridMoE", "ungated", n_shared_experts=1),
    _block("Kimi-Linear", "KimiLinearMoE", "ungated"),
    _block("dots1", "Dots1MoE", "ungated", n_shared_experts=2),
    _block("Nemotron-H", "NemotronHMoE", "ungated", ExpertSpec(activation="relu2", gated=False), moe_latent_size=None),
    _block(
        "Nemotron-H",
        "NemotronHMoE",
        "ungated",
        ExpertSpec(activation="relu2", gated=False),
        layer=MoESpec(latent_experts=True),
        moe_latent_size=LATENT,
    ),
    _block("EXAONE-MoE", "ExaoneMoeSparseMoEBlock", "ungated"),
    _block("Solar-Open", "SolarOpenMoE", "ungated"),
    _block("MiMo-V2-Flash", "MiMoV2FlashMoE"),
    _block("AFMoE", "AfmoeSparseMoeBlock", "ungated", num_shared_experts=1),
    _block("Hunyuan-V3", "HYV3MoE", "ungated"),
    _block("MiniMax-M2", "MiniMaxM2SparseMoeBlock"),
    _block(
        "MiniMax-M3",
        "MiniMaxM3VLSparseMoeBlock",
        "ungated",
        replace(OAI_HALVES, swiglu_limit=1.0),
        swiglu_limit=1.0,
    ),
    _block(
        "Step-3.7",
        "Step3p7SparseMoeBlock",
        "ungated",
        ExpertSpec(swiglu_limit=0.75, limit_position="after"),
        args=(0,),
        swiglu_limits=[0.75],
        swiglu_limits_shared=[0.75],
    ),
    _block(
        "Step-3.7",
        "Step3p7SparseMoeBlock",
        "ungated",
        ExpertSpec(swiglu_limit=0.75, limit_position="after"),
        args=(0,),
        layer=MoESpec(shared_experts="ungated", shared_spec=ExpertSpec(swiglu_limit=1.25, limit_position="after")),
        swiglu_limits_shared=[1.25],
        swiglu_limits=[0.75],
    ),
    _block("LFM2-MoE", "Lfm2MoeSparseMoeBlock"),
    _block("ERNIE-4.5", "Ernie4_5_MoeSparseMoeBlock", "ungated", moe_num_shared_experts=2),
    _block("LongCat-Flash", "LongcatFlashMoE"),
    _block("Kolibri-1", "Kolibri1SparseMoeBlock", "ungated"),
    _block("Laguna", "LagunaSparseMoeBlock", "ungated"),
    _block("Flint", "FlintSparseMoeBlock", "ungated"),
]


def fill(module: Module, seed: int = 5) -> None:
    """Normals over the root of the width, so that pre-activations are about 2; the bias is no constant."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            value.data.copy_(torch.tensor(choice_bias()).reshape(value.shape))
        elif value.is_floating_point():
            value.data.copy_(torch.tensor(2.0 * draw.standard_normal(tuple(value.shape)) / HIDDEN**0.5))


def numpy_of(tensor: torch.Tensor) -> Float64:
    return np.asarray(tensor.double().numpy(), dtype=np.float64)


def expert_arrays(experts: Module, spec: ExpertSpec, num_real: int) -> Experts:
    """w13 [E, 2I, H] (or [E, I, H]) and w2 [E, H, I], and their biases, however the family stores them."""
    if hasattr(experts, "mlp"):  # DBRX: rows of all experts below each other, w2 as [I, H]
        parts = {
            name: numpy_of(getattr(experts.mlp, name)).reshape(num_real, -1, HIDDEN) for name in ("w1", "v1", "w2")
        }
        return {"w13": np.concatenate([parts["w1"], parts["v1"]], axis=1), "w2": parts["w2"].swapaxes(1, 2)}
    w13 = numpy_of(getattr(experts, "gate_up_proj" if spec.gated else "up_proj"))[:num_real]
    w2 = numpy_of(experts.down_proj)
    if w2.shape[1:] == (INTERMEDIATE, HIDDEN):  # Llama-4 and GPT-OSS multiply from the right
        w13, w2 = w13.swapaxes(1, 2), w2.swapaxes(1, 2)
    arrays = Experts(w13=w13, w2=w2)
    if spec.w13_bias:
        arrays["w13_bias"], arrays["w2_bias"] = (
            numpy_of(experts.gate_up_proj_bias),
            numpy_of(experts.down_proj_bias),
        )
    return arrays


def shared_arrays(block: Module, spec: MoESpec) -> Shared:
    """shared_w13 [2S, H], shared_w2 [H, S] and shared_gate [H]."""
    if spec.shared_experts == "none":
        return {}
    names = ("shared_experts", "shared_expert", "shared_mlp")
    shared = next(getattr(block, name) for name in names if hasattr(block, name))
    rows = [getattr(shared, name, None) for name in ("gate_proj", "up_proj", "gate_up_proj")]
    w13 = np.concatenate([numpy_of(linear.weight) for linear in rows if linear is not None])
    arrays = Shared(shared_w13=w13, shared_w2=numpy_of(shared.down_proj.weight))
    if spec.shared_experts == "gated":
        arrays["shared_gate"] = numpy_of(block.shared_expert_gate.weight)[0]
    return arrays


def extras(block: Module, spec: MoESpec) -> Inputs:
    """Projections of latent experts, and a table of experts by token; filled in where the block has them."""
    more: dict[str, AnyArray] = {}
    if spec.latent_experts:
        more["latent_down"] = numpy_of(block.fc1_latent_proj.weight)
        more["latent_up"] = numpy_of(block.fc2_latent_proj.weight)
    if spec.routing.selection == "hash":
        draw = np.random.Generator(np.random.Philox(key=7))
        table = np.argsort(draw.random((VOCABULARY, NUM_EXPERTS)), axis=1)[:, : spec.routing.top_k]
        block.gate.tid2eid.copy_(torch.tensor(table))
        more["tid2eid"] = table
        more["token_ids"] = draw.integers(0, VOCABULARY, TOKENS)
    return cast(Inputs, more)


def run(block: Module, hidden: torch.Tensor, **more: torch.Tensor) -> tuple[Float64, Float64]:
    """The block's output [TOKENS, HIDDEN] and its router logits [TOKENS, NUM_EXPERTS], before any soft-capping."""
    router = next(getattr(block, name) for name in ("gate", "router") if hasattr(block, name))
    caught: list[tuple[torch.Tensor, ...] | torch.Tensor] = []
    handle = router.register_forward_hook(lambda module, args, output: caught.append(output))
    output = block(hidden[None], **more)
    handle.remove()
    logits = caught[0]
    if isinstance(logits, tuple):
        logits = logits[1 if type(router).__name__ == "Llama4Router" else 0]
    if type(router).__name__ == "LagunaTopKRouter":  # returns them capped
        logits = hidden @ router.weight.T
    first = output[0] if isinstance(output, tuple) else output
    return numpy_of(first).reshape(TOKENS, HIDDEN), numpy_of(logits)


@pytest.mark.parametrize("block", BLOCKS)
def test_block(block: Block) -> None:
    config = block.family.build_config(HIDDEN, **WIDTHS, **dict(block.settings))
    module = block.family.build(block.name, config, *block.args).double()
    fill(module)
    draw = np.random.Generator(np.random.Philox(key=6))
    hidden: Float64 = draw.standard_normal((TOKENS, HIDDEN))
    spec, bias = block.spec, choice_bias()
    real = NUM_EXPERTS - spec.routing.num_zero_experts
    arrays, more = expert_arrays(module.experts, spec.experts, real), extras(module, spec)

    called = {"input_ids": torch.tensor(more["token_ids"])[None]} if "token_ids" in more else {}
    seen, logits = run(module, torch.tensor(hidden), **called)
    inputs = Inputs(hidden_states=hidden, router_logits=logits, correction_bias=bias, **arrays, **more)
    expected = moe_layer(spec=spec, **inputs, **shared_arrays(module, spec))

    bound = moe_layer_bound(
        num_experts=NUM_EXPERTS, top_k=spec.routing.top_k, largest_logit=float(np.abs(logits).max())
    )
    scale = magnitude(expected, spec, inputs)
    assert np.all(np.max(np.abs(expected), axis=1) > bound * scale), "zeros would pass"
    assert np.max(np.max(np.abs(seen - expected), axis=1) / scale) <= bound


def magnitude(expected: Float64, spec: MoESpec, inputs: Inputs) -> Float64:
    """Per row the largest sum over the slots and the shared expert of |what they contribute|: [TOKENS]."""
    weights, ids = topk_routing(
        router_logits=inputs["router_logits"],
        spec=spec.routing,
        correction_bias=inputs["correction_bias"],
        token_ids=inputs.get("token_ids"),
        tid2eid=inputs.get("tid2eid"),
    )
    routed_only = replace(spec, shared_experts="none", shared_spec=None)
    total, magnitudes = np.zeros_like(expected), np.zeros_like(expected)
    for slot in range(ids.shape[1]):
        part = moe_layer(spec=routed_only, topk=(weights[:, [slot]], ids[:, [slot]]), **inputs)
        total, magnitudes = total + part, magnitudes + np.abs(part)
    largest: Float64 = np.max(magnitudes + np.abs(expected - total), axis=1)
    return largest
