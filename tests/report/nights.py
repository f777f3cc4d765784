"""Made-up nights for the site's tests and its time; `python tests/report/nights.py DIR` writes 30."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from moecheck.checks.finding import Verdict
from moecheck.report.picture import ErrorPicture, picture_of
from moecheck.report.pictures_file import write_pictures
from moecheck.report.results import Capability, KernelSummary, Measured, RelationTally, RunSummary
from moecheck.report.strict_json import dumps

FIRST = datetime(2026, 10, 24, 2, 0, tzinfo=UTC)
OPS = ("fused_experts", "moe_layer", "topk_routing", "grouped_gemm", "permute")
CASE = "fused_experts/bf16/T64-E8-k2-H256-I128/plain/0123abcd"
HOSTILE = (
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=\"document.title='owned'\">'`{{7*7}}",
    "../../etc/passwd",
    "C:\\windows\\..\\evil\\\x00\x1b[31m\x07name",
    "abc\u202egnp.exe\u2066\u200f\u05d0\u05d1",
    "javascript:alert(1)//" + "very-long-name-" * 200,
    "]]><svg onload=alert(1)> &amp; &lt;b&gt; %00 ?#fragment",
)


def kernel_names(count: int) -> list[str]:
    return [f"{'torch' if index % 2 else 'triton'}/kernel_{index:02d}" for index in range(count)]


def write_nights(
    parent: Path, *, nights: int, names: Sequence[str], broken: Sequence[tuple[int, int]] = (), hostile: bool = False
) -> list[Path]:
    """One folder of `moecheck kernels --profile nightly` for each night.

    broken: (night, kernel) whose verdict is fail. hostile: every message, diagnosis and command is one of HOSTILE too.
    """
    rng = np.random.Generator(np.random.Philox(key=7))
    folders = []
    for night in range(nights):
        started = FIRST + timedelta(days=night)
        folder = parent / f"{started:%Y%m%dT%H%M%SZ}-{night:06x}"
        folder.mkdir(parents=True)
        kernels = [
            _kernel(name, index, rng, failed=(night, index) in broken, hostile=hostile)
            for index, name in enumerate(names)
        ]
        (folder / "summary.json").write_text(dumps(_summary(started, kernels).to_json()), encoding="utf-8")
        environment = {"python": "3.11.2", "cpu": "AMD EPYC 9654", "versions": {"numpy": "2.3.5", "torch": "2.13.0"}}
        (folder / "environment.json").write_text(dumps(environment), encoding="utf-8")
        drawn = [one for one in kernels if one.failed or night == nights - 1]
        write_pictures(folder, [_picture(one, rng) for one in drawn])
        folders.append(folder)
    return folders


def _kernel(name: str, index: int, rng: np.random.Generator, *, failed: bool, hostile: bool) -> KernelSummary:
    bad = HOSTILE[index % len(HOSTILE)]
    message = "token 17, column 3: got 1.73, expected 0.412 (rounding explains ±0.0036). Wrong: 1024 of 16384 elements."
    op = OPS[index % len(OPS)]
    return KernelSummary(
        name=name,
        op=op,
        backend="torch",
        device="cpu",
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        cases=44,
        passed_cases=40 if failed else 43,
        failed_cases=3 if failed else 0,
        vacuous_cases=1,
        max_diff=float("nan") if hostile and failed else 0.0156 * float(rng.uniform(0.5, 2)),
        max_rel_diff=0.0061 * float(rng.uniform(0.5, 2)),
        mismatch_ratio=0.0625 if failed else 0.0,
        tol=1e-2,
        contract="stores gate/up in bf16",
        contract_agreement=0.997,
        detection_limit=None if op == "permute" else 7.6e-5 * float(rng.uniform(0.9, 1.1)),
        detection_limits={"bf16": 7.6e-5, "fp32": 2e-7},
        element_limit=10.4,
        rms_z=1.1,
        rms_z_median=float(rng.normal(0.98, 0.01)),
        max_z=366.0 if failed else float(rng.uniform(3.8, 5.2)),
        slope_error=float(rng.normal(0, 2e-6)),
        slope_error_se=2e-6,
        worst_case=bad if hostile else CASE,
        check="values",
        message=(bad if hostile else message) if failed else "",
        where={"token": 17, "column": 3} if failed else {},
        diagnosis=(bad if hostile else "looks like: shared expert weighted 1/r (vllm-project/vllm#28540).")
        if failed
        else None,
        reproduce=(bad if hostile else f"moecheck replay {CASE} --kernel {name}") if failed else None,
        seconds=float(rng.uniform(1, 2)),
        statistics=(
            Measured(name="slope_error", value=1e-6, limit=7e-5, case=CASE),
            Measured(name="max_z", value=4.2, limit=10.4, case=CASE),
        ),
        relations=(RelationTally(name="token_permutation", held=12, broken=0),),
        capabilities=(Capability(name="deterministic", declared=True, observed=3, tried=3),),
    )


def _summary(started: datetime, kernels: Sequence[KernelSummary]) -> RunSummary:
    failed = sum(kernel.failed for kernel in kernels)
    return RunSummary(
        command="moecheck kernels --tol 0.01 --profile nightly --seed 20261024",
        started=started.isoformat(timespec="seconds"),
        seconds=612.5,
        git="0123456789abcdef0123456789abcdef01234567",
        totals={"pass": 43 * len(kernels), "fail": 3 * failed, "vacuous": len(kernels)},
        checks_per_second=21.4,
        kernels=tuple(sorted(kernels, key=lambda kernel: kernel.failed)),
        tol=1e-2,
        profile="nightly",
        seed=20261024,
    )


def _picture(kernel: KernelSummary, rng: np.random.Generator) -> ErrorPicture:
    ref = rng.normal(size=(64, 256))
    sigma = 1e-3 * np.abs(ref) + 1e-5
    out = ref + sigma * rng.normal(size=ref.shape)
    if kernel.failed:
        out[16:24] = ref[24:32]
    return picture_of(out, ref, 10.4 * sigma, kernel=kernel.name, case=str(kernel.worst_case), sigma=sigma)


if __name__ == "__main__":
    last = 30
    write_nights(Path(sys.argv[1]), nights=last, names=kernel_names(60), broken=[(last - 1, 7), (12, 7), (12, 20)])
