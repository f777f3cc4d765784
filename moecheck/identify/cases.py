"""The small cases whose outputs tell a kernel's contract."""

from __future__ import annotations

from dataclasses import replace

from moecheck.cases import Case
from moecheck.kernel import Declaration
from moecheck.ops import OPS
from moecheck.runner.plan import lacking
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec

from .candidates import IDENTIFIED_OPS, ROUTER

BIASED = ExpertSpec(w13_bias=True, w2_bias=True)
FIRST_DTYPES = ("bf16", "fp16", "fp32")


def identification_cases(declaration: Declaration) -> tuple[Case, ...]:
    """Two to five small cases that a kernel can take and whose outputs tell contracts apart; () for other ops.

    One case for each format, a second one where there is only one; top_k of at least 3 unless the specs say otherwise,
    so that slot order differs from expert order; one with biases where the kernel takes them; and one that tells
    quantisers apart for kernels that declare some.
    """
    if declaration.op not in IDENTIFIED_OPS:
        return ()
    dtypes = [dtype for dtype in FIRST_DTYPES if dtype in declaration.dtypes]
    specs = declaration.specs or _specs(declaration)
    if declaration.quantizations:
        scheme = declaration.quantizations[0]
        specs = tuple(replace(spec, experts=replace(spec.experts, quantization=scheme)) for spec in specs)
    drawn = [(spec, dtype, 0) for spec in specs[:1] for dtype in dtypes]
    if declaration.quantizations:  # a search among quantisers is dear
        drawn = drawn[:1]
    if len(drawn) == 1 and len(specs) == 1:
        drawn.append((specs[0], dtypes[0], 1))
    drawn += [(spec, dtypes[0], 0) for spec in specs[1:2]]
    cases = [_case(declaration.op, spec, dtype, seed) for spec, dtype, seed in drawn]
    if declaration.op == "fused_experts" and _requantises(declaration):
        reason = "small, with ties of fp8 codes and tokens next to nothing: the arithmetic of a quantiser"
        cases.append(replace(cases[0], num_tokens=8, stratum="quantiser", name="contract-quantiser", reason=reason))
    return tuple(case for case in cases if lacking(declaration, case) is None)


def _specs(declaration: Declaration) -> tuple[MoESpec, ...]:
    """Plain semantics, then those with biases; more slots than two wherever the kernel leaves the choice."""
    if declaration.op in ("moe_layer", ROUTER) and "spec" not in declaration.arguments:
        return (MoESpec(),)
    routing = RoutingSpec(top_k=4, renormalize=True)
    if declaration.op == ROUTER:  # renormalisation makes both of its stores show
        return MoESpec(routing=routing), MoESpec(routing=replace(routing, scoring="sigmoid"))
    biases = {"w13_bias", "w2_bias", "bias"} & {arg.name for arg in OPS[declaration.op].args}
    if "spec" in declaration.arguments and biases and biases <= set(declaration.arguments):
        return MoESpec(routing=routing), MoESpec(routing=routing, experts=BIASED)
    if declaration.op == "grouped_gemm" and "bias" in declaration.arguments:
        return MoESpec(routing=routing), MoESpec(routing=routing, experts=BIASED)
    return (MoESpec(routing=routing),)


def _requantises(declaration: Declaration) -> bool:
    quantisers = declaration.numerics and (declaration.numerics.a1_quant, declaration.numerics.a2_quant)
    return any(one is not None and not one.static for one in quantisers or ())


def _case(op: str, spec: MoESpec, dtype: str, seed: int) -> Case:
    """A case of ordinary values: a layer's logits, too, so that each token has weights of its own."""
    groups = spec.routing.num_expert_groups
    router = op == ROUTER
    least = 16 if router else 8
    quantization = spec.experts.quantization
    # More than a group of 128 that shares a scale; whole blocks where some kernels take no others.
    width = 256 if quantization is not None and quantization.rows > 1 else 192
    experts = max(spec.routing.least_experts, groups * -(-least // groups))
    return Case(
        op=op,
        spec=spec,
        num_tokens=64 if router else 16,
        num_experts=experts if quantization is None else max(5, spec.routing.top_k),
        hidden_size=width,
        intermediate_size=width,
        shared_intermediate_size=0 if spec.shared_experts == "none" else 128,
        latent_size=64 if op == "moe_layer" and spec.latent_experts else 0,
        dtype=dtype,
        seed=seed,
        name="contract",
        reason="small, with three slots or more: which rounding points explain the output's bits",
    )
