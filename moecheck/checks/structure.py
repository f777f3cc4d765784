"""Checks of the ops that move and count rows: their contracts are exact, whatever order they allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict
from moecheck.formats import AnyArray
from moecheck.oracle import reference_modules

Ints = npt.NDArray[np.integer[Any]]


def judge_structure(
    case: Case, inputs: dict[str, Any], outputs: tuple[AnyArray, ...], expected: tuple[AnyArray, ...]
) -> Judgement:
    """PASS or PROVEN_WRONG: the first violation of the op's contract, with its place."""
    # The -1 of an absent row compares as such only where the integers are signed.
    signed = tuple(output.view(np.int32) if output.dtype == np.uint32 else output for output in outputs)
    violation = _CONTRACTS[case.op](inputs, signed, expected)
    if violation is None:
        return Judgement(check="structure", verdict=Verdict.PASS)
    message, where = violation
    return Judgement(check="structure", verdict=Verdict.PROVEN_WRONG, message=message, where=where)


Violation = tuple[str, dict[str, int]] | None
Contract = Callable[[dict[str, Any], tuple[Any, ...], tuple[Any, ...]], Violation]


def _align_block_size(inputs: dict[str, Any], outputs: tuple[Any, ...], expected: tuple[Any, ...]) -> Violation:
    """Blocks of experts that live on other ranks may be absent, or present and marked -1: engines do either."""
    violation = _aligned(inputs, outputs, expected)
    if violation is None or "expert_map" not in inputs:
        return violation
    reference = reference_modules()["align_block_size"].align_block_size
    ids, experts, padded = reference(**{name: value for name, value in inputs.items() if name != "expert_map"})
    marked = np.where(experts >= 0, inputs["expert_map"][np.maximum(experts, 0)], -1)
    return None if _aligned(inputs, outputs, (ids, marked, padded)) is None else violation


def _aligned(inputs: dict[str, Any], outputs: tuple[Any, ...], expected: tuple[Any, ...]) -> Violation:
    """Each expert's (token, slot) indices in any order inside its own blocks; nothing beyond the padded count."""
    ids, experts, padded = outputs
    want_ids, want_experts, want_padded = expected
    block, count = inputs["block_size"], int(want_padded.reshape(-1)[0])
    if padded.size != 1 or int(padded.reshape(-1)[0]) != count:
        return f"num_tokens_post_padded is {padded.reshape(-1)[:4].tolist()}, expected [{count}].", {}
    if ids.size < count or experts.size < count // block:
        return f"sorted_token_ids has {ids.size} entries and expert_ids {experts.size}; {count} rows need more.", {}
    got_experts, want_experts = experts[: count // block], want_experts[: count // block]
    if (got_experts != want_experts).any():
        at = int(np.flatnonzero(got_experts != want_experts)[0])
        return f"block {at} belongs to expert {got_experts[at]}, expected {want_experts[at]}.", {"block": at}
    start = 0
    while start < count:  # one run of blocks per expert
        stop = start + block
        while stop < count and want_experts[stop // block] == want_experts[start // block]:
            stop += block
        if not np.array_equal(np.sort(ids[start:stop]), np.sort(want_ids[start:stop])):
            expert = int(want_experts[start // block])
            lost = sorted(set(want_ids[start:stop].tolist()) - set(ids[start:stop].tolist()))
            return (
                f"blocks {start // block} to {stop // block - 1} of expert {expert} hold other rows than they should"
                + (f"; (token, slot) index {lost[0]} is missing." if lost else "."),
                {"block": start // block},
            )
        start = stop
    return None


def _permute(inputs: dict[str, Any], outputs: tuple[Any, ...], expected: tuple[Any, ...]) -> Violation:
    """Rows of an expert may come in any order; the inverse map must lead back to each token's own row."""
    permuted, scale, starts, inverse = outputs
    _, _, want_starts, want_inverse = expected
    if starts.shape != want_starts.shape:
        return f"expert_starts has {starts.size} entries, expected {want_starts.size}.", {}
    if not np.array_equal(starts, want_starts):
        at = int(np.flatnonzero(starts != want_starts)[0])
        return f"expert_starts[{at}] is {starts[at]}, expected {want_starts[at]}.", {"expert": at}
    local = want_inverse >= 0
    rows = int(want_starts[-1])
    if (inverse[~local] != -1).any():
        token, slot = (int(i) for i in np.argwhere(~local & (inverse != -1))[0])
        return f"inv_permuted_idx[{token}, {slot}] is {inverse[token, slot]}, expected -1.", {"token": token}
    if not np.array_equal(np.sort(inverse[local]), np.arange(rows)):
        return f"inv_permuted_idx does not lead to each of the {rows} rows exactly once.", {}
    for token, slot in np.argwhere(local):
        row, want_row = int(inverse[token, slot]), int(want_inverse[token, slot])
        expert = int(np.searchsorted(want_starts, want_row, side="right")) - 1
        where = {"token": int(token), "slot": int(slot)}
        if not want_starts[expert] <= row < want_starts[expert + 1]:
            return f"token {token}, slot {slot} lies in row {row}, outside the rows of its expert {expert}.", where
        if not same_bits(permuted[row], inputs["hidden_states"][token]):
            return f"row {row} does not hold the hidden state of token {token}.", {**where, "row": row}
        if "hidden_scale" in inputs and not same_bits(scale[row], inputs["hidden_scale"][token]):
            return f"row {row} of permuted_scale does not hold the scale of token {token}.", {**where, "row": row}
    return None


def _equal(names: tuple[str, ...]) -> Contract:
    def contract(inputs: dict[str, Any], outputs: tuple[Any, ...], expected: tuple[Any, ...]) -> Violation:
        for name, got, want in zip(names, outputs, expected, strict=True):
            if got.shape != want.shape:
                return f"{name} has shape {list(got.shape)}, expected {list(want.shape)}.", {}
            differing = bit_patterns(got) != bit_patterns(want.astype(got.dtype))
            if differing.any():
                place = tuple(int(i) for i in np.argwhere(differing)[0])
                text = ", ".join(map(str, place))
                return f"{name}[{text}] is {got[place]}, expected {want[place]}.", {"row": place[0]}
        return None

    return contract


def bit_patterns(array: AnyArray) -> npt.NDArray[np.unsignedinteger[Any]]:
    """The array's elements as unsigned integers of the same size."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}").reshape(array.shape)


def same_bits(got: AnyArray, want: AnyArray) -> bool:
    """Equal bit patterns, so that NaN equals itself and -0 differs from 0."""
    return got.shape == want.shape and bool((bit_patterns(got) == bit_patterns(want)).all())


_CONTRACTS = {
    "align_block_size": _align_block_size,
    "expert_counts": _equal(("expert_counts",)),
    "permute": _permute,
    "problem_sizes": _equal(("expert_starts", "problem_sizes1", "problem_sizes2")),
    "shuffle_rows": _equal(("out",)),
}
