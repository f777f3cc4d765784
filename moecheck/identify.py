"""Finds the contract of a kernel: the rounding points with which the reference reproduces its outputs bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .bounds import disagreement_limit
from .cases import Case
from .formats import AnyArray
from .identify_candidates import EXPERT_OPS, IDENTIFIED_OPS, ROUTER
from .identify_floor import below_floor, judge_numerics, judge_unseen
from .identify_result import Identified, declaration_sentence, stored
from .identify_routing import observation
from .identify_search import Search, pool_of
from .kernel import Declaration
from .numerics import Numerics
from .ops import OPS
from .oracle import Oracle
from .runner.plan import lacking
from .spec import ExpertSpec, MoESpec, RoutingSpec

__all__ = [
    "Identified",
    "below_floor",
    "declaration_sentence",
    "identification_cases",
    "identify",
    "is_known",
    "is_near",
    "judge_numerics",
    "judge_unseen",
    "observation",
]

BIASED = ExpertSpec(w13_bias=True, w2_bias=True)
FIRST_DTYPES = ("bf16", "fp16", "fp32")
# Agreement below which nothing is explained. Where fp32 kernels store in bf16, one flip moves a whole row, and a rule
# that allows for many of them would allow for anything; what is no contract agrees in less than a hundredth there.
LEAST = 0.25
NEAR, LEAD = 0.5, 0.05


def identification_cases(declaration: Declaration) -> tuple[Case, ...]:
    """Two to four small cases that a kernel can take and whose outputs tell contracts apart; () for other ops.

    One case for each format, a second one where there is only one; top_k of at least 3 unless the specs say otherwise,
    so that slot order differs from expert order; and one with biases where the kernel takes them.
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
    return tuple(case for case in cases if lacking(declaration, case) is None)


@np.errstate(all="ignore")  # a candidate may overflow where the kernel does not
def identify(
    observations: Sequence[tuple[Case, AnyArray]],
    oracle: Oracle,
    *,
    requantising: bool = True,
    declared: Numerics | None = None,
) -> Identified:
    """The contract whose reference agrees best with a kernel's outputs, averaged over the cases.

    observations: cases of one op, each with the kernel's `observation`. The search is over rounding
    points only, never over factors, indices or functions: what a contract cannot explain stays unexplained.
    requantising: whether contracts with quantisers are tried where no other explains the outputs. declared: where the
    search starts; if it explains the outputs as well as a simulated kernel of it, only contracts near it are compared.
    """
    if not observations:
        raise ValueError("A contract is identified from one output at least.")
    cases = tuple(case for case, _ in observations)
    pool = pool_of(cases, oracle)
    search = Search(pool, [out for _, out in observations])
    rows = sum(len(out) for _, out in observations)
    best = None if declared is None else search.near(declared)
    if best is None or not is_known(search.agreement(best), pool.expected(best), rows=rows):
        best = search.best()
    known = is_known(search.agreement(best), pool.expected(best), rows=rows)
    if requantising and not known and cases[0].op in EXPERT_OPS:
        best = max(best, search.best_requantising(), key=search.agreement)
    plainest, *others = search.equivalent(best)
    compared = {other: search.compare(other, plainest) for other in search.rivals(plainest)}
    runner_up = max(compared, key=lambda c: (compared[c].first, -stored(c)), default=None)
    agreement, expected = search.agreement(plainest), pool.expected(plainest)
    known = is_known(agreement, expected, rows=rows)
    return Identified(
        numerics=plainest,
        agreement=agreement,
        expected=expected,
        runner_up=runner_up,
        runner_up_agreement=0.0 if runner_up is None else compared[runner_up].first,
        equivalent=tuple(others),
        stores=pool.stores,
        elements=search.elements,
        known=known,
        dtypes=pool.dtypes,
        by_case=() if known else _by_case(observations, oracle),
        compare=search.compare,
        discordant=search.discordant,
    )


def is_known(agreement: float, expected: float, *, rows: int) -> bool:
    """Whether a contract explains the outputs: agreement is what a simulated kernel with fp32 accumulation reaches.

    The simulated kernel has the contract's stores and the references' model of fp32 sums. Each of its bits that differs
    is a flip: a value so near to a rounding boundary that accumulation carries it across. rows: of all outputs.
    """
    return agreement >= LEAST and 1.0 - agreement <= disagreement_limit(1.0 - expected, rows=rows)


def is_near(identified: Identified) -> bool:
    """Whether the best contract is much better than any other, although it does not explain the outputs."""
    lead = identified.agreement - identified.runner_up_agreement
    return identified.agreement >= NEAR and (identified.runner_up is None or lead >= LEAD)


def _by_case(observations: Sequence[tuple[Case, AnyArray]], oracle: Oracle) -> tuple[tuple[str, Identified], ...]:
    """The contract of each case, where each has one of its own; () where any is unknown or there is one case only."""
    if len(observations) == 1:
        return ()
    found = [(case.id, identify([(case, out)], oracle, requantising=False)) for case, out in observations]
    return tuple(found) if all(identified.known for _, identified in found) else ()


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


def _case(op: str, spec: MoESpec, dtype: str, seed: int) -> Case:
    """A case of ordinary values: a layer's logits, too, so that each token has weights of its own."""
    groups = spec.routing.num_expert_groups
    router = op == ROUTER
    least = 16 if router else 8
    experts = max(spec.routing.least_experts, groups * -(-least // groups))
    return Case(
        op=op,
        spec=spec,
        num_tokens=64 if router else 16,
        num_experts=experts if spec.experts.quantization is None else max(5, spec.routing.top_k),
        hidden_size=192,
        intermediate_size=192,  # more than a group of 128 that shares a scale
        shared_intermediate_size=0 if spec.shared_experts == "none" else 128,
        latent_size=64 if op == "moe_layer" and spec.latent_experts else 0,
        dtype=dtype,
        seed=seed,
        name="contract",
        reason="small, with three slots or more: which rounding points explain the output's bits",
    )
