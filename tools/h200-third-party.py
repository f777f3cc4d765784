"""Contracts of other projects' kernels over shapes and numbers of tokens: outputs on a GPU, their contracts anywhere.

python tools/h200-third-party.py names                    the kernels
python tools/h200-third-party.py collect outputs.npz      on the GPU host
python tools/h200-third-party.py identify outputs.npz     a table, and outputs.json beside the file
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.checks.judge import Limits, judge
from moecheck.formats import FORMATS, AnyArray
from moecheck.identify import identify, judge_numerics
from moecheck.kernel import Declaration
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.quantization import Quantization
from moecheck.registry import Found, discover
from moecheck.runner.plan import lacking
from moecheck.runner.pool import KernelPool, WorkerDied, WorkerTimeout, default_memory
from moecheck.runner.worker import run_case
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec

PREFIXES = ("vllm/", "liger/", "moe_ops/", "triton_kernels/", "torch/scaled_grouped_mm", "torch/grouped_mm")
TRANSFORMERS = tuple(f"transformers/{name}" for name in ("mixtral_batched_mm", "mixtral_grouped_mm", "qwen3_moe_eager"))
MEMORY = 24 << 30  # of one process; a vLLM layer in full size is drawn on the host
DEEP = ("vllm/deep_gemm",)  # compiles for each shape with nvcc
FULL = ("vllm/fused_experts", "liger/fused_moe")
# tokens, experts, hidden, intermediate, top_k
TOKENS = tuple((T, 8, 256, 256, 2) for T in (1, 16, 32, 33, 64, 65, 96, 97, 128, 256, 513))
SLOTS = tuple((64, 16, 256, 256, k) for k in (1, 3, 4, 5, 6, 8))
MODELS = ((64, 8, 1024, 512, 2), (64, 8, 2048, 768, 8), (256, 8, 2048, 768, 8))
LARGE = ((256, 64, 2048, 768, 8), (256, 128, 2048, 768, 8), (64, 8, 7168, 2048, 8))
FEW = ((64, 8, 1024, 512, 2), (256, 8, 1024, 512, 4))


def main() -> None:
    """Names, outputs or a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("names", "collect", "identify", "judge"))
    parser.add_argument("path", nargs="*", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=14)
    parser.add_argument("--seconds", type=float, default=100.0, help="after which no other case is collected")
    parser.add_argument("--most", type=int, default=1 << 62, help="weights of a case that is identified")
    a = parser.parse_args()
    if a.what == "names":
        print(*(kernel.declaration.name for kernel in _kernels(a.only)))
    elif a.what == "collect":
        _collect(a.path[0], a.only, a.jobs, a.seconds)
    elif a.what == "judge":
        _judge(a.path, a.only, a.most)
    else:
        _identify(a.path, a.only, a.most)


def _kernels(only: str) -> list[Found]:
    discovery = discover([], op=None, backend=None, memory=default_memory(4), jobs=4)
    for name, reason in {**discovery.skipped, **discovery.broken}.items():
        print(f"{name}: {reason}", file=sys.stderr)
    return [
        kernel
        for kernel in discovery.found
        if kernel.declaration.name.startswith((*PREFIXES, *TRANSFORMERS)) and only in kernel.declaration.name
    ]


def cases(declaration: Declaration) -> Iterator[Case]:
    """What a kernel is called on: the shapes above under each of its schemes, with its activation."""
    if declaration.op != "fused_experts":
        return
    experts = declaration.specs[0].experts if declaration.specs else ExpertSpec()
    shapes = FEW if declaration.name in DEEP else (*TOKENS, *SLOTS, *MODELS)
    schemes: tuple[Quantization | None, ...] = declaration.quantizations[:1] or (None,)
    if declaration.name in FULL:
        shapes += LARGE
    elif declaration.name.startswith("vllm/fp8_block"):  # codes take a minute to draw
        shapes += LARGE[:1]
    for T, E, H, I, k in shapes:  # noqa: E741  # the field's name for a size
        for scheme in schemes if k == 1 or not experts.weight_on_input else ():
            spec = MoESpec(
                routing=RoutingSpec(top_k=k, renormalize=True), experts=replace(experts, quantization=scheme)
            )
            case = Case(
                op=declaration.op,
                spec=spec,
                num_tokens=T,
                num_experts=E,
                hidden_size=H,
                intermediate_size=I,
                dtype="bf16",
                seed=7,
            )
            if lacking(declaration, case) is None:
                yield case


def _collect(path: Path, only: str, jobs: int, seconds: float) -> None:
    outputs: dict[str, AnyArray] = {}
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as store, ThreadPoolExecutor(jobs) as threads:
        for found in threads.map(lambda kernel: _outputs(kernel, store, deadline), _kernels(only)):
            outputs |= found
    for number, part in enumerate(_parts(outputs)):
        np.savez_compressed(path.with_stem(f"{path.stem}-{number}"), **part)  # type: ignore[arg-type]  # names are JSON
    print(f"{len(outputs)} outputs")


def _parts(outputs: dict[str, AnyArray]) -> Iterator[dict[str, AnyArray]]:
    """Files of less than 14 MB, which is what some hosts give back."""
    part: dict[str, AnyArray] = {}
    for key, out in outputs.items():
        if part and sum(other.nbytes for other in part.values()) + out.nbytes > 14 << 20:
            yield part
            part = {}
        part[key] = out
    yield part


def _outputs(kernel: Found, store: str, deadline: float) -> dict[str, AnyArray]:
    """The kernel's output on each case, as integers of its bits, by JSON of what it is."""
    declaration, start = kernel.declaration, time.perf_counter()
    outputs: dict[str, AnyArray] = {}
    with KernelPool(memory=MEMORY, threads=1, store=store) as pool:
        for case in cases(declaration):
            if time.monotonic() > deadline:
                print(f"{declaration.name}: no time for {case.id}")
                continue
            try:
                outcome = pool.wait(pool.submit(run_case, kernel.target, case, timeout=60.0))
            except (WorkerDied, WorkerTimeout) as error:
                print(f"{declaration.name} {case.id}: {type(error).__name__} {error}")
                continue
            if outcome.problem is not None:
                if outcome.problem[0] is Verdict.SKIP:
                    continue
                print(f"{declaration.name} {case.id}: {outcome.problem[0].value} {outcome.problem[1]}")
                continue
            out = outcome.outputs[0]
            numerics = declaration.numerics and asdict(declaration.numerics)
            key = json.dumps([declaration.name, case.to_json(), numerics])
            outputs[key] = np.ascontiguousarray(out).view(f"u{out.itemsize}")
    print(f"{declaration.name}: {len(outputs)} outputs in {time.perf_counter() - start:.0f} s", flush=True)
    return outputs


def _identify(paths: Sequence[Path], only: str, most: int) -> None:
    rows: list[dict[str, Any]] = []
    print(f"{'kernel':32} {'T,E,H,I,k':22} {'agree':>6} {'exp.':>6} {'next':>6}  contract")
    for name, case, numerics, out in sorted(_stored(paths), key=lambda item: item[0]):
        if only in name and case.elements <= most:
            rows.append(_row(name, case, out, numerics))
            print(
                f"{name:32} {rows[-1]['shape']:22} {rows[-1]['agreement']:6.3f} {rows[-1]['expected']:6.3f} "
                f"{rows[-1]['runner_up']:6.3f}  {rows[-1]['verdict']}: {rows[-1]['contract']}",
                flush=True,
            )
    paths[0].with_suffix(".json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _judge(paths: Sequence[Path], only: str, most: int) -> None:
    passed: Counter[str] = Counter()
    for name, case, numerics, out in _stored(paths):
        if only not in name or case.elements > most:
            continue
        found = judge(case, (out,), Oracle(), Limits(), numerics).judgements
        wrong = [judgement for judgement in found if judgement.verdict is not Verdict.PASS]
        passed[name] += not wrong
        for judgement in wrong:
            print(f"{name} {case.id}: {judgement.check} {judgement.verdict.value} {judgement.message}")
    for name, count in sorted(passed.items()):
        print(f"{name:34} {count:3} outputs pass")


def _stored(paths: Sequence[Path]) -> Iterator[tuple[str, Case, Numerics | None, AnyArray]]:
    for path in paths:
        with np.load(path) as stored:
            for key in stored.files:
                name, record, *declared = json.loads(key)
                case = Case.from_json(record)
                numerics = Numerics(**declared[0]) if declared and declared[0] else None
                yield name, case, numerics, stored[key].view(FORMATS[case.dtype].storage)


def _row(name: str, case: Case, out: AnyArray, numerics: Numerics | None) -> dict[str, Any]:
    found = identify([(case, out)], Oracle(), declared=numerics)
    judged = judge_numerics(numerics, found)
    shape = (case.num_tokens, case.num_experts, case.hidden_size, case.intermediate_size, case.spec.routing.top_k)
    return {
        "kernel": name,
        "shape": ",".join(map(str, shape)),
        "agreement": found.agreement,
        "expected": found.expected,
        "runner_up": found.runner_up_agreement,
        "known": found.known,
        "verdict": judged.verdict.value,
        "contract": judged.message,
    }


if __name__ == "__main__":
    main()
