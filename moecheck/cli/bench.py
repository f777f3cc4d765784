"""`moecheck bench`: how fast kernels are on the layers of published models, once they are found to be right."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from moecheck.bench.cases import MODELS, MODELS_ON_CPU, OPS, SAMPLE, TOKENS, TOKENS_ON_CPU, bench_case
from moecheck.bench.entry import Bench, Entry, with_ratios
from moecheck.bench.run import Settings, Wanted, run_bench
from moecheck.cli.options import color, cores, parse_tokens, positive, width
from moecheck.cli.progress import waiting
from moecheck.errors import UsageError, check_known
from moecheck.kernel import BACKENDS
from moecheck.models import shard_of
from moecheck.registry import Found, discover
from moecheck.report.bench import bench_folder, write_bench
from moecheck.report.bench_view import bench_view
from moecheck.report.terminal import render
from moecheck.runner.pool import full_size_memory


@click.command()
@click.option("--kernel", multiple=True, metavar="SPEC", help="Built-in name, file.py:function or module:function.")
@click.option("--op", metavar="OP", help="What to time [fused_experts, or the op of the only --kernel].")
@click.option("--backend", metavar="B", help="Only kernels of this backend.")
@click.option(
    "--model", multiple=True, metavar="NAME", help="Layer of a model; NAME-tp8 for one of 8 shards [several]."
)
@click.option("--tokens", metavar="T,...", help="In a call [1 to 16384 on a GPU, to 64 on a CPU].")
@click.option("--dtype", multiple=True, metavar="D", help="bf16, fp16, fp32, or a scheme such as fp8-block [bf16].")
@click.option("--baseline", metavar="SPEC", help="Kernel that the others are compared with [the first].")
@click.option("--seconds", type=float, default=0.3, show_default=True, callback=positive, help="For timing one case.")
@click.option("--timeout", type=float, default=120.0, show_default=True, callback=positive, help="With compilation.")
@click.option(
    "--sample", type=click.IntRange(1), default=SAMPLE, show_default=True, help="Tokens that the reference computes."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of all drawn inputs.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports"), show_default=True, help="Parent folder."
)
def bench(
    kernel: tuple[str, ...],
    op: str | None,
    backend: str | None,
    model: tuple[str, ...],
    tokens: str | None,
    dtype: tuple[str, ...],
    baseline: str | None,
    seconds: float,
    timeout: float,
    sample: int,
    seed: int,
    out: Path,
) -> int:
    """Time kernels against each other; a kernel that fails its checks gets no time."""
    if op is not None:
        check_known("op", op, OPS)
    if backend is not None:
        check_known("backend", backend, BACKENDS)
    for name in model:
        shard_of(name)
    counts = None if tokens is None else parse_tokens(tokens)
    started, start = datetime.now(UTC), time.monotonic()
    settings = Settings(
        seconds=seconds,
        timeout=timeout,
        memory=full_size_memory(1),
        threads=max(1, cores() - 1),
    )
    with waiting("looking for kernels"):
        discovery = discover(kernel, op=op, backend=backend, memory=settings.memory, jobs=min(cores(), 8))
    found = [one for one in discovery.found if backend in (None, one.declaration.backend)]
    ops = _ops(found, op, asked=bool(kernel))
    found = _in_order([one for one in found if one.declaration.op in ops], kernel)
    if not found:
        raise UsageError(f"No kernel of {' or '.join(ops)} can run here.")
    reference = found[0].declaration.name if baseline is None else baseline
    check_known("kernel of --baseline", reference, [one.declaration.name for one in found])
    on_cpu = all(one.device != "cuda" for one in found)
    model = model or (MODELS_ON_CPU if on_cpu else MODELS)
    counts = counts or (TOKENS_ON_CPU if on_cpu else TOKENS)
    tokens = ",".join(map(str, counts))
    wanted = [
        Wanted(model=name, case=bench_case(name, each, weights=weights, tokens=count, seed=seed, sample=sample))
        for each in ops
        for name in model
        for weights in dtype or ("bf16",)
        for count in counts
    ]
    folder = bench_folder(out)
    with waiting("") as say:
        entries, limits = run_bench(found, wanted, settings, lambda entry: say(_told(entry)))
    result = Bench(
        command=_command(kernel, op, backend, model, tokens, dtype, baseline, seed),
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - start,
        baseline=reference,
        limits=limits,
        entries=tuple(with_ratios(entries, reference)),
        skipped={**discovery.skipped, **discovery.broken},
    )
    note = write_bench(folder, result, {**asdict(settings), "tokens": tokens, "sample": sample, "seed": seed})
    click.echo(render(bench_view(result, report=str(folder)), width=width(), color=color()), nl=False)
    if note:
        click.echo(f"moecheck: {note}", err=True)
    return _exit_code(result)


def _exit_code(result: Bench) -> int:
    """0 every kernel that could run is right and timed, 1 one is wrong or failed, 4 nothing was timed."""
    if any(entry.status in ("wrong", "failed") for entry in result.entries):
        return 1
    return 0 if any(entry.status == "timed" for entry in result.entries) else 4


def _ops(found: list[Found], op: str | None, *, asked: bool) -> tuple[str, ...]:
    if op is not None:
        return (op,)
    if not asked:
        return ("fused_experts",)
    ops = tuple(dict.fromkeys(one.declaration.op for one in found if one.declaration.op in OPS))
    if found and not ops:
        raise UsageError(f"{found[0].declaration.op} has no full-size layers to time; {', '.join(OPS)} have.")
    return ops or ("fused_experts",)


def _in_order(found: list[Found], asked: tuple[str, ...]) -> list[Found]:
    """As the user named them, so that the first is the baseline; the others behind."""
    names = list(asked)
    return sorted(
        found, key=lambda one: names.index(one.declaration.name) if one.declaration.name in names else len(names)
    )


def _told(entry: Entry) -> str:
    what = f"{entry.kernel} · {entry.model} · {entry.weights} · {entry.tokens} tokens"
    if entry.timing is None:
        return f"{what}: {entry.status}{f', {entry.reason}' if entry.reason else ''}"
    return f"{what}: {entry.timing.median * 1e6:.4g} µs"


def _command(
    kernel: tuple[str, ...],
    op: str | None,
    backend: str | None,
    model: tuple[str, ...],
    tokens: str,
    dtype: tuple[str, ...],
    baseline: str | None,
    seed: int,
) -> str:
    parts = ["moecheck", "bench"]
    given: dict[str, tuple[str | None, ...]] = {
        "kernel": kernel,
        "op": (op,),
        "backend": (backend,),
        "model": model,
        "dtype": dtype,
        "baseline": (baseline,),
    }
    for option, values in given.items():
        for value in values:
            parts += [] if value is None else [f"--{option}", value]
    return shlex.join([*parts, "--tokens", tokens, "--seed", str(seed)])
