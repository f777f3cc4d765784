"""Where tokens and experts lie, and on how many ranks, changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moecheck.cases import Case
from moecheck.relations.premises import plain_weights, takes, tokens
from moecheck.relations.relation import Call, Calls, Inputs, Pair, Subject, Trial, relation
from moecheck.relations.rows import EVERY, like_the_case

OPS = ("expert_parallel_moe",)
ENDS = 2  # experts on one rank and on all of the others


def several_ranks(subject: Subject) -> str | None:
    """Something is sent."""
    return None if subject.case.num_ranks > 1 else "has one rank"


def plain_placement(subject: Subject) -> str | None:
    """The case itself says nothing of places."""
    return None if subject.case.map_style == "linear" else "has a placement of its own"


@relation(
    "the number of ranks does not count",
    ops=OPS,
    premises=(tokens(1), several_ranks, plain_placement),
)
def rank_counts(case: Case, inputs: Inputs) -> Trial:
    """All on one rank; and where there are more than two, on half as many."""
    counts = [1] if case.num_ranks % 2 or case.num_ranks == 2 else [1, case.num_ranks // 2]
    left = {name: value for name, value in inputs.items() if name != "rank_tokens"}
    return _all_equal(
        [
            Call(case=replace(case, num_ranks=count, uneven_ranks=False), inputs={**left, "num_ranks": count})
            for count in counts
        ]
    )


@relation(
    "which rank a token lies on does not count",
    ops=OPS,
    premises=(tokens(2), several_ranks, takes("rank_tokens")),
)
def token_places(case: Case, inputs: Inputs) -> Trial:
    """All tokens on the first rank; all on the last; one on the first and the others on the last."""
    first = np.zeros(case.num_ranks, np.int32)
    first[0] = case.num_tokens
    split = first[::-1].copy()
    split[[0, -1]] = 1, case.num_tokens - 1
    changed = replace(case, uneven_ranks=True)
    shares = (first, first[::-1].copy(), split)
    return _all_equal([Call(case=changed, inputs={**inputs, "rank_tokens": share}) for share in shares])


@relation(
    "which rank an expert lies on does not count",
    ops=OPS,
    premises=(tokens(1), several_ranks, takes("expert_placement")),
)
def expert_places(case: Case, inputs: Inputs) -> Trial:
    """In reverse, and every num_ranks-th expert on a rank."""
    experts = np.arange(case.num_experts, dtype=np.int32)
    by_turns = experts.reshape(-1, case.num_ranks).T.reshape(-1).copy()
    placements = ((experts[::-1].copy(), "shuffled"), (by_turns, "round_robin"))
    return _all_equal(
        [
            Call(case=replace(case, map_style=style), inputs={**inputs, "expert_placement": placement})  # type: ignore[arg-type]  # the styles above
            for placement, style in placements
        ]
    )


@relation(
    "copies of an expert on several ranks change nothing",
    ops=OPS,
    premises=(tokens(1), several_ranks, takes("expert_placement")),
)
def expert_copies(case: Case, inputs: Inputs) -> Trial:
    """Each rank has one place more, for a copy of an expert of the rank before it."""
    per_rank = case.num_experts // case.num_ranks
    own = np.arange(case.num_experts, dtype=np.int32).reshape(case.num_ranks, per_rank)
    placement = np.concatenate([own, np.roll(own[:, :1], 1, axis=0)], axis=1).reshape(-1)
    call = Call(case=replace(case, map_style="shuffled"), inputs={**inputs, "expert_placement": placement})
    return _all_equal([call])


@relation(
    "experts of some ranks and experts of the others sum to the whole",
    ops=OPS,
    premises=(tokens(1), plain_weights),
    keeps_shapes=True,
)
def silent_experts(case: Case, inputs: Inputs) -> Trial:
    """In one call the first half of the experts gives zeros, in the other the second half: w2 and its bias are 0."""
    half = max(1, case.num_experts // ENDS)
    calls = []
    for silent in (slice(0, half), slice(half, None)):
        changed: Inputs = {name: inputs[name].copy() for name in ("w2", "w2_bias") if name in inputs}
        for array in changed.values():
            array[silent] = 0
        calls.append(Call(case=case, inputs={**inputs, **changed}))

    def pairs(seen: Calls) -> tuple[Pair, ...]:
        return (
            Pair(
                wanted=seen.outputs[0],
                got=seen.outputs[1] + seen.outputs[2],
                allowed=lambda: np.sqrt(np.sum([np.square(seen.allowed(i)) for i in range(3)], axis=0)),
            ),
        )

    return Trial(calls=tuple(calls), pairs=pairs)


def _all_equal(calls: list[Call]) -> Trial:
    """Each call gives what the case itself gives."""
    return Trial(
        calls=tuple(calls),
        pairs=lambda seen: tuple(like_the_case(seen, i + 1, rows=EVERY) for i in range(len(calls))),
    )
