"""Reference of `permute`: the rows of each local expert gathered together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecheck.formats import AnyArray, Float64, to_float64

from ._experts_of_slots import count_local_experts, local_ids

Int32 = npt.NDArray[np.int32]


def permute(
    *,
    hidden_states: AnyArray,
    topk_ids: AnyArray,
    num_experts: int,
    hidden_scale: AnyArray | None = None,
    expert_map: AnyArray | None = None,
) -> tuple[Float64, Float64 | None, Int32, Int32]:
    """One row per (token, slot) with a local expert, in (expert, token, slot) order: a stable sort by local expert.

    hidden_states: [T, H] storage dtype. topk_ids: [T, k] int, global, -1 = none. hidden_scale: [T, G] float32,
    rows that travel with their tokens. expert_map: [num_experts] int, global to local id, -1 = not here.
    Returns permuted [T*k, H] float64; permuted_scale [T*k, G] float64, None without hidden_scale; expert_starts
    [E_local + 1] int32, the exclusive prefix sum of the local experts' rows, ending in their total R_local;
    inv_permuted_idx [T, k] int32, the row of each pair, -1 where it has none.
    Unspecified region: rows R_local and above (pairs without a local expert) of permuted and permuted_scale; a kernel
    may leave anything there, the reference leaves NaN.
    Source: vLLM moe_permute.
    """
    ids = local_ids(topk_ids, expert_map)
    num_slots = ids.size
    counts = np.bincount(ids[ids >= 0], minlength=count_local_experts(num_experts, expert_map))
    expert_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

    pairs = np.flatnonzero(ids.ravel() >= 0)
    pairs = pairs[np.argsort(ids.ravel()[pairs], kind="stable")]
    inverse = np.full(num_slots, -1, dtype=np.int32)
    inverse[pairs] = np.arange(len(pairs), dtype=np.int32)

    tokens = pairs // max(ids.shape[1], 1)
    permuted = _gathered(hidden_states, tokens, num_slots)
    scale = None if hidden_scale is None else _gathered(hidden_scale, tokens, num_slots)
    return permuted, scale, expert_starts, inverse.reshape(ids.shape)


def _gathered(rows: AnyArray, tokens: AnyArray, total: int) -> Float64:
    out = np.full((total, *rows.shape[1:]), np.nan)
    out[: len(tokens)] = to_float64(rows[tokens])
    return out
