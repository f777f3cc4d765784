// What the kernels share: warps, conversions, grids.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int64_t LARGEST_GRID = 0x7fffffff;
constexpr int64_t SHARED_BYTES = 48 << 10;  // that a block has without asking

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// Rounded to nearest even; beyond the largest finite number, infinity.
__device__ inline void from_float(float value, float* out) { *out = value; }
__device__ inline void from_float(float value, __half* out) { *out = __float2half_rn(value); }
__device__ inline void from_float(float value, __nv_bfloat16* out) { *out = __float2bfloat16_rn(value); }

// As many elements as one access moves. A copy of the array itself may become one access for each element.
template <int BYTES>
struct Access;
template <>
struct Access<16> { using Type = uint4; };
template <>
struct Access<4> { using Type = uint32_t; };
template <>
struct Access<2> { using Type = uint16_t; };

template <typename T, int N>
struct Vector {
    T at[N];
};

template <typename T, int N>
__device__ inline void load_vector(const T* from, Vector<T, N>* to) {
    const auto bits = *reinterpret_cast<const typename Access<sizeof(T) * N>::Type*>(from);
    memcpy(to, &bits, sizeof bits);
}

template <typename T, int N>
__device__ inline void store_vector(const Vector<T, N>& from, T* to) {
    typename Access<sizeof(T) * N>::Type bits;
    memcpy(&bits, &from, sizeof bits);
    *reinterpret_cast<decltype(bits)*>(to) = bits;
}

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool is_aligned(const void* pointer, int64_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Kernels that follow each other closely: the next one is started while this one still runs, and waits for its end
// before it touches what this one reads or writes (programmatic dependent launch, compute capability 9.0).
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}

// Launch a kernel that calls wait_for_previous(), right behind one that calls let_next_start().
template <typename... Parameters, typename... Arguments>
cudaError_t launch_behind(
    void (*kernel)(Parameters...), int64_t blocks, int64_t threads, int64_t shared_bytes, cudaStream_t stream,
    Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
#ifdef MOECHECK_HOPPER
    config.numAttrs = 1;
#endif
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// How a row of `vectors` accesses is shared out: blocks a row, threads a block (whole warps), `each` accesses a thread.
struct RowGrid {
    int32_t parts;
    int32_t threads;
};

inline RowGrid row_grid(int64_t vectors, int64_t each) {
    const int64_t parts = divided_up(vectors, 256 * each);
    const int64_t threads = divided_up(divided_up(vectors, parts * each), WARP) * WARP;
    return {static_cast<int32_t>(parts), static_cast<int32_t>(threads)};
}
