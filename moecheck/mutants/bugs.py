"""The published bugs that the mutants come from, line by line, and which mutant each of them is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VLLM, SGLANG, JAX, TPU = (
    "vllm-project/vllm",
    "sgl-project/sglang",
    "sgl-project/sglang-jax",
    "vllm-project/tpu-inference",
)
FLASHINFER, AITER = "flashinfer-ai/flashinfer", "ROCm/aiter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """One bug of a public implementation. sources: OWNER/REPO#NUMBER. mutants: ids, or names of several variants.

    why: where there is no mutant, the reason.
    """

    sources: tuple[str, ...]
    wrong: str
    mutants: tuple[str, ...] = ()
    why: str = ""


# `numbers | what was wrong | mutants`; a reason in brackets where there are none. A line may go on, indented.
_VLLM = """
24119 24132 45037 | the routed scaling factor is in the weights and on the output again | r_twice
43769 | the factor is not handed to a kernel | drop_r
28540 | a fused shared slot weighs Sum/r, and all is divided by the routed sum | renorm_all, w_sh=Sum/r, w_sh=1/r
33620 | top-1 sigmoid weights for a renormalised softmax router | weights_by_sigmoid, softmax_over_all, renorm_flip
43223 44347 33919 44021 28569 | the routing method is taken for another one | sigmoid<->softmax,
  softmax_after_vs_before
34673 | a model without groups is routed in groups | groups_invented
39391 | a NaN row gives expert 0 in every slot | nan_duplicate_ids
39593 | NaN in padding rows reaches others | pad_rows_poison, pad_row_contaminates
34279 34507 42201 39213 | an offset of 32 bits overflows | int32_wrap, triton: offsets in 32 bits,
  triton: offsets in 16 bits
35161 | blocks of padding belong to expert 0 instead of none | pad_expert_ids_0, foreign_experts_as_0
20167 | memory that nobody wrote enters a dynamic scale | amax_incl_pad, nan_rows, host: rows of absent experts unset
27255 | the first GEMM's scale is used for the second | a2_scale=a1_scale, static_scales_exchanged
31676 | the bias is added before the scales | bias_before_dequant
31962 | the routing weight multiplies before the second bias | b2_unweighted, triton: weight before bias
28942 | the shared experts read hidden states that were overwritten | shared_after_inplace, host: input overwritten
28277 | the output is reduced twice | double_reduce, shared_twice
45707 | a padded routed output is added to an unpadded shared one | routed_slice_shifted
24833 | silu is computed in half precision | silu_fp16
22399 38083 | UE8M0 scales without their rounding | ue8m0_floor, scale_read_as_e8m0, weight_scale_as_power
43557 | E8M0 scales are rounded down, so that large values are cut | ue8m0_floor, weight_scale_half
34577 37502 | nvfp4 scales underflow, or are the smallest instead of the largest | scale_underflow, scale_of_mean,
  global_scale_missing, global_scale_of_first_expert
47910 | scales are read beyond a row's end | scale_of_next_row, weight_scale_of_next_row
52997 | a shard's scales begin at the wrong block | scale_idx_off_by_block, weight_scale_idx_off_by_block,
  group_idx_ragged/weights
21586 | the correction bias is not handed on | bias_ignored
25936 50761 47797 25711 36725 38989 | logits or bias are rounded to bf16 | logits_bf16, bias_bf16
41574 | gelu by erf instead of tanh | erf<->tanh
34696 | the activation is always silu | always_silu, silu->gelu
41986 | the clamp is lost | limit_inf
46845 48929 49473 | alpha and beta are lost | alpha_1_beta_0, alpha_1, beta_0
46645 | interleaved weights are read as halves | interleave_vs_halves, weight_scale_gate_up, swizzle_ignored
40810 | all tokens take the same replica of an expert | [changes the load only: the output is the same whichever
  replica computes it]
37322 | the largest magnitude of local experts stands for that of all | global_scale_local_max
49758 | a map is passed where a mask is expected | map_as_mask
11921 | fp32 inputs are computed in fp16 | fp16_operands
6382 | the last chunk keeps what an earlier call left | chunk_tail_stale, chunk_tail_unwritten
8747 | OLMoE's query norm under tensor parallelism | [lies in attention, not in the experts]
31609 16744 | the routing weight multiplies the output instead of the input | weight_on_input_vs_output
25895 23125 31523 | groups dropped; scales of another backend | groups_ignored, groups_first, shared_missing
52383 | a captured graph reads hidden states of zeros | stale_graph_input
56887 54706 | partial sums of 16 bits | low_partial_sums, low_accumulator, triton: accumulator in bf16
49982 | groups are dropped | groups_ignored
57946 50759 | the padding id -1 is used as an index | pad_id_wraps, map_minus1_wraps, torch: id -1 wraps
40310 | W4A8 under tensor parallelism | [the thread does not say what was computed instead; no_reduce/columns is
  the nearest]
31246 | renormalisation is ignored | renorm_flip
"""
_SGLANG = """
3705 | masked groups get 0 instead of -Inf | group_mask_zero
8511 8333 8688 12738 | the routed scaling factor is missing | drop_r
28237 | the shared slot weighs 1/r and nothing multiplies it back | w_sh=1/r
28378 24850 | padding ids are whatever memory held | pad_ids_random, padding_of_blocks_is_a_row
29783 10440 10426 | the bias is cast to bf16, or its bits are read as bf16 | bias_bf16, bias_reinterpreted
30079 | a NaN row gives an id beyond the last expert | id_out_of_range
30387 | the id of a zero expert stays -1 | zero_expert_minus1, zero_expert_dropped, zero_expert_as_real,
  zero_expert_unweighted
23545 | weights are multiplied although the caller does so | weights_twice, slots_weighted, slots_summed
23731 23734 | the output is reduced twice | double_reduce
10296 | a scale is the largest of the local experts | global_scale_local_max
10108 9392 | an intermediate value overflows fp16; a fence is missing | fp16_overflow
6858 | rows are reordered by a wrong offset | wrong_row_in_unpermute, wrong_row_in_permute, inverse_off_by_one,
  2_tokens_swapped
4081 | blocks are padded when they need not be | extra_block, torch: one block too many
3534 | counters are not cleared before they are used | counts_garbage, counts_of_expert_lost
15304 | the mask of experts is not passed | map_ignored
21348 | the wrong variable is returned | returns_input
11081 | gate and up in the other order | swap_gate_up, triton: gate and up exchanged
29956 | a power of two by a rounded logarithm | log2_round, scale_half(2x)
27328 39920 | the clamp is lost | limit_inf, triton: gate not limited
39032 | alpha and beta are lost | alpha_1_beta_0, triton: alpha ignored
28074 | the result of a cast is discarded | ids_float
28244 | weights shuffled for another kernel | weights_preshuffled, nibble_swap
35160 | raw logits serve as weights | raw_logits_as_weights
38963 | a routed expert stands in the place of the shared one | shared_replaced_by_routed
35152 | the factor is applied twice | r_twice
16622 | an amax of 0 gives 0 / 0 | zero_amax_nan, no_saturate
38780 22455 | a call without tokens | host: no tokens
4727 | an offset of 32 bits overflows | int32_wrap
2111 | K is padded with garbage | ragged_k_garbage, drop_last_k_tile, triton: K tail not masked
30895 | padding rows are not zero | pad_row_nonzero
30485 | a store beyond the filtered experts | triton: store without column mask
"""
_OTHERS = (
    Bug(sources=(f"{JAX}#1282",), wrong="the factor is nested under renormalisation", mutants=("r_nested_in_renorm",)),
    Bug(
        sources=(f"{JAX}#699", f"{JAX}#735"), wrong="the router is not in fp32", mutants=("logits_bf16", "weights_bf16")
    ),
    Bug(
        sources=(f"{JAX}#1024", f"{JAX}#1021", f"{JAX}#1497"),
        wrong="a barrier between ranks is missing",
        why="a race between devices; no op with several ranks runs here",
    ),
    Bug(sources=(f"{JAX}#704",), wrong="ids are None", why="it raises at once: CRASH, whatever is computed"),
    Bug(
        sources=(f"{JAX}#1271", f"{JAX}#1079", f"{JAX}#1099"),
        wrong="tiles that do not divide the width",
        mutants=("drop_last_k_tile", "last_col_stale"),
    ),
    Bug(sources=(f"{JAX}#760",), wrong="invalid tokens take part", mutants=("pad_row_contaminates",)),
    Bug(sources=(f"{FLASHINFER}#2168",), wrong="negative biases choose masked experts", mutants=("group_mask_zero",)),
    Bug(
        sources=(f"{FLASHINFER}#2889",),
        wrong="bf16 logits read as fp32; norm_topk_prob ignored; biased weights",
        mutants=("logits_reinterpreted", "renorm_flip", "biased_scores_as_weights", "triton: biased scores weigh"),
    ),
    Bug(sources=(f"{FLASHINFER}#4569",), wrong="incomplete tiles are not written", mutants=("last_col_stale",)),
    Bug(
        sources=(f"{FLASHINFER}#4827", "deepseek-ai/DeepGEMM#451"),
        wrong="a graph's workspace is stale",
        mutants=("stale_graph_input/weights",),
    ),
    Bug(
        sources=(f"{FLASHINFER}#3334",),
        wrong="mxfp4 experts on Hopper give noise",
        mutants=("nibble_swap", "weight_scale_half"),
    ),
    Bug(
        sources=(f"{FLASHINFER}#2732", f"{FLASHINFER}#4093"),
        wrong="routing differs from the reference",
        why="the threads do not say what is computed instead",
    ),
    Bug(
        sources=(f"{TPU}#1252",),
        wrong="top-k over padded scores",
        mutants=("padded_scores_topk", "triton: experts <= for <"),
    ),
    Bug(sources=(f"{TPU}#2248",), wrong="ranks with different tokens are added up", mutants=("psum_over_tokens",)),
    Bug(
        sources=(f"{TPU}#3147",),
        wrong="a deferred all-reduce never happens",
        mutants=("no_reduce", "shared_not_reduced"),
    ),
    Bug(sources=(f"{TPU}#1880",), wrong="NaN where a block's amax is 0", mutants=("zero_amax_nan",)),
    Bug(
        sources=(f"{TPU}#1342",),
        wrong="a barrier with one neighbour only",
        why="a race between devices; no op with several ranks runs here",
    ),
    Bug(
        sources=(f"{VLLM}#10963", f"{VLLM}#11764", f"{VLLM}#16462", f"{VLLM}#18025", f"{SGLANG}#2482"),
        wrong="whole layers give noise",
        why="the threads do not say what was computed; all_zeros and others stand for noise",
    ),
    Bug(
        sources=("ROCm/rocm-libraries#7920",),
        wrong="the scale's pointer advances at the wrong K",
        mutants=("scale_of_first_block", "weight_scale_not_advanced"),
    ),
    Bug(
        sources=(f"{AITER}#5233",),
        wrong="a scale's index is wrong for ragged widths",
        mutants=("scale_idx_off_by_block", "group_idx_ragged"),
    ),
    Bug(sources=(f"{AITER}#3995",), wrong="global ids with local weights", mutants=("map_ignored", "global_ids")),
    Bug(
        sources=(f"{AITER}#4398",),
        wrong="a test that cannot fail",
        mutants=("checker: empty cases pass", "checker: vacuous cases pass"),
    ),
    Bug(sources=(f"{AITER}#4460",), wrong="renormalisation is off for softmax", mutants=("renorm_flip",)),
    Bug(
        sources=("HabanaAI/vllm-gaudi#1796",),
        wrong="ids of ranks above 0 are dropped",
        mutants=("expert_dropped", "no_reduce"),
    ),
    Bug(
        sources=("NVIDIA/TensorRT-LLM#10331",),
        wrong="nvfp4 errors in every group",
        mutants=("weight_scale_of_next_expert", "weight_scale_of_next_row"),
    ),
    Bug(
        sources=("deepseek-ai/DeepGEMM#445", "microsoft/onnxruntime#28738"),
        wrong="the activation is hard-coded",
        mutants=("always_silu", "plain_swiglu"),
    ),
    Bug(
        sources=("huggingface/transformers#43362",),
        wrong="an order of additions that changes",
        mutants=("torch: order of experts at random",),
    ),
    Bug(
        sources=("huggingface/transformers#48205",),
        wrong="a tail that is not written",
        mutants=("chunk_tail_unwritten", "nan_rows"),
    ),
    Bug(
        sources=("NVIDIA/Megatron-LM#955",),
        wrong="the router under parallelism",
        why="the thread does not reduce to a change of one layer",
    ),
    Bug(
        sources=("alibaba/rtp-llm#1085",),
        wrong="the shared expert's halves are exchanged; replicas are taken for experts",
        mutants=("swap_gate_up/shared", "replica_used_as_logical"),
    ),
    Bug(
        sources=("openxla/tokamax#887", "openxla/tokamax#889", "openxla/tokamax#1016", "pytorch/pytorch#172439"),
        wrong="empty groups write",
        mutants=("zero_token_expert_garbage", "group_idx_ragged"),
    ),
    Bug(sources=("kvcache-ai/sglang#86",), wrong="the factor is applied twice", mutants=("r_twice",)),
    Bug(sources=(), wrong="vllm-exl3, issue 2: one expert per token", mutants=("only_first_slot", "k-1")),
    Bug(
        sources=(),
        wrong="hipfire, issue 164: routing weights one unit in the last place off",
        why="fp32 rounding explains it, so no check may call it wrong",
    ),
)


def known_bugs() -> Iterator[Bug]:
    """Every bug of the list, in its order."""
    for repository, text in ((VLLM, _VLLM), (SGLANG, _SGLANG)):
        for line in text.strip().replace("\n  ", " ").splitlines():
            numbers, wrong, mutants = (part.strip() for part in line.split(" | "))
            sources = tuple(f"{repository}#{number}" for number in numbers.split())
            if mutants.startswith("["):
                yield Bug(sources=sources, wrong=wrong, why=mutants.strip("[]"))
            else:
                yield Bug(sources=sources, wrong=wrong, mutants=tuple(mutants.split(", ")))
    yield from _OTHERS


def sources_of(mutant: str, own: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The bugs that a mutant, by id, stands for: its own sources and those of the list."""
    name = mutant.partition("/")[0]
    listed = [source for bug in known_bugs() if mutant in bug.mutants or name in bug.mutants for source in bug.sources]
    return tuple(dict.fromkeys([*own, *listed]))
