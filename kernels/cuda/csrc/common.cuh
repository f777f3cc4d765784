// What the kernels share: warps, conversions, grids.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int64_t LARGEST_GRID = 0x7fffffff;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// Rounded to nearest even; beyond the largest finite number, infinity.
__device__ inline void from_float(float value, float* out) { *out = value; }
__device__ inline void from_float(float value, __half* out) { *out = __float2half_rn(value); }
__device__ inline void from_float(float value, __nv_bfloat16* out) { *out = __float2bfloat16_rn(value); }

// As many elements as a vectorised access moves.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
    T at[N];
};

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool is_aligned(const void* pointer, int64_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

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
