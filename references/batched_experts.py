"""Reference of `batched_experts`: experts on rows that lie expert by expert, neither weighted nor added up."""

from __future__ import annotations

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from . import expert_outputs as of_slots
from ._errors import Errors
from ._expert import ExpertArrays


def batched_experts(
    *,
    hidden_states: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    expert_counts: AnyArray,
    spec: ExpertSpec,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> Float64:
    """y[e, i] = E_e(x[e, i]) for i < expert_counts[e]: each expert's rows are the first of its C.

    hidden_states: [E, C, H] storage dtype; rows from expert_counts[e] on are garbage and are not read. expert_counts:
    [E] int, at most C. Other arguments as in expert_outputs. Returns [E, C, H] float64, NaN in garbage rows, which a
    kernel may leave as it likes.
    Source: vLLM's BatchedExperts format (expert_num_tokens); DeepGEMM's masked grouped GEMM (masked_m); DeepEP's
    low-latency dispatch.
    """
    y = of_slots.expert_outputs(
        hidden_states=_rows(hidden_states),
        topk_ids=_expert_of_rows(hidden_states, expert_counts),
        w13=w13,
        w2=w2,
        spec=spec,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        numerics=numerics,
        dtype=dtype,
    )
    return y.reshape(hidden_states.shape)


def estimate(
    *,
    hidden_states: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    expert_counts: AnyArray,
    spec: ExpertSpec,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
    flips: bool = False,
    rows: bool = True,
    both: bool = False,
) -> Errors:
    """Value and error of a kernel's y, a row for each of x: [E C, H]. Arguments as above and in expert_outputs."""
    return of_slots.estimate(
        hidden_states=_rows(hidden_states),
        topk_ids=_expert_of_rows(hidden_states, expert_counts),
        w13=w13,
        w2=w2,
        spec=spec,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        numerics=numerics,
        dtype=dtype,
        flips=flips,
        rows=rows,
        both=both,
    )


def _rows(hidden_states: AnyArray) -> AnyArray:
    return hidden_states.reshape(-1, hidden_states.shape[2])


def _expert_of_rows(hidden_states: AnyArray, expert_counts: AnyArray) -> AnyArray:
    """The expert of each row as a slot of its own, -1 for garbage: [E C, 1]."""
    experts, room = hidden_states.shape[:2]
    held = np.arange(room)[None] < expert_counts[:, None]
    return np.where(held, np.arange(experts)[:, None], -1).reshape(-1, 1)
