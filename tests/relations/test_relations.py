"""Every relation holds for the reference, on every op that it speaks of, and is broken by a wrong kernel."""

from __future__ import annotations

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.kernel import describe
from moecheck.ops import OPS
from moecheck.relations.relation import Inputs, Outputs, Subject, relations
from moecheck.spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec
from tests.relations.trial import Kernel, honest, judged, missing
from tests.relations.wrong_kernels import (
    SIZES,
    adds_every_copy,
    adds_the_second_bias_always,
    adds_the_shared_expert_whole,
    adds_where_there_is_nothing,
    batch_counts,
    changed,
    contiguous_matrix,
    contiguous_only,
    drops_experts_past_the_eighth,
    drops_past_a_block,
    exchanges_gate_and_up,
    fed,
    ignores_selection,
    keeps_what_it_saw_first,
    last_row_of_a_large_batch,
    leaks_nan,
    looks_at_the_last_expert,
    loses_an_empty_first_rank,
    noisy,
    one_scale_for_all_rows,
    overflowing_softmax,
    position_counts,
    renormalises,
    takes_halves_of_wide_ids,
    takes_unsigned_ids_for_wide_ones,
    weighs_the_shared_slot_by_the_factor,
    weighs_with_the_bias,
    weights_in_places,
    width_counts,
    without,
    wraps_foreign_ids,
)

RENORMALISED = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True))
BIASED = MoESpec(
    routing=RoutingSpec(top_k=3, scoring="sigmoid", correction_bias="select", renormalize=True, renorm_eps=1e-20)
)
RANKS = "expert_parallel_moe"
CLAMPED = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True), experts=SWIGLUOAI)


def case_of(op: str, spec: MoESpec = RENORMALISED, dtype: str = "fp32", **fields: object) -> Case:
    ranks = {"num_ranks": 2} if op == "expert_parallel_moe" else {}
    return Case(op=op, spec=spec, dtype=dtype, **{**SIZES, **ranks, **fields})  # type: ignore[arg-type]  # fields of Case


KINDS = ((RENORMALISED, "fp32"), (RENORMALISED, "bf16"), (BIASED, "fp32"), (CLAMPED, "bf16"))
SHARED = MoESpec(
    routing=RoutingSpec(top_k=2, renormalize=True, routed_scaling_factor=2.5, scaling_placement="routed_output"),
    shared_experts="ungated",
)
UP_FIRST = MoESpec(
    routing=RoutingSpec(top_k=2), experts=ExpertSpec(gate_up_layout="up_first", w13_bias=True, w2_bias=True)
)
GATED = MoESpec(
    routing=RoutingSpec(top_k=2), shared_experts="gated", experts=ExpertSpec(gate_up_layout="interleaved_8")
)
CASES = [
    *(case_of(op, spec, dtype) for op in OPS for spec, dtype in KINDS),
    case_of("moe_layer", SHARED, shared_intermediate_size=64),
    case_of("fused_experts", UP_FIRST),
    case_of("moe_layer", GATED, shared_intermediate_size=96),
]
HOLDING = [(name, case) for name in relations() for case in CASES if missing(name, case) is None]


@pytest.mark.parametrize("declared", [False, True], ids=["undeclared", "declared"])
@pytest.mark.parametrize(("name", "case"), HOLDING, ids=[f"{n}-{c.op}-{c.dtype}-{c.digest}" for n, c in HOLDING])
def test_the_reference_obeys(name: str, case: Case, declared: bool) -> None:
    judgement = judged(name, case, honest, declared=declared)
    assert judgement.verdict is Verdict.PASS, judgement.message
    assert all(value == 1.0 for value in judgement.numbers.values())


# Only kernels that are interpreted have several schedules: tests/runner/test_pallas_interpreter.py has both sides.
OF_INTERPRETED_KERNELS = {"copy_schedules"}


def test_every_relation_is_tried_on_every_op_of_it() -> None:
    tried = {(name, case.op) for name, case in HOLDING}
    laws = {name: law for name, law in relations().items() if name not in OF_INTERPRETED_KERNELS}
    assert tried == {(name, op) for name, law in laws.items() for op in law.ops}


WRONG: list[tuple[str, str, MoESpec, Kernel]] = [
    ("determinism", "fused_experts", RENORMALISED, noisy()),
    ("determinism", "topk_routing", RENORMALISED, noisy()),
    ("batch_invariance", "grouped_gemm", RENORMALISED, changed(batch_counts)),
    ("batch_invariance", "moe_layer", RENORMALISED, changed(batch_counts)),
    ("token_permutation", "fused_experts", RENORMALISED, changed(position_counts)),
    ("token_permutation", "unpermute", RENORMALISED, changed(position_counts)),
    ("duplicate_tokens", "act_and_mul", RENORMALISED, changed(position_counts)),
    ("chunked_calls", "topk_routing", RENORMALISED, changed(batch_counts)),
    ("one_token_calls", "fused_experts", RENORMALISED, changed(batch_counts)),
    ("skewed_load", "fused_experts", RENORMALISED, fed(drops_past_a_block)),
    ("appended_tokens", "fused_experts", RENORMALISED, changed(last_row_of_a_large_batch)),
    ("expert_relabelling", "fused_experts", RENORMALISED, fed(lambda c, i: {"topk_ids": without(i["topk_ids"], 0)})),
    (
        "expert_relabelling",
        "topk_routing",
        RENORMALISED,
        fed(lambda c, i: {"router_logits": i["router_logits"] + np.eye(8, dtype=np.float32)[0]}),
    ),
    (
        "slot_permutation",
        "fused_experts",
        RENORMALISED,
        fed(lambda c, i: {"topk_weights": i["topk_weights"] * np.array([1, 0.9], np.float32)}),
    ),
    (
        "zero_weight_slot",
        "fused_experts",
        RENORMALISED,
        fed(lambda c, i: {"topk_weights": np.maximum(i["topk_weights"], np.float32(1e-3))}),
    ),
    ("wide_ids", "fused_experts", RENORMALISED, fed(takes_halves_of_wide_ids)),
    ("unsigned_ids", "fused_experts", RENORMALISED, fed(takes_unsigned_ids_for_wide_ones)),
    ("replaced_values", "fused_experts", RENORMALISED, keeps_what_it_saw_first("hidden_states")),
    ("replaced_values", "fused_experts", RENORMALISED, keeps_what_it_saw_first("topk_ids", "topk_weights")),
    ("replaced_values", "moe_layer", RENORMALISED, keeps_what_it_saw_first("router_logits")),
    ("replaced_values", "topk_routing", RENORMALISED, keeps_what_it_saw_first("router_logits")),
    ("expert_replicas", "fused_experts", RENORMALISED, fed(drops_experts_past_the_eighth)),
    ("padded_widths", "fused_experts", RENORMALISED, changed(width_counts)),
    ("padded_widths", "fused_experts", RENORMALISED, changed(adds_where_there_is_nothing)),
    ("padded_widths", "moe_layer", SHARED, changed(width_counts)),
    ("wide_rows", "fused_experts", RENORMALISED, fed(contiguous_only)),
    ("wide_rows", "act_and_mul", RENORMALISED, fed(contiguous_only)),
    ("shifted_logits", "topk_routing", RENORMALISED, fed(overflowing_softmax)),
    ("shifted_logits", "moe_layer", RENORMALISED, fed(overflowing_softmax)),
    ("shifted_bias", "topk_routing", BIASED, changed(weighs_with_the_bias)),
    ("softmax_over_chosen", "topk_routing", RENORMALISED, ignores_selection),
    ("shared_slot", "moe_layer", SHARED, weighs_the_shared_slot_by_the_factor),
    ("linear_in_weights", "fused_experts", RENORMALISED, fed(renormalises)),
    ("linear_in_weights", "unpermute", RENORMALISED, fed(renormalises)),
    ("scaled_weights", "fused_experts", RENORMALISED, fed(renormalises)),
    ("scaled_w2", "fused_experts", RENORMALISED, changed(lambda c, i, out: out + out.dtype.type(0.01))),
    ("scaled_w2", "grouped_gemm", RENORMALISED, changed(lambda c, i, out: np.clip(out, -6, 6))),
    ("scaled_up", "fused_experts", RENORMALISED, fed(exchanges_gate_and_up)),
    ("scaled_up", "act_and_mul", RENORMALISED, fed(exchanges_gate_and_up)),
    ("negated_up", "fused_experts", RENORMALISED, fed(exchanges_gate_and_up)),
    ("negated_up", "act_and_mul", RENORMALISED, fed(exchanges_gate_and_up)),
    ("expert_shards", "fused_experts", RENORMALISED, fed(wraps_foreign_ids)),
    (
        "tensor_shards",
        "fused_experts",
        RENORMALISED,
        changed(lambda c, i, out: out + i["hidden_states"] * out.dtype.type(0.1)),
    ),
    ("tensor_shards", "moe_layer", SHARED, adds_the_shared_expert_whole),
    ("tensor_shards", "fused_experts", UP_FIRST, adds_the_second_bias_always()),
    ("nan_token", "fused_experts", RENORMALISED, changed(leaks_nan)),
    ("nan_token", "topk_routing", RENORMALISED, changed(leaks_nan)),
    ("zero_token", "fused_experts", RENORMALISED, changed(lambda c, i, out: out + out.dtype.type(1e-6))),
    ("padding_rows", "fused_experts", RENORMALISED, changed(leaks_nan)),
    ("rows_beyond_counts", "batched_experts", RENORMALISED, changed(one_scale_for_all_rows)),
    ("unused_experts", "fused_experts", RENORMALISED, changed(looks_at_the_last_expert)),
    ("rank_counts", RANKS, RENORMALISED, changed(lambda c, i, out: out if c.num_ranks == 1 else -out)),
    ("token_places", RANKS, RENORMALISED, changed(loses_an_empty_first_rank)),
    ("expert_places", RANKS, RENORMALISED, fed(weights_in_places)),
    ("expert_copies", RANKS, RENORMALISED, changed(adds_every_copy)),
    ("silent_experts", RANKS, RENORMALISED, changed(lambda c, i, out: out + i["hidden_states"] * out.dtype.type(0.1))),
]


@pytest.mark.parametrize("declared", [False, True], ids=["undeclared", "declared"])
@pytest.mark.parametrize(("name", "op", "spec", "kernel"), WRONG, ids=[f"{w[0]}-{w[1]}" for w in WRONG])
def test_a_wrong_kernel_breaks_it(name: str, op: str, spec: MoESpec, kernel: Kernel, declared: bool) -> None:
    shared = SIZES["intermediate_size"] if spec.shared_experts != "none" else 0
    case = case_of(op, spec, shared_intermediate_size=shared)
    judgement = judged(name, case, kernel, declared=declared)
    assert judgement.verdict in (Verdict.FAIL, Verdict.PROVEN_WRONG)
    assert judgement.check == name
    assert {"row", "column"} <= judgement.where.keys()
    assert "should equal" in judgement.message
    assert all(value == 0.0 for value in judgement.numbers.values())


ONLY_REPORTED = {"unused_experts_of_nan", "wide_weights"}


def test_every_relation_that_can_fail_has_a_wrong_kernel() -> None:
    assert {name for name, *_ in WRONG} == relations().keys() - ONLY_REPORTED - OF_INTERPRETED_KERNELS


def test_one_bit_breaks_a_declared_capability_and_is_reported_where_none_is_declared() -> None:
    def kernel(case: Case, inputs: Inputs) -> Outputs:
        (out,) = honest(case, inputs)
        out.view(np.uint32)[0, 0] ^= len(out) % 2
        return (out,)

    case = case_of("fused_experts", num_tokens=22)  # half of it is odd
    told = judged("batch_invariance", case, kernel)
    proven = judged("batch_invariance", case, kernel, declared=True)

    assert (told.verdict, told.numbers) == (Verdict.PASS, {"batch_invariant_observed": 0.0})
    assert (proven.verdict, proven.numbers) == (Verdict.PROVEN_WRONG, {"batch_invariant_observed": 0.0})
    assert proven.message.startswith("It declares batch_invariant=True, by which the first half of the rows")


def test_nan_in_an_unused_expert_is_reported_and_fails_nothing() -> None:
    kernel = changed(lambda c, i, out: out + 0 * i["w2"][-1].astype(np.float32).sum())
    judgement = judged("unused_experts_of_nan", case_of("fused_experts"), kernel)
    assert (judgement.verdict, judgement.numbers) == (Verdict.PASS, {"nan_weights_isolation_observed": 0.0})


def test_weights_read_past_their_stride_are_reported_and_fail_nothing() -> None:
    def kernel(case: Case, inputs: Inputs) -> Outputs:
        """Takes each matrix for one block of memory."""
        blocks = {name: contiguous_matrix(inputs[name]) for name in ("w13", "w2")}
        return honest(case, {**inputs, **blocks})

    judgement = judged("wide_weights", case_of("fused_experts"), kernel)
    assert (judgement.verdict, judgement.numbers) == (Verdict.PASS, {"strided_weights_observed": 0.0})


def test_a_further_call_of_the_wrong_shape_is_proven_wrong() -> None:
    def kernel(case: Case, inputs: Inputs) -> Outputs:
        return (honest(case, inputs)[0][: SIZES["num_tokens"]],)

    judgement = judged("appended_tokens", case_of("fused_experts"), kernel)
    assert judgement.verdict is Verdict.PROVEN_WRONG
    assert "Out has shape [24, 64], expected [29, 64]" in judgement.message


@pytest.mark.parametrize(
    ("name", "case", "reason"),
    [
        ("scaled_up", case_of("fused_experts", CLAMPED), "clamps or shifts the up projection"),
        ("zero_token", case_of("fused_experts", CLAMPED), "has biases"),
        ("scaled_w2", case_of("fused_experts", dtype="fp16"), "is in fp16, whose range is narrow"),
        ("scaled_w2", case_of("fused_experts", stratum="outlier"), "has values near the end of the range"),
        ("tensor_shards", case_of("fused_experts", intermediate_size=44), "has an intermediate size that 2 ranks"),
        (
            "tensor_shards",
            case_of("moe_layer", MoESpec(routing=RoutingSpec(num_zero_experts=2))),
            "has identity experts",
        ),
        (
            "tensor_shards",
            case_of("moe_layer", SHARED, shared_intermediate_size=40),
            "has an intermediate size that 2 ranks",
        ),
        ("unsigned_ids", case_of("fused_experts", load="padding"), "has padding ids"),
        ("expert_shards", case_of("fused_experts", num_local_experts=4), "has experts on other ranks"),
        ("shifted_logits", case_of("topk_routing", dtype="bf16"), "has bf16 logits"),
        ("shifted_logits", case_of("topk_routing", BIASED), "takes no softmax"),
        ("shifted_bias", case_of("topk_routing"), "has no bias that selects"),
        ("token_permutation", case_of("fused_experts", num_tokens=1), "has 1 tokens"),
        ("wide_rows", case_of("fused_experts", layout="strided"), "has wide rows already"),
        ("nan_token", case_of("topk_routing", load="extreme"), "has inputs that are not finite"),
        (
            "scaled_weights",
            case_of("fused_experts", MoESpec(routing=RoutingSpec(top_k=1), experts=ExpertSpec(weight_on_input=True))),
            "weighs the experts' inputs",
        ),
        (
            "expert_relabelling",
            case_of("topk_routing", MoESpec(routing=RoutingSpec(selection="sparsemixer"))),
            "weighs experts by the order of their choice",
        ),
        ("shared_slot", case_of("moe_layer"), "has no ungated shared expert"),
        ("scaled_up", case_of("permute"), "says nothing of permute"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_relation_knows_where_it_does_not_hold(name: str, case: Case, reason: str) -> None:
    assert (missing(name, case) or "").startswith(reason)


def test_a_kernel_that_needs_shared_experts_is_not_called_without_them() -> None:
    """The relation's further call has none."""

    def layer(*, hidden_states, router_logits, w13, w2, shared_w13, shared_w2, spec):  # type: ignore[no-untyped-def]
        raise AssertionError("it is not called")

    case = case_of("moe_layer", SHARED, shared_intermediate_size=64)
    assert missing("shared_slot", case) is None
    subject = Subject(declaration=describe(layer, op="moe_layer", backend="numpy"), case=case)
    assert relations()["shared_slot"].missing(subject) == "has no layer without shared experts"
