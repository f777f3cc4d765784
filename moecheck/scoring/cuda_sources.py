"""Bugs in real CUDA C++ kernels: changes of the text of the built-in ones, each built and run on a GPU."""

from __future__ import annotations

from .rewrite import Replacement
from .sources import SourceMutant

GATE, PLAN, ROWS = "cuda/csrc/gate.cu", "cuda/csrc/plan.cu", "cuda/csrc/rows.cu"
_GATE, _PERMUTE, _UNPERMUTE = "cuda.routing:topk_routing", "cuda.rows:moe_permute", "cuda.rows:moe_unpermute"
_ALIGN, _SIZES, _SHUFFLE = "cuda.plan:align_block_size", "cuda.plan:problem_sizes", "cuda.rows:shuffle_rows"
_ROUTING, _STRUCTURE = ("routing", "weights", "run"), ("structure", "run")
_VALUES = ("values", "statistics", "exact", "contract", "run")


def _one(
    name: str, words: str, op: str, kernel: str, file: str, find: str, put: str, *sources: str,
    expected: tuple[str, ...] = _STRUCTURE,
) -> SourceMutant:  # fmt: skip
    return SourceMutant(
        name=name,
        words=words,
        op=op,
        kernel=kernel,
        file=file,
        rewrites=(Replacement(find=find, put=put),),
        sources=sources,
        expected=expected,
    )


CUDA_MUTANTS = (
    _one("cuda: ties to the highest id", "of equal scores the highest id wins although the lowest is declared",
         "topk_routing", _GATE, GATE, "__ffs(__ballot_sync(ALL_LANES, best == top)) - 1",
         "31 - __clz(__ballot_sync(ALL_LANES, best == top))", expected=("tie",)),
    _one("cuda: maximum not subtracted", "the softmax's sum is of powers of logits as they are",
         "topk_routing", _GATE, GATE, "row.total += expf(x[j] - row.largest)", "row.total += expf(x[j])",
         expected=_ROUTING),
    _one("cuda: chosen twice", "a chosen expert stays among those to choose from", "topk_routing", _GATE, GATE,
         "if (j == taken) key[j] = 0;", "", "vllm-project/vllm#39391", expected=_ROUTING),
    _one("cuda: factor dropped", "the routed scaling factor is not multiplied", "topk_routing", _GATE, GATE,
         "weight *= p.factor;", "", "sgl-project/sglang#8511", expected=_ROUTING),
    _one("cuda: biased scores weigh", "the bias by which experts are chosen stays in their weights",
         "topk_routing", _GATE, GATE, "weight = score_of(p, chosen, row);",
         "weight = score_of(p, chosen, row) + (p.choice_bias == nullptr ? 0.0f : p.choice_bias[id]);",
         "flashinfer-ai/flashinfer#2889", expected=_ROUTING),
    _one("cuda: groups by their best expert", "a group's score is its best expert's, not the sum of the best two",
         "topk_routing", _GATE, GATE, "p.top2_sum ? best + second : best", "best", expected=_ROUTING),
    _one("cuda: second best lost between lanes", "of two lanes' best the smaller is forgotten", "topk_routing", _GATE,
         GATE, "second = fmaxf(fminf(best, other), fmaxf(second, its_second));", "second = fmaxf(second, its_second);",
         expected=_ROUTING),
    _one("cuda: other groups masked with 0", "experts of other groups score 0, which beats negative scores",
         "topk_routing", _GATE, GATE, "p.mask_zero ? 0.0f : -INF", "0.0f", expected=_ROUTING),
    _one("cuda: a group more", "one group more than topk_groups is kept", "topk_routing", _GATE, GATE,
         "i < p.topk_groups", "i < p.topk_groups + 1", expected=_ROUTING),
    _one("cuda: unaligned rows read 16 bytes wide", "rows that do not begin at a multiple of 16 bytes are read as if",
         "topk_routing", _GATE, GATE,
         "const bool aligned = (reinterpret_cast<uintptr_t>(p.logits) + start * size) % 16 == 0;",
         "const bool aligned = size > 0;", expected=("run",)),
    _one("cuda: shared slot weighs 1", "the fused shared slot has weight 1 wherever the factor is applied",
         "topk_routing", _GATE, GATE, "p.weights[out + p.top_k + i] = p.shared_weight;",
         "p.weights[out + p.top_k + i] = 1.0f;", expected=_ROUTING),
    _one("cuda: a pair counts itself", "a pair's rank among those of its expert is one too high", "permute", _PERMUTE,
         PLAN, "peers & ((1u << lane) - 1u)", "peers & ((2u << lane) - 1u)"),
    _one("cuda: own tile counted as earlier", "a tile's pairs begin behind themselves", "permute", _PERMUTE, PLAN,
         "counts[at] = carry + inclusive - count", "counts[at] = carry + inclusive"),
    _one("cuda: id -1 is expert 0", "padding counts as rows of expert 0", "permute", _PERMUTE, PLAN,
         "const int id = pairs.ids[pair];", "const int id = max(pairs.ids[pair], 0);", "vllm-project/vllm#57946"),
    _one("cuda: stride of rows ignored", "rows are read as if they lay one behind the other", "permute", _PERMUTE,
         ROWS, "reinterpret_cast<const V*>(x + token * stride_bytes)",
         "reinterpret_cast<const V*>(x) + token * vectors"),
    _one("cuda: last access of a row missing", "the last bytes of each row are not written", "permute", _PERMUTE, ROWS,
         "if (at < vectors) target[at] = values[i];", "if (at < vectors - 1) target[at] = values[i];"),
    _one("cuda: bulk copy too short", "the copy engine leaves out a row's last 16 bytes", "permute", _PERMUTE, ROWS,
         "bulk_store(out + position * row_bytes, row, row_bytes)",
         "bulk_store(out + position * row_bytes, row, row_bytes - 16)"),
    _one("cuda: global ids in blocks", "blocks name their expert's global id, not its local one", "align_block_size",
         _ALIGN, PLAN, "expert = pairs.expert_map == nullptr ? low : pairs.expert_map[low];", "expert = low;"),
    _one("cuda: full blocks only", "an expert's last, partial block is not counted", "align_block_size", _ALIGN, PLAN,
         "(value + multiple - 1) / multiple * multiple", "value / multiple * multiple", "sgl-project/sglang#4081"),
    _one("cuda: n and k exchanged", "the second GEMM's n and k change places", "problem_sizes", _SIZES, PLAN,
         "second[1] = hidden, second[2] = intermediate;", "second[1] = intermediate, second[2] = hidden;"),
    _one("cuda: prefix sum of one warp", "the prefix sum lacks what earlier warps added up", "problem_sizes", _SIZES,
         PLAN, "carry + (warp > 0 ? of_warps[warp - 1] : 0)", "carry"),
    _one("cuda: row of the position", "each row is the one of its own position", "shuffle_rows", _SHUFFLE, ROWS,
         "const int64_t source = row_map[i];", "const int64_t source = row_map[i] < 0 ? -1 : i;"),
    _one("cuda: last slot not added", "the sum leaves out the last slot", "unpermute", _UNPERMUTE, ROWS,
         "first + i >= top_k ||", "first + i >= top_k - 1 ||", expected=_VALUES),
    _one("cuda: row 0 is padding", "> stands for >=", "unpermute", _UNPERMUTE, ROWS,
         "row_of[first + i] < 0", "row_of[first + i] <= 0", expected=_VALUES),
    _one("cuda: sum in the output's dtype", "the sum over slots is rounded to the output's dtype after each addition",
         "unpermute", _UNPERMUTE, ROWS, "total[n] = fmaf(weight, to_float(values[i].at[n]), total[n]);",
         "{ T low; from_float(fmaf(weight, to_float(values[i].at[n]), total[n]), &low); total[n] = to_float(low); }",
         expected=_VALUES),
    _one("cuda: weight of the slot before", "odd slots take the weight of the slot before", "unpermute", _UNPERMUTE,
         ROWS, "const float weight = weight_of[first + i];", "const float weight = weight_of[(first + i) / 2 * 2];",
         expected=_VALUES),
)  # fmt: skip
