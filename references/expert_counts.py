"""Reference of `expert_counts`: how many (token, slot) pairs each local expert has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecheck.formats import AnyArray

from ._experts_of_slots import count_local_experts

Int32 = npt.NDArray[np.int32]


def expert_counts(*, topk_ids: AnyArray, num_experts: int, expert_map: AnyArray | None = None) -> Int32:
    """The number of (t, s) with topk_ids[t, s] = e or, with a map, expert_map[topk_ids[t, s]] = e.

    topk_ids: [T, k] int, global, -1 = none, which counts nowhere. expert_map: [num_experts] int, global to local id,
    -1 = not here. Returns [E_local] int32; E_local = num_experts without a map.
    Source: vLLM's count_expert_num_tokens (expert_num_tokens).
    """
    counts = np.zeros(count_local_experts(num_experts, expert_map), np.int32)
    for expert in topk_ids.ravel():
        local = -1 if expert < 0 else expert if expert_map is None else expert_map[expert]
        if local >= 0:
            counts[local] += 1
    return counts
