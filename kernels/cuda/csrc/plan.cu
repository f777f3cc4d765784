// Where each (token, slot) pair goes: a stable counting sort by expert whose result never depends on the schedule.
//
// The pairs are cut into tiles. A block counts its tile's pairs by bucket (the only use of atomics: integer sums have no
// order), the counts of earlier tiles are added up, and one warp walks through each tile in order.
#include "common.cuh"
#include "launchers.h"

namespace {

constexpr int THREADS = 256;
constexpr int SCAN_THREADS = 1024;
constexpr int AT_ONCE = 8;  // times 32 pairs whose ids a warp loads together

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

__device__ int rounded_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// One block a tile. shared: [num_buckets].
__global__ void __launch_bounds__(THREADS) count_kernel(const MoecheckPairs pairs, int64_t tile_pairs, int32_t* counts) {
    extern __shared__ int32_t shared[];
    let_next_start();
    for (int bucket = threadIdx.x; bucket < pairs.num_buckets; bucket += THREADS) shared[bucket] = 0;
    __syncthreads();
    const int64_t first = static_cast<int64_t>(blockIdx.x) * tile_pairs;
    const int64_t end = min(first + tile_pairs, pairs.num_pairs);
    for (int64_t pair = first + threadIdx.x; pair < end; pair += THREADS) {
        const int bucket = bucket_of(pairs, pair);
        if (bucket >= 0) atomicAdd(&shared[bucket], 1);
    }
    __syncthreads();
    int32_t* own = counts + static_cast<int64_t>(blockIdx.x) * pairs.num_buckets;
    for (int bucket = threadIdx.x; bucket < pairs.num_buckets; bucket += THREADS) own[bucket] = shared[bucket];
}

// One warp a bucket: counts become those of earlier tiles.
__global__ void __launch_bounds__(WARP)
    scan_tiles_kernel(int32_t* counts, int64_t num_tiles, int32_t num_buckets, int32_t* totals) {
    const int bucket = blockIdx.x, lane = threadIdx.x;
    let_next_start();
    wait_for_previous();
    int carry = 0;
#pragma unroll 4
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
    let_next_start();
    wait_for_previous();
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int carry = 0;
    for (int base = 0; base < num_buckets; base += SCAN_THREADS) {
        const int bucket = base + static_cast<int>(threadIdx.x);
        const int total = bucket < num_buckets ? totals[bucket] : 0;
        const int step = rounded_up(total, multiple);
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

// Where the tile's first pair of each bucket goes, into next [num_buckets]. The first block writes `starts` as well.
__device__ void find_starts(
    const MoecheckPairs& pairs, int32_t multiple, const int32_t* own, const int32_t* totals, int32_t* starts,
    int32_t* next) {
    const int lane = threadIdx.x, each = (pairs.num_buckets + WARP - 1) / WARP;
    const int first = lane * each, end = min(first + each, pairs.num_buckets);
    int sum = 0;
#pragma unroll 8
    for (int bucket = first; bucket < end; ++bucket) sum += rounded_up(totals[bucket], multiple);
    int start = inclusive_warp_scan(sum, lane) - sum;
#pragma unroll 8
    for (int bucket = first; bucket < end; ++bucket) {
        next[bucket] = start + (own == nullptr ? 0 : own[bucket]);
        if (starts != nullptr) starts[bucket] = start;
        start += rounded_up(totals[bucket], multiple);
    }
    if (starts != nullptr && lane == WARP - 1) starts[pairs.num_buckets] = start;
}

// 32 pairs in ascending order; next[bucket] is where the next pair of that bucket goes. bucket: -1 for none.
__device__ int place(int bucket, int lane, int32_t* next) {
    const unsigned peers = __match_any_sync(ALL_LANES, bucket);
    const int rank = __popc(peers & ((1u << lane) - 1u));
    const int position = bucket >= 0 ? next[bucket] + rank : -1;
    __syncwarp();
    if (bucket >= 0 && rank == 0) next[bucket] += __popc(peers);
    __syncwarp();
    return position;
}

// One warp a tile. shared: [num_buckets]. The ids come from before the kernels that count them.
__global__ void __launch_bounds__(WARP) place_kernel(
    const MoecheckPairs pairs, int64_t tile_pairs, int32_t multiple, const int32_t* counts, const int32_t* totals,
    int32_t* starts, int32_t* position_of_pair, int32_t* pair_at) {
    extern __shared__ int32_t next[];
    let_next_start();
    const int lane = threadIdx.x;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * tile_pairs;
    const int64_t end = min(first + tile_pairs, pairs.num_pairs);
    int buckets[AT_ONCE];
    const auto load = [&](int64_t base) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int64_t pair = base + i * WARP + lane;
            buckets[i] = pair < end ? bucket_of(pairs, pair) : -1;
        }
    };
    load(first);
    wait_for_previous();
    const int32_t* own = tile_pairs > 0 ? counts + static_cast<int64_t>(blockIdx.x) * pairs.num_buckets : nullptr;
    find_starts(pairs, multiple, own, totals, blockIdx.x == 0 ? starts : nullptr, next);
    __syncwarp();
    for (int64_t base = first; base < end; base += AT_ONCE * WARP) {
        if (base > first) load(base);
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int position = place(buckets[i], lane, next);
            const int64_t pair = base + i * WARP + lane;
            if (pair < end) {
                if (position_of_pair != nullptr) position_of_pair[pair] = position;
                if (pair_at != nullptr && position >= 0) pair_at[position] = static_cast<int32_t>(pair);
            }
        }
    }
}

__global__ void __launch_bounds__(THREADS) blocks_kernel(
    const MoecheckPairs pairs, const int32_t* starts, int64_t length, int32_t block_size, int32_t* pair_at,
    int32_t* expert_of_block, int32_t* num_post_padded) {
    let_next_start();
    wait_for_previous();
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
    const MoecheckPairs* pairs, int64_t tile_pairs, int64_t num_tiles, int32_t* counts, int32_t* totals,
    cudaStream_t stream) {
    const int64_t shared_bytes = pairs->num_buckets * static_cast<int64_t>(sizeof(int32_t));
    if (pairs->num_pairs > LARGEST_GRID || shared_bytes > SHARED_BYTES) return cudaErrorInvalidValue;
    if (num_tiles > 0) {
        count_kernel<<<static_cast<unsigned>(num_tiles), THREADS, shared_bytes, stream>>>(*pairs, tile_pairs, counts);
    }
    if (pairs->num_buckets == 0) return cudaGetLastError();
    return launch_behind(
        scan_tiles_kernel, pairs->num_buckets, WARP, 0, stream, counts, num_tiles, pairs->num_buckets, totals);
}

cudaError_t moecheck_starts(
    const int32_t* totals, int32_t num_buckets, int32_t multiple, int32_t* starts, int32_t* sizes1, int32_t* sizes2,
    int32_t intermediate, int32_t hidden, cudaStream_t stream) {
    if (multiple < 1) return cudaErrorInvalidValue;
    return launch_behind(
        starts_kernel, 1, SCAN_THREADS, 0, stream, totals, num_buckets, multiple, starts, sizes1, sizes2, intermediate,
        hidden);
}

cudaError_t moecheck_place(
    const MoecheckPairs* pairs, int64_t tile_pairs, int64_t num_tiles, int32_t multiple, const int32_t* counts,
    const int32_t* totals, int32_t* starts, int32_t* position_of_pair, int32_t* pair_at, cudaStream_t stream) {
    const int64_t shared_bytes = pairs->num_buckets * static_cast<int64_t>(sizeof(int32_t));
    if (multiple < 1 || shared_bytes > SHARED_BYTES) return cudaErrorInvalidValue;
    if (num_tiles == 0 && starts == nullptr) return cudaSuccess;
    return launch_behind(
        place_kernel, num_tiles > 0 ? num_tiles : 1, WARP, shared_bytes, stream, *pairs, num_tiles > 0 ? tile_pairs : 0,
        multiple, counts, totals, starts, position_of_pair, pair_at);
}

cudaError_t moecheck_blocks(
    const MoecheckPairs* pairs, const int32_t* starts, int64_t length, int32_t block_size, int32_t* pair_at,
    int32_t* expert_of_block, int32_t* num_post_padded, cudaStream_t stream) {
    if (length > LARGEST_GRID || block_size < 1) return cudaErrorInvalidValue;
    return launch_behind(
        blocks_kernel, divided_up(length > 0 ? length : 1, THREADS), THREADS, 0, stream, *pairs, starts, length,
        block_size, pair_at, expert_of_block, num_post_padded);
}
