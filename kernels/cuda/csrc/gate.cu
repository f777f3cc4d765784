// The fused gate: one warp chooses and weighs the experts of one token, from logits to weights and ids in one pass.
//
// Lane i holds the consecutive experts i * PER_LANE ... in registers, so the lowest lane that holds a maximum holds the
// lowest id: equal scores go to the lowest id.
#include "common.cuh"
#include "gate_math.cuh"

namespace {

constexpr int WARPS = 4;
constexpr float INF = INFINITY;

__device__ float warp_sum(float value) {
    for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

__device__ double warp_sum(double value) {
    for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

__device__ float warp_max(float value) {
    for (int step = WARP / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, step));
    return value;
}

__device__ uint32_t warp_max(uint32_t value) { return __reduce_max_sync(ALL_LANES, value); }

template <typename T, int PER_LANE>
__device__ void load_row(const T* row, int num_experts, int first, bool aligned, float (&x)[PER_LANE]) {
    constexpr int WIDE = 16 / sizeof(T);
    if constexpr (PER_LANE % WIDE == 0) {
        if (aligned) {
#pragma unroll
            for (int j = 0; j < PER_LANE; j += WIDE) {
                if (first + j + WIDE <= num_experts) {
                    Vector<T, WIDE> values;
                    load_vector(row + first + j, &values);
#pragma unroll
                    for (int i = 0; i < WIDE; ++i) x[j + i] = to_float(values.at[i]);
                } else {
#pragma unroll
                    for (int i = 0; i < WIDE; ++i) {
                        if (first + j + i < num_experts) x[j + i] = to_float(row[first + j + i]);
                    }
                }
            }
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < PER_LANE; ++j) {
        if (first + j < num_experts) x[j] = to_float(row[first + j]);
    }
}

__device__ float load_one(const MoecheckGate& p, int64_t at) {
    switch (p.dtype) {
        case MOECHECK_FP16: return to_float(static_cast<const __half*>(p.logits)[at]);
        case MOECHECK_BF16: return to_float(static_cast<const __nv_bfloat16*>(p.logits)[at]);
        default: return static_cast<const float*>(p.logits)[at];
    }
}

__device__ float as_scored(const MoecheckGate& p, float logit, int expert) {
    const float capped = soft_capped(logit, p.softcap);
    return p.logit_bias == nullptr ? capped : capped + p.logit_bias[expert];
}

// Of a row's softmax: its largest logit, whether it is defined, and the sum of its powers.
struct Row {
    float largest, total;
    bool defined;
};

__device__ float score_of(const MoecheckGate& p, float x, const Row& row) {
    if (p.scoring == MOECHECK_SOFTMAX) return row.defined ? expf(x - row.largest) / row.total : 0.0f;
    return own_score(x, p.scoring);
}

// How groups are shared out: experts of a group, and log2 of the lanes that share one.
struct Groups {
    int32_t width, shift;
};

// Bit g is set where group g is among the best topk_groups, of equal ones those of lower number.
// choice: the warp's choice scores in shared memory, padded by 4 after each 32 against bank conflicts.
__device__ uint32_t best_groups(const MoecheckGate& p, Groups groups, const float* choice, int lane) {
    const int lanes = 1 << groups.shift, width = groups.width, group = lane >> groups.shift;
    const bool is_first = (lane & (lanes - 1)) == 0;
    float best = -INF, second = -INF;
    if (group < p.num_groups) {
        for (int i = lane & (lanes - 1); i < width; i += lanes) {
            const int expert = group * width + i;
            const float value = choice[expert + expert / WARP * 4];
            second = fmaxf(second, fminf(best, value));
            best = fmaxf(best, value);
        }
    }
    for (int step = lanes / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, best, step);
        const float its_second = __shfl_xor_sync(ALL_LANES, second, step);
        second = fmaxf(fminf(best, other), fmaxf(second, its_second));
        best = fmaxf(best, other);
    }
    const float score = p.top2_sum ? best + second : best;
    uint32_t key = is_first && group < p.num_groups ? ordered_key(score) : 0u, kept = 0;
    for (int i = 0; i < p.topk_groups; ++i) {
        const uint32_t top = warp_max(key);
        const int winner = __ffs(__ballot_sync(ALL_LANES, key == top)) - 1;
        kept |= 1u << (winner >> groups.shift);
        if (lane == winner) key = 0;
    }
    return kept;
}

template <int PER_LANE>
__device__ void mask_groups(
    const MoecheckGate& p, Groups groups, float* shared, int lane, float (&choice)[PER_LANE]) {
    const int first = lane * PER_LANE;
#pragma unroll
    for (int j = 0; j < PER_LANE; ++j) {
        const int expert = first + j;
        if (expert < p.num_experts) shared[expert + expert / WARP * 4] = choice[j];
    }
    __syncwarp();
    const uint32_t kept = best_groups(p, groups, shared, lane);
    const float masked = p.mask_zero ? 0.0f : -INF;
    int group = first / groups.width, end = (group + 1) * groups.width;
#pragma unroll
    for (int j = 0; j < PER_LANE; ++j) {
        if (first + j == end) ++group, end += groups.width;
        if (first + j < p.num_experts && !(kept >> group & 1u)) choice[j] = masked;
    }
}

// Lane i returns the id of the i-th best expert, i < top_k.
template <int PER_LANE>
__device__ int select(const MoecheckGate& p, int lane, const float (&choice)[PER_LANE]) {
    uint32_t key[PER_LANE], best = 0;
    int at = 0, mine = 0;
#pragma unroll
    for (int j = 0; j < PER_LANE; ++j) {
        key[j] = lane * PER_LANE + j < p.num_experts ? ordered_key(choice[j]) : 0u;
        if (key[j] > best) best = key[j], at = j;
    }
    for (int i = 0; i < p.top_k; ++i) {
        const uint32_t top = warp_max(best);
        const int winner = __ffs(__ballot_sync(ALL_LANES, best == top)) - 1;
        const int id = winner * PER_LANE + __shfl_sync(ALL_LANES, at, winner);
        if (lane == i) mine = id;
        if (lane == winner) {
            const int taken = at;
            best = 0;
#pragma unroll
            for (int j = 0; j < PER_LANE; ++j) {
                if (j == taken) key[j] = 0;
                if (key[j] > best) best = key[j], at = j;
            }
        }
    }
    return mine;
}

__device__ float norm_of(const MoecheckGate& p, float weight) {
    if (p.norm == 1.0f) return warp_sum(weight);
    // In double, where powers of tiny scores do not vanish.
    const double norm = p.norm, part = norm == 2.0 ? double(weight) * weight : pow(double(weight), norm);
    const double total = warp_sum(part);
    return static_cast<float>(norm == 2.0 ? sqrt(total) : pow(total, 1.0 / norm));
}

template <int PER_LANE>
__global__ void __launch_bounds__(WARPS* WARP) gate_kernel(const __grid_constant__ MoecheckGate p, Groups groups) {
    __shared__ float shared[WARPS][PER_LANE * (WARP + 4)];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first = lane * PER_LANE;
    const int64_t token = static_cast<int64_t>(blockIdx.x) * WARPS + warp;
    if (token >= p.num_tokens) return;

    float x[PER_LANE];
    const int64_t start = token * p.stride;
    const int64_t size = p.dtype == MOECHECK_FP32 ? 4 : 2;
    const bool aligned = (reinterpret_cast<uintptr_t>(p.logits) + start * size) % 16 == 0;
    if (p.dtype == MOECHECK_FP16) {
        load_row(static_cast<const __half*>(p.logits) + start, p.num_experts, first, aligned, x);
    } else if (p.dtype == MOECHECK_BF16) {
        load_row(static_cast<const __nv_bfloat16*>(p.logits) + start, p.num_experts, first, aligned, x);
    } else {
        load_row(static_cast<const float*>(p.logits) + start, p.num_experts, first, aligned, x);
    }

    Row row = {-INF, 0.0f, true};
    bool nan = false;
#pragma unroll
    for (int j = 0; j < PER_LANE; ++j) {
        if (first + j < p.num_experts) {
            x[j] = as_scored(p, x[j], first + j);
            nan |= isnan(x[j]);
            row.largest = fmaxf(row.largest, x[j]);
        } else {
            x[j] = -INF;
        }
    }
    row.largest = warp_max(row.largest);
    row.defined = !__any_sync(ALL_LANES, nan) && isfinite(row.largest);
    if (p.scoring == MOECHECK_SOFTMAX && row.defined && !p.over_selected) {
#pragma unroll
        for (int j = 0; j < PER_LANE; ++j) row.total += expf(x[j] - row.largest);
        row.total = warp_sum(row.total);
    }
#pragma unroll
    for (int j = 0; j < PER_LANE; ++j) {
        if (first + j < p.num_experts) {
            x[j] = p.by_logits ? (row.defined ? x[j] : 0.0f) : score_of(p, x[j], row);
            if (p.choice_bias != nullptr) x[j] += p.choice_bias[first + j];
        }
    }
    if (p.num_groups > 1) mask_groups(p, groups, shared[warp], lane, x);
    const int id = select(p, lane, x);

    // The logits of the chosen are read again: they are in the cache, and a register cannot be indexed at run time.
    const bool is_slot = lane < p.top_k;
    const float chosen = is_slot ? as_scored(p, load_one(p, start + id), id) : -INF;
    float weight = 0.0f;
    if (p.over_selected) {
        const float largest = warp_max(chosen);
        if (row.defined && largest > -INF) {
            const float power = is_slot ? expf(chosen - largest) : 0.0f;
            weight = power / warp_sum(power);
        }
    } else if (is_slot) {
        weight = score_of(p, chosen, row);
    }
    if (p.renormalize) weight /= guarded(norm_of(p, weight), p.eps_rule, p.eps);
    weight *= p.factor;

    const int64_t out = token * (p.top_k + p.num_shared);
    if (is_slot) {
        if (p.expert_scale != nullptr) weight *= p.expert_scale[id];
        p.weights[out + lane] = weight;
        p.ids[out + lane] = id;
    }
    for (int i = lane; i < p.num_shared; i += WARP) {
        p.weights[out + p.top_k + i] = p.shared_weight;
        p.ids[out + p.top_k + i] = p.num_experts + i;
    }
}

template <int PER_LANE>
void launch(const MoecheckGate& call, cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(divided_up(call.num_tokens, WARPS));
    Groups groups = {call.num_experts / call.num_groups, 0};
    while (call.num_groups << (groups.shift + 1) <= WARP) ++groups.shift;
    gate_kernel<PER_LANE><<<blocks, WARPS * WARP, 0, stream>>>(call, groups);
}

}  // namespace

cudaError_t moecheck_gate(const MoecheckGate* call, cudaStream_t stream) {
    const int per_lane = static_cast<int>(divided_up(call->num_experts, WARP));
    if (call->num_experts < 1 || per_lane > 32 || call->top_k > WARP || call->top_k > call->num_experts ||
        call->num_groups < 1 || call->num_groups > WARP || divided_up(call->num_tokens, WARPS) > LARGEST_GRID) {
        return cudaErrorInvalidValue;
    }
    if (call->num_tokens == 0) return cudaSuccess;
    if (per_lane <= 1) {
        launch<1>(*call, stream);
    } else if (per_lane <= 2) {
        launch<2>(*call, stream);
    } else if (per_lane <= 4) {
        launch<4>(*call, stream);
    } else if (per_lane <= 8) {
        launch<8>(*call, stream);
    } else if (per_lane <= 16) {
        launch<16>(*call, stream);
    } else {
        launch<32>(*call, stream);
    }
    return cudaGetLastError();
}
