"""Bugs in real kernels: changes of the sources of the built-in Triton and PyTorch kernels."""

from __future__ import annotations

from dataclasses import dataclass

from .rewrite import Replacement, Rewrite

GEMM, ROWS, ROUTING = "triton/_jit_gemm.py", "triton/_jit_rows.py", "triton/_jit_routing.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMutant:
    """A built-in kernel with a bug in its source.

    file: below moecheck/kernels, what is rewritten. kernel: `module:function`, what is run. sources: where such a bug
    happened. unseen: of one that no affordable case can show, why.
    """

    name: str
    words: str
    op: str
    kernel: str
    file: str
    rewrites: tuple[Rewrite, ...] | tuple[Replacement, ...]
    sources: tuple[str, ...] = ()
    expected: tuple[str, ...] = ("values", "statistics")
    unseen: str = ""


def _one(
    name: str, words: str, kernel: str, file: str, function: str, find: str, put: str, *sources: str,
    op: str = "fused_experts", which: int | None = None, expected: tuple[str, ...] = ("values", "statistics", "exact"),
    unseen: str = "",
) -> SourceMutant:  # fmt: skip
    rewrite = Rewrite(function=function, find=find, put=put, which=which)
    return SourceMutant(
        name=name,
        words=words,
        op=op,
        kernel=kernel,
        file=file,
        rewrites=(rewrite,),
        sources=sources,
        expected=expected,
        unseen=unseen,
    )


_FUSED, _SEPARATE = "triton.experts:fused_gate_up", "triton.experts:separate"
_PERMUTE, _UNPERMUTE, _ACT = "triton.rows:permute", "triton.rows:unpermute", "triton.rows:act_and_mul"
_TOPK, _SHUFFLE, _ALIGN = "triton.routing:topk_routing", "triton.rows:shuffle_rows", "triton.align:align_block_size"
_EITHER = ("values", "statistics", "exact", "run", "contract", "padding", "unmodified")

SOURCE_MUTANTS = (
    _one("triton: K tail not masked", "the first GEMM reads past the end of a row: its mask on K is a block too wide",
         _FUSED, GEMM, "gate_up_tile", "k < hidden", "k < hidden + BLOCK_K", "sgl-project/sglang#2111",
         expected=_EITHER),
    _one("triton: K loop one block short", "the second GEMM's loop over K leaves out the last, partial block",
         _FUSED, GEMM, "grouped_gemm_tile", "range(0, inputs, BLOCK_K)",
         "range(0, inputs // BLOCK_K * BLOCK_K, BLOCK_K)", "sgl-project/sglang#2111"),
    _one("triton: accumulator in bf16", "the accumulator of the second GEMM is kept in bf16",
         _FUSED, GEMM, "grouped_gemm_tile", 'total = tl.dot(a, b, total, input_precision="ieee")',
         'total = tl.dot(a, b, total, input_precision="ieee").to(tl.bfloat16).to(tl.float32)',
         "vllm-project/vllm#56887"),
    _one("triton: expert of the block before", "a block takes the expert id of the block before it",
         _FUSED, GEMM, "grouped_gemm_kernel", "expert_ids + block", "expert_ids + tl.maximum(block - 1, 0)",
         "sgl-project/sglang#6858"),
    _one("triton: < one too small for pairs", "the last (token, slot) pair is masked away",
         _FUSED, GEMM, "gate_up_tile", "pairs < num_pairs", "pairs < num_pairs - 1", expected=_EITHER),
    _one("triton: last column masked", "the mask on columns ends one too early",
         _SEPARATE, GEMM, "grouped_gemm_tile", "columns < outputs", "columns < outputs - 1",
         "flashinfer-ai/flashinfer#4569"),
    _one("triton: row of the token for the pair", "h is stored by token, so that slots overwrite each other",
         _FUSED, GEMM, "gate_up_tile", "pairs.to(tl.int64)[:, None] * stride_h",
         "(pairs // TOP_K).to(tl.int64)[:, None] * stride_h", expected=_EITHER),
    _one("triton: wrong stride of h", "rows of h are read with the stride of the weights' rows less one",
         _FUSED, GEMM, "grouped_gemm_tile", "(pairs // PAIRS_PER_ROW).to(tl.int64)[:, None] * stride_x",
         "(pairs // PAIRS_PER_ROW).to(tl.int64)[:, None] * (stride_x - 1)"),
    _one("triton: offsets in 16 bits", "a row's offset is computed in 16 bits and wraps",
         _SEPARATE, GEMM, "grouped_gemm_tile", "pairs.to(tl.int64)[:, None] * stride_y",
         "(pairs[:, None] * stride_y).to(tl.int16).to(tl.int64) % 256", "vllm-project/vllm#34279", expected=_EITHER),
    _one("triton: offsets in 32 bits", "a row's offset is computed in 32 bits, which wraps beyond 2^31 elements",
         _FUSED, GEMM, "grouped_gemm_tile", "pairs.to(tl.int64)[:, None] * stride_y",
         "pairs[:, None] * stride_y", "vllm-project/vllm#34279", "vllm-project/vllm#42201",
         unseen="it needs an array of more than 2^31 elements, 4 GiB and hours under an interpreter; on a GPU, "
         "`moecheck kernels --model NAME` with enough tokens reaches it"),
    _one("triton: store without column mask", "the store's mask lacks the columns: rows run into the next",
         _SEPARATE, GEMM, "grouped_gemm_tile", "valid[:, None] & inside[None, :]",
         "valid[:, None] & (columns >= 0)[None, :]", "sgl-project/sglang#30485", expected=_EITHER),
    _one("triton: bias of expert 0", "every expert adds the first bias of expert 0",
         _FUSED, GEMM, "gate_up_tile", "expert * stride_bias", "expert * 0"),
    _one("triton: weight of an even slot", "odd pairs take the routing weight of the pair before",
         _FUSED, GEMM, "grouped_gemm_tile", "topk_weights + pairs", "topk_weights + pairs // 2 * 2"),
    _one("triton: weight before bias", "the routing weight multiplies before the second bias is added",
         _FUSED, GEMM, "grouped_gemm_tile",
         "total += tl.load(bias + expert * stride_bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]",
         "total += (tl.load(bias + expert * stride_bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]"
         " / tl.load(topk_weights + pairs, mask=valid, other=1.0)[:, None])", "vllm-project/vllm#31962"),
    _one("triton: alpha ignored", "the sigmoid's alpha is 1", _FUSED, GEMM, "activate", "ALPHA * gate", "gate",
         "sgl-project/sglang#39032"),
    _one("triton: gate not limited", "the clamp of the gate is missing", _FUSED, GEMM, "gated",
         "gate = tl.minimum(gate, LIMIT)", "", "sgl-project/sglang#27328"),
    _one("triton: up limited on one side", "up is clamped from above only", _FUSED, GEMM, "gated",
         "tl.minimum(tl.maximum(up, -LIMIT), LIMIT)", "tl.minimum(up, LIMIT)"),
    _one("triton: gate and up exchanged", "up rows are read as gate rows, and the other way round",
         _FUSED, GEMM, "gate_up_tile", "gated(gate, up, LIMIT, ALPHA, BETA, ACTIVATION)",
         "gated(up, gate, LIMIT, ALPHA, BETA, ACTIVATION)", "sgl-project/sglang#11081"),
    _one("triton: gate rounded to bf16", "the gate is rounded to bf16 before the activation, undeclared",
         _FUSED, GEMM, "gate_up_tile", "gated(gate, up, LIMIT, ALPHA, BETA, ACTIVATION)",
         "gated(gate.to(tl.bfloat16).to(tl.float32), up, LIMIT, ALPHA, BETA, ACTIVATION)"),
    _one("triton: last slot not added", "the sum over a token's slots leaves out the last",
         _FUSED, ROWS, "sum_rows_kernel", "tl.static_range(TOP_K)", "tl.static_range(TOP_K - 1)"),
    _one("triton: sum in the output's dtype", "the sum over slots is rounded to the output's dtype after each addition",
         _FUSED, ROWS, "sum_rows_kernel", "total += tl.where(mask, values, 0.0)",
         "total = (total + tl.where(mask, values, 0.0)).to(out.dtype.element_ty).to(tl.float32)"),
    _one("triton: last token not written", "the last token's row is masked away and keeps what memory held",
         _UNPERMUTE, ROWS, "sum_rows_kernel", "token < num_tokens", "token < num_tokens - 1",
         "vllm-project/vllm#20167", op="unpermute"),
    _one("triton: > for >=", "row 0 counts as padding", _UNPERMUTE, ROWS, "sum_rows_kernel", "row >= 0", "row > 0",
         op="unpermute"),
    _one("triton: gather by position", "each row is the one of its own position, not of the sorted one",
         _SHUFFLE, ROWS, "gather_rows_kernel", "tl.load(rows + i, mask=i < num_rows, other=0).to(tl.int64)",
         "(i // 2).to(tl.int64)", "sgl-project/sglang#6858", op="shuffle_rows", expected=("structure",)),
    _one("triton: row of the slot before", "each token's row is stored where the one of its slot before belongs",
         _PERMUTE, ROWS, "scatter_rows_kernel", "inverse + token * TOP_K + slot",
         "inverse + token * TOP_K + tl.maximum(slot - 1, 0)", op="permute", expected=("structure",)),
    _one("triton: interleaved columns off by one", "the gate is read where up stands, and up one column further",
         _ACT, ROWS, "act_and_mul_kernel", "2 * column + 1", "2 * column", "vllm-project/vllm#46645",
         op="act_and_mul"),
    _one("triton: ties to the highest id", "of equal scores the highest id wins although the lowest is declared",
         _TOPK, ROUTING, "topk_routing_kernel",
         "tl.min(tl.where(left & (choice == best), column[None, :], BLOCK_E), axis=1)[:, None]",
         "tl.max(tl.where(left & (choice == best), column[None, :], -1), axis=1)[:, None]",
         op="topk_routing", expected=("tie",)),
    _one("triton: maximum not subtracted", "the softmax does not subtract the largest logit, and overflows",
         _TOPK, ROUTING, "topk_routing_kernel", "ordered - largest", "ordered - 0.0",
         op="topk_routing", which=0, expected=("weights", "routing")),
    _one("triton: factor dropped", "the routed scaling factor is not multiplied", _TOPK, ROUTING,
         "topk_routing_kernel", "weights * factor", "weights", "sgl-project/sglang#8511", op="topk_routing",
         expected=("weights",)),
    _one("triton: experts <= for <", "one expert more than there are may be chosen: the first of the next row",
         _TOPK, ROUTING, "topk_routing_kernel", "column < num_experts", "column <= num_experts",
         "vllm-project/tpu-inference#1252", op="topk_routing", expected=("routing", "weights")),
    _one("triton: group by its best", "a group's score is its best expert's, not the sum of its best two", _TOPK,
         ROUTING, "best_groups",
         "score += tl.max(tl.where(inner == first[:, :, None], float('-inf'), grouped), axis=2)", "",
         op="topk_routing", expected=("routing",)),
    _one("triton: shared slot weighs the factor", "the fused shared slot is scaled like the routed ones", _TOPK,
         ROUTING, "topk_routing_kernel", "tl.where(is_slot, weights, shared_weight)",
         "tl.where(is_slot, weights, shared_weight * factor)", "sgl-project/sglang#38963", op="topk_routing",
         expected=("weights",)),
    _one("triton: biased scores weigh", "the bias is added to the scores before the choice and stays in the weights",
         _TOPK, ROUTING, "topk_routing_kernel", "source = ordered if OVER_SELECTED else scores",
         "source = ordered if OVER_SELECTED else choice", "flashinfer-ai/flashinfer#2889", op="topk_routing",
         expected=("weights",)),
    _one("host: rows of absent experts unset", "rows that no expert writes are allocated, not cleared, and added up",
         _FUSED, ROWS, "sum_rows_kernel", "tl.where(here, (token * TOP_K + slot).to(tl.int64), -1)",
         "(token * TOP_K + slot).to(tl.int64)", "vllm-project/vllm#20167"),
    _one("host: one block too few", "the grid has one block of rows too few",
         _FUSED, "triton/experts.py", "_grid", "len(self.metadata[1])", "len(self.metadata[1]) - 1",
         expected=_EITHER),
    _one("host: input overwritten", "the output is written over the hidden states",
         _FUSED, "triton/experts.py", "fused_gate_up",
         "sum_slots(weighted, topk_ids, expert_map, dtype=hidden_states.dtype)",
         "hidden_states.copy_(sum_slots(weighted, topk_ids, expert_map, dtype=hidden_states.dtype))",
         "vllm-project/vllm#28942", expected=("unmodified",)),
    _one("host: no tokens", "a call without tokens divides by their number", _FUSED, "triton/experts.py",
         "fused_gate_up", "check_spec(spec)", "(check_spec(spec), 1 // len(hidden_states))", "sgl-project/sglang#38780",
         expected=("run",)),
    _one("triton: a block for no pairs", "an expert whose pairs fill its blocks gets one more", _ALIGN,
         "triton/_jit_align.py", "align_few_kernel", "(number + block_size - 1) // block_size",
         "number // block_size + 1",
         "sgl-project/sglang#4081", op="align_block_size", expected=("structure", "run")),
    _one("host: factor left to nobody", "shared experts become slots, and nothing multiplies the sum by the factor",
         "triton.moe_layer:appended_shared", "triton/moe_layer.py", "appended_shared",
         "replace(spec.routing, scaling_placement='topk_weights', num_fused_shared_experts=len(extra13))",
         "replace(spec.routing, num_fused_shared_experts=len(extra13))", "sgl-project/sglang#8511", op="moe_layer"),
    _one("host: output not scaled", "the factor that belongs on the output is not multiplied",
         "triton.moe_layer:fused_shared", "triton/moe_layer.py", "fused_shared", "out * scaling_factor(spec.routing)",
         "out", "sgl-project/sglang#8511", op="moe_layer"),
    _one("torch: id -1 wraps", "a padding id of -1 reads the last entry of the expert map",
         "torch.index_add:fused_experts",
         "torch/index_add.py", "local_ids", "torch.where(ids >= 0, expert_map.long()[ids.clamp(min=0)], -1)",
         "expert_map.long()[ids]", "vllm-project/vllm#57946"),
    _one("torch: order of experts at random", "experts are added in an order that changes from call to call",
         "torch.index_add:fused_experts", "torch/index_add.py", "fused_experts",
         "torch.unique(ids[ids >= 0]).tolist()",
         "(lambda u: u[torch.randperm(len(u))].tolist())(torch.unique(ids[ids >= 0]))",
         "huggingface/transformers#43362", expected=("determinism",)),
    _one("torch: one block too many", "every expert gets a block more than it fills", "torch.plan:align_block_size",
         "torch/plan.py", "align_block_size", "(counts + block_size - 1) // block_size", "counts // block_size + 1",
         "sgl-project/sglang#4081", op="align_block_size", expected=("structure", "run")),
    _one("torch: padding reads row 0", "rows of padding slots are not cleared before the sum",
         "torch.permute:unpermute", "torch/permute.py", "unpermute",
         "permuted[inv_permuted_idx.clamp(min=0).long()].float().masked_fill(~valid, 0)",
         "permuted[inv_permuted_idx.clamp(min=0).long()].float()", "vllm-project/vllm#35161", op="unpermute"),
    _one("torch: codes not clamped", "values beyond the largest of e4m3 are cast without saturating",
         "torch.requantised:fp8_requantised", "torch/requantised.py", "requantise",
         "(tiles / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)",
         "(tiles / scale * 1.03).to(torch.float8_e4m3fn)", "sgl-project/sglang#16622"),
    _one("torch: scale by mean", "a group's scale is its mean magnitude times three",
         "torch.requantised:fp8_requantised", "torch/requantised.py", "requantise",
         "tiles.abs().amax(dim=-1, keepdim=True).clamp(min=LEAST_AMAX)",
         "(3.0 * tiles.abs().mean(dim=-1, keepdim=True)).clamp(min=LEAST_AMAX)"),
)  # fmt: skip
