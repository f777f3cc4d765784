// Where each (token, slot) pair goes: a stable counting sort by expert whose result never depends on the schedule.
//
// The pairs are cut into tiles. Each tile's pairs are counted by expert (counting is the only use of atomics: integer
// sums have no order), the counts of earlier tiles are added up, and one warp walks through each tile in order.
#include "common.cuh"
#include "launchers.h"

namespace {

constexpr int THREADS = 256;
constexpr int SCAN_THREADS = 1024;

// The bucket of a pair, -1 where its expert is nobody's or not here.
__device__ int bucket_of(const MoecheckPairs& pairs, int64_t pair) {
    const int id = pairs.ids[pair];
    if (id < 0 || id >= pairs.num_experts) return -1;
    if (pairs.expert_map == nullptr) return id < pairs.num_buckets ? id : -1;
    const int local = pairs.expert_map[id];
    const int bucket = pairs.by_global ? id : local;
    return local < 0 || bucket >= pairs.num_buckets ? -1 : bucket;
}

__device__ int inclusive_warp_scan(int value, int lane) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        const int below = __shfl_up_sync(ALL_LANES, value, step);
        if (lane >= step) value += below;
    }
    return value;
}

__global__ void __launch_bounds__(THREADS) count_kernel(const MoecheckPairs pairs, int64_t tile_pairs, int32_t* counts) {
    const int64_t pair = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (pair >= pairs.num_pairs) return;
    const int bucket = bucket_of(pairs, pair);
    if (bucket >= 0) atomicAdd(&counts[pair / tile_pairs * pairs.num_buckets + bucket], 1);
}

// One warp a bucket: counts become those of earlier tiles.
__global__ void __launch_bounds__(WARP)
    scan_tiles_kernel(int32_t* counts, int64_t num_tiles, int32_t num_buckets, int32_t* totals) {
    const int bucket = blockIdx.x, lane = threadIdx.x;
    int carry = 0;
    for (int64_t base = 0; base < num_tiles; base += WARP) {
        const int64_t at = (base + lane) * num_buckets + bucket;
        const int count = base + lane < num_tiles ? counts[at] : 0;
        const int inclusive = inclusive_warp_scan(count, lane);
        if (base + lane < num_tiles) counts[at] = carry + inclusive - count;
        carry += __shfl_sync(ALL_LANES, inclusive, WARP - 1);
    }
    if (lane == 0) totals[bucket] = carry;
}

// One block: the prefix sum over buckets, SCAN_THREADS of them at a time.
__global__ void __launch_bounds__(SCAN_THREADS) starts_kernel(
    const int32_t* totals, int32_t num_buckets, int32_t multiple, int32_t* starts, int32_t* sizes1, int32_t* sizes2,
    int32_t intermediate, int32_t hidden) {
    __shared__ int of_warps[SCAN_THREADS / WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int carry = 0;
    for (int base = 0; base < num_buckets; base += SCAN_THREADS) {
        const int bucket = base + static_cast<int>(threadIdx.x);
        const int total = bucket < num_buckets ? totals[bucket] : 0;
        const int step = (total + multiple - 1) / multiple * multiple;
        const int inclusive = inclusive_warp_scan(step, lane);
        if (lane == WARP - 1) of_warps[warp] = inclusive;
        __syncthreads();
        if (warp == 0) of_warps[lane] = inclusive_warp_scan(of_warps[lane], lane);
        __syncthreads();
        const int before = carry + (warp > 0 ? of_warps[warp - 1] : 0);
        carry += of_warps[SCAN_THREADS / WARP - 1];
        if (bucket < num_buckets) {
            starts[bucket] = before + inclusive - step;
            if (sizes1 != nullptr) {
                int32_t* first = sizes1 + static_cast<int64_t>(bucket) * 3;
                int32_t* second = sizes2 + static_cast<int64_t>(bucket) * 3;
                first[0] = total, first[1] = 2 * intermediate, first[2] = hidden;
                second[0] = total, second[1] = hidden, second[2] = intermediate;
            }
        }
        __syncthreads();  // of_warps is written again
    }
    if (threadIdx.x == 0) starts[num_buckets] = carry;
}

// One warp a tile, 32 pairs at a time: the pairs of one bucket in ascending order.
__global__ void __launch_bounds__(WARP) place_kernel(
    const MoecheckPairs pairs, int64_t tile_pairs, int32_t* counts, const int32_t* starts, int32_t* position_of_pair,
    int32_t* pair_at) {
    const int lane = threadIdx.x;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * tile_pairs;
    const int64_t end = min(first + tile_pairs, pairs.num_pairs);
    int32_t* own = counts + static_cast<int64_t>(blockIdx.x) * pairs.num_buckets;
    for (int64_t base = first; base < end; base += WARP) {
        const int64_t pair = base + lane;
        const int bucket = pair < end ? bucket_of(pairs, pair) : -1;
        const unsigned peers = __match_any_sync(ALL_LANES, bucket);
        const int rank = __popc(peers & ((1u << lane) - 1u));
        const int position = bucket >= 0 ? starts[bucket] + own[bucket] + rank : -1;
        __syncwarp();
        if (bucket >= 0 && rank == 0) own[bucket] += __popc(peers);
        __syncwarp();
        if (pair < end) {
            if (position_of_pair != nullptr) position_of_pair[pair] = position;
            if (pair_at != nullptr && position >= 0) pair_at[position] = static_cast<int32_t>(pair);
        }
    }
}

__global__ void __launch_bounds__(THREADS) blocks_kernel(
    const MoecheckPairs pairs, const int32_t* starts, int64_t length, int32_t block_size, int32_t* pair_at,
    int32_t* expert_of_block, int32_t* num_post_padded) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    const int total = starts[pairs.num_buckets];
    if (at == 0) *num_post_padded = total;
    if (at >= length) return;
    pair_at[at] = static_cast<int32_t>(pairs.num_pairs);
    if (at % block_size != 0) return;
    int expert = -1;
    if (at < total) {  // the last bucket that starts at or before `at`: those without pairs start where the next does
        int low = 0, high = pairs.num_buckets;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            if (starts[middle] <= at) low = middle;
            else high = middle;
        }
        expert = pairs.expert_map == nullptr ? low : pairs.expert_map[low];
    }
    expert_of_block[at / block_size] = expert;
}

}  // namespace

cudaError_t moecheck_plan(
    const MoecheckPairs* pairs, int64_t tile_pairs, int64_t num_tiles, int32_t multiple, int32_t* counts,
    int32_t* totals, int32_t* starts, int32_t* sizes1, int32_t* sizes2, int32_t intermediate, int32_t hidden,
    cudaStream_t stream) {
    if (pairs->num_pairs > LARGEST_GRID || pairs->num_buckets < 0 || multiple < 1) return cudaErrorInvalidValue;
    if (pairs->num_pairs > 0) {
        const auto blocks = static_cast<unsigned>(divided_up(pairs->num_pairs, THREADS));
        count_kernel<<<blocks, THREADS, 0, stream>>>(*pairs, tile_pairs, counts);
    }
    if (pairs->num_buckets > 0) {
        scan_tiles_kernel<<<pairs->num_buckets, WARP, 0, stream>>>(counts, num_tiles, pairs->num_buckets, totals);
    }
    starts_kernel<<<1, SCAN_THREADS, 0, stream>>>(
        totals, pairs->num_buckets, multiple, starts, sizes1, sizes2, intermediate, hidden);
    return cudaGetLastError();
}

cudaError_t moecheck_place(
    const MoecheckPairs* pairs, int64_t tile_pairs, int64_t num_tiles, int32_t* counts, const int32_t* starts,
    int32_t* position_of_pair, int32_t* pair_at, cudaStream_t stream) {
    if (num_tiles == 0) return cudaSuccess;
    place_kernel<<<static_cast<unsigned>(num_tiles), WARP, 0, stream>>>(
        *pairs, tile_pairs, counts, starts, position_of_pair, pair_at);
    return cudaGetLastError();
}

cudaError_t moecheck_blocks(
    const MoecheckPairs* pairs, const int32_t* starts, int64_t length, int32_t block_size, int32_t* pair_at,
    int32_t* expert_of_block, int32_t* num_post_padded, cudaStream_t stream) {
    if (length > LARGEST_GRID || block_size < 1) return cudaErrorInvalidValue;
    const auto blocks = static_cast<unsigned>(divided_up(length > 0 ? length : 1, THREADS));
    blocks_kernel<<<blocks, THREADS, 0, stream>>>(
        *pairs, starts, length, block_size, pair_at, expert_of_block, num_post_padded);
    return cudaGetLastError();
}
