"""A run of `moecheck bench` as files: bench.json for programs, bench.md for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from moecheck.bench.entry import Bench, Entry
from moecheck.bench.limits import Limits
from moecheck.errors import UsageError
from moecheck.report.environment import environment
from moecheck.report.findings_file import replace_file
from moecheck.report.names import folder_name, point_latest
from moecheck.report.strict_json import dumps
from moecheck.report.text import metric, one_line, percent

COLUMNS = ("tokens", "kernel", "median", "quartiles", "TFLOP/s", "GB/s", "of roofline", "ratio", "timed by")


def bench_folder(parent: Path) -> Path:
    """A new folder under `parent`; raises UsageError where it cannot be written."""
    path = parent / f"bench-{folder_name()}"
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"Cannot write a report into {parent}: {error.strerror}.") from error
    return path


def write_bench(folder: Path, bench: Bench, options: Mapping[str, object]) -> str | None:
    """Write bench.json, bench.md and environment.json; a sentence that the user should see, normally None."""
    replace_file(folder / "bench.json", dumps(bench.to_json(), indent=2) + "\n")
    replace_file(folder / "bench.md", markdown(bench))
    replace_file(folder / "environment.json", dumps(environment(options), indent=2) + "\n")
    return point_latest(folder)


def markdown(bench: Bench) -> str:
    """The whole run: what the devices can do, a table for each layer, and who was left out."""
    lines = ["# moecheck bench", "", f"`{bench.command}`, {bench.started}, {bench.seconds:.0f} s", ""]
    lines += [f"* {device}: {limits_words(limits)}" for device, limits in bench.limits.items()]
    lines += [f"* ratio: median of `{bench.baseline}` by the kernel's; above 1 the kernel is faster", ""]
    for title, entries in groups(bench.entries):
        rows = [cells(entry) for entry in entries if entry.status != "skipped"]
        if rows:
            lines += [f"## {title}", "", _row(COLUMNS), _row(["---"] * len(COLUMNS)), *map(_row, rows), ""]
    left = {(entry.kernel, entry.reason) for entry in bench.entries if entry.status == "skipped"}
    left |= set(bench.skipped.items())
    if left:
        lines += ["## Not run", ""]
        lines += [f"* `{kernel}`: {one_line(reason)}" for kernel, reason in sorted(left)]
    return "\n".join(lines).rstrip() + "\n"


def limits_words(limits: Limits) -> str:
    """`NVIDIA H200: copies 4.3 TB/s; matrix products bf16 780 TFLOP/s`, measured in the run."""
    rates = ", ".join(f"{name} {metric(rate / 1e12)}" for name, rate in limits.flops.items())
    return f"{limits.device}: copies {metric(limits.bandwidth / 1e12)} TB/s; matrix products, TFLOP/s: {rates}"


def groups(entries: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    """The entries of each layer, by its title: op, model, format of the weights."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(f"{entry.op} · {entry.model} · {entry.weights}", []).append(entry)
    return list(found.items())


def cells(entry: Entry) -> list[str]:
    """An entry as a row of COLUMNS."""
    timing = entry.timing
    if timing is None:
        return [str(entry.tokens), entry.kernel, entry.status, one_line(entry.reason), "", "", "", "", ""]
    share = entry.roofline_share
    return [
        str(entry.tokens),
        entry.kernel,
        duration_words(timing.median),
        f"{duration_words(timing.low)} – {duration_words(timing.high)}",
        metric(entry.tflops) if entry.work and entry.work.flops else "",
        metric(entry.gbps),
        "" if share is None else percent(share),
        "" if entry.ratio is None else f"{entry.ratio:.2f}",
        "host (CPU)" if timing.method == "host" and entry.device != "cuda" else timing.method,
    ]


def duration_words(seconds: float) -> str:
    """`12.3 µs`, `123 µs`, `12.3 ms`."""
    if seconds < 1e-2:
        return f"{seconds * 1e6:.{1 if seconds < 1e-4 else 0}f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1.0 else f"{seconds:.2f} s"


def _row(values: Sequence[str]) -> str:
    escaped = (value.replace("|", "\\|") for value in values)
    return f"| {' | '.join(escaped)} |"
