"""The operations that moecheck judges: their arguments, outputs and axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["input", "float32", "int32", "int", "codes", "scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg:
    """One array or number of an op. kind: `input` is the case's dtype, `int` a Python integer, else a dtype.

    `codes`, `scale`: as moecheck.quantization has them. Where weights are quantised, w13 and w2 are codes, too.
    """

    name: str
    axes: tuple[str, ...]
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation: what it computes, what a kernel may be given by name, and what it returns in order."""

    name: str
    summary: str
    args: tuple[Arg, ...]
    outputs: tuple[Arg, ...]

    @property
    def arg_names(self) -> tuple[str, ...]:
        return tuple(arg.name for arg in self.args)


def _arg(text: str) -> Arg:
    """`name: kind axis axis` as an Arg."""
    name, rest = text.split(":")
    kind, *axes = rest.split()
    return Arg(name=name, axes=tuple(axes), kind=kind)  # type: ignore[arg-type]  # the table below is tested


def _op(name: str, summary: str, args: str, outputs: str) -> Op:
    split = [tuple(_arg(part.strip()) for part in text.split(",")) for text in (args, outputs)]
    return Op(name=name, summary=summary, args=split[0], outputs=split[1])


# Axes: T tokens, H hidden, I intermediate, U rows of w13 (2I when gated), E experts, L local experts, k top_k,
# k' top_k + fused shared slots, R permuted rows, S shared intermediate, V rows of shared_w13, X width that the routed
# experts work on (H, or narrower with latent_experts), D token ids, C rows that each expert has room for, n and
# K of a GEMM, P ranks, Q physical experts, * free.
_TABLE = (
    _op(
        "topk_routing",
        "choose top_k experts per token and weigh them",
        "router_logits: input T E, correction_bias: float32 E, per_expert_scale: float32 E, token_ids: int32 T, "
        "tid2eid: int32 D k",
        "topk_weights: float32 T k', topk_ids: int32 T k'",
    ),
    _op(
        "align_block_size",
        "sort (token, slot) pairs by expert into blocks of one expert each",
        "topk_ids: int32 T k, block_size: int, num_experts: int, expert_map: int32 E",
        "sorted_token_ids: int32 *, expert_ids: int32 *, num_tokens_post_padded: int32 1",
    ),
    _op(
        "expert_counts",
        "count the rows of each expert",
        "topk_ids: int32 T k, num_experts: int, expert_map: int32 E",
        "expert_counts: int32 E",
    ),
    _op(
        "permute",
        "gather the rows of each expert together",
        "hidden_states: input T H, topk_ids: int32 T k, hidden_scale: float32 T *, expert_map: int32 E, "
        "num_experts: int",
        "permuted: input R H, permuted_scale: float32 R *, expert_starts: int32 *, inv_permuted_idx: int32 T k",
    ),
    _op(
        "unpermute",
        "add up each token's expert outputs, weighted",
        "permuted: input R H, topk_weights: float32 T k, inv_permuted_idx: int32 T k",
        "out: input T H",
    ),
    _op(
        "problem_sizes",
        "row offsets and GEMM sizes per expert",
        "topk_ids: int32 T k, num_experts: int, intermediate_size: int, hidden_size: int, expert_map: int32 E",
        "expert_starts: int32 *, problem_sizes1: int32 E 3, problem_sizes2: int32 E 3",
    ),
    _op("shuffle_rows", "copy rows by an index map", "x: input * W, row_map: int32 R", "out: input R W"),
    _op(
        "grouped_gemm",
        "y[g] = x[g] w[g]^T over ragged groups of rows",
        "x: input R K, w: input E n K, expert_ends: int32 E, bias: input E n",
        "y: input R n",
    ),
    _op("act_and_mul", "act(gate) * up", "x: input R U", "h: input R I"),
    _op(
        "fused_experts",
        "the experts of a layer, from ids and weights to the summed output",
        "hidden_states: input T H, w13: input L U H, w2: input L H I, topk_weights: float32 T k, topk_ids: int32 T k, "
        "w13_bias: input L U, w2_bias: input L H, expert_map: int32 E, w13_scale: scale L * *, w2_scale: scale L * *, "
        "w13_zeros: codes L * *, w2_zeros: codes L * *, w13_global_scale: float32 L, w2_global_scale: float32 L, "
        "a1_scale: float32 *, a2_scale: float32 *",
        "out: input T H",
    ),
    _op(
        "expert_outputs",
        "each token's experts, neither weighted nor added up",
        "hidden_states: input T H, w13: input L U H, w2: input L H I, topk_ids: int32 T k, w13_bias: input L U, "
        "w2_bias: input L H, expert_map: int32 E",
        "out: input T k H",
    ),
    _op(
        "batched_experts",
        "experts on rows that lie expert by expert, neither weighted nor added up",
        "hidden_states: input E C H, w13: input E U H, w2: input E H I, expert_counts: int32 E, w13_bias: input E U, "
        "w2_bias: input E H",
        "out: input E C H",
    ),
    _op(
        "moe_layer",
        "a whole layer: routing, experts and shared experts",
        "hidden_states: input T H, router_logits: float32 T E, correction_bias: float32 E, "
        "per_expert_scale: float32 E, token_ids: int32 T, tid2eid: int32 D k, w13: input E U X, w2: input E X I, "
        "shared_w13: input V H, shared_w2: input H S, shared_gate: input H, w13_bias: input E U, w2_bias: input E X, "
        "latent_down: input X H, latent_up: input H X",
        "out: input T H",
    ),
    _op(
        "expert_parallel_moe",
        "routing and experts that lie on several ranks, as do the tokens",
        "hidden_states: input T H, router_logits: float32 T E, correction_bias: float32 E, w13: input E U H, "
        "w2: input E H I, w13_bias: input E U, w2_bias: input E H, w13_scale: scale E * *, w2_scale: scale E * *, "
        "num_ranks: int, rank_tokens: int32 P, expert_placement: int32 Q",
        "out: input T H",
    ),
)
OPS: dict[str, Op] = {op.name: op for op in _TABLE}
# Those that choose experts themselves and return no ids.
LAYERS = ("moe_layer", "expert_parallel_moe")
# What a kernel may name in place of an op's argument, which it then gets in another convention (moecheck.placement).
ALTERNATIVES = {"expert_mask": "expert_map"}
