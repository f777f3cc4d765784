"""Mutants of where rows are and whose they are: offsets that wrap, chunks, captured graphs, ranks, replicas."""

from __future__ import annotations

import numpy as np

from .call import Call, Mutation, Term, slots_of, value, with_inputs, with_slots
from .plumbing import ROWS
from .registry import mutant

CHUNK = 32  # tokens that are processed at a time
SHUFFLED = 16  # rows of a weight tile


@mutant(
    "int32_wrap",
    "offsets wrap half-way through the rows, as 32-bit products do beyond 2^31 elements",
    *ROWS,
    when=lambda case: case.num_tokens > 1,
    sources=("vllm-project/vllm#34279", "vllm-project/vllm#42201", "sgl-project/sglang#4727"),
)
def offsets_wrap(call: Call) -> Mutation:
    rows = len(value(call))
    return (Term(call=call, rows=np.arange(rows) % max(1, (rows + 1) // 2)),)


@mutant(
    "chunk_tail_stale",
    "the rows of the last, shorter chunk of tokens are those of the chunk before",
    "fused_experts",
    "moe_layer",
    "unpermute",
    when=lambda case: case.num_tokens % CHUNK != 0 and case.num_tokens > CHUNK,
    sources=("vllm-project/vllm#6382",),
)
def last_chunk_stale(call: Call) -> Mutation:
    rows = np.arange(call.case.num_tokens)
    return (Term(call=call, rows=np.where(rows >= len(rows) // CHUNK * CHUNK, rows - CHUNK, rows)),)


@mutant(
    "chunk_tail_unwritten",
    "the rows of the last, shorter chunk of tokens are not written",
    "fused_experts",
    "moe_layer",
    "unpermute",
    when=lambda case: case.num_tokens % CHUNK != 0,
    sources=("vllm-project/vllm#6382", "huggingface/transformers#48205"),
)
def last_chunk_unwritten(call: Call) -> Mutation:
    rows = np.arange(call.case.num_tokens)
    return (Term(call=call, factor=(rows < len(rows) // CHUNK * CHUNK).astype(np.float64)[:, None]),)


@mutant(
    "stale_graph_input",
    "a captured graph reads hidden states of zeros while the logits are live",
    "moe_layer",
    "fused_experts",
    sources=("vllm-project/vllm#52383",),
)
def frozen_hidden_states(call: Call) -> Call:
    return with_inputs(call, hidden_states=np.zeros(call.inputs["hidden_states"].shape))


@mutant(
    "stale_graph_input",
    "a captured graph reads the routing weights of an earlier call",
    "fused_experts",
    "unpermute",
    variant="weights",
    when=lambda case: case.num_tokens > 1,
    sources=("deepseek-ai/DeepGEMM#451", "flashinfer-ai/flashinfer#4827"),
)
def frozen_weights(call: Call) -> Call:
    return with_slots(call, weights=np.ascontiguousarray(slots_of(call).weights[::-1]))


@mutant(
    "no_reduce",
    "the sum over ranks is missing: each rank keeps what its half of the experts adds",
    "fused_experts",
    "moe_layer",
    when=lambda case: case.num_experts > 1,
    sources=("vllm-project/tpu-inference#3147",),
)
def half_of_the_experts(call: Call) -> Call:
    slots = slots_of(call)
    return with_slots(call, ids=np.where(slots.ids < call.case.num_experts // 2, slots.ids, -1))


@mutant(
    "no_reduce",
    "the sum over tensor-parallel ranks is missing: half of the intermediate columns count",
    "fused_experts",
    "moe_layer",
    variant="columns",
    when=lambda case: case.intermediate_size > 1,
    sources=("vllm-project/tpu-inference#3147",),
)
def half_of_the_columns(call: Call) -> Call:
    w2 = call.inputs["w2"].copy()
    w2[..., call.case.intermediate_size // 2 :] = 0
    return with_inputs(call, w2=w2)


@mutant(
    "psum_over_tokens",
    "ranks that hold different tokens are added up",
    "fused_experts",
    "moe_layer",
    when=lambda case: case.num_tokens > 1,
    sources=("vllm-project/tpu-inference#2248",),
)
def different_tokens_added(call: Call) -> Mutation:
    rows = np.arange(call.case.num_tokens)
    return Term(call=call), Term(call=call, rows=np.roll(rows, len(rows) // 2))


@mutant(
    "zero_token_expert_garbage",
    "an expert without tokens writes a row of its own over the first token",
    "fused_experts",
    "grouped_gemm",
    when=lambda case: case.load in ("skewed", "one_expert", "block_edges") and case.num_local_experts is None,
    sources=("openxla/tokamax#887", "openxla/tokamax#1016"),
)
def empty_expert_writes(call: Call) -> Mutation:
    kept = np.ones((len(value(call)), 1))
    kept[0] = -1.0 if _has_empty_experts(call) else 1.0
    return (Term(call=call, factor=kept),)


@mutant(
    "replica_used_as_logical",
    "ids of replicas are used as those of experts: an id counts twice as far",
    "fused_experts",
    when=lambda case: case.num_experts > 1,
    sources=("alibaba/rtp-llm#1085",),
)
def replica_ids(call: Call) -> Call:
    ids = slots_of(call).ids
    return with_slots(call, ids=np.where(ids < 0, ids, ids * 2 % call.case.num_experts))


@mutant(
    "replicas_added",
    "both replicas of an expert compute: every third expert counts twice",
    "fused_experts",
)
def replicas_added(call: Call) -> Call:
    slots = slots_of(call)
    return with_slots(call, weights=slots.weights * np.where(slots.ids % 3 == 0, 2.0, 1.0))


@mutant(
    "weights_preshuffled",
    "the rows of the first matrix are in the order of another kernel, 16 rows taken in two turns",
    "fused_experts",
    "moe_layer",
    "grouped_gemm",
    when=lambda case: case.intermediate_size >= SHUFFLED,
    sources=("sgl-project/sglang#28244",),
)
def rows_of_another_layout(call: Call) -> Call:
    name = "w" if call.case.op == "grouped_gemm" else "w13"
    rows = np.arange(call.inputs[name].shape[1])
    whole = len(rows) // SHUFFLED * SHUFFLED
    rows[:whole] = rows[:whole].reshape(-1, 2, SHUFFLED // 2).transpose(0, 2, 1).reshape(-1)
    return with_inputs(call, **{name: call.inputs[name][:, rows]})


def _has_empty_experts(call: Call) -> bool:
    if call.case.op == "grouped_gemm":
        return bool((np.diff(call.inputs["expert_ends"], prepend=0) == 0).any())
    ids = slots_of(call).ids
    return bool((np.bincount(ids[ids >= 0], minlength=call.case.num_experts) == 0).any())
