"""Mutants of an expert's activation: gate and up confused, another function, clamps and biases lost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecheck.cases import Case
from moecheck.formats import Float64, round_to, to_float64
from moecheck.spec import ExpertSpec, GateUpLayout

from .call import Call, Mutation, Term, slots_of, with_experts, with_inputs, with_slots
from .expert_maths import Maths, right_hidden, value_by
from .plumbing import ROWS_OF_EXPERTS
from .registry import mutant
from .shared import routed_only

Order = npt.NDArray[np.intp]
EXPERTS = ("fused_experts", "moe_layer")
ACTIVATED = ("act_and_mul", *EXPERTS)
EVERYWHERE = (*ACTIVATED, *ROWS_OF_EXPERTS)


def experts(case: Case) -> ExpertSpec:
    return case.spec.experts


def gated(case: Case) -> bool:
    return experts(case).gated


def clamped(case: Case) -> bool:
    return experts(case).swiglu_limit is not None


def plain_silu(case: Case) -> bool:
    return experts(case).activation == "silu" and experts(case).swiglu_alpha == 1.0


def with_rows(call: Call, order: Order) -> Call:
    """The call with its gate and up rows (columns of act_and_mul's x) taken in another order, biases with them.

    order: [2I] int. The shared expert keeps its own.
    """
    if call.case.op == "act_and_mul":
        return with_inputs(call, x=call.inputs["x"][:, order])
    arrays = {"w13": call.inputs["w13"][:, order]}
    if "w13_bias" in call.inputs:
        arrays["w13_bias"] = call.inputs["w13_bias"][:, order]
    return with_inputs(call, **arrays)


def exchanged(rows: int, layout: GateUpLayout) -> Order:
    """[rows] int: the order in which up stands where gate should."""
    halves = np.arange(rows).reshape((rows // 2, 2) if layout == "interleaved" else (2, rows // 2))
    return (halves[:, ::-1] if layout == "interleaved" else halves[::-1]).reshape(-1)


@mutant(
    "swap_gate_up",
    "gate and up are exchanged",
    *EVERYWHERE,
    when=gated,
    sources=("sgl-project/sglang#11081",),
)
def swap_gate_up(call: Call) -> Call:
    layout = experts(call.case).gate_up_layout
    swapped = with_rows(call, exchanged(2 * call.case.intermediate_size, layout))
    if "shared_w13" not in call.inputs:
        return swapped
    rows = call.inputs["shared_w13"]
    return with_inputs(swapped, shared_w13=rows[exchanged(len(rows), layout)])


@mutant(
    "swap_gate_up",
    "gate and up are exchanged in the routed experts",
    "moe_layer",
    variant="routed",
    when=lambda case: gated(case) and case.spec.shared_experts != "none",
    sources=("sgl-project/sglang#11081",),
)
def swap_gate_up_routed(call: Call) -> Call:
    return with_inputs(swap_gate_up(call), shared_w13=call.inputs["shared_w13"])


@mutant(
    "interleave_vs_halves",
    "gate and up rows are read as halves where they alternate, or the other way round",
    *ACTIVATED,
    when=gated,
    sources=("vllm-project/vllm#46645",),
)
def interleave_vs_halves(call: Call) -> Call:
    return with_experts(
        call, gate_up_layout="halves" if experts(call.case).gate_up_layout == "interleaved" else "interleaved"
    )


@mutant(
    "silu->gelu",
    "gelu instead of silu",
    *ACTIVATED,
    variant="tanh",
    when=plain_silu,
    sources=("vllm-project/vllm#34696",),
)
def gelu_tanh_for_silu(call: Call) -> Call:
    return with_experts(call, activation="gelu_tanh")


@mutant(
    "silu->gelu",
    "gelu (erf) instead of silu",
    *ACTIVATED,
    variant="erf",
    when=plain_silu,
    sources=("vllm-project/vllm#34696",),
)
def gelu_for_silu(call: Call) -> Call:
    return with_experts(call, activation="gelu")


@mutant(
    "erf<->tanh",
    "gelu by the tanh formula instead of erf, or the other way round",
    *ACTIVATED,
    when=lambda case: experts(case).activation in ("gelu", "gelu_tanh"),
    sources=("vllm-project/vllm#41574",),
)
def erf_vs_tanh(call: Call) -> Call:
    return with_experts(call, activation="gelu" if experts(call.case).activation == "gelu_tanh" else "gelu_tanh")


@mutant(
    "always_silu",
    "silu whatever the activation should be",
    *ACTIVATED,
    when=lambda case: experts(case).activation != "silu",
    sources=("vllm-project/vllm#34696", "deepseek-ai/DeepGEMM#445"),
)
def always_silu(call: Call) -> Call:
    return with_experts(call, activation="silu")


@mutant(
    "alpha_1",
    "alpha of the sigmoid is 1 instead of its value",
    *EVERYWHERE,
    when=lambda case: experts(case).swiglu_alpha != 1.0,
    sources=("vllm-project/vllm#46845", "sgl-project/sglang#39032"),
)
def alpha_1(call: Call) -> Call:
    return with_experts(call, swiglu_alpha=1.0)


@mutant(
    "beta_0",
    "the + beta on up is missing",
    *EVERYWHERE,
    when=lambda case: experts(case).swiglu_beta != 0.0 and gated(case),
    sources=("vllm-project/vllm#46845",),
)
def beta_0(call: Call) -> Call:
    return with_experts(call, swiglu_beta=0.0)


@mutant(
    "alpha_1_beta_0",
    "alpha and beta are both ignored: a plain clamped silu",
    *EVERYWHERE,
    when=lambda case: experts(case).swiglu_alpha != 1.0 and experts(case).swiglu_beta != 0.0,
    sources=("vllm-project/vllm#46845", "sgl-project/sglang#39032"),
)
def alpha_1_beta_0(call: Call) -> Call:
    return with_experts(call, swiglu_alpha=1.0, swiglu_beta=0.0)


@mutant(
    "limit_inf",
    "the clamp limit is ignored",
    *EVERYWHERE,
    when=clamped,
    sources=("vllm-project/vllm#41986", "sgl-project/sglang#27328"),
)
def limit_inf(call: Call) -> Call:
    return with_experts(call, swiglu_limit=None)


@mutant(
    "clamp_after_vs_before",
    "the gate is clamped after the activation instead of before, or the other way round",
    *ACTIVATED,
    when=clamped,
)
def clamp_after_vs_before(call: Call) -> Call:
    return with_experts(call, limit_position="after" if experts(call.case).limit_position == "before" else "before")


@mutant(
    "plain_swiglu",
    "alpha, beta and the clamp are all ignored: a hard-coded silu(gate) * up",
    *EVERYWHERE,
    when=lambda case: clamped(case) and experts(case).swiglu_alpha != 1.0,
    sources=("microsoft/onnxruntime#28738", "deepseek-ai/DeepGEMM#445"),
)
def plain_swiglu(call: Call) -> Call:
    return with_experts(call, swiglu_alpha=1.0, swiglu_beta=0.0, swiglu_limit=None)


@mutant("clamp_u_only_one_side", "up is clamped from above only", *ACTIVATED, when=lambda c: clamped(c) and gated(c))
def clamp_u_only_one_side(call: Call) -> Float64:
    limit = experts(call.case).swiglu_limit
    assert limit is not None
    return value_by(call, lambda maths, g, u: maths.act(g) * (np.minimum(u, limit) + maths.beta))


@mutant(
    "relu2->relu",
    "relu instead of its square",
    *ACTIVATED,
    when=lambda case: experts(case).activation == "relu2" and not gated(case),
)
def relu_for_relu2(call: Call) -> Float64:
    return value_by(call, lambda maths, g, u: np.maximum(g, 0.0))


@mutant("activation_missing", "the activation function is missing", *ACTIVATED)
def activation_missing(call: Call) -> Float64:
    return value_by(call, lambda maths, g, u: g * u)


@mutant("up_missing", "the product with up is missing", *ACTIVATED, when=gated)
def up_missing(call: Call) -> Float64:
    return value_by(call, lambda maths, g, u: maths.act(g))


@mutant(
    "gate_times_up_sigmoid", "sigmoid(gate) * up: the gate itself is missing from silu", *ACTIVATED, when=plain_silu
)
def sigmoid_for_silu(call: Call) -> Float64:
    return value_by(call, lambda maths, g, u: maths.up(u) / (1.0 + np.exp(-g)))


@mutant(
    "sigmoid_by_tanh",
    "the sigmoid is 0.5 + 0.5 tanh(x / 2) in fp32, off by 2^-25 whatever its size: gates far below 0 lose all digits",
    *ACTIVATED,
    when=lambda case: experts(case).activation in ("silu", "situ"),
    rough=True,
)
def sigmoid_by_tanh(call: Call) -> Float64:
    alpha = experts(call.case).swiglu_alpha if experts(call.case).activation == "silu" else 1.0

    def hidden(maths: Maths, g: Float64, u: Float64) -> Float64:
        tanh = round_to(np.tanh(round_to(0.5 * alpha * g, "fp32")), "fp32")
        approximate = round_to(0.5 + 0.5 * tanh, "fp32")
        with np.errstate(over="ignore"):
            inverse = 1.0 + np.exp(-alpha * g)
        scaled = right_hidden(maths, g, u) * approximate
        return np.where(scaled == 0.0, 0.0, scaled * inverse)

    return value_by(call, hidden)


@mutant(
    "silu_fp16",
    "the activation is computed in fp16",
    *ACTIVATED,
    when=lambda case: case.dtype != "fp16",
    sources=("vllm-project/vllm#24833",),
    expects=("values", "statistics", "activation probe"),
)
def activation_in_fp16(call: Call) -> Float64:
    def hidden(maths: Maths, g: Float64, u: Float64) -> Float64:
        with np.errstate(over="ignore", invalid="ignore"):
            a = round_to(maths.act(round_to(g, "fp16")), "fp16")
            return np.where(np.isfinite(a), a, maths.act(g)) * (maths.up(u) if maths.spec.gated else 1.0)

    return value_by(call, hidden)


@mutant(
    "fp16_overflow",
    "what goes into the second GEMM passes through fp16, beyond whose largest number it is infinite",
    *ACTIVATED,
    when=lambda case: case.dtype != "fp16",
    sources=("sgl-project/sglang#10108",),
    expects=("values", "statistics", "activation probe"),
)
def hidden_in_fp16(call: Call) -> Float64:
    def hidden(maths: Maths, g: Float64, u: Float64) -> Float64:
        return round_to(right_hidden(maths, g, u), "fp16")

    return value_by(call, hidden)


@mutant("b1_dropped", "the first bias is ignored", *EXPERTS, *ROWS_OF_EXPERTS, when=lambda case: experts(case).w13_bias)
def b1_dropped(call: Call) -> Call:
    return with_inputs(call, w13_bias=None)


@mutant("b1_dropped", "the bias is ignored", "grouped_gemm", variant="gemm", when=lambda c: experts(c).w13_bias)
def gemm_bias_dropped(call: Call) -> Call:
    return with_inputs(call, bias=None)


@mutant("b2_dropped", "the second bias is ignored", *EXPERTS, *ROWS_OF_EXPERTS, when=lambda case: experts(case).w2_bias)
def b2_dropped(call: Call) -> Call:
    return with_inputs(call, w2_bias=None)


@mutant(
    "b2_unweighted",
    "the second bias is not multiplied by the routing weight",
    *EXPERTS,
    when=lambda case: experts(case).w2_bias and not experts(case).weight_on_input,
    sources=("vllm-project/vllm#31962",),
)
def b2_unweighted(call: Call) -> Mutation:
    zeros = {name: np.zeros(call.inputs[name].shape) for name in ("w13", "w2")}
    biases = with_inputs(call, **zeros, w13_bias=None)
    biases = with_slots(biases, weights=np.ones(slots_of(call).weights.shape))
    if call.case.op == "moe_layer":
        biases = routed_only(biases)
    return Term(call=b2_dropped(call)), Term(call=biases)


@mutant(
    "b2_x_tp",
    "the second bias is added on each of two ranks",
    *EXPERTS,
    *ROWS_OF_EXPERTS,
    when=lambda case: experts(case).w2_bias and not experts(case).weight_on_input,
)
def b2_twice(call: Call) -> Call:
    return with_inputs(call, w2_bias=2.0 * to_float64(call.inputs["w2_bias"]))


@mutant(
    "weight_on_input_vs_output",
    "the routing weight multiplies the output instead of the expert's input, or the other way round",
    *EXPERTS,
    when=lambda case: case.spec.routing.top_k == 1,
    sources=("vllm-project/vllm#31609", "vllm-project/vllm#16744"),
)
def weight_on_input_vs_output(call: Call) -> Call:
    return with_experts(call, weight_on_input=not experts(call.case).weight_on_input)
