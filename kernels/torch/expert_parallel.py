"""Expert-parallel MoE over processes: torch.distributed's all_to_all_single, gloo on CPUs and NCCL on GPUs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import moecheck
import torch
import torch.distributed as dist
from moecheck.numerics import INPUT
from moecheck.placement import replicas_of

from ._rank_group import give_up, rank_group
from .index_add import feed_forward
from .routing import topk_routing

Tensors = dict[str, torch.Tensor]
OF_TOKENS = ("hidden_states", "router_logits", "token")
OF_EXPERTS = ("w13", "w2", "w13_bias", "w2_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call, to a rank other than 0. shapes: of the tensors that rank 0 sends next, by name, with their dtypes."""

    num_ranks: int
    spec: moecheck.MoESpec
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]


@moecheck.kernel(
    "expert_parallel_moe",
    backend="torch",
    name="torch/distributed",
    numerics=moecheck.Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT),
    deterministic=True,
    devices=4,
)
def expert_parallel_moe(
    *,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    num_ranks: int,
    correction_bias: torch.Tensor | None = None,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    rank_tokens: torch.Tensor | None = None,
    expert_placement: torch.Tensor | None = None,
    spec: moecheck.MoESpec,
) -> torch.Tensor:
    """Each rank routes its tokens, sends a row for each slot to its expert's rank, and gets the expert's output back.

    hidden_states: [T, H]. router_logits: [T, E] float32. w13: [E, 2I or I, H]. w2: [E, H, I]. rank_tokens: [P], tokens
    of each rank. expert_placement: [Q], the expert of each place. Others as in fused_experts. Returns [T, H].
    """
    if spec.experts.weight_on_input or spec.routing.scaling_placement != "topk_weights":
        raise moecheck.Unsupported("weights the experts' outputs, with the routed scaling factor in the weights")
    arrays = {"w13": w13, "w2": w2, "w13_bias": w13_bias, "w2_bias": w2_bias}
    experts = {name: array for name, array in arrays.items() if array is not None}
    if expert_placement is not None:
        experts = {name: array[expert_placement.long()] for name, array in experts.items()}
    tokens = {
        "hidden_states": hidden_states,
        "router_logits": router_logits,
        "token": torch.arange(len(hidden_states), device=hidden_states.device),
    }
    common = {**_places(expert_placement, router_logits.shape[1], hidden_states.device)}
    if correction_bias is not None:
        common["correction_bias"] = correction_bias
    counts = _even(len(hidden_states), num_ranks) if rank_tokens is None else rank_tokens.tolist()
    shares = [
        {**mine, **theirs, **common}
        for mine, theirs in zip(_cut(tokens, counts), _cut(experts, _even(len(experts["w13"]), num_ranks)), strict=True)
    ]
    if num_ranks == 1:
        return compute(shares[0], spec=spec, group=None)
    ranks = rank_group(num_ranks, hidden_states.device.type)
    try:
        for rank in range(1, num_ranks):
            shapes = {name: (tuple(array.shape), array.dtype) for name, array in shares[rank].items()}
            ranks.tell(rank, Request(num_ranks=num_ranks, spec=spec, shapes=shapes))
            for array in shares[rank].values():
                _send(array, rank)
        outputs = [compute(shares[0], spec=spec, group=ranks.groups[num_ranks])]
        for rank in range(1, num_ranks):
            like = shares[rank]["hidden_states"]
            outputs.append(_receive(tuple(like.shape), like.dtype, like.device.type, rank))
    except BaseException:
        give_up()
        raise
    return torch.cat(outputs)


def receive_and_compute(request: Request, *, device: str, group: dist.ProcessGroup) -> None:
    """A rank other than 0: its share comes from rank 0, and its tokens' outputs go there."""
    share = {name: _receive(shape, dtype, device, 0) for name, (shape, dtype) in request.shapes.items()}
    _send(compute(share, spec=request.spec, group=group), 0)


def compute(share: Tensors, *, spec: moecheck.MoESpec, group: dist.ProcessGroup | None) -> torch.Tensor:
    """One rank's tokens: [t, H]. share: its part of the arguments. group: None for a rank that is alone."""
    hidden, local = share["hidden_states"], len(share["w13"])
    weights, ids = topk_routing(
        router_logits=share["router_logits"], correction_bias=share.get("correction_bias"), spec=spec.routing
    )
    copies = share["copies"][ids.long()]
    place = share["places"][ids.long(), share["token"][:, None] % copies].flatten()
    order = place.argsort(stable=True)  # by rank, and by expert within it
    num_ranks = 1 if group is None else dist.get_world_size(group)
    sent = torch.bincount(place // local, minlength=num_ranks)
    come = _exchange(sent, None, None, group)
    rows = _exchange(hidden[order // spec.routing.top_k], sent, come, group)
    experts = _exchange((place % local)[order], sent, come, group)
    computed = _local_experts(rows, experts, share, spec.experts)
    back = _exchange(computed, come, sent, group)
    slots = torch.empty_like(back)
    slots[order] = back
    summed = (slots.view(*weights.shape, hidden.shape[1]).float() * weights[..., None]).sum(dim=1)
    return summed.to(hidden.dtype)


def _local_experts(
    rows: torch.Tensor, experts: torch.Tensor, share: Tensors, spec: moecheck.ExpertSpec
) -> torch.Tensor:
    """Each row's expert, stored in the rows' dtype: [R, H]."""
    computed = torch.empty_like(rows)
    for expert in torch.unique(experts).tolist():
        mine = experts == expert
        own = {name: share[name][expert] if name in share else None for name in OF_EXPERTS}
        computed[mine] = feed_forward(rows[mine], spec=spec, **own)  # type: ignore[arg-type]  # w13 and w2 are there
    return computed


def _exchange(
    rows: torch.Tensor, sent: torch.Tensor | None, come: torch.Tensor | None, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """Rows [R, ...] in the order of the ranks that they go to, as rows in the order of those that they come from.

    sent, come: [P] int64, how many go to and come from each rank; None for one each.
    """
    if group is None:
        return rows
    if sent is None or come is None:
        got = torch.empty_like(rows)
        dist.all_to_all_single(got, rows, group=group)
        return got
    got = rows.new_empty(int(come.sum()), *rows.shape[1:])
    dist.all_to_all_single(_rows(got), _rows(rows), come.tolist(), sent.tolist(), group=group)
    return got


def _rows(array: torch.Tensor) -> torch.Tensor:
    """The same memory as rows of bytes: every backend moves those."""
    rows = array[:, None] if array.dim() == 1 else array
    return rows.contiguous().view(torch.uint8)


def _send(array: torch.Tensor, rank: int) -> None:
    """An array of a shape that the other rank knows."""
    if array.numel():
        dist.send(array.contiguous().view(-1).view(torch.uint8), rank)


def _receive(shape: tuple[int, ...], dtype: torch.dtype, device: str, rank: int) -> torch.Tensor:
    array = torch.empty(shape, dtype=dtype, device=device)
    if array.numel():
        dist.recv(array.view(-1).view(torch.uint8), rank)
    return array


def _even(count: int, num_ranks: int) -> list[int]:
    return [count // num_ranks + (rank < count % num_ranks) for rank in range(num_ranks)]


def _cut(arrays: Tensors, counts: list[int]) -> list[Tensors]:
    """Consecutive rows of each array, so many for each rank."""
    parts = {name: torch.split(array, counts) for name, array in arrays.items()}
    return [{name: part[rank] for name, part in parts.items()} for rank in range(len(counts))]


def _places(placement: torch.Tensor | None, num_experts: int, device: torch.device) -> Tensors:
    """Places [E, most copies] and copies [E], int64: where each expert lies, and how often."""
    logical = np.arange(num_experts) if placement is None else placement.cpu().numpy()
    replicas = replicas_of(logical, num_experts)
    return {
        "places": torch.from_numpy(replicas.physical.astype(np.int64)).to(device),
        "copies": torch.from_numpy(replicas.counts.astype(np.int64)).to(device),
    }
