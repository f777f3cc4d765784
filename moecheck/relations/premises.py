"""Premises that several relations share: each gives the reason why it does not hold for a subject, or None."""

from __future__ import annotations

from moecheck.ops import ALTERNATIVES
from moecheck.relations.relation import Premise, Subject


def tokens(least: int) -> Premise:
    """The case has at least so many tokens."""

    def premise(subject: Subject) -> str | None:
        count = subject.case.num_tokens
        return None if count >= least else f"has {count} tokens, and {least} are needed"

    return premise


def slots(least: int) -> Premise:
    """Tokens have at least so many experts."""

    def premise(subject: Subject) -> str | None:
        top_k = subject.case.spec.routing.top_k
        return None if top_k >= least else f"has {top_k} slots per token, and {least} are needed"

    return premise


def takes(argument: str) -> Premise:
    """The kernel's signature names the argument."""

    def premise(subject: Subject) -> str | None:
        named = {ALTERNATIVES.get(name, name) for name in subject.declaration.arguments}
        return None if argument in named else f"takes no {argument}"

    return premise


def finite_inputs(subject: Subject) -> str | None:
    """Every input is finite."""
    extreme = "router_logits" in subject.declaration.arguments and subject.case.load == "extreme"
    return "has inputs that are not finite" if extreme else None


def experts_are_linear_in_up(subject: Subject) -> str | None:
    """W2 (act(g) u) is proportional to W_up: gated, neither clamped nor shifted, without biases."""
    spec = subject.case.spec.experts
    if subject.case.op == "moe_layer" and subject.case.spec.shared_spec is not None:
        return "has shared experts of another kind than the routed ones"
    if not spec.gated:
        return "has no up projection"
    if spec.swiglu_limit is not None or spec.changes_up:
        return "clamps or shifts the up projection"
    return "has a bias beside the up projection" if spec.w13_bias or spec.w2_bias else None


def output_is_linear_in_experts(subject: Subject) -> str | None:
    """Nothing but experts' outputs is added up."""
    return "has identity experts" if subject.case.spec.routing.num_zero_experts else None


def weights_multiply_outputs(subject: Subject) -> str | None:
    """The output is linear in the routing weights."""
    return "weighs the experts' inputs" if subject.case.spec.experts.weight_on_input else None


def weights_of_a_set(subject: Subject) -> str | None:
    """Weights follow from the set of chosen experts; SparseMixer's depend on which of two equal ones comes first."""
    mixed = subject.case.spec.routing.selection == "sparsemixer"
    return "weighs experts by the order of their choice" if mixed else None


def no_biases(subject: Subject) -> str | None:
    """A token of zeros gives zero."""
    spec = subject.case.spec.experts
    return "has biases" if spec.w13_bias or spec.w2_bias else None


def plain_experts(subject: Subject) -> str | None:
    """Experts are numbered 0 to E - 1, all of them here, in one group, none of them special."""
    case, routing = subject.case, subject.case.spec.routing
    if case.num_local_experts is not None:
        return "has experts on other ranks"
    if routing.num_expert_groups > 1:
        return "has groups of experts"
    special = routing.num_fused_shared_experts or routing.num_zero_experts
    return "has shared or identity experts among the routed ones" if special else None


def every_slot_has_an_expert(subject: Subject) -> str | None:
    """No id is -1."""
    return "has padding ids" if subject.case.load == "padding" else None


def plain_weights(subject: Subject) -> str | None:
    """Weights are numbers that can be changed one by one, not codes of blocks."""
    return None if subject.case.spec.experts.quantization is None else "has quantised weights"


def float_scales(subject: Subject) -> str | None:
    """Weights, or the scales of their codes, are floats that may be multiplied, or be NaN."""
    quantization = subject.case.spec.experts.quantization
    exact = quantization is None or quantization.scale in ("float32", "power_of_two", "input")
    return None if exact else "has scales that are codes"


def has_spare_expert(subject: Subject) -> str | None:
    """A token can do without one of the experts."""
    spare = subject.case.num_experts > subject.case.spec.routing.top_k
    return None if spare else "every token needs every expert"


def not_fp16(subject: Subject) -> str | None:
    """The format's range is wide: doubling a value neither overflows nor leaves the subnormal numbers."""
    return "is in fp16, whose range is narrow" if subject.case.dtype == "fp16" else None


def values_are_moderate(subject: Subject) -> str | None:
    """Nothing overflows when it is doubled."""
    return "has values near the end of the range" if subject.case.stratum in ("outlier", "one_hot") else None


def declares_determinism(subject: Subject) -> bool:
    """Two calls that do the same operations give the same bits."""
    return subject.declaration.deterministic is True


def declares_batch_invariance(subject: Subject) -> bool:
    """A row's bits do not depend on the other rows."""
    return subject.declaration.batch_invariant is True
