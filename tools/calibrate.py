"""Measures how well the error model describes honest kernels: all built-in ones that declare a contract, on many cases.

    python tools/calibrate.py --cases 200 --out reports/calibration

Writes calibration.csv (a row per kernel and case), calibration.txt (the table) and the plots of docs/error-model.md.
Compiled backends get the same number of cases on few shapes, interpreted ones a tenth of it.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from threadpoolctl import threadpool_limits

from moecheck.bounds import mean_square_limit, z_limit
from moecheck.cases import Case
from moecheck.checks.finding import FAILURES
from moecheck.checks.judge import SOME_ROWS, VALUE_OPS, Limits, held_rows, judge
from moecheck.checks.mean_squares import ROW_FREEDOM
from moecheck.curated import cases_for, few_shapes
from moecheck.formats import AnyArray, Float64, to_float64
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle, call_reference, reference_modules
from moecheck.registry import Found, discover
from moecheck.runner.plan import lacking
from moecheck.runner.pool import KernelPool, default_memory
from moecheck.runner.relate import COMPILED
from moecheck.runner.worker import Outcome, run_case

TIMEOUT = 300.0
SHAPES = 6
MOST_TRIED = 4  # cases tried for each that says something
MOST_WEIGHTS = 3e6
DTYPES = ("bf16", "fp16", "fp32")
GRID = np.linspace(-5.0, 5.0, 81)


def main() -> None:
    """Run all cases, write the table and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="per kernel")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--op", choices=sorted(VALUE_OPS))
    parser.add_argument("--backend")
    parser.add_argument("--kernel", action="append", help="only this one; may be given several times")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="kernels at a time")
    parser.add_argument("--out", type=Path, default=Path("reports/calibration"))
    a = parser.parse_args()
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    histogram: Counter[str] = Counter()
    alarms: list[str] = []
    ops = {a.op} if a.op else VALUE_OPS
    found = discover([], op=None, backend=a.backend, memory=default_memory(1), jobs=min(a.jobs, 8)).found
    declared = [k for k in found if k.declaration.numerics is not None and k.declaration.op in ops]
    declared = [k for k in declared if not a.kernel or k.declaration.name in a.kernel]
    # A forked process would share the forkserver of its parent, whose child it is not.
    with ProcessPoolExecutor(max_workers=a.jobs, mp_context=get_context("spawn")) as pool:
        for lines, counts, failed in pool.map(partial(_kernel, count=a.cases, seed=a.seed), declared):
            rows += lines
            histogram += counts
            alarms += failed
            name = lines[0]["kernel"] if lines else "a kernel without a case"
            print(f"{time.monotonic() - start:6.0f} s  {name}", file=sys.stderr)
    a.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(a.out / "calibration.csv", index=False, float_format="%.5g")
    text = (
        f"$ python tools/calibrate.py --cases {a.cases} --seed {a.seed}"
        + "".join(f" --kernel {name}" for name in a.kernel or ())
        + "\n"
        + _table(table, alarms)
        + f"\n{time.monotonic() - start:.0f} s\n"
    )
    (a.out / "calibration.txt").write_text(text, encoding="utf-8")
    print(text)
    _plots(table, histogram, a.out)


def _kernel(found: Found, count: int, seed: int) -> tuple[list[dict[str, Any]], Counter[str], list[str]]:
    """A row for each case that says something, a histogram of z, and what failed."""
    declaration, rows = found.declaration, list[dict[str, Any]]()
    count = max(1, count // 10) if found.device == "interpreter" else count
    assert declaration.numerics is not None
    histogram: Counter[str] = Counter()
    alarms: list[str] = []
    with threadpool_limits(1, "blas"), KernelPool(memory=default_memory(1), threads=1) as pool:
        for case in _cases(found, MOST_TRIED * count, seed):
            if len(rows) >= count:
                break
            outcome = pool.wait(pool.submit(run_case, found.target, case, timeout=TIMEOUT))
            assert isinstance(outcome, Outcome)
            if outcome.problem is not None:
                if outcome.problem[0] in FAILURES:
                    alarms.append(f"{declaration.name} {case.id}: {outcome.problem[1]}")
                continue
            judged = judge(case, outcome.outputs, Oracle(), Limits(), declaration.numerics)
            alarms += [f"{declaration.name} {case.id}: {j.message}" for j in judged.judgements if j.verdict in FAILURES]
            told = [j.numbers for j in judged.judgements if j.check in ("values", "statistics")]
            numbers = {name: value for part in told for name, value in part.items()}
            if "slope_error" in numbers and judged.values is not None and judged.out is not None:
                out = to_float64(judged.out)
                names = {
                    "requantised": declaration.numerics.requantises,
                    "kernel": declaration.name,
                    "op": case.op,
                    "dtype": case.dtype,
                    "case": case.id,
                }
                numbers["true_slope_z"] = _true_slope(case, _all_rows(case, outcome.outputs[0]), declaration.numerics)
                rows.append({**names, **numbers})
                if declaration.numerics.requantises:  # its z are about the rounded reference
                    continue
                with np.errstate(divide="ignore", invalid="ignore"):
                    z = (out - judged.values.true) / judged.values.sigma
                counts, _ = np.histogram(z[np.isfinite(z)], GRID)
                histogram.update({f"{case.dtype} {i}": int(n) for i, n in enumerate(counts)})
    return rows, histogram, alarms


def _all_rows(case: Case, output: AnyArray) -> Float64:
    """The output as [rows, columns], NaN in the rows that may hold anything."""
    rows = to_float64(output).reshape(-1, output.shape[-1])
    if case.op in SOME_ROWS:
        rows = np.where(held_rows(case.inputs())[:, None], rows, np.nan)
    return rows


def _true_slope(case: Case, out: Float64, numerics: Numerics | None) -> float:
    """The slope error of out against the true value, over its standard error in the model of independent roundings."""
    assert numerics is not None
    about = call_reference(
        reference_modules()[case.op].estimate,
        case,
        Oracle().inputs(case),
        numerics=numerics.resolve(case.dtype),
        dtype=case.dtype,
    )
    value, sigma = about
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        c = value / np.square(sigma)
    c = np.where(np.isfinite(c) & np.isfinite(out), c, 0.0)
    error = np.where(c != 0.0, out - value, 0.0)
    variance, _ = about.projected(c)
    return float((c * error).sum() / np.sqrt(variance.sum()))


def _cases(found: Found, count: int, seed: int) -> list[Case]:
    """`count` random cases that the kernel takes; of `SHAPES` shapes for a backend that compiles for each."""
    declaration = found.declaration
    drawn = cases_for(
        declaration.op,
        profile="nightly",
        seed=seed,
        small=found.device == "interpreter",
        examples=count,
        specs=declaration.specs,
        dtypes=declaration.dtypes,
    )[-count:]
    drawn = [case for case in drawn if lacking(declaration, case) is None and case.elements <= MOST_WEIGHTS]
    drawn = [case for case in drawn if case.stratum != "integer" and case.num_tokens > 1]
    if declaration.backend in COMPILED:
        drawn, _ = few_shapes(drawn, SHAPES)
    # Kernels of few semantics take few of the drawn cases: these come again with other numbers.
    return [replace(drawn[i % len(drawn)], seed=seed + i) for i in range(count)] if drawn else []


def _table(table: pd.DataFrame, alarms: list[str]) -> str:
    """Per kernel: number of cases, median rms z by format, largest share of two limits, median agreement."""
    table = table.assign(slope_share=(table.slope_error / table.limit_slope_error).abs())
    plain = table[~table.requantised]
    lines = [
        f"{'kernel':34} {'cases':>5}  rms z: all  bf16  fp16  fp32  largest |z|/limit  slope/limit  bits agree (model)"
    ]
    for name, group in table.groupby("kernel", sort=True):
        by = {d: group.rms_z[group.dtype == d].median() for d in DTYPES}
        low = group[group.dtype != "fp32"]
        lines.append(
            f"{name:34} {len(group):5}       {group.rms_z.median():5.2f} "
            + " ".join(f"{by[d]:5.2f}" for d in DTYPES)
            + f"  {group.max_z.max() / z_limit(1 << 14):17.2f}  {group.slope_share.max():11.2f}"
            + f"  {low.agreement.median():.4f} ({low.expected_agreement.median():.4f})"
        )
    lines.append(
        f"all: {len(table)} checks of {table.kernel.nunique()} kernels, false alarms: {len(alarms)}\n"
        "without requantising ones (whose z are about the rounded reference): "
        f"median rms z {plain.rms_z.median():.3f}, "
        f"kernels' medians {plain.groupby('kernel').rms_z.median().min():.2f} to "
        f"{plain.groupby('kernel').rms_z.median().max():.2f}; standardised slope against the true value: "
        f"median absolute {plain.true_slope_z.abs().median():.2f}, "
        f"95 % below {plain.true_slope_z.abs().quantile(0.95):.2f} "
        "(normal: 0.67, 1.96)"
    )
    return "\n".join([*lines, *alarms])


def _plots(table: pd.DataFrame, histogram: Counter[str], out: Path) -> None:
    mpl.use("Agg")
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    plain = table[~table.requantised]
    centres = (GRID[1:] + GRID[:-1]) / 2
    normal = np.exp(-(centres**2) / 2) / np.sqrt(2 * np.pi)
    for dtype in DTYPES:
        counts = np.array([histogram[f"{dtype} {i}"] for i in range(len(centres))], dtype=float)
        if counts.sum():
            axes[0, 0].plot(centres, counts / counts.sum() / (GRID[1] - GRID[0]), label=dtype)
    axes[0, 0].plot(centres, normal, "k--", label="normal")
    axes[0, 0].set(title="z = (out - true) / sigma of single elements", xlabel="z", ylabel="density", yscale="log")
    axes[0, 0].set_ylim(1e-6, 1e2)
    axes[0, 0].legend()
    for dtype in DTYPES:
        axes[0, 1].hist(plain.rms_z[plain.dtype == dtype], bins=np.linspace(0, 2, 61), histtype="step", label=dtype)
    axes[0, 1].axvline(mean_square_limit(64 * ROW_FREEDOM, groups=1), color="k", ls=":", label="limit at 64 rows")
    axes[0, 1].set(title="rms z of a case", xlabel="rms z", ylabel="cases")
    axes[0, 1].legend()
    bins = np.linspace(-8, 8, 65)
    for name, values, style in (
        ("against the true value", plain.true_slope_z, "-"),
        ("against the rounded reference", plain.slope_error / plain.slope_error_se, ":"),
    ):
        axes[1, 0].hist(values.clip(-8, 8), bins=bins, histtype="step", density=True, label=name, linestyle=style)
    axes[1, 0].plot(centres, normal, "k--", label="normal")
    axes[1, 0].set(title="slope error / its standard error (limit: 7.5, and flips)", xlabel="standardised slope")
    axes[1, 0].set_ylim(0, 1)
    axes[1, 0].legend()
    names = ["slope_error", "worst_row_slope_error", "mean_z", "rms_z", "worst_column_rms_z", "disagreement"]
    shares = [(table[n] / table[f"limit_{n}"]).abs().dropna() for n in names]
    axes[1, 1].boxplot(shares, whis=(0, 100), orientation="horizontal", tick_labels=names)
    axes[1, 1].axvline(1.0, color="r")
    axes[1, 1].set(title="statistics of honest kernels as shares of their limits", xlabel="|value| / limit")
    figure.savefig(out / "calibration.png", dpi=110)


if __name__ == "__main__":
    main()
