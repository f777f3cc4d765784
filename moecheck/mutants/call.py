"""One call of an op's reference as data, so that a mutant is a change of the semantics or of the inputs it is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecheck.cases import Case
from moecheck.formats import FORMATS, AnyArray, Float64, round_to, to_float64, ulp
from moecheck.numerics import FLOOR, Numerics
from moecheck.oracle import Oracle, call_reference, reference_modules

Ids = npt.NDArray[np.integer[Any]]
OWN_ULPS = 0.6  # standard deviation of four independent roundings to nearest, in ulps of the result
ROUTER_INPUTS = ("router_logits", "correction_bias", "per_expert_scale")
HASH_INPUTS = ("token_ids", "tid2eid")


class Slots(NamedTuple):
    """What each token's slots hold. weights: [T, slots] float64. ids: [T, slots] int (unpermute: rows)."""

    weights: Float64
    ids: Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A reference's arguments. case: op and semantics. inputs: by name, storage dtype or float64.

    slots: what the router chose, where a mutant changes that itself (topk_routing and moe_layer).
    """

    case: Case
    inputs: dict[str, Any]
    slots: Slots | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One summand of a wrong output: factor * output[rows] of a call.

    factor: a number or an array that broadcasts to the output; 0 gives exactly 0, whatever it multiplies.
    rows: [T] int, which row of the call's output stands in each row; None: its own.
    """

    call: Call
    factor: Float64 | float = 1.0
    rows: Ids | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The wrong outputs themselves, as a kernel returns them: of ops that move rows and count them."""

    arrays: tuple[AnyArray, ...]


# What a mutant makes of a call: another call, a sum of several, the wrong value itself, or the wrong outputs.
Mutation = Call | tuple[Term, ...] | Float64 | Outputs


class Prediction(NamedTuple):
    """An output and the standard deviation of an honest kernel's error about it, both [rows, columns] float64."""

    value: Float64
    sigma: Float64


def call_of(case: Case, oracle: Oracle) -> Call:
    """The right call of a case."""
    return Call(case=case, inputs=oracle.inputs(case))


def decoded(call: Call) -> Call:
    """The call with its floating-point inputs as float64: decoding them once is cheaper than for each mutant."""
    stored = tuple(fmt.storage for fmt in FORMATS.values())
    arrays = {n: v for n, v in call.inputs.items() if isinstance(v, np.ndarray) and v.dtype in stored}
    return with_inputs(call, **{name: to_float64(array) for name, array in arrays.items()})


def with_inputs(call: Call, **arrays: AnyArray | None) -> Call:
    """The call with other inputs; None leaves one out."""
    inputs = {**call.inputs, **arrays}
    return replace(call, inputs={name: value for name, value in inputs.items() if value is not None})


def with_routing(call: Call, **fields: object) -> Call:
    """The call with other fields in its RoutingSpec."""
    spec = call.case.spec
    routing = replace(spec.routing, **fields)  # type: ignore[arg-type]  # names and types are those of the spec
    return replace(call, case=replace(call.case, spec=replace(spec, routing=routing)))


def with_experts(call: Call, **fields: object) -> Call:
    """The call with other fields in its ExpertSpec; a parameter of one activation is dropped with it."""
    if fields.get("activation", "situ") != "situ":
        fields = {"situ_up_beta": None, **fields}
    spec = call.case.spec
    experts = replace(spec.experts, **fields)  # type: ignore[arg-type]  # names and types are those of the spec
    return replace(call, case=replace(call.case, spec=replace(spec, experts=experts)))


def slots_of(call: Call) -> Slots:
    """What the call's tokens chose: given (fused_experts, unpermute), changed by a mutant, or as the router does."""
    if call.slots is not None:
        return call.slots
    if call.case.op in SLOT_NAMES:
        weights, ids = (call.inputs[name] for name in SLOT_NAMES[call.case.op])
        return Slots(to_float64(weights), ids)
    return Slots(*reference_modules()["topk_routing"].topk_routing(**router_arguments(call)))


def with_slots(call: Call, *, weights: Float64 | None = None, ids: Ids | None = None) -> Call:
    """The call with other weights or ids in its slots."""
    own = slots_of(call)
    new = Slots(own.weights if weights is None else weights, own.ids if ids is None else ids)
    if call.case.op in SLOT_NAMES:
        return with_inputs(call, **dict(zip(SLOT_NAMES[call.case.op], new, strict=True)))
    return replace(call, slots=new)


def router_arguments(call: Call) -> dict[str, Any]:
    """The arguments of the topk_routing reference for this call; the table of tokens only where it chooses by it."""
    names = ROUTER_INPUTS if call.case.spec.routing.selection != "hash" else (*ROUTER_INPUTS, *HASH_INPUTS)
    return {"spec": call.case.spec.routing, **{name: call.inputs[name] for name in names if name in call.inputs}}


def flat(output: AnyArray) -> AnyArray:
    """An output as [rows, columns], whatever it is indexed by."""
    return output.reshape(-1, output.shape[-1])


def shaped(call: Call, rows: AnyArray) -> AnyArray:
    """An output [rows, columns] in the op's own shape."""
    if call.case.op == "batched_experts":
        return rows.reshape(call.inputs["hidden_states"].shape)
    return rows.reshape(*call.inputs["topk_ids"].shape, -1) if call.case.op == "expert_outputs" else rows


def value(mutation: Mutation) -> Float64:
    """The mutation's unrounded output [rows, columns]."""
    if isinstance(mutation, Call):
        module = reference_modules()[mutation.case.op]
        function = getattr(module, mutation.case.op)
        return flat(call_reference(function, mutation.case, mutation.inputs, **_topk(mutation)))
    if isinstance(mutation, tuple):
        return _sum([of_term(term, value(term.call)) for term in mutation])
    assert not isinstance(mutation, Outputs), "structures have no value"
    return mutation


def predict(mutation: Mutation, numerics: Numerics | None, fallback: Float64, dtype: str) -> Prediction:
    """The mutation's unrounded output and its sigma under a contract (None: the floor contract).

    fallback: that of the right output, from which the sigma of a mutation that is a bare value is guessed: four
    roundings to the output's format more.
    """
    if isinstance(mutation, Call):
        case = mutation.case
        function = reference_modules()[case.op].estimate
        contract = (numerics or FLOOR).resolve(case.dtype)
        errors = call_reference(function, case, mutation.inputs, numerics=contract, dtype=case.dtype, **_topk(mutation))
        return Prediction(errors.value, errors.sigma)
    if isinstance(mutation, tuple):
        parts = [(term, predict(term.call, numerics, fallback, dtype)) for term in mutation]
        variance = _sum([np.square(of_term(term, part.sigma)) for term, part in parts])
        return Prediction(_sum([of_term(term, part.value) for term, part in parts]), np.sqrt(variance))
    assert not isinstance(mutation, Outputs), "structures have no value"
    out = (numerics or FLOOR).resolve(dtype).out
    return Prediction(mutation, np.hypot(fallback, OWN_ULPS * ulp(mutation, out)))


def rounded(mutation: Mutation, numerics: Numerics | None, dtype: str) -> Float64:
    """The mutation's output as a kernel of this contract (None: one rounding, at the end) would store it, float64."""
    contract = (numerics or Numerics()).resolve(dtype)
    if isinstance(mutation, Call):
        function = getattr(reference_modules()[mutation.case.op], mutation.case.op)
        return flat(
            call_reference(function, mutation.case, mutation.inputs, numerics=contract, dtype=dtype, **_topk(mutation))
        )
    if isinstance(mutation, tuple):
        mutation = _sum([of_term(term, rounded(term.call, numerics, dtype)) for term in mutation])
    assert not isinstance(mutation, Outputs), "structures have no value"
    return round_to(mutation, contract.out)


def _topk(call: Call) -> dict[str, object]:
    return {} if call.slots is None else {"topk": call.slots}


def of_term(term: Term, array: Float64) -> Float64:
    """What a term adds, from its call's output."""
    rows = array if term.rows is None else array[term.rows]
    return np.where(term.factor == 0.0, 0.0, np.multiply(term.factor, rows))


def _sum(arrays: list[Float64]) -> Float64:
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


SLOT_NAMES = {"fused_experts": ("topk_weights", "topk_ids"), "unpermute": ("topk_weights", "inv_permuted_idx")}
