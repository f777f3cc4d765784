// CUDA kernels as plain C++, for tests without a GPU: a block's threads are fibers that meet in each collective, blocks
// run one after the other. What a schedule can do wrong (races, missing barriers) stays unseen.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#undef __device__
#undef __host__
#undef __global__
#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
#undef __align__
#define __device__
#define __host__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n)

namespace emulation {

constexpr int LANES = 32;
constexpr size_t STACK = 128 << 10;

// Threads that wait for each other.
struct Meeting {
    int members = 0, arrived = 0;
    long round = 0;
    void release() {
        if (members > 0 && arrived == members) arrived = 0, ++round;
    }
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool done = false;
};

struct State {
    std::vector<Fiber> fibers;
    std::vector<Meeting> warps;
    Meeting block;
    std::vector<uint64_t> slots;
    std::vector<char> dynamic;
    std::function<void()> body;
    ucontext_t scheduler;
    unsigned current = 0, block_index = 0, threads = 0;
};

inline State& state() {
    static State one;
    return one;
}

inline void pass_on() {
    State& s = state();
    swapcontext(&s.fibers[s.current].context, &s.scheduler);
}

inline void meet(Meeting& meeting) {
    const long round = meeting.round;
    ++meeting.arrived;
    meeting.release();
    while (meeting.round == round) pass_on();
}

inline void run_fiber() {
    State& s = state();
    s.body();
    s.fibers[s.current].done = true;
    for (Meeting* meeting : {&s.warps[s.current / LANES], &s.block}) {
        --meeting->members;
        meeting->release();
    }
    swapcontext(&s.fibers[s.current].context, &s.scheduler);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(int64_t blocks, int64_t threads, int64_t shared_bytes, void (*kernel)(Parameters...),
                   Arguments... arguments) {
    State& s = state();
    s.threads = static_cast<unsigned>(threads);
    s.fibers.resize(std::max<size_t>(s.fibers.size(), threads));
    s.body = [=] { kernel(static_cast<Parameters>(arguments)...); };
    for (int64_t block = 0; block < blocks; ++block) {
        s.block_index = static_cast<unsigned>(block);
        s.dynamic.assign(shared_bytes + 16, static_cast<char>(0xAA));
        s.slots.assign(threads, 0);
        s.warps.assign((threads + LANES - 1) / LANES, Meeting());
        s.block = Meeting();
        s.block.members = static_cast<int>(threads);
        for (int64_t i = 0; i < threads; ++i) {
            Fiber& fiber = s.fibers[i];
            fiber.done = false;
            ++s.warps[i / LANES].members;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = STACK;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, run_fiber, 0);
        }
        for (bool running = true; running;) {
            running = false;
            for (unsigned i = 0; i < s.threads; ++i) {
                if (s.fibers[i].done) continue;
                s.current = i;
                running = true;
                swapcontext(&s.scheduler, &s.fibers[i].context);
            }
        }
    }
    return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_configured(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
    return launch(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes, kernel, arguments...);
}

inline void* dynamic_shared() {
    const auto place = reinterpret_cast<uintptr_t>(state().dynamic.data());
    return reinterpret_cast<void*>((place + 15) / 16 * 16);
}

inline unsigned block_size() { return state().threads; }

inline Meeting& own_warp() { return state().warps[state().current / LANES]; }

// What `read` finds among the values of the warp's lanes.
template <typename T, typename Read>
auto exchange(T value, Read read) {
    State& s = state();
    static_assert(sizeof(T) <= sizeof(uint64_t));
    std::memcpy(&s.slots[s.current], &value, sizeof value);
    meet(own_warp());
    const unsigned first = s.current / LANES * LANES;
    const auto lane = [&s, first](unsigned number) {
        T other;
        std::memcpy(&other, &s.slots[first + number % LANES], sizeof other);
        return other;
    };
    const auto result = read(lane, s.current % LANES);
    meet(own_warp());
    return result;
}

template <typename T>
unsigned lanes_where(const std::function<bool(T)>& holds, const std::function<T(unsigned)>& lane) {
    unsigned found = 0;
    const unsigned count = std::min<unsigned>(LANES, state().threads - state().current / LANES * LANES);
    for (unsigned i = 0; i < count; ++i) found |= holds(lane(i)) ? 1u << i : 0u;
    return found;
}

}  // namespace emulation

struct EmulatedIndex {
    unsigned x;
};
#define threadIdx (EmulatedIndex{emulation::state().current})
#define blockIdx (EmulatedIndex{emulation::state().block_index})
#define cudaLaunchKernelEx emulation::launch_configured
#define cudaGetLastError() cudaSuccess

using std::max;
using std::min;

template <typename T>
T __shfl_xor_sync(unsigned, T value, int step) {
    return emulation::exchange(value, [&](auto lane, unsigned own) { return lane(own ^ static_cast<unsigned>(step)); });
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int step) {
    return emulation::exchange(
        value, [&](auto lane, unsigned own) { return own >= static_cast<unsigned>(step) ? lane(own - step) : value; });
}
template <typename T>
T __shfl_sync(unsigned, T value, int from) {
    return emulation::exchange(value, [&](auto lane, unsigned) { return lane(static_cast<unsigned>(from)); });
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    return emulation::exchange(predicate, [](auto lane, unsigned) {
        return emulation::lanes_where<int>([](int value) { return value != 0; }, lane);
    });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline unsigned __match_any_sync(unsigned, int value) {
    return emulation::exchange(value, [&](auto lane, unsigned) {
        return emulation::lanes_where<int>([&](int other) { return other == value; }, lane);
    });
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
    return emulation::exchange(value, [](auto lane, unsigned) {
        unsigned largest = 0;
        for (unsigned i = 0; i < emulation::LANES; ++i) largest = std::max(largest, lane(i));
        return largest;
    });
}
inline void __syncwarp() { emulation::meet(emulation::own_warp()); }
inline void __syncthreads() { emulation::meet(emulation::state().block); }
inline int atomicAdd(int* at, int value) {
    const int before = *at;
    *at += value;
    return before;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }
inline int __clz(unsigned value) { return value == 0 ? 32 : __builtin_clz(value); }
