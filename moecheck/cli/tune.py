"""`moecheck tune`: choose a kernel's numbers by measuring; a configuration that is wrong is never timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from moecheck.bench.cases import SAMPLE, bench_case
from moecheck.bench.entry import Entry
from moecheck.bench.run import Settings, Wanted
from moecheck.cases import Case
from moecheck.cli.options import cores, parse_tokens, positive
from moecheck.cli.progress import waiting
from moecheck.errors import UsageError
from moecheck.formats import FORMATS
from moecheck.kernel import Declaration
from moecheck.quantization import scheme_name
from moecheck.registry import Found, discover
from moecheck.runner.pool import full_size_memory
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec
from moecheck.tuning import Configuration
from moecheck.tuning.run import Tuned, tune
from moecheck.tuning.table import Table, load, write

TOKENS = "1,2,4,8,16,32,64,128,256,1024,4096"
CHECKED = 4 * SAMPLE  # tokens that the reference computes; the others are checked by further calls
SIZES = ("experts", "intermediate", "hidden", "top_k")


@click.command("tune")
@click.argument("kernel", metavar="KERNEL")
@click.option("--model", metavar="NAME", help="Layer of a model; NAME-tp8 for one of 8 shards.")
@click.option("--experts", type=click.IntRange(1), metavar="E", help="Instead of --model: experts,")
@click.option("--intermediate", type=click.IntRange(1), metavar="N", help="width inside an expert on this rank,")
@click.option("--hidden", type=click.IntRange(1), metavar="K", help="width of the layer,")
@click.option("--top-k", type=click.IntRange(1), metavar="k", help="experts of a token.")
@click.option("--tokens", metavar="T,...", default=TOKENS, show_default=True, help="In a call.")
@click.option("--dtype", metavar="D", help="bf16, fp16, fp32, or a scheme such as fp8-block [what the kernel takes].")
@click.option("--tries", type=click.IntRange(1), default=60, show_default=True, help="Configurations for one call.")
@click.option("--seconds", type=float, default=0.05, show_default=True, callback=positive, help="For timing one.")
@click.option("--timeout", type=float, default=120.0, show_default=True, callback=positive, help="With compilation.")
@click.option("--sample", type=click.IntRange(1), default=CHECKED, show_default=True, help="Tokens of the reference.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all drawn inputs.")
@click.option("--out", type=click.Path(path_type=Path), help="File to add to [tuned/KERNEL.json].")
def tune_command(
    kernel: str,
    model: str | None,
    experts: int | None,
    intermediate: int | None,
    hidden: int | None,
    top_k: int | None,
    tokens: str,
    dtype: str | None,
    tries: int,
    seconds: float,
    timeout: float,
    sample: int,
    seed: int,
    out: Path | None,
) -> int:
    """Find the fastest configuration of KERNEL for each number of tokens, and write them to a JSON file.

    Each configuration is checked first, as `moecheck bench` checks kernels; one that is wrong is told and never timed
    (exit code 1). MOECHECK_TUNED=FILE makes calls use the file.
    """
    counts = parse_tokens(tokens)
    sizes = _sizes(model, experts, intermediate, hidden, top_k)
    settings = Settings(seconds=seconds, timeout=timeout, memory=full_size_memory(1), threads=max(1, cores() - 1))
    found = _kernel(kernel, settings)
    declaration = found.declaration
    weights = dtype or _usual(declaration)
    cases = [_case(model, sizes, declaration, weights, count, seed, sample) for count in counts]
    path = out or Path("tuned") / f"{declaration.tunable.replace('/', '-')}.json"
    table = _existing(path, declaration)
    wrong, written = 0, 0
    with waiting("") as say:
        wanted = [Wanted(model=model or "layer", case=case) for case in cases]
        for one in tune(found, wanted, settings, tries=tries, told=lambda c, e: say(_told(c, e))):
            wrong += one.statuses["wrong"]
            if one.best is not None:
                table.layers.setdefault(one.layer, {})[one.tokens] = one.best.configuration
                write(path, table)
                written += 1
            click.echo(_line(one))
    if written:
        click.echo(f"{path}: use it by MOECHECK_TUNED={path}")
    if wrong:
        return 1
    return 0 if written == len(counts) else 4


def _sizes(model: str | None, *given: int | None) -> tuple[int, ...] | None:
    """The sizes that were given instead of a model."""
    present = [name for name, size in zip(SIZES, given, strict=True) if size is not None]
    if model is not None:
        if present:
            raise UsageError(f"--model {model} has its own sizes: leave --{present[0].replace('_', '-')} out.")
        return None
    if len(present) < len(SIZES):
        raise UsageError("Say --model NAME, or all of --experts, --intermediate, --hidden and --top-k.")
    sizes = tuple(size for size in given if size is not None)
    if sizes[3] > sizes[0]:
        raise UsageError(f"--top-k {sizes[3]} must be at most --experts {sizes[0]}.")
    return sizes


def _kernel(spec: str, settings: Settings) -> Found:
    with waiting("looking for kernels"):
        discovery = discover((spec,), op=None, backend=None, memory=settings.memory, jobs=min(cores(), 8))
    if not discovery.found:
        reason = next(iter({**discovery.skipped, **discovery.broken}.values()), "it was not found")
        raise UsageError(f"{spec} cannot run here: {reason}.")
    found = discovery.found[0]
    if found.declaration.op != "fused_experts":
        raise UsageError(f"{spec} computes {found.declaration.op}; only kernels of fused_experts are tuned.")
    if not found.declaration.tunable:
        raise UsageError(f"{spec} declares no numbers to tune: give its @moecheck.kernel a `tuning`.")
    return found


def _usual(declaration: Declaration) -> str:
    """The first scheme of weights that the kernel takes, or its first format."""
    if declaration.quantizations and "w13_scale" in declaration.required:
        return scheme_name(declaration.quantizations[0])
    return "bf16" if "bf16" in declaration.dtypes else declaration.dtypes[0]


def _case(
    model: str | None,
    sizes: Sequence[int] | None,
    declaration: Declaration,
    weights: str,
    tokens: int,
    seed: int,
    sample: int,
) -> Case:
    # A model of the list carries the scheme or format; its sizes are replaced by those that were given.
    case = bench_case(model or "mixtral-8x7b", declaration.op, weights=weights, tokens=tokens, seed=seed, sample=sample)
    if weights not in FORMATS and "bf16" not in declaration.dtypes:
        case = replace(case, dtype=declaration.dtypes[0])
    if sizes is None:
        return case
    experts, intermediate, hidden, top_k = sizes
    spec = MoESpec(routing=RoutingSpec(top_k=top_k), experts=ExpertSpec(quantization=case.spec.experts.quantization))
    return replace(
        case, spec=spec, num_experts=experts, intermediate_size=intermediate, hidden_size=hidden, name="", reason=""
    )


def _existing(path: Path, declaration: Declaration) -> Table:
    if not path.exists():
        return Table(kernel=declaration.tunable, layers={})
    table = load(path)
    if table.kernel != declaration.tunable:
        raise UsageError(f"{path} is of {table.kernel}, not of {declaration.tunable}: choose another --out.")
    return table


def _told(configuration: Configuration, entry: Entry) -> str:
    what = f"{entry.tokens} tokens · {_numbers(configuration)}"
    if entry.timing is None:
        return f"{what}: {entry.status.upper() if entry.status == 'wrong' else entry.status}, {entry.reason}"
    return f"{what}: {entry.timing.median * 1e6:.4g} µs"


def _line(one: Tuned) -> str:
    counted = ", ".join(f"{number} {status}" for status, number in sorted(one.statuses.items()))
    if one.best is None:
        return f"{one.tokens} tokens: no configuration could be timed ({counted}): {one.reasons[0]}"
    first = one.best.start_seconds
    gain = "" if first is None else f", {first / one.best.seconds:.2f} times as fast as the start"
    return (
        f"{one.tokens} tokens: {one.best.seconds * 1e6:.4g} µs{gain} · {_numbers(one.best.configuration)} ({counted})"
    )


def _numbers(configuration: Configuration) -> str:
    return " ".join(f"{name}={value}" for name, value in configuration.items())
