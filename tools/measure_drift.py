"""How often drift is seen where there is none, and how soon where there is: on simulated nights.

python tools/measure_drift.py [--histories N]     # ten minutes of one core; writes reports/history/drift.txt
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pandas as pd

from moecheck.history.drift import FALSE_DISCOVERIES, LEAST, RECENT, REFERENCE, drifts

NIGHTS, SERIES = 60, 60
FIRST = LEAST + RECENT  # nights before it can accuse nobody
Values = npt.NDArray[np.float64]
OUT = Path(__file__).parent.parent / "reports" / "history" / "drift.txt"


def gaussian(rng: np.random.Generator) -> Values:
    """Logarithms normal, as a median over many cases is."""
    return np.exp(0.1 * rng.standard_normal((SERIES, NIGHTS)))


def gumbel(rng: np.random.Generator) -> Values:
    """The largest of many cases, as max_diff is."""
    return np.exp(0.2 * rng.gumbel(size=(SERIES, NIGHTS)))


def heavy(rng: np.random.Generator) -> Values:
    """Student's t with two degrees of freedom: a busy machine."""
    return np.exp(0.05 * rng.standard_t(2, size=(SERIES, NIGHTS)))


def powers(rng: np.random.Generator) -> Values:
    """The largest of many cases in bf16: two or three numbers, over and over."""
    return np.exp2(np.round(0.8 * rng.standard_normal((SERIES, NIGHTS))))


def common(rng: np.random.Generator) -> Values:
    """All series share half of their variance, as kernels that see the same cases do."""
    shared, own = rng.standard_normal((1, NIGHTS)), rng.standard_normal((SERIES, NIGHTS))
    return np.exp(0.1 * (shared + own) / np.sqrt(2))


def correlated(rho: float) -> Callable[[np.random.Generator], Values]:
    """Each night remembers the one before, which breaks the assumption."""

    def draw(rng: np.random.Generator) -> Values:
        values = rng.standard_normal((SERIES, NIGHTS))
        for night in range(1, NIGHTS):
            values[:, night] = rho * values[:, night - 1] + np.sqrt(1 - rho**2) * values[:, night]
        return np.exp(0.05 * values)

    return draw


NULLS: dict[str, Callable[[np.random.Generator], Values]] = {
    "log-normal, 10 %": gaussian,
    "Gumbel (a maximum), 26 %": gumbel,
    "heavy tails": heavy,
    "powers of two": powers,
    "half of the variance shared": common,
    "correlated from night to night, 0.3": correlated(0.3),
    "correlated from night to night, 0.6": correlated(0.6),
}
PLANTED: dict[str, tuple[str, float, bool]] = {  # words -> metric, factor on it, whether it grows over 30 nights
    "max_diff x 1.5": ("max_diff", 1.5, False),
    "max_diff x 1.5, over 30 nights": ("max_diff", 1.5, True),
    "max_diff x 2": ("max_diff", 2.0, False),
    "rms z x 1.02": ("rms_z_median", 1.02, False),
    "slope by 3 standard deviations": ("slope_error", 3.0, False),
    "latency ratio x 0.9": ("ratio", 0.9, False),
    "latency ratio x 0.9, over 30 nights": ("ratio", 0.9, True),
    "divergence x 2": ("teacher-forced divergence", 2.0, False),
}
NOISE = {"max_diff": 0.15, "rms_z_median": 0.004, "ratio": 0.02, "teacher-forced divergence": 0.2}
PARTS = {"ratio": "bench", "teacher-forced divergence": "e2e"}
CHANGE = 40  # the night on which a planted drift begins


def frame(values: Values, metrics: list[str]) -> pd.DataFrame:
    """The nights as History.metrics gives them. values: [series, nights]; metrics: of each series."""
    series, nights = values.shape
    days = pd.date_range("2026-01-01", periods=nights, tz="UTC")
    parts = [PARTS.get(metric, "kernels") for metric in metrics]
    return pd.DataFrame(
        {
            "night": np.tile([f"n{night:03}" for night in range(nights)], series),
            "run": np.tile([f"r{night:03}" for night in range(nights)], series),
            "started": np.tile(days, series),
            "label": np.repeat(parts, nights),
            "part": np.repeat(parts, nights),
            "subject": np.repeat([f"kernel-{i}" for i in range(series)], nights),
            "device": "cpu",
            "machine": "simulated",
            "verdict": "pass",
            "metric": np.repeat(metrics, nights),
            "value": values.reshape(-1),
        }
    )


def accused(table: pd.DataFrame, nights: int) -> set[str]:
    """The series that are said to drift on a night."""
    seen = table[table["night"] < f"n{nights:03}"]
    return {one.subject for one in drifts(seen) if one.drifted}


def false_alarms(draw: Callable[[np.random.Generator], Values], histories: int) -> tuple[int, int, int]:
    """Nights with an alarm, nights, and histories with any alarm."""
    nights_with = histories_with = 0
    for seed in range(histories):
        table = frame(draw(np.random.default_rng([1, seed])), ["max_diff"] * SERIES)
        alarms = [bool(accused(table, nights)) for nights in range(FIRST, NIGHTS + 1, RECENT)]
        nights_with += sum(alarms)
        histories_with += any(alarms)
    return nights_with, histories * len(range(FIRST, NIGHTS + 1, RECENT)), histories_with


def detection(metric: str, factor: float, slow: bool, histories: int) -> tuple[int, list[int], int]:
    """Histories in which the drifting series was named, after how many nights, and nights that named another one."""
    found, delays, others = 0, [], 0
    for seed in range(histories):
        rng = np.random.default_rng([2, seed])
        noise = rng.standard_normal((SERIES, NIGHTS + 20))
        since = np.clip(np.arange(NIGHTS + 20) - CHANGE + 1, 0, 30 if slow else 1) / (30 if slow else 1)
        if metric == "slope_error":
            noise[0] += factor * since
            values = 1e-6 * noise
        else:
            values = np.exp(NOISE[metric] * noise)
            values[0] *= factor**since
        table = frame(values, [metric] * SERIES)
        for nights in range(CHANGE + 1, NIGHTS + 21):
            named = accused(table, nights)
            others += bool(named - {"kernel-0"})
            if "kernel-0" in named:
                found += 1
                delays.append(nights - CHANGE)
                break
    return found, delays, others


@click.command()
@click.option("--histories", default=20, show_default=True)
def main(histories: int) -> None:
    """Measure, print and write."""
    lines = [
        f"Drift of moecheck history: {SERIES} series, from night {FIRST} on; the last {RECENT} values against up to "
        f"{REFERENCE} before; false discoveries {FALSE_DISCOVERIES:g}.",
        "",
        f"False alarms in {histories} histories of {NIGHTS} nights in which nothing drifts; every {RECENT}th night is "
        "tested, so that the last values of two tests are different ones",
        f"{'values':38} {'nights with an alarm':>22} {'histories with one':>20}",
    ]
    for words, draw in NULLS.items():
        bad, nights, any_ = false_alarms(draw, histories)
        lines.append(f"{words:38} {f'{bad} of {nights:,}':>22} {f'{any_} of {histories}':>20}")
        print(lines[-1], file=sys.stderr)  # noqa: T201
    lines += [
        "",
        f"Detection of a drift in one of {SERIES} series, which begins on night {CHANGE + 1}; {histories} histories, "
        f"each watched for {NIGHTS + 20 - CHANGE} nights",
        f"{'planted':38} {'noise of one night':>20} {'found':>12} {'nights until then':>18} {'others accused':>16}",
    ]
    for words, (metric, factor, slow) in PLANTED.items():
        found, delays, others = detection(metric, factor, slow, histories)
        noise = f"{100 * NOISE[metric]:.2g} %" if metric in NOISE else "1 sd"
        delay = f"{np.median(delays):.0f} ({min(delays)} – {max(delays)})" if delays else "–"
        lines.append(f"{words:38} {noise:>20} {f'{found} of {histories}':>12} {delay:>18} {others:>16}")
        print(lines[-1], file=sys.stderr)  # noqa: T201
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
