"""The fused expert-parallel kernel: its choice of experts, its blocks, and a few calls over several ranks."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, verdict_of
from moecheck.checks.judge import Limits, judge
from moecheck.curated import cases_for
from moecheck.errors import Unsupported, UsageError
from moecheck.oracle import Oracle, call_reference, reference_modules
from moecheck.registry import COMPILING
from moecheck.runner.pool import KernelPool, default_memory
from moecheck.runner.target import Target, load
from moecheck.runner.worker import run_case
from moecheck.scoring.pallas_sources import PALLAS_MUTANTS
from moecheck.scoring.source_kernels import kernel_trials
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec

pytest.importorskip("jax")
import jax.numpy as jnp

from moecheck.kernels.pallas_tpu._blocks import INTERPRETED_LANES, LANES, VMEM_BYTES, Blocks, automatic
from moecheck.kernels.pallas_tpu._choice import choose
from moecheck.kernels.pallas_tpu.fused import SCHEMES_HERE, fused

TARGET = Target(spec_string="moecheck.kernels.pallas_tpu.fused:fused")
TIMEOUT = 20 * COMPILING  # of a machine that does much else
CASES = {
    case.name: case
    for case in cases_for("expert_parallel_moe", profile="quick", seed=0, small=True, quantizations=SCHEMES_HERE)
    if case.name
}
ROUTINGS = (
    RoutingSpec(top_k=2, renormalize=True),
    RoutingSpec(top_k=3, softmax_over_selected=True),
    RoutingSpec(top_k=2, scoring="sigmoid", correction_bias="select", renormalize=True, routed_scaling_factor=2.5),
    RoutingSpec(top_k=2, num_expert_groups=4, topk_groups=2),
    RoutingSpec(top_k=3, scoring="sigmoid", correction_bias="select", num_expert_groups=2, group_score="top2_sum"),
    RoutingSpec(top_k=2, softcap=30.0),
    RoutingSpec(top_k=2, scoring="sqrt_softplus", renormalize=True, renorm_eps=1e-20, renorm_eps_rule="add"),
)


@pytest.mark.parametrize("name", ["shuffled-placement", "swigluoai-biases", "int8-sub-channel"])
def test_calls_over_ranks_are_right_and_race_nowhere(name: str) -> None:
    case, oracle = CASES[name], Oracle()
    with KernelPool(memory=default_memory(2), threads=1) as pool:
        outcome = pool.wait(pool.submit(run_case, TARGET, case, timeout=TIMEOUT))

    assert outcome.problem is None, outcome.problem
    _, declaration = load(TARGET)
    judged = judge(case, outcome.outputs, oracle, Limits(), declaration.numerics)
    assert verdict_of(judged.judgements) not in FAILURES, judged.judgements


def test_a_planted_bug_is_seen() -> None:
    one = next(one for one in PALLAS_MUTANTS if one.name == "pallas: gate and up tile not awaited")

    found = kernel_trials((one,), seeds=1, jobs=1, with_baselines=False)

    assert [score.killed for score in found.scores] == [True]


@pytest.mark.parametrize("load", ["gapped", "ties", "negative"])
@pytest.mark.parametrize("routing", ROUTINGS, ids=lambda r: f"{r.scoring}-{r.top_k}-{r.num_expert_groups}")
def test_the_choice_inside_the_kernel_is_the_routing(routing: RoutingSpec, load: str) -> None:
    """Of gapped logits the ids are exact; ties go to the lowest id there and in the reference."""
    case = Case(op="topk_routing", spec=MoESpec(routing=routing), num_tokens=40, load=load, dtype="fp32")
    inputs, module = case.inputs(), reference_modules()["topk_routing"]
    bias = inputs.get("correction_bias")

    weights, ids = choose(
        jnp.asarray(inputs["router_logits"]), None if bias is None else jnp.asarray(bias)[None], routing
    )

    _, wanted = call_reference(module.topk_routing, case, inputs)
    order = np.argsort(np.asarray(ids), axis=1)
    if load == "gapped":
        np.testing.assert_array_equal(np.take_along_axis(np.asarray(ids), order, 1), np.sort(wanted, axis=1))
    values = call_reference(module.weights_of_ids, case, inputs, topk_ids=np.asarray(ids))
    # a few fp32 operations, as the layer's own error model has them
    allowed = 16 * np.spacing(np.abs(values).astype(np.float32) + np.float32(1e-30))
    assert (np.abs(np.asarray(weights) - values) <= allowed).all()


def test_blocks_are_checked() -> None:
    with pytest.raises(UsageError, match=r"Blocks.rows=4 must be a multiple of 8"):
        Blocks(tokens=8, rows=4, intermediate=16, hidden_in=16, hidden_out=16)
    with pytest.raises(UsageError, match=r"Blocks.hidden_in=0 must be an integer of at least 1"):
        Blocks(tokens=8, rows=8, intermediate=16, hidden_in=0, hidden_out=16)
    with pytest.raises(UsageError, match=r"Blocks.hidden_out=16 must be a multiple of 128"):
        Blocks(tokens=8, rows=8, intermediate=128, hidden_in=128, hidden_out=16).check(lanes=LANES)


@pytest.mark.parametrize(("hidden", "intermediate"), [(2048, 768), (8192, 32768), (7168, 2048), (130, 20)])
def test_the_automatic_blocks_fit_and_overlap(hidden: int, intermediate: int) -> None:
    blocks = automatic(tokens=4096, hidden=hidden, intermediate=intermediate, top_k=8, itemsize=2, lanes=LANES)
    padded = -(-hidden // blocks.hidden_in) * blocks.hidden_in

    blocks.check(lanes=LANES)
    assert blocks.vmem_bytes(hidden=padded, top_k=8, itemsize=2) <= VMEM_BYTES
    assert hidden <= LANES or padded // blocks.hidden_in >= 2


def test_small_cases_have_several_blocks_in_the_interpreter() -> None:
    blocks = automatic(tokens=48, hidden=64, intermediate=48, top_k=2, itemsize=4, lanes=INTERPRETED_LANES)

    assert 64 // blocks.hidden_in >= 2
    assert -(-48 // blocks.intermediate) >= 2


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (MoESpec(experts=ExpertSpec(activation="relu2", gated=False)), "gated experts only"),
        (MoESpec(routing=RoutingSpec(selection="sparsemixer")), "selection='topk'"),
        (MoESpec(routing=RoutingSpec(top_k=1), experts=ExpertSpec(weight_on_input=True)), "experts' outputs only"),
    ],
    ids=["ungated", "sparsemixer", "weight on input"],
)
def test_other_semantics_are_declined(spec: MoESpec, words: str) -> None:
    x, logits, w13, w2 = jnp.zeros((2, 16)), jnp.zeros((2, 4)), jnp.zeros((4, 32, 16)), jnp.zeros((4, 16, 16))

    with pytest.raises(Unsupported, match=words):
        fused(hidden_states=x, router_logits=logits, w13=w13, w2=w2, num_ranks=1, spec=spec)
