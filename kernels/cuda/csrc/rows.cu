// Rows moved and added up: bound by memory, so 16 bytes an access wherever pointers and strides allow it.
#include <algorithm>

#include "bulk.cuh"
#include "common.cuh"
#include "launchers.h"

namespace {

constexpr int EACH = 4;   // accesses of a row that a thread has in flight
constexpr int BATCH = 8;  // slots of a token that a thread looks at together
constexpr int64_t BUSY_BLOCKS = 1024;
constexpr int64_t LEAST_BULK_BYTES = 4096;  // of a row, below which the copy engine is not worth its start
constexpr int64_t LARGEST_BULK_BYTES = SHARED_BYTES - 128;

// Block (token, part) reads a part of the token's row once and writes it to each of its slots' positions.
template <typename V>
__global__ void __launch_bounds__(256) scatter_rows_kernel(
    const char* x, int64_t stride_bytes, int64_t vectors, int32_t parts, const int32_t* position_of_pair,
    int32_t top_k, V* out) {
    const int64_t token = blockIdx.x / parts;
    const int64_t first = static_cast<int64_t>(blockIdx.x % parts) * blockDim.x * EACH + threadIdx.x;
    const V* row = reinterpret_cast<const V*>(x + token * stride_bytes);
    V values[EACH];
    // x comes from before the kernels that find the positions: it is there although those may still be running.
    let_next_start();
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int64_t at = first + i * static_cast<int64_t>(blockDim.x);
        if (at < vectors) values[i] = row[at];
    }
    wait_for_previous();
    position_of_pair += token * top_k;
    for (int base = 0; base < top_k; base += BATCH) {
        int32_t positions[BATCH];
#pragma unroll
        for (int slot = 0; slot < BATCH; ++slot) {
            positions[slot] = base + slot < top_k ? position_of_pair[base + slot] : -1;
        }
#pragma unroll
        for (int slot = 0; slot < BATCH; ++slot) {
            if (positions[slot] < 0) continue;
            V* target = out + static_cast<int64_t>(positions[slot]) * vectors;
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const int64_t at = first + i * static_cast<int64_t>(blockDim.x);
                if (at < vectors) target[at] = values[i];
            }
        }
    }
}

// One warp a token: the copy engine brings the row to shared memory, and takes it from there to the slots' positions.
__global__ void __launch_bounds__(WARP) scatter_rows_bulk_kernel(
    const char* x, int64_t stride_bytes, int32_t row_bytes, const int32_t* position_of_pair, int32_t top_k, char* out) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) unsigned char row[];
    __shared__ uint64_t arrived;
    const int64_t token = blockIdx.x;
    let_next_start();
    if (threadIdx.x == 0) {  // x is there, as above
        barrier_init(&arrived);
        bulk_load(row, x + token * stride_bytes, row_bytes, &arrived);
    }
    __syncwarp();
    wait_for_previous();
    barrier_wait(&arrived);
    for (int slot = threadIdx.x; slot < top_k; slot += WARP) {
        const int64_t position = position_of_pair[token * top_k + slot];
        if (position >= 0) bulk_store(out + position * row_bytes, row, row_bytes);
    }
    wait_for_bulk_stores();
#endif
}

template <typename V>
__global__ void gather_rows_kernel(
    const char* x, int64_t stride_bytes, int64_t num_sources, int64_t vectors, int32_t parts, const int32_t* row_map,
    V* out) {
    const int64_t i = blockIdx.x / parts;
    const int64_t first = static_cast<int64_t>(blockIdx.x % parts) * blockDim.x * EACH + threadIdx.x;
    const int64_t source = row_map[i];
    if (source < 0 || source >= num_sources) return;
    const V* row = reinterpret_cast<const V*>(x + source * stride_bytes);
    V* target = out + i * vectors;
    V values[EACH];
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
        const int64_t at = first + j * static_cast<int64_t>(blockDim.x);
        if (at < vectors) values[j] = row[at];
    }
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
        const int64_t at = first + j * static_cast<int64_t>(blockDim.x);
        if (at < vectors) target[at] = values[j];
    }
}

// Block (token, part): each thread adds up N columns at a time of the token's rows, in fp32 and in the order of the
// slots, with the same operations whatever N is. shared: [top_k] of the rows, -1 for none, and of their weights.
template <typename T, int N>
__global__ void __launch_bounds__(256) sum_rows_kernel(
    const T* rows, int64_t stride, int64_t num_rows, int64_t vectors, int32_t parts, const float* weights,
    const int32_t* index, int32_t top_k, T* out) {
    extern __shared__ int32_t shared[];
    int32_t* row_of = shared;
    float* weight_of = reinterpret_cast<float*>(shared + top_k);
    const int64_t token = blockIdx.x / parts;
    for (int slot = threadIdx.x; slot < top_k; slot += blockDim.x) {
        const int32_t row = index[token * top_k + slot];
        row_of[slot] = row < num_rows ? row : -1;
        weight_of[slot] = weights[token * top_k + slot];
    }
    __syncthreads();
    const int64_t step = static_cast<int64_t>(parts) * blockDim.x;
    for (int64_t at = (blockIdx.x % parts) * blockDim.x + threadIdx.x; at < vectors; at += step) {
        float total[N] = {};
        for (int first = 0; first < top_k; first += BATCH) {
            Vector<T, N> values[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                const int64_t row = first + i < top_k ? row_of[first + i] : -1;
                if (row >= 0) load_vector(rows + row * stride + at * N, &values[i]);
            }
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                if (first + i >= top_k || row_of[first + i] < 0) continue;
                const float weight = weight_of[first + i];
#pragma unroll
                for (int n = 0; n < N; ++n) total[n] = fmaf(weight, to_float(values[i].at[n]), total[n]);
            }
        }
        Vector<T, N> result;
#pragma unroll
        for (int n = 0; n < N; ++n) from_float(total[n], &result.at[n]);
        store_vector(result, out + (token * vectors + at) * N);
    }
}

// The widest access in bytes that fits pointers, stride and width.
int64_t access_bytes(const void* x, int64_t stride_bytes, int64_t row_bytes, const void* out) {
    int64_t bytes = 16;
    while (bytes > 1 && (!is_aligned(x, bytes) || !is_aligned(out, bytes) || stride_bytes % bytes || row_bytes % bytes)) {
        bytes /= 2;
    }
    return bytes;
}

template <typename V>
cudaError_t scatter(
    const void* x, int64_t stride_bytes, int64_t num_tokens, int64_t row_bytes, const int32_t* position_of_pair,
    int32_t top_k, void* out, cudaStream_t stream) {
    const int64_t vectors = row_bytes / static_cast<int64_t>(sizeof(V));
    const RowGrid grid = row_grid(vectors, EACH);
    if (num_tokens * grid.parts > LARGEST_GRID) return cudaErrorInvalidValue;
    return launch_behind(
        scatter_rows_kernel<V>, num_tokens * grid.parts, grid.threads, 0, stream, static_cast<const char*>(x),
        stride_bytes, vectors, grid.parts, position_of_pair, top_k, static_cast<V*>(out));
}

template <typename V>
cudaError_t gather(
    const void* x, int64_t stride_bytes, int64_t num_sources, int64_t row_bytes, const int32_t* row_map,
    int64_t num_rows, void* out, cudaStream_t stream) {
    const int64_t vectors = row_bytes / static_cast<int64_t>(sizeof(V));
    const RowGrid grid = row_grid(vectors, EACH);
    if (num_rows * grid.parts > LARGEST_GRID) return cudaErrorInvalidValue;
    gather_rows_kernel<V><<<static_cast<unsigned>(num_rows * grid.parts), grid.threads, 0, stream>>>(
        static_cast<const char*>(x), stride_bytes, num_sources, vectors, grid.parts, row_map, static_cast<V*>(out));
    return cudaGetLastError();
}

template <typename T, int N>
cudaError_t sum(
    const void* rows, int64_t stride, int64_t num_rows, int64_t width, const float* weights, const int32_t* index,
    int64_t num_tokens, int32_t top_k, void* out, cudaStream_t stream) {
    const RowGrid grid = row_grid(width / N, 1);
    // A block that goes through the whole row looks up the token's rows once; few tokens need more blocks to be busy.
    const auto parts = static_cast<int32_t>(std::min<int64_t>(grid.parts, divided_up(BUSY_BLOCKS, num_tokens)));
    const int64_t shared_bytes = top_k * static_cast<int64_t>(sizeof(int32_t) + sizeof(float));
    if (num_tokens * parts > LARGEST_GRID || shared_bytes > SHARED_BYTES) return cudaErrorInvalidValue;
    sum_rows_kernel<T, N><<<static_cast<unsigned>(num_tokens * parts), grid.threads, shared_bytes, stream>>>(
        static_cast<const T*>(rows), stride, num_rows, width / N, parts, weights, index, top_k, static_cast<T*>(out));
    return cudaGetLastError();
}

template <typename T>
cudaError_t sum_of(
    const void* rows, int64_t stride, int64_t num_rows, int64_t width, const float* weights, const int32_t* index,
    int64_t num_tokens, int32_t top_k, void* out, cudaStream_t stream) {
    constexpr int64_t SIZE = sizeof(T);
    if (access_bytes(rows, stride * SIZE, width * SIZE, out) == 16) {
        return sum<T, 16 / SIZE>(rows, stride, num_rows, width, weights, index, num_tokens, top_k, out, stream);
    }
    return sum<T, 1>(rows, stride, num_rows, width, weights, index, num_tokens, top_k, out, stream);
}

}  // namespace

cudaError_t moecheck_scatter_rows(
    const void* x, int64_t stride_bytes, int64_t num_tokens, int64_t row_bytes, const int32_t* position_of_pair,
    int32_t top_k, void* out, cudaStream_t stream) {
    if (num_tokens == 0 || row_bytes == 0 || top_k == 0) return cudaSuccess;
#ifdef MOECHECK_HOPPER
    if (access_bytes(x, stride_bytes, row_bytes, out) == 16 && row_bytes >= LEAST_BULK_BYTES &&
        row_bytes <= LARGEST_BULK_BYTES && num_tokens <= LARGEST_GRID) {
        return launch_behind(
            scatter_rows_bulk_kernel, num_tokens, WARP, row_bytes, stream, static_cast<const char*>(x), stride_bytes,
            row_bytes, position_of_pair, top_k, static_cast<char*>(out));
    }
#endif
    switch (access_bytes(x, stride_bytes, row_bytes, out)) {
        case 16: return scatter<uint4>(x, stride_bytes, num_tokens, row_bytes, position_of_pair, top_k, out, stream);
        case 8: return scatter<uint2>(x, stride_bytes, num_tokens, row_bytes, position_of_pair, top_k, out, stream);
        case 4: return scatter<uint32_t>(x, stride_bytes, num_tokens, row_bytes, position_of_pair, top_k, out, stream);
        case 2: return scatter<uint16_t>(x, stride_bytes, num_tokens, row_bytes, position_of_pair, top_k, out, stream);
        default: return scatter<uint8_t>(x, stride_bytes, num_tokens, row_bytes, position_of_pair, top_k, out, stream);
    }
}

cudaError_t moecheck_gather_rows(
    const void* x, int64_t stride_bytes, int64_t num_sources, int64_t row_bytes, const int32_t* row_map,
    int64_t num_rows, void* out, cudaStream_t stream) {
    if (num_rows == 0 || row_bytes == 0) return cudaSuccess;
    switch (access_bytes(x, stride_bytes, row_bytes, out)) {
        case 16: return gather<uint4>(x, stride_bytes, num_sources, row_bytes, row_map, num_rows, out, stream);
        case 8: return gather<uint2>(x, stride_bytes, num_sources, row_bytes, row_map, num_rows, out, stream);
        case 4: return gather<uint32_t>(x, stride_bytes, num_sources, row_bytes, row_map, num_rows, out, stream);
        case 2: return gather<uint16_t>(x, stride_bytes, num_sources, row_bytes, row_map, num_rows, out, stream);
        default: return gather<uint8_t>(x, stride_bytes, num_sources, row_bytes, row_map, num_rows, out, stream);
    }
}

cudaError_t moecheck_sum_rows(
    const void* rows, int32_t dtype, int64_t stride, int64_t num_rows, int64_t width, const float* weights,
    const int32_t* index, int64_t num_tokens, int32_t top_k, void* out, cudaStream_t stream) {
    if (num_tokens == 0 || width == 0) return cudaSuccess;
    switch (dtype) {
        case MOECHECK_FP16:
            return sum_of<__half>(rows, stride, num_rows, width, weights, index, num_tokens, top_k, out, stream);
        case MOECHECK_BF16:
            return sum_of<__nv_bfloat16>(rows, stride, num_rows, width, weights, index, num_tokens, top_k, out, stream);
        case MOECHECK_FP32:
            return sum_of<float>(rows, stride, num_rows, width, weights, index, num_tokens, top_k, out, stream);
        default: return cudaErrorInvalidValue;
    }
}
