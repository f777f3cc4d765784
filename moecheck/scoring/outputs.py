"""What a legal variant returns on a case: as it is, or with a known bug in it."""

from __future__ import annotations

import numpy as np

from moecheck import draw
from moecheck.cases import Case
from moecheck.formats import AnyArray, Float64, store
from moecheck.mutants import Mutant, mutated_outputs
from moecheck.mutants.call import Call, Mutation, Outputs, call_of, of_term, shaped, slots_of
from moecheck.mutants.registry import STRUCTURES, stored_structures, structures_of
from moecheck.oracle import Oracle

from .variant_kernel import output_of, takes
from .variants import Variant


def honest_outputs(case: Case, oracle: Oracle, variant: Variant) -> tuple[AnyArray, ...]:
    """What the variant returns on the case itself, in storage dtypes."""
    call = call_of(case, oracle)
    if takes(call):
        return (_stored(output_of(call, variant).astype(np.float64), call),)
    if case.op == "topk_routing":
        return _routed(call, variant)
    assert case.op in STRUCTURES, f"no legal variant takes the inputs of {case.id}"
    return stored_structures(case, oracle.outputs(case))


@np.errstate(all="ignore")
def outputs_with(one: Mutant, case: Case, oracle: Oracle, variant: Variant) -> tuple[AnyArray, ...]:
    """What the variant with this bug returns. A bug that is given as bare values gets the variant's own errors."""
    call = call_of(case, oracle)
    mutation = one.of_call(call, variant.contract)
    if case.op in STRUCTURES or isinstance(mutation, Outputs):
        return structures_of(mutation)
    if case.op == "topk_routing":
        assert isinstance(mutation, Call)
        return _routed(mutation, variant)
    if not takes(call):
        return mutated_outputs(one, case, oracle, variant.contract)
    return (_stored(_value(mutation, call, oracle, variant), call),)


def _stored(rows: Float64, call: Call) -> AnyArray:
    """The output [rows, columns] in the case's dtype and the op's own shape."""
    return shaped(call, store(rows, call.case.dtype))


def _value(mutation: Mutation, call: Call, oracle: Oracle, variant: Variant) -> Float64:
    if isinstance(mutation, Call):
        return output_of(mutation, variant).astype(np.float64)
    if isinstance(mutation, tuple):
        parts = [of_term(term, output_of(term.call, variant).astype(np.float64)) for term in mutation]
        return np.asarray(sum(parts[1:], start=parts[0]))
    assert not isinstance(mutation, Outputs)
    honest = output_of(call, variant).astype(np.float64)
    error = honest - oracle.values(call.case, variant.contract).rounded
    return mutation + np.where(np.isfinite(error), error, 0.0)


def _routed(call: Call, variant: Variant) -> tuple[AnyArray, ...]:
    """Weights that are off by up to two units in the last place of fp32, and the ids that belong to them."""
    slots = slots_of(call)
    weights = slots.weights.astype(np.float32)
    noise = draw.integers(("routing", variant.seed, call.case.key), weights.shape, below=3) - 1
    exact = np.isin(weights, (0.0, 1.0)) | ~np.isfinite(weights)
    weights = np.where(exact, weights, weights + np.spacing(weights) * noise).astype(np.float32)
    low = variant.contract.resolve(call.case.dtype).topk_weights
    return store(weights.astype(np.float64), low).astype(np.float32), slots.ids.astype(np.int32)
