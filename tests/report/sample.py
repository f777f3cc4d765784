"""A made-up run for the tests of the views; `python -m tests.report.sample DIR` writes it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moecheck.checks.finding import Finding, Verdict
from moecheck.kernel import Declaration
from moecheck.numerics import Numerics
from moecheck.report import ErrorPicture, ReportFolder, RunSummary, picture_of, summarise

HOSTILE = "<script>alert(1)</script>|`x`\x1b[31m\x00"
GOOD = "kernels.torch.fused_experts:fused_experts_grouped_mm"
ROWS = "kernels/triton/fused.py:fused_moe"
CASE_ID = "fused_experts-T128-H512-I256-E8-k2-bf16-one-expert-gets-all-s0"


def declaration(name: str, op: str = "fused_experts", numerics: Numerics | None = None) -> Declaration:
    """A kernel that declares as little as possible."""
    return Declaration(
        name=name,
        op=op,
        backend="torch",
        dtypes=("bf16",),
        numerics=numerics,
        deterministic=None,
        batch_invariant=None,
        tie=None,
        arguments=(),
        required=(),
        specs=(),
        origin="x.py:1",
        spec_string=name,
    )


def run(
    kernel: str,
    case: str,
    verdict: Verdict,
    message: str = "",
    *,
    where: dict[str, int] | None = None,
    check: str = "values",
    numbers: dict[str, float] | None = None,
    more: tuple[Finding, ...] = (),
) -> list[Finding]:
    """The findings of one kernel x case: one check, `more` of them, then the `case` line."""
    return [
        Finding(
            kernel=kernel,
            case=case,
            check=check,
            verdict=verdict,
            message=message,
            where=where or {},
            numbers=numbers or {},
            seconds=0.01,
        ),
        *(replace(finding, kernel=kernel, case=case) for finding in more),
        Finding(kernel=kernel, case=case, check="case", verdict=verdict, message=message, seconds=0.01),
    ]


def finding(check: str, verdict: Verdict = Verdict.PASS, **fields: Any) -> Finding:
    """One more finding for `run`."""
    return Finding(kernel="", case="", check=check, verdict=verdict, **fields)


def statistics(*, slope: float = 1e-6, error: float = 2e-6, factor: float = 7.6e-5) -> Finding:
    """What a good case says: two statistics with their limits and what they would have shown."""
    numbers = {"slope_error": slope, "slope_error_se": error, "smallest_factor": factor, "limit_slope_error": factor}
    return finding("statistics", numbers={**numbers, "rms_z": 0.98, "limit_rms_z": 1.55, "agreement": 0.999})


CONTRACT = finding(
    "numerics",
    message="Stores gate/up in bf16; agreement 0.9970, runner-up 0.644 (act(g) in bf16).",
    numbers={"agreement": 0.997, "runner_up_agreement": 0.644, "expected_agreement": 0.99, "known": 1.0},
    facts={"contract": "stores gate/up in bf16", "runner_up": "act(g) in bf16"},
)
RELATIONS = finding(
    "relations",
    numbers={"relations_held": 2.0, "relations_not_tried": 1.0},
    facts={"token_permutation": "held", "zero_token": "held", "scaled_up": "not tried: silu is <not> linear"},
)
CAPABILITIES = (finding("determinism", numbers={"deterministic_observed": 1.0}),)


def findings() -> list[list[Finding]]:
    """The runs of the sample, each a kernel x case."""
    small = {"max_diff": 0.0021, "max_rel_diff": 0.0132, "mismatch_ratio": 0.0, "rms_z": 0.98, "max_z": 3.91}
    small |= {"limit_max_z": 10.4}
    good = (statistics(), CONTRACT, *CAPABILITIES, RELATIONS)
    looks = "looks like: the rows of two experts are exchanged (vllm-project/vllm#28540)."
    message = (
        "out[17, 300] is 1.73, expected 0.412 ± 0.0036 (z = 366); 8 of 128 tokens are wrong, all routed to expert 3.\n"
        "Seen: rows 16 to 23 hold the values of rows 24 to 31."
    )
    return [
        *(run(GOOD, f"{CASE_ID}{seed}", Verdict.PASS, numbers=small, more=good[:1]) for seed in range(11)),
        run(GOOD, f"{CASE_ID}11", Verdict.PASS, numbers=small, more=good),
        run(GOOD, "fused_experts-T1-fp16", Verdict.SKIP, "the kernel takes bf16 only, not fp16"),
        run(ROWS, CASE_ID, Verdict.PASS, numbers=small),
        run(
            ROWS,
            f"{CASE_ID}1",
            Verdict.FAIL,
            message,
            where={"token": 17, "column": 300},
            numbers={
                "max_diff": 1.318,
                "max_rel_diff": 4.12,
                "mismatch_ratio": 0.0625,
                "rms_z": 22.5,
                "max_z": 366.0,
                "limit_max_z": 10.4,
            },
            more=(finding("diagnosis", Verdict.FAIL, message=looks, diagnosis=looks),),
        ),
        run(
            "jax:ragged_dot",
            CASE_ID,
            Verdict.PROVEN_WRONG,
            "out has 3 NaN at rows that no token owns, expected 0.",
            check="written",
            where={"token": 5},
            numbers={"max_diff": float("nan"), "mismatch_ratio": 0.003, "max_z": float("inf")},
        ),
        run("cuda:moe_wna16", CASE_ID, Verdict.CRASH, "the worker ended with signal 11 (SIGSEGV).", check="run"),
        run(
            HOSTILE,
            "../../etc/<b>",
            Verdict.FAIL,
            "it says \x1b[2J<img src=x onerror=alert(1)> | `",
            numbers={"max_diff": 1.0},
        ),
        run("torch:zeros", CASE_ID, Verdict.VACUOUS, "the reference is 0 everywhere.", check="zero"),
        run("pallas:gmm", CASE_ID, Verdict.SKIP, "needs a TPU, have cpu"),
        run("torch:topk_softmax", "topk_routing-T7", Verdict.PASS, numbers=small),
    ]


def pictures() -> list[ErrorPicture]:
    """Errors of three kernels: rows of one expert, NaN elements, and an honest one."""
    rng = np.random.Generator(np.random.Philox(key=1))
    ref = rng.normal(size=(128, 512))
    honest = ref * (1 + rng.normal(size=ref.shape) * 1e-3)
    swapped = honest.copy()
    swapped[16:24] = ref[24:32]
    broken = honest.copy()
    broken[5, [3, 100, 200]] = np.nan
    bound = 0.004 * np.abs(ref) + 1e-4
    sigma = 1e-3 * np.abs(ref)
    return [
        picture_of(swapped, ref, bound, kernel=ROWS, case=f"{CASE_ID}1", sigma=sigma),
        picture_of(broken, ref, bound, kernel="jax:ragged_dot", case=CASE_ID, sigma=sigma),
        picture_of(honest, ref, bound, kernel=GOOD, case=f"{CASE_ID}3", sigma=sigma),
    ]


def summary() -> RunSummary:
    """Of the sample."""
    return summarise(
        [finding for lines in findings() for finding in lines],
        [
            declaration(GOOD, numerics=Numerics(topk_weights="input")),
            declaration(ROWS),
            declaration("jax:ragged_dot", "grouped_gemm"),
            declaration("cuda:moe_wna16"),
            declaration(HOSTILE),
            declaration("torch:zeros"),
            declaration("pallas:gmm", "grouped_gemm"),
            declaration("torch:topk_softmax", "topk_routing"),
        ],
        command="moecheck kernels --tol 1e-2",
        started="2026-01-02T03:04:05Z",
        seconds=12.5,
        git="0123456789abcdef0123456789abcdef01234567",
        skipped={"cuda:fp8_gemm": "needs a CUDA device, have none", "cuda:nvfp4": "needs a CUDA device, have none"},
        tol=1e-2,
        profile="default",
        seed=0,
    )


if __name__ == "__main__":
    folder = ReportFolder.create(Path(sys.argv[1]))
    for lines in findings():
        folder.append(lines)
    folder.write_environment({"tol": 1e-2})
    folder.finish(summary(), pictures())
