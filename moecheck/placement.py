"""Which rank holds which experts, in the conventions of serving engines: maps, masks, and replicas of an expert."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import Unsupported, UsageError

Int32 = npt.NDArray[np.int32]
Ids = npt.NDArray[np.integer[Any]]
Style = Literal["linear", "round_robin"]
Remainder = Literal["first", "last"]
HASH = 2654435769  # 2^32 divided by the golden ratio, Knuth's multiplicative hash


def experts_of_rank(
    rank: int, *, num_experts: int, num_ranks: int, style: Style = "linear", remainder: Remainder = "first"
) -> npt.NDArray[np.intp]:
    """Global ids of a rank's experts, ascending.

    linear: runs of consecutive experts; where they cannot be shared evenly, the `first` num_experts % num_ranks ranks
    have one more each (vLLM's determine_expert_map), or the `last` rank has all that are left (the same function's
    docstring, and its code until 2025). round_robin: every num_ranks-th expert, starting with the rank's own number.
    Raises UsageError for no such rank.
    """
    if not 0 <= rank < num_ranks:
        raise UsageError(f"rank={rank} must lie between 0 and {num_ranks - 1}: there are {num_ranks} ranks.")
    if style == "round_robin":
        return np.arange(rank, num_experts, num_ranks)
    each, more = divmod(num_experts, num_ranks)
    counts = np.full(num_ranks, each)
    if remainder == "first":
        counts[:more] += 1
    else:
        counts[-1] += more
    end = int(counts[: rank + 1].sum())
    return np.arange(end - counts[rank], end)


def expert_map(experts: Ids, num_experts: int) -> Int32:
    """[num_experts] int32, global to local id, -1 for experts that are not here. experts: global ids in local order."""
    mapped = np.full(num_experts, -1, np.int32)
    mapped[experts] = np.arange(len(experts), dtype=np.int32)
    return mapped


def expert_mask(mapped: Int32) -> Int32:
    """The map as AITER wants it: [num_experts + 1] int32, 1 for each expert that is here, 0 for others and at the end.

    The last entry is the sentinel that padding ids are sent to. A mask says nothing of local ids: AITER counts the ones
    before each expert. Raises Unsupported for a map that has another order. Source: vLLM's determine_expert_map with
    return_expert_mask=True, and AITER's tests (op_tests/test_moe_ep.py).
    """
    local = mapped[mapped >= 0]
    if not np.array_equal(local, np.arange(len(local))):
        raise Unsupported("the local ids of this expert_map do not ascend with the global ones: no mask can say that")
    return np.append(mapped >= 0, False).astype(np.int32)


def map_of_mask(mask: Ids) -> Int32:
    """The inverse of `expert_mask`: [len(mask) - 1] int32. Raises UsageError for what is no mask with a sentinel."""
    if len(mask) == 0 or mask[-1] != 0 or not np.isin(mask, (0, 1)).all():
        raise UsageError("An expert mask holds 0 and 1 and ends with a 0; an expert_map is no mask.")
    return expert_map(np.flatnonzero(mask), len(mask) - 1)


class Replicas(NamedTuple):
    """Physical experts as copies of logical ones. logical: [P] int, the logical id of each physical one. physical:
    [E, most copies] int32, the physical ids of each logical one, filled up with -1. counts: [E] int32.
    """

    logical: npt.NDArray[np.intp]
    physical: Int32
    counts: Int32


def replicas_of(logical: Ids, num_experts: int) -> Replicas:
    """The tables of physical experts that hold the given logical ones. Raises UsageError for one without a copy."""
    counts = np.bincount(logical, minlength=num_experts)
    if len(counts) > num_experts or (counts == 0).any():
        raise UsageError(f"Each of {num_experts} logical experts needs a physical one, and no others may have one.")
    table = np.full((num_experts, int(counts.max())), -1, np.int32)
    for expert in range(num_experts):
        table[expert, : counts[expert]] = np.flatnonzero(logical == expert)
    return Replicas(np.asarray(logical, np.intp), table, counts.astype(np.int32))


def physical_ids(topk_ids: Ids, replicas: Replicas, *, rule: Literal["hash", "slot"] = "hash") -> Int32:
    """A physical id for each logical one, -1 for -1: [T, top_k] int32.

    Of an expert's R copies a token takes number (token * HASH mod 2^32) mod R (`hash`), or (position in the flattened
    ids) mod R (`slot`), which always takes the same one where R divides top_k (vllm-project/vllm#40810).
    """
    token = np.arange(len(topk_ids), dtype=np.uint64)[:, None]
    place = (token * np.uint64(HASH)) % np.uint64(1 << 32) if rule == "hash" else np.arange(topk_ids.size)
    known = np.maximum(topk_ids, 0)
    copy = np.broadcast_to(place.reshape(len(topk_ids), -1).astype(np.int64), topk_ids.shape) % replicas.counts[known]
    return np.where(topk_ids < 0, -1, replicas.physical[known, copy]).astype(np.int32)
