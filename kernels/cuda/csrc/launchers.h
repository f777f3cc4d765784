// The kernels' plain C interface: pointers, sizes, a stream. No framework's header is needed on either side.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

enum MoecheckDtype { MOECHECK_FP32 = 0, MOECHECK_FP16 = 1, MOECHECK_BF16 = 2 };

// How scores come from logits, as RoutingSpec.scoring names them.
enum MoecheckScoring { MOECHECK_SOFTMAX = 0, MOECHECK_SIGMOID = 1, MOECHECK_SQRT_SOFTPLUS = 2 };

// What guards the sum that renormalisation divides by, as RoutingSpec.renorm_eps_rule names it.
enum MoecheckEpsRule {
    MOECHECK_EPS_NONE = 0,
    MOECHECK_EPS_ADD = 1,
    MOECHECK_EPS_CLAMP_MIN = 2,
    MOECHECK_EPS_WHERE_POSITIVE = 3
};

// One call of the fused gate. weights, ids: [num_tokens, top_k + num_shared].
struct MoecheckGate {
    const void* logits;          // [num_tokens, num_experts] of `dtype`, rows `stride` elements apart
    const float* logit_bias;     // [num_experts], added to the logits; NULL for none
    const float* choice_bias;    // [num_experts], added to what experts are chosen by; NULL for none
    const float* expert_scale;   // [num_experts], multiplies the weights; NULL for none
    float* weights;
    int32_t* ids;
    int64_t stride, num_tokens;
    int32_t dtype, num_experts, top_k, num_groups, topk_groups, num_shared;
    int32_t scoring, eps_rule;
    int32_t by_logits;           // choose by the logits instead of the scores
    int32_t over_selected;       // weights are the softmax over the chosen logits
    int32_t top2_sum;            // a group's score is the sum of its best two instead of its best
    int32_t mask_zero;           // choice scores of other groups become 0 instead of -Inf
    int32_t renormalize;
    float softcap;               // 0 for none
    float norm, eps, factor, shared_weight;
};

// The (token, slot) pairs of a call: ids [num_pairs], global. expert_map: [num_experts] global to local, NULL for the
// identity. by_global: buckets are global ids (of experts that are here), else local ones.
struct MoecheckPairs {
    const int32_t* ids;
    const int32_t* expert_map;
    int64_t num_pairs;
    int32_t num_experts, num_buckets, by_global;
};

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t moecheck_gate(const struct MoecheckGate* call, cudaStream_t stream);

// Pairs counted, tile_pairs of them a tile. counts: [num_tiles, num_buckets], the pairs of a bucket in earlier tiles.
// totals: [num_buckets], in all tiles. At most 12,288 buckets.
cudaError_t moecheck_plan(
    const struct MoecheckPairs* pairs, int64_t tile_pairs, int64_t num_tiles, int32_t* counts, int32_t* totals,
    cudaStream_t stream);

// Right behind moecheck_plan. starts: [num_buckets + 1], the exclusive prefix sum of the totals, each rounded up to
// whole multiples of `multiple`. sizes1, sizes2: [num_buckets, 3] of (total, 2 * intermediate, hidden) and (total,
// hidden, intermediate), or NULL.
cudaError_t moecheck_starts(
    const int32_t* totals, int32_t num_buckets, int32_t multiple, int32_t* starts, int32_t* sizes1, int32_t* sizes2,
    int32_t intermediate, int32_t hidden, cudaStream_t stream);

// Right behind one of the others here. Positions of the pairs: position_of_pair [num_pairs], -1 for a pair without a
// bucket, and pair_at [positions]. starts: as of moecheck_starts. Each of the three may be NULL.
cudaError_t moecheck_place(
    const struct MoecheckPairs* pairs, int64_t tile_pairs, int64_t num_tiles, int32_t multiple, const int32_t* counts,
    const int32_t* totals, int32_t* starts, int32_t* position_of_pair, int32_t* pair_at, cudaStream_t stream);

// Right behind moecheck_starts. Padding of block-aligned metadata: pair_at [length] = num_pairs everywhere, expert_of_block [ceil(length /
// block_size)] the local expert of each block, -1 beyond the last, and num_post_padded [1].
cudaError_t moecheck_blocks(
    const struct MoecheckPairs* pairs, const int32_t* starts, int64_t length, int32_t block_size, int32_t* pair_at,
    int32_t* expert_of_block, int32_t* num_post_padded, cudaStream_t stream);

// Right behind moecheck_place or itself. Each token's row to the positions of its top_k pairs; negative positions are
// left out. Rows are bytes, so any dtype.
cudaError_t moecheck_scatter_rows(
    const void* x, int64_t stride_bytes, int64_t num_tokens, int64_t row_bytes, const int32_t* position_of_pair,
    int32_t top_k, void* out, cudaStream_t stream);

// out[i] = x[row_map[i]]; a row outside of x is left out.
cudaError_t moecheck_gather_rows(
    const void* x, int64_t stride_bytes, int64_t num_sources, int64_t row_bytes, const int32_t* row_map,
    int64_t num_rows, void* out, cudaStream_t stream);

// out[t] = sum over slots of weights[t, slot] * rows[index[t, slot]] in fp32, in the order of the slots, rounded once.
cudaError_t moecheck_sum_rows(
    const void* rows, int32_t dtype, int64_t stride, int64_t num_rows, int64_t width, const float* weights,
    const int32_t* index, int64_t num_tokens, int32_t top_k, void* out, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
