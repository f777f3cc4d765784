"""Large cases: what a kernel gets, which tokens the reference computes, and what it gets of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from . import draw
from .cases import Case
from .formats import Float64, to_float64
from .inputs import build
from .window_quantized import DequantisedStack
from .window_weights import WindowStack

Ids = npt.NDArray[np.intp]
BLOCKS = (16, 64, 128)  # rows of one expert that kernels compute together
# op -> its inputs with a row for each token
PER_TOKEN = {
    "fused_experts": ("hidden_states", "topk_ids", "topk_weights"),
    "moe_layer": ("hidden_states", "router_logits", "token_ids"),
    "expert_parallel_moe": ("hidden_states", "router_logits"),
    "unpermute": ("topk_weights", "inv_permuted_idx"),
}


class PlainStack:
    """A stack [count, rows, columns] of float64 matrices, each made when asked for."""

    def __init__(self, stack: WindowStack) -> None:
        self.shape = (stack.count, stack.rows, stack.columns)
        self._stack = stack

    def __getitem__(self, expert: int, /) -> Float64:
        return self._stack.float64(expert)


@lru_cache(maxsize=2)
def lazy_inputs(case: Case) -> dict[str, Any]:
    """The arguments of a sampled case, weights and their scales as WindowStacks; do not modify them."""
    return build(case, lazy=True)


def oracle_inputs(case: Case) -> dict[str, Any]:
    """The reference's arguments for the sampled tokens; experts' weights as lazy float64 stacks, without scales."""
    inputs, rows = lazy_inputs(case), sampled_rows(case)
    taken: dict[str, Any] = {name: inputs[name][rows] for name in PER_TOKEN[case.op] if name in inputs}
    if case.op == "unpermute":  # each (token, slot) gets a row of its own
        source = taken["inv_permuted_idx"]
        place = np.arange(source.size, dtype=np.int32).reshape(source.shape)
        taken["permuted"] = inputs["permuted"][np.maximum(source, 0).reshape(-1)]
        taken["inv_permuted_idx"] = np.where(source < 0, np.int32(-1), place)
    stacks = {name: value for name, value in inputs.items() if isinstance(value, WindowStack)}
    rest = {name: value for name, value in inputs.items() if name not in stacks}
    return {**rest, **taken, **{name: _numbers(case, name, stacks) for name in ("w13", "w2") if name in stacks}}


def _numbers(case: Case, name: str, stacks: dict[str, WindowStack]) -> PlainStack | DequantisedStack:
    quantization = case.spec.experts.quantization
    if quantization is None:
        return PlainStack(stacks[name])
    return DequantisedStack(codes=stacks[name], scales=stacks[f"{name}_scale"], quantization=quantization)


@lru_cache(maxsize=16)
def sampled_rows(case: Case) -> Ids:
    """The tokens that the reference computes, ascending; all of them where the case has no more.

    The first and the last one, padded ones, those at the ends and block boundaries of the busiest expert's rows and
    all rows of the emptiest; then those that together visit as many experts as possible; the rest at random.
    """
    count = case.num_tokens
    if count <= case.sampled:
        return np.arange(count)
    order = np.argsort(draw.integers((case.key, "sample"), (count,), below=1 << 32), kind="stable")
    wanted = [0, count - 1]
    experts = experts_of_tokens(case, lazy_inputs(case))
    if experts is not None:
        wanted += _edges(experts)
        kept = list(dict.fromkeys(wanted))[: max(2, case.sampled // 2)]
        wanted = kept + _visiting(experts, kept, order, most=case.sampled - len(kept))
    chosen = list(dict.fromkeys([*wanted, *order.tolist()]))[: case.sampled]
    return np.sort(np.array(chosen, np.intp))


def experts_seen(case: Case) -> tuple[int, int]:
    """How many experts the sampled tokens go to, and all tokens."""
    experts = experts_of_tokens(case, lazy_inputs(case))
    if experts is None:
        return 0, 0
    some, every = experts[sampled_rows(case)], experts
    return len(np.unique(some[some >= 0])), len(np.unique(every[every >= 0]))


def experts_of_tokens(case: Case, inputs: dict[str, Any]) -> npt.NDArray[np.int64] | None:
    """[T, top_k]: the experts of each token, -1 for none here; of a layer those with the largest logits.

    None for an op whose tokens have no experts.
    """
    if "router_logits" in inputs:
        logits = to_float64(inputs["router_logits"])
        return np.argsort(-logits, axis=1, kind="stable")[:, : case.spec.routing.top_k]
    if "topk_ids" not in inputs:
        return None
    ids = inputs["topk_ids"].astype(np.int64)
    if "expert_map" not in inputs:
        return np.asarray(ids)
    return np.where(ids >= 0, inputs["expert_map"].astype(np.int64)[np.maximum(ids, 0)], -1)


def _edges(experts: npt.NDArray[np.int64]) -> list[int]:
    """Tokens at the edges of what kernels compute together."""
    tokens = np.arange(len(experts))
    missing = (experts < 0).sum(axis=1)
    padded = [*tokens[missing == experts.shape[1]][:2], *tokens[(missing > 0) & (missing < experts.shape[1])][:2]]
    counts = np.bincount(experts[experts >= 0])
    edges: list[int] = [int(token) for token in padded]
    if not counts.size:
        return edges
    busiest, emptiest = int(np.argmax(counts)), int(np.argmin(np.where(counts > 0, counts, np.iinfo(np.int64).max)))
    rows = np.nonzero((experts == busiest).any(axis=1))[0]
    places = [0, len(rows) - 1, *(p for block in BLOCKS for p in (block - 1, block) if p < len(rows))]
    few = np.nonzero((experts == emptiest).any(axis=1))[0][:4]
    return [*edges, *(int(rows[p]) for p in places), *map(int, few)]


def _visiting(experts: npt.NDArray[np.int64], chosen: list[int], order: Ids, *, most: int) -> list[int]:
    """At most so many tokens more, each the one that visits most experts which no token before does."""
    new = np.ones(int(experts.max(initial=0)) + 2, bool)
    new[-1] = False  # where -1 points
    new[experts[chosen]] = False
    new[-1] = False
    visiting: list[int] = []
    while len(visiting) < most:
        gain = new[experts[order]].sum(axis=1)
        best = int(np.argmax(gain))
        if gain[best] == 0:
            break
        visiting.append(int(order[best]))
        new[experts[order[best]]] = False
    return visiting
