"""Reference of `problem_sizes`: row offsets and the sizes of each expert's two GEMMs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecheck.formats import AnyArray

from ._experts_of_slots import count_local_experts, local_ids

Int32 = npt.NDArray[np.int32]


def problem_sizes(
    *,
    topk_ids: AnyArray,
    num_experts: int,
    intermediate_size: int,
    hidden_size: int,
    expert_map: AnyArray | None = None,
) -> tuple[Int32, Int32, Int32]:
    """Sizes (rows, columns, contraction): (n_e, 2I, H) for the first GEMM, (n_e, H, I) for the second.

    topk_ids: [T, k] int, global, -1 = none, which counts nowhere. expert_map: [num_experts] int, global to local id,
    -1 = not here. Returns expert_starts [E_local + 1] int32, the exclusive prefix sum of n_e ending in the total;
    problem_sizes1 and problem_sizes2 [E_local, 3] int32, by local expert; E_local = num_experts without a map.
    Source: get_cutlass_moe_mm_data and get_cutlass_moe_mm_problem_sizes without swap_ab, gated
    (both vLLM; the former also swaps rows and columns for small batches).
    """
    ids = local_ids(topk_ids, expert_map)
    counts = np.bincount(ids[ids >= 0], minlength=count_local_experts(num_experts, expert_map))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    sizes1 = [(n, 2 * intermediate_size, hidden_size) for n in counts]
    sizes2 = [(n, hidden_size, intermediate_size) for n in counts]
    return starts, np.array(sizes1, dtype=np.int32), np.array(sizes2, dtype=np.int32)
