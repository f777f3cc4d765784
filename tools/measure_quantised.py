"""Measures kernels with quantised weights: false alarms, the smallest factor that is seen, and planted bugs found.

    OMP_NUM_THREADS=1 python tools/measure_quantised.py --seeds 24

Kernels: those of moecheck.kernels.torch with quantised weights, in bf16, fp16 and fp32, on 16 and 64 tokens. A factor
multiplies all routing weights, hence the output; a planted bug changes what the kernel is given, not the reference.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import torch

from moecheck import ExpertSpec, MoESpec, RoutingSpec
from moecheck.cases import Case
from moecheck.checks.finding import FAILURES
from moecheck.checks.judge import Limits, judge
from moecheck.formats import AnyArray
from moecheck.kernels.torch import quantised_fp8, quantised_int8, quantised_mx, weight_only
from moecheck.oracle import Oracle
from moecheck.quantization import Quantization
from moecheck.runner.arrays import to_native, to_numpy

Kernel = Callable[..., torch.Tensor]
Inputs = dict[str, Any]
KERNELS: tuple[Kernel, ...] = (
    quantised_fp8.fp8_tensor,
    quantised_fp8.fp8_channel,
    quantised_fp8.fp8_block,
    quantised_fp8.fp8_block_ue8m0,
    quantised_int8.int8_channel,
    weight_only.int4_groups,
    weight_only.mxfp4,
    weight_only.nvfp4,
    quantised_mx.mxfp4_both,
    quantised_int8.int4_int8,
)
TOKENS = (16, 64)
FACTORS = (1.0001, 1.0002, 1.0005, 1.001, 1.002, 1.005, 1.01, 1.02, 1.05)


def case_of(quantization: Quantization, dtype: str, tokens: int, seed: int) -> Case:
    """H and I are no multiples of a block of 128 or of a group of 64."""
    experts = ExpertSpec(quantization=quantization)
    return Case(
        op="fused_experts",
        spec=MoESpec(routing=RoutingSpec(top_k=4, renormalize=True), experts=experts),
        num_tokens=tokens,
        num_experts=8,
        hidden_size=304,
        intermediate_size=208,
        dtype=dtype,
        seed=seed,
    )


def output(kernel: Kernel, case: Case, inputs: Inputs) -> AnyArray:
    """What the kernel returns for its own arguments."""
    names = kernel.__moecheck__.arguments  # type: ignore[attr-defined]  # set by moecheck.kernel
    given = {
        name: to_native(np.array(value), "torch") if isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
        if name in names
    }
    return to_numpy(kernel(**given, spec=case.spec.experts))


def found(kernel: Kernel, case: Case, out: AnyArray, oracle: Oracle) -> bool:
    """Whether the output fails under the kernel's declared contract."""
    contract = kernel.__moecheck__.numerics  # type: ignore[attr-defined]  # as above
    return any(j.verdict in FAILURES for j in judge(case, (out,), oracle, Limits(), contract).judgements)


def scale_of_the_next_block(inputs: Inputs) -> Inputs:
    """The second GEMM reads each scale one column of blocks, or one row of a matrix, too far."""
    scale = inputs["w2_scale"]
    axis = 2 if scale.shape[2] > 1 else 1 if scale.shape[1] > 1 else 0
    return {"w2_scale": np.roll(scale, -1, axis=axis)}


def scale_of_one_block_doubled(inputs: Inputs) -> Inputs:
    """One scale of expert 3, doubled, or one more for E8M0."""
    scale = inputs["w2_scale"].copy()
    one = scale[3, 0, 0]
    scale[3, 0, 0] = one + 1 if scale.dtype == np.uint8 else scale.dtype.type(2.0 * float(one))
    return {"w2_scale": scale}


def scales_of_gate_and_up_exchanged(inputs: Inputs) -> Inputs:
    """The first GEMM's scales, rows of gate and of up exchanged."""
    scale = inputs["w13_scale"]
    rows = np.roll(np.arange(scale.shape[1]), scale.shape[1] // 2)
    return {"w13_scale": np.ascontiguousarray(scale[:, rows])}


def nibbles_exchanged(inputs: Inputs) -> Inputs:
    """The even column is read from the high half of a byte."""
    if inputs["w2"].dtype != np.uint8:
        return {}
    return {"w2": (inputs["w2"] >> 4) | (inputs["w2"] << 4)}


def zero_points_off_by_one(inputs: Inputs) -> Inputs:
    """Zero points one too large, as where a format stores them less one."""
    return {"w2_zeros": inputs["w2_zeros"] + np.uint8(1)} if "w2_zeros" in inputs else {}


def scales_as_powers_of_two(inputs: Inputs) -> Inputs:
    """The significand of float scales is cut off, as where they are taken for UE8M0 (vLLM 22399)."""
    scale = inputs["w2_scale"]
    if scale.dtype != np.float32:
        return {}
    return {"w2_scale": (scale.view(np.uint32) & np.uint32(0xFF800000)).view(np.float32)}


def static_scale_of_the_other_gemm(inputs: Inputs) -> Inputs:
    """The scale of the first GEMM's inputs for those of the second (vLLM 27255)."""
    return {"a2_scale": inputs["a1_scale"]} if "a1_scale" in inputs else {}


def small_scales_are_zero(inputs: Inputs) -> Inputs:
    """The smallest tenth of the scales underflows (vLLM 34577)."""
    scale = inputs["w2_scale"]
    if scale.dtype == np.uint8 or scale.size < 20:
        return {}
    wide = scale.astype(np.float32)
    return {"w2_scale": np.where(wide < np.quantile(wide, 0.1), np.float32(0.0), wide).astype(scale.dtype)}


def fnuz_codes(inputs: Inputs) -> Inputs:
    """Codes of e4m3fn read as e4m3fnuz: half of each number, and -0 is NaN."""
    if inputs["w2"].dtype != ml_dtypes.float8_e4m3fn:
        return {}
    half = inputs["w2"].view(ml_dtypes.float8_e4m3fnuz).astype(np.float32)
    return {"w2": np.nan_to_num(half).astype(ml_dtypes.float8_e4m3fn)}


BUGS = (
    scale_of_the_next_block,
    scale_of_one_block_doubled,
    scales_of_gate_and_up_exchanged,
    nibbles_exchanged,
    zero_points_off_by_one,
    scales_as_powers_of_two,
    static_scale_of_the_other_gemm,
    small_scales_are_zero,
    fnuz_codes,
)


def main() -> None:
    """Print false alarms, the share of runs in which each factor is seen, and the bugs found."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=24)
    a = arguments.parse_args()
    alarms, runs = 0, 0
    seen, tried = Counter[tuple[str, str, int, float]](), Counter[tuple[str, str, int]]()
    planted, caught = Counter[str](), Counter[str]()
    for kernel in KERNELS:
        declared = kernel.__moecheck__  # type: ignore[attr-defined]  # as above
        for seed in range(a.seeds):
            quantization = declared.quantizations[seed % len(declared.quantizations)]
            dtype, tokens = declared.dtypes[seed // 2 % len(declared.dtypes)], TOKENS[seed % 2]
            case, oracle = case_of(quantization, dtype, tokens, seed), Oracle()
            if len(declared.quantizations) > 1:  # otherwise each scheme would have one number of tokens
                case = replace(case, num_tokens=TOKENS[seed // 4 % 2])
            inputs = case.inputs()
            honest = output(kernel, case, inputs)
            runs += 1
            alarms += found(kernel, case, honest, oracle)
            key = (declared.name, case.dtype, case.num_tokens)
            tried[key] += 1
            for factor in FACTORS:
                changed = {**inputs, "topk_weights": inputs["topk_weights"] * np.float32(factor)}
                seen[(*key, factor)] += found(kernel, case, output(kernel, case, changed), oracle)
            for bug in BUGS:
                change = bug(inputs)
                if not change:
                    continue
                out = output(kernel, case, {**inputs, **change})
                if not np.array_equal(out, honest):
                    planted[bug.__name__] += 1
                    caught[bug.__name__] += found(kernel, case, out, oracle)
    print(f"{runs} runs of honest kernels, {alarms} false alarms")
    print(f"  {'share of runs in which a factor on the output is seen':54}" + "".join(f"{f:>8g}" for f in FACTORS))
    for key in sorted(tried):
        shares = "".join(f"{seen[(*key, factor)] / tried[key]:8.2f}" for factor in FACTORS)
        print(f"  {key[0]:24} {key[1]:5} {key[2]:3} tokens {tried[key]:4} runs  {shares}")
    for name in sorted(planted):
        print(f"  {name.replace('_', ' '):40} {caught[name]:4} of {planted[name]:4} found")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
