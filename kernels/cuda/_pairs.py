"""The stable counting sort of (token, slot) pairs by expert that permute, align and problem sizes share, host side."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import moecheck

from ._library import library
from ._matrix import as_int32

LEAST_TILE = 256  # pairs that one warp puts in order, one 32 after the other
MOST_TILES = 1024
MOST_BUCKETS = 12_288  # as many counts as 48 KiB hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Pairs counted by bucket. counts: [tiles, buckets] int32, totals: [buckets] int32.

    ids: [T, top_k] int32, contiguous. by_global: buckets are global ids, else local ones. tile: pairs of a tile.
    """

    ids: torch.Tensor
    expert_map: torch.Tensor | None
    num_experts: int
    by_global: bool
    tile: int
    counts: torch.Tensor
    totals: torch.Tensor

    def starts(
        self,
        *,
        multiple: int = 1,
        sizes: tuple[torch.Tensor, torch.Tensor] | None = None,
        intermediate_size: int = 0,
        hidden_size: int = 0,
    ) -> torch.Tensor:
        """Where each bucket starts, a multiple of `multiple`: [buckets + 1] int32.

        sizes: two [buckets, 3] int32, filled in with the sizes of both GEMMs.
        """
        starts = torch.empty(len(self.totals) + 1, dtype=torch.int32, device=self.ids.device)
        library().starts(self.totals, multiple, starts, *(sizes or (None, None)), intermediate_size, hidden_size)
        return starts

    def place(
        self,
        *,
        multiple: int = 1,
        starts: torch.Tensor | None = None,
        position_of_pair: torch.Tensor | None = None,
        pair_at: torch.Tensor | None = None,
    ) -> None:
        """Write each pair's position, the pair at each position, and where each bucket starts, whatever is given."""
        library().place(
            self.ids, self.expert_map, self.num_experts, self.by_global, self.tile, multiple, self.counts,
            self.totals, starts, position_of_pair, pair_at,
        )  # fmt: skip


def tile_of(pairs: int) -> int:
    """Pairs of a tile: LEAST_TILE, or so many multiples of 32 that there are at most MOST_TILES tiles."""
    return max(LEAST_TILE, -(-pairs // (MOST_TILES * 32)) * 32)


def local_experts(num_experts: int, expert_map: torch.Tensor | None) -> int:
    """How many experts are here. With a map this waits for the device: shapes of outputs depend on it."""
    return num_experts if expert_map is None else int((expert_map >= 0).sum())


def planned(
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None,
    *,
    num_experts: int,
    buckets: int,
    by_global: bool = False,
) -> Plan:
    """Count the pairs of each bucket; Unsupported for more buckets than fit into a block's shared memory."""
    if buckets > MOST_BUCKETS:
        raise moecheck.Unsupported(f"a block counts {MOST_BUCKETS} experts at most, not {buckets}")
    ids = as_int32(topk_ids)
    expert_map = None if expert_map is None else as_int32(expert_map)
    tile = tile_of(ids.numel())
    counts = torch.empty(-(-ids.numel() // tile), buckets, dtype=torch.int32, device=ids.device)
    totals = torch.empty(buckets, dtype=torch.int32, device=ids.device)
    library().plan(ids, expert_map, num_experts, by_global, tile, counts, totals)
    return Plan(
        ids=ids,
        expert_map=expert_map,
        num_experts=num_experts,
        by_global=by_global,
        tile=tile,
        counts=counts,
        totals=totals,
    )
