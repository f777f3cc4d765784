// Scalar arithmetic of the gate, for the device and, in tests, for the host.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "launchers.h"

// exp(-|x|) never overflows, and keeps a score that is tiny from becoming 0.
__host__ __device__ inline float sigmoid(float x) {
    const float power = expf(-fabsf(x));
    return (x >= 0.0f ? 1.0f : power) / (1.0f + power);
}

__host__ __device__ inline float sqrt_softplus(float x) {
    return sqrtf(fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))));
}

// A score that is not finite counts as 0.
__host__ __device__ inline float finite_or_zero(float score) { return isfinite(score) ? score : 0.0f; }

// A score that does not depend on the row's other logits.
__host__ __device__ inline float own_score(float x, int32_t scoring) {
    return finite_or_zero(scoring == MOECHECK_SIGMOID ? sigmoid(x) : sqrt_softplus(x));
}

__host__ __device__ inline float soft_capped(float x, float softcap) {
    return softcap > 0.0f ? softcap * tanhf(x / softcap) : x;
}

// Ascending as the numbers are, with -0 as +0, so that equal scores have equal keys; 0 is below all numbers.
__host__ __device__ inline uint32_t ordered_key(float value) {
    const float plain = value == 0.0f ? 0.0f : value;
    uint32_t bits;
    memcpy(&bits, &plain, sizeof bits);
    return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

__host__ __device__ inline float guarded(float total, int32_t rule, float eps) {
    switch (rule) {
        case MOECHECK_EPS_ADD: return total + eps;
        case MOECHECK_EPS_CLAMP_MIN: return fmaxf(total, eps);
        case MOECHECK_EPS_WHERE_POSITIVE: return total > 0.0f ? total : 1.0f;
        default: return total;
    }
}
