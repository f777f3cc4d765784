"""Mutants of experts that lie on several ranks: exchanges of a wrong size, wrong offsets, places and reductions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moecheck.cases import Case
from moecheck.formats import to_float64
from moecheck.oracle import reference_modules

from .call import Call, Ids, Mutation, Term, slots_of, with_slots
from .registry import mutant

OP = "expert_parallel_moe"
Ranks = npt.NDArray[np.int64]


def several(case: Case) -> bool:
    return case.num_ranks > 1


def placed(case: Case) -> bool:
    return case.num_ranks > 1 and case.map_style != "linear"


def uneven(case: Case) -> bool:
    return case.num_ranks > 1 and case.uneven_ranks


def idle(case: Case) -> bool:
    """A rank has no tokens."""
    return case.num_ranks > 1 and (case.uneven_ranks or case.num_tokens < case.num_ranks)


@mutant("rank_offset", "a rank's expert ids start at those of the next rank", OP, when=several)
def rank_offset(call: Call) -> Call:
    ids, case = slots_of(call).ids, call.case
    return with_slots(call, ids=np.where(ids < 0, ids, (ids + case.num_experts // case.num_ranks) % case.num_experts))


@mutant("local_ids", "local ids are looked up in the first rank's weights on every rank", OP, when=several)
def local_ids(call: Call) -> Call:
    ids, case = slots_of(call).ids, call.case
    return with_slots(call, ids=np.where(ids < 0, ids, ids % (case.num_experts // case.num_ranks)))


@mutant(
    "placement_ignored",
    "ids are sent to ranks as if experts lay in ascending order",
    OP,
    when=placed,
)
def placement_ignored(call: Call) -> Call:
    ids, placement = slots_of(call).ids, np.asarray(call.inputs["expert_placement"])
    return with_slots(call, ids=np.where(ids < 0, ids, placement[np.maximum(ids, 0)]).astype(ids.dtype))


@mutant("exchange_short", "the all-to-all is one row too short: the last one for each rank is lost", OP, when=several)
def exchange_short(call: Call) -> Call:
    return _without(call, lambda position, count, _: position == count - 1)


@mutant(
    "exchange_even", "the all-to-all sends equally many rows to every rank, and leaves out the others", OP, when=several
)
def exchange_even(call: Call) -> Call:
    return _without(call, lambda position, _, mean: position >= mean)


@mutant("nothing_sent", "tokens meet the experts of their own rank only", OP, when=several)
def nothing_sent(call: Call) -> Call:
    ids, source = slots_of(call).ids, _source(call)
    return with_slots(call, ids=np.where(_destination(call) == source[:, None], ids, -1))


@mutant("own_rank_twice", "what a rank's own experts make of its tokens is added up twice", OP, when=several)
def own_rank_twice(call: Call) -> Call:
    slots, source = slots_of(call), _source(call)
    return with_slots(call, weights=slots.weights * np.where(_destination(call) == source[:, None], 2.0, 1.0))


@mutant("idle_rank_left", "a rank without tokens takes no part: its experts' outputs are missing", OP, when=idle)
def idle_rank_left(call: Call) -> Call:
    ids = slots_of(call).ids
    busy = np.bincount(_source(call), minlength=call.case.num_ranks) > 0
    return with_slots(call, ids=np.where(busy[_destination(call)], ids, -1))


@mutant("last_rank_lost", "the sum over the ranks leaves out the last one", OP, when=several)
def last_rank_lost(call: Call) -> Call:
    ids = slots_of(call).ids
    return with_slots(call, ids=np.where(_destination(call) == call.case.num_ranks - 1, -1, ids))


@mutant("mean_of_ranks", "the ranks' sums are averaged", OP, when=several)
def mean_of_ranks(call: Call) -> Mutation:
    return (Term(call=call, factor=1.0 / call.case.num_ranks),)


@mutant("reduced_twice", "the sum over the ranks is made twice", OP, when=several, sources=("vllm-project/vllm#28277",))
def reduced_twice(call: Call) -> Mutation:
    return (Term(call=call, factor=float(call.case.num_ranks)),)


@mutant(
    "returned_to_neighbour", "outputs come back to the rank after the one that their tokens lie on", OP, when=several
)
def returned_to_neighbour(call: Call) -> Mutation:
    own = _tokens(call)
    rows = np.arange(call.case.num_tokens)
    for rank, tokens in enumerate(own):
        others = rows[own[rank - 1]]
        rows_here = np.arange(tokens.start, tokens.stop)
        rows[tokens] = np.resize(others, len(rows_here)) if len(others) else rows_here
    return (Term(call=call, rows=rows),)


@mutant(
    "even_shares",
    "ranks' tokens are taken for equally many: rows beyond a rank's share are not written",
    OP,
    when=uneven,
)
def even_shares(call: Call) -> Mutation:
    share = -(-call.case.num_tokens // call.case.num_ranks)
    written = np.zeros((call.case.num_tokens, 1))
    for tokens in _tokens(call):
        written[tokens.start : min(tokens.stop, tokens.start + share)] = 1.0
    return (Term(call=call, factor=to_float64(written)),)


def _tokens(call: Call) -> list[slice]:
    """The tokens of each rank."""
    reference = reference_modules()[OP]
    tokens: list[slice] = reference.tokens_of_ranks(
        call.case.num_tokens, call.case.num_ranks, call.inputs.get("rank_tokens")
    )
    return tokens


def _source(call: Call) -> Ranks:
    """[T]: the rank of each token."""
    counts = [tokens.stop - tokens.start for tokens in _tokens(call)]
    return np.repeat(np.arange(len(counts)), counts)


def _destination(call: Call) -> Ids:
    """[T, top_k]: the rank of each slot's expert."""
    case, ids = call.case, slots_of(call).ids
    place = reference_modules()[OP].ranks_of_experts(
        case.num_experts, case.num_ranks, call.inputs.get("expert_placement")
    )
    return np.asarray(place[np.maximum(ids, 0)])


def _without(call: Call, lost: Callable[[Ids, int, int], npt.NDArray[np.bool_]]) -> Call:
    """The call without the slots of which lost(position, count, mean) is true.

    position: of a slot among the `count` ones that its token's rank sends to the same rank; mean: that of the counts.
    """
    ids, destination, source = slots_of(call).ids.copy(), _destination(call), _source(call)
    ranks = call.case.num_ranks
    for rank in range(ranks):
        rows = np.flatnonzero(source == rank)
        mean = -(-len(rows) * ids.shape[1] // ranks)
        for other in range(ranks):
            token, slot = np.nonzero(destination[rows] == other)
            gone = lost(np.arange(len(token)), len(token), mean)
            ids[rows[token[gone]], slot[gone]] = -1
    return with_slots(call, ids=ids)
