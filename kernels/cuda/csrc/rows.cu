// Rows moved and added up: bound by memory, so 16 bytes an access wherever pointers and strides allow it.
#include "common.cuh"
#include "launchers.h"

namespace {

constexpr int EACH = 4;   // accesses of a row that a thread has in flight
constexpr int BATCH = 8;  // rows of a sum that a thread has in flight

// Block (token, part) reads a part of the token's row once and writes it to each of its slots' positions.
template <typename V>
__global__ void scatter_rows_kernel(
    const char* x, int64_t stride_bytes, int64_t vectors, int32_t parts, const int32_t* position_of_pair,
    int32_t top_k, V* out) {
    const int64_t token = blockIdx.x / parts;
    const int64_t first = static_cast<int64_t>(blockIdx.x % parts) * blockDim.x * EACH + threadIdx.x;
    const V* row = reinterpret_cast<const V*>(x + token * stride_bytes);
    V values[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int64_t at = first + i * static_cast<int64_t>(blockDim.x);
        if (at < vectors) values[i] = row[at];
    }
    for (int slot = 0; slot < top_k; ++slot) {
        const int64_t position = position_of_pair[token * top_k + slot];
        if (position < 0) continue;
        V* target = out + position * vectors;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int64_t at = first + i * static_cast<int64_t>(blockDim.x);
            if (at < vectors) target[at] = values[i];
        }
    }
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

// Block (token, part): each thread adds up N columns of the token's rows, in fp32 and in the order of the slots, with
// the same operations whatever N is.
template <typename T, int N>
__global__ void __launch_bounds__(256) sum_rows_kernel(
    const T* rows, int64_t stride, int64_t num_rows, int64_t vectors, int32_t parts, const float* weights,
    const int32_t* index, int32_t top_k, T* out) {
    const int64_t token = blockIdx.x / parts;
    const int64_t at = static_cast<int64_t>(blockIdx.x % parts) * blockDim.x + threadIdx.x;
    if (at >= vectors) return;
    weights += token * top_k;
    index += token * top_k;
    float total[N] = {};
    for (int first = 0; first < top_k; first += BATCH) {
        Vector<T, N> values[BATCH];
        bool known[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            const int64_t row = first + i < top_k ? index[first + i] : -1;
            known[i] = row >= 0 && row < num_rows;
            if (known[i]) values[i] = reinterpret_cast<const Vector<T, N>*>(rows + row * stride)[at];
        }
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (!known[i]) continue;
            const float weight = weights[first + i];
#pragma unroll
            for (int n = 0; n < N; ++n) total[n] = fmaf(weight, to_float(values[i].at[n]), total[n]);
        }
    }
    Vector<T, N> result;
#pragma unroll
    for (int n = 0; n < N; ++n) from_float(total[n], &result.at[n]);
    reinterpret_cast<Vector<T, N>*>(out + token * vectors * N)[at] = result;
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
    scatter_rows_kernel<V><<<static_cast<unsigned>(num_tokens * grid.parts), grid.threads, 0, stream>>>(
        static_cast<const char*>(x), stride_bytes, vectors, grid.parts, position_of_pair, top_k, static_cast<V*>(out));
    return cudaGetLastError();
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
    if (num_tokens * grid.parts > LARGEST_GRID) return cudaErrorInvalidValue;
    sum_rows_kernel<T, N><<<static_cast<unsigned>(num_tokens * grid.parts), grid.threads, 0, stream>>>(
        static_cast<const T*>(rows), stride, num_rows, width / N, grid.parts, weights, index, top_k,
        static_cast<T*>(out));
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
