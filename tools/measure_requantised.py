"""Measures how often requantising kernels are judged wrongly, and which planted bugs are found: kernels x seeds.

    OMP_NUM_THREADS=1 python tools/measure_requantised.py --seeds 72 --planted 24

Kernels: those of moecheck.kernels.torch.requantised, on bf16, fp16 and fp32 inputs, 1 to 48 tokens, 1 to 3 groups.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch

from moecheck import MoESpec, RoutingSpec
from moecheck.cases import Case
from moecheck.checks.finding import FAILURES
from moecheck.checks.judge import Limits, judge
from moecheck.formats import AnyArray
from moecheck.kernels.torch import requantised
from moecheck.oracle import Oracle

KERNELS = (requantised.fp8_requantised, requantised.fp8_requantised_per_token, requantised.fp8_requantised_ue8m0)
REQUANTISE = requantised.requantise
Bug = Callable[..., torch.Tensor]


def shifted(x: torch.Tensor, group: int, *, power_of_two: bool = False) -> torch.Tensor:
    """Each group multiplied back by the scale of the one before it: by the quotient of their largest magnitudes."""
    right = REQUANTISE(x, group, power_of_two=power_of_two)
    tiles = torch.nn.functional.pad(x, (0, -x.shape[1] % group)).reshape(len(x), -1, group)
    scale = tiles.abs().amax(dim=-1).clamp(min=requantised.LEAST_AMAX) / requantised.LARGEST
    scale = requantised._rounded_up(scale) if power_of_two else scale
    factor = (scale.roll(1, 1) / scale).repeat_interleave(group, dim=1)[:, : x.shape[1]]
    return right * factor


BUGS: dict[str, Bug] = {
    "largest magnitude of half a group": lambda x, group, power_of_two=False: REQUANTISE(
        x, max(group // 2, 1), power_of_two=power_of_two
    ),
    "multiplied by twice the scale": lambda x, group, power_of_two=False: (
        2.0 * REQUANTISE(x, group, power_of_two=power_of_two)
    ),
    "multiplied by the neighbouring group's scale": shifted,
    "not requantised": lambda x, group, power_of_two=False: x,
}
FACTORS = (1.002, 1.01)


def case_of(seed: int) -> Case:
    """One of the shapes and formats, by its seed."""
    return Case(
        op="fused_experts",
        spec=MoESpec(routing=RoutingSpec(top_k=4)),
        num_tokens=(4, 16, 48, 1)[seed % 4],
        num_experts=8,
        hidden_size=192,
        intermediate_size=(128, 320, 256)[seed % 3],
        dtype=("bf16", "fp32", "fp16")[seed % 3],
        seed=seed,
    )


def output(kernel: Callable[..., torch.Tensor], case: Case, oracle: Oracle, factor: float = 1.0) -> AnyArray:
    """What a kernel returns, its routing weights multiplied by `factor`."""
    given = {
        name: torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype.name == "bfloat16"
        else torch.from_numpy(array)
        for name, array in oracle.inputs(case).items()
    }
    given["topk_weights"] = given["topk_weights"] * factor
    out = kernel(**given, spec=case.spec.experts)
    bits = out.view(torch.int16).numpy() if out.dtype == torch.bfloat16 else out.numpy()
    array: AnyArray = bits.view(oracle.inputs(case)["hidden_states"].dtype)
    return array


def main() -> None:
    """Print false alarms, each statistic's largest share of its limit, and the bugs found per number of tokens."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=72)
    arguments.add_argument("--planted", type=int, default=24, help="seeds on which bugs are planted too")
    a = arguments.parse_args()
    alarms, runs, largest = 0, 0, Counter[str]()
    tried, found = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for seed in range(a.seeds):
        case, oracle = case_of(seed), Oracle()
        for kernel in KERNELS:
            contract = kernel.__moecheck__.numerics  # type: ignore[attr-defined]  # set by moecheck.kernel
            honest = output(kernel, case, oracle)
            judged = judge(case, (honest,), oracle, Limits(), contract)
            runs += 1
            alarms += any(j.verdict in FAILURES for j in judged.judgements)
            for numbers in (j.numbers for j in judged.judgements):
                for name in numbers:
                    limit = numbers.get(f"limit_{name}", 0.0)
                    if limit > 0.0:
                        largest[name] = max(largest[name], abs(numbers[name]) / limit)  # type: ignore[assignment]  # shares
            wrong = {}
            if seed < a.planted:
                for name, bug in BUGS.items():
                    with patch.object(requantised, "requantise", bug):
                        wrong[name] = output(kernel, case, oracle)
                wrong |= {f"routing weights x {factor}": output(kernel, case, oracle, factor) for factor in FACTORS}
            for name, out in wrong.items():
                if np.array_equal(out, honest):
                    continue
                scales = "power-of-two scales" if contract.a2_quant.scale == "power_of_two" else "float scales"
                key = (name, f"{scales}, {'1 token' if case.num_tokens == 1 else '4 to 48 tokens'}")
                tried[key] += 1
                verdicts = [j.verdict for j in judge(case, (out,), oracle, Limits(), contract).judgements]
                found[key] += any(verdict in FAILURES for verdict in verdicts)
    print(f"{runs} runs of honest kernels, {alarms} false alarms")
    for name, share in sorted(largest.items()):
        print(f"  {name:24} at most {share:.3f} of its limit")
    for key in sorted(tried):
        print(f"  {key[0]:46} {key[1]:36} {found[key]:3} of {tried[key]:3} found")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
