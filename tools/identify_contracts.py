"""Identifies the contract of every built-in kernel of the value ops on random small cases, and prints a table.

    python tools/identify_contracts.py --cases 20

Each case is identified on its own, so a row holds the worst of `--cases` verdicts: the lowest agreement of the best
contract, the highest of its runner-up, the smallest distance between the two, and in how many cases the declared
contract gives the bits of the one that was found. The contract in words is that of all cases of `identify` together.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.identify import Identified, identification_cases, identify, judge_numerics
from moecheck.identify.candidates import VALUE_OPS
from moecheck.kernel import Declaration
from moecheck.oracle import Oracle
from moecheck.registry import Found, discover
from moecheck.runner.plan import lacking
from moecheck.runner.pool import KernelPool, default_memory
from moecheck.runner.worker import Outcome, run_case

TIMEOUT = 300.0
SIZES = ((16, 192, 128), (24, 128, 96), (13, 160, 64))  # tokens, hidden, intermediate
DTYPES = ("bf16", "fp16")


@dataclass(slots=True)
class Row:
    """What the random cases of one kernel gave."""

    declaration: Declaration
    agreement: float = 1.0
    expected: float = 1.0
    runner_up: float = 0.0
    margin: float = 1.0
    cases: int = 0
    rivals: int = 0
    known: int = 0
    declared: int = 0
    seconds: float = 0.0
    found: Identified | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, identified: Identified) -> None:
        """Count one case."""
        self.cases += 1
        self.agreement = min(self.agreement, identified.agreement)
        self.expected = min(self.expected, identified.expected)
        self.known += identified.known
        if identified.runner_up is not None:
            self.rivals += 1
            self.runner_up = max(self.runner_up, identified.runner_up_agreement)
            self.margin = min(self.margin, identified.agreement - identified.runner_up_agreement)
        declared = self.declaration.numerics
        self.declared += declared is not None and identified.compare(declared, identified.numerics).same_bits


def main() -> None:
    """Print one row and one sentence per kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--op", choices=sorted(VALUE_OPS))
    a = parser.parse_args()
    print(f"$ python {' '.join(sys.argv)}")
    print(
        "worst of all cases; expected: of a simulated kernel; declared: cases in which the declared contract gives the "
        "found one's bits"
    )
    print(f"{'kernel':34} {'cases':>5} {'agreement':>9} {'expected':>8} {'runner-up':>9} {'margin':>6}  known declared")
    found = discover([], op=a.op, backend=None, memory=default_memory(1), jobs=1).found
    for op in sorted(VALUE_OPS) if a.op is None else [a.op]:
        oracle = Oracle()
        for kernel in [k for k in found if k.declaration.op == op]:
            _print(_row(kernel, a.cases, oracle))


def _row(kernel: Found, count: int, oracle: Oracle) -> Row:
    row = Row(kernel.declaration)
    start = time.perf_counter()
    with KernelPool(memory=default_memory(1), threads=1) as pool:
        together = _observed(pool, kernel, identification_cases(kernel.declaration), row)
        if together:
            row.found = identify(together, oracle)
        for observation in _observed(pool, kernel, random_cases(kernel.declaration, count), row):
            row.add(identify([observation], oracle))
    row.seconds = time.perf_counter() - start
    return row


def _observed(pool: KernelPool, kernel: Found, cases: Sequence[Case], row: Row) -> list[tuple[Case, AnyArray]]:
    observed = []
    for case in cases:
        outcome: Outcome = pool.wait(pool.submit(run_case, kernel.target, case, timeout=TIMEOUT))
        if outcome.problem is None:
            observed.append((case, outcome.outputs[0]))
        else:
            row.notes.append(f"{case.id}: {outcome.problem[1]}")
    return observed


def random_cases(declaration: Declaration, count: int) -> list[Case]:
    """Small cases of 16-bit formats that the kernel takes, drawn by their seeds, with its specs in turn."""
    base = [case for case in identification_cases(declaration) if case.dtype != "fp32"]
    found: list[Case] = []
    for seed in range(1000, 1000 + count if base else 1000):
        tokens, hidden, intermediate = SIZES[seed % len(SIZES)]
        case = replace(
            base[seed % len(base)], num_tokens=tokens, hidden_size=hidden, intermediate_size=intermediate, seed=seed
        )
        if case.spec.shared_experts != "none":
            case = replace(case, shared_intermediate_size=intermediate)
        found += [case] if lacking(declaration, case) is None else []
    return found


def _print(row: Row) -> None:
    runner_up, margin = (f"{row.runner_up:9.3f}", f"{row.margin:6.3f}") if row.rivals else (f"{'-':>9}", f"{'-':>6}")
    print(
        f"{row.declaration.name:34} {row.cases:5} {row.agreement:9.4f} {row.expected:8.4f} {runner_up} {margin}  "
        f"{row.known:5} {row.declared:8}"
    )
    if row.found is not None:
        judged = judge_numerics(row.declaration.numerics, row.found)
        print(f"    {judged.verdict.value}: {judged.message}")
    for note in dict.fromkeys(row.notes):
        print(f"    {note}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
