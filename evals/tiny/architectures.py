"""The embedded models by name: their sizes, all multiples of 128 where kernels need it."""

from __future__ import annotations

from moecheck.spec import MoESpec, RoutingSpec

from .config import TinyConfig, glm4_routing

END_TOKEN = 1
GLM4_MOE = TinyConfig(
    model_type="glm4_moe",
    vocab_size=512,
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    num_key_value_heads=2,
    head_size=64,
    rotary_size=32,
    rope_theta=10000.0,
    norm_eps=1e-5,
    qk_norm=True,
    dense_layers=1,
    intermediate_size=512,
    num_experts=16,
    expert_intermediate_size=128,
    shared_intermediate_size=128,
    spec=MoESpec(
        routing=glm4_routing(top_k=4, num_expert_groups=4, topk_groups=2, routed_scaling_factor=2.5),
        shared_experts="ungated",
    ),
    max_positions=2048,
    end_token=END_TOKEN,
)
QWEN3_MOE = TinyConfig(
    model_type="qwen3_moe",
    vocab_size=512,
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    num_key_value_heads=2,
    head_size=64,
    rotary_size=64,
    rope_theta=10000.0,
    norm_eps=1e-6,
    qk_norm=True,
    dense_layers=1,
    intermediate_size=512,
    num_experts=16,
    expert_intermediate_size=128,
    shared_intermediate_size=0,
    spec=MoESpec(routing=RoutingSpec(top_k=4, renormalize=True)),
    max_positions=2048,
    end_token=END_TOKEN,
)
# The default comes first.
ARCHITECTURES = {"tiny-glm4-moe": GLM4_MOE, "tiny-qwen3-moe": QWEN3_MOE}
