// The gate's scalar functions as a host library, for test_cuda_sources.py.
#include "gate_math.cuh"

extern "C" {
float host_own_score(float x, int scoring) { return own_score(x, scoring); }
float host_soft_capped(float x, float softcap) { return soft_capped(x, softcap); }
float host_guarded(float total, int rule, float eps) { return guarded(total, rule, eps); }
unsigned host_ordered_key(float value) { return ordered_key(value); }
}
