"""Measures what legal arms and known bugs do to each signal of `moecheck e2e`, over several generated problem sets.

    python tools/calibrate_e2e.py --sets 20 --bugs 2 --out reports/e2e/limits.jsonl
    python tools/calibrate_e2e.py --from reports/e2e/limits.jsonl

Each set holds other held-out problems, none of them in the shipped test set. Its candidates are the legal variants of
every precision, whose alarms are false ones; with --bugs also each known bug of the self-test in bf16. One JSON line an
arm and set, without what floors make of the numbers; a summary on stdout.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from moecheck.evals.backends.backend import ScoredPair
from moecheck.evals.backends.embedded_arms import EmbeddedBackend, EmbeddedModel
from moecheck.evals.backends.records import PRECISIONS, Arm, Fingerprint, LayerCapture, Scored
from moecheck.evals.gsm8k.data import Question
from moecheck.evals.paired.journal import Journal
from moecheck.evals.paired.model_run import run_model
from moecheck.evals.paired.result import RunResult
from moecheck.evals.paired.settings import Settings
from moecheck.evals.paired.watcher import Watcher
from moecheck.evals.problems import is_held_out, problems
from moecheck.evals.problems.test_set import SEED, SIZES, chosen_problems
from moecheck.evals.signals.limits import LIMITS
from moecheck.evals.signals.signal import Outcome
from moecheck.evals.tiny.models import load_model
from moecheck.evals.tiny.text import MOST_TOKENS

FIRST_SEED = SEED + 1000
BUGS_OF_A_TASK = 6
LEAST_IS_WORST = {"top1", "texts", "router"}


def main() -> None:
    """Run or read, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="by default tiny-glm4-moe; may come again")
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first set")
    parser.add_argument("--questions", type=int, default=40, help="of a set")
    parser.add_argument("--bugs", type=int, default=0, metavar="SETS", help="known bugs too, in bf16, on so many sets")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="of legal variants; by default all")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="nothing is waited for after so long")
    parser.add_argument("--out", type=Path, help="file that a line is added to for each arm that ends")
    parser.add_argument("--from", dest="read", type=Path, nargs="+", help="summarise these")
    a = parser.parse_args()
    if not a.read:
        print(f"$ python {' '.join(sys.argv)}", flush=True)
        with TemporaryDirectory() as folder:
            out = a.out or Path(folder) / "rows.jsonl"
            out.parent.mkdir(parents=True, exist_ok=True)
            _run_all(a, out)
            a.read = [out]
            summarise(_rows(a.read))
        return
    summarise(_rows(a.read))


def _rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def _run_all(a: argparse.Namespace, out: Path) -> None:
    """Every set and every share of the bugs as a task of its own; those cut off keep the arms that ended."""
    tasks: list[tuple[Any, ...]] = []
    for name in a.model or ["tiny-glm4-moe"]:
        bugs = EmbeddedModel(load_model(name, device="cpu")).self_test_mutants() if a.bugs else ()
        shares = [bugs[start : start + BUGS_OF_A_TASK] for start in range(0, len(bugs), BUGS_OF_A_TASK)]
        tasks += [
            (name, number, a.questions, share, ["bf16"], out)
            for number in range(a.first, a.first + a.bugs)
            for share in shares
        ]
        tasks += [
            (name, number, a.questions, (), a.precision or list(PRECISIONS), out)
            for number in range(a.first, a.first + a.sets)
        ]
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(a.jobs) as pool:
        running = [pool.apply_async(one_set, task) for task in tasks]
        for task, result in zip(tasks, running, strict=True):
            left = a.seconds - (time.monotonic() - start)
            what = f"{task[0]}, set {task[1]}" + (f", {task[3][0]} ..." if task[3] else "")
            try:
                result.get(max(0.0, left) if left < math.inf else None)
                print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)
            except multiprocessing.TimeoutError:
                print(f"{what}: did not end in time", flush=True)
        pool.terminate()


def one_set(name: str, number: int, size: int, bugs: Sequence[str], precisions: Sequence[str], out: Path) -> None:
    """Legal variants, or these bugs, on one problem set, on the CPU and one thread; adds a line an arm to `out`."""
    torch.set_num_threads(1)
    model = Remembering(EmbeddedModel(load_model(name, device="cpu")))
    questions = problem_set(number, size)
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "answers.jsonl")
        for precision in precisions:
            settings = Settings(
                questions=questions,
                data="generated",
                precision=precision,  # type: ignore[arg-type]  # one of its values
                batch_size=65,
                max_new_tokens=MOST_TOKENS,
                forced=24,
                floor_questions=65,
                seed=number,
            )
            for arm in _candidates(model, precision, bugs):
                result = run_model(model, arm, settings, journal=journal, watcher=Watcher())
                row = {"set": number, "model": name, "precision": precision, **_row(arm, result)}
                with out.open("a", encoding="utf-8") as file:  # lines of several processes stay whole
                    file.write(json.dumps(row) + "\n")


class Remembering:
    """A model whose arms answer a second time from memory: the runs of a set share baseline and legal variants."""

    def __init__(self, model: EmbeddedModel) -> None:
        self._model, self._arms = model, dict[Arm, Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def open(self, arm: Arm) -> Any:
        """The arm, opened once."""
        if arm not in self._arms:
            self._arms[arm] = _RememberingArm(self._model.open(arm))
        return self._arms[arm]


class _RememberingArm:
    def __init__(self, backend: EmbeddedBackend) -> None:
        self._backend = backend
        self._known: dict[Any, Any] = {}
        self.encode, self.generate = backend.encode, backend.generate
        self.evidence, self.close = backend.evidence, backend.close

    @property
    def fingerprint(self) -> Fingerprint:
        return self._backend.fingerprint

    def score(self, pairs: Sequence[ScoredPair], *, rows: bool = False) -> list[Scored]:
        return self._once(("score", tuple(pairs), rows), lambda: self._backend.score(pairs, rows=rows))

    def capture(self, pairs: Sequence[ScoredPair]) -> list[LayerCapture]:
        return self._once(("capture", tuple(pairs)), lambda: self._backend.capture(pairs))

    def replay(self, layer: int, hidden: LayerCapture) -> LayerCapture:
        return self._once((layer, hidden.hidden.tobytes()), lambda: self._backend.replay(layer, hidden))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def problem_set(number: int, size: int) -> list[Question]:
    """Held-out problems outside the test set, in its shares of numbers of operations."""
    tested = {one.content for one in chosen_problems()}
    left = {operations: max(1, round(size * count / sum(SIZES.values()))) for operations, count in SIZES.items()}
    found: list[Question] = []
    for one in problems(FIRST_SEED + number, operations=tuple(SIZES)):
        if left[one.operations] and is_held_out(one.content) and one.content not in tested:
            left[one.operations] -= 1
            tested.add(one.content)
            found.append(Question(doc_id=len(found), question=one.question, answer=one.answer, cluster=one.cluster))
            if not any(left.values()):
                break
    return found


def _candidates(model: Remembering, precision: Any, bugs: Sequence[str]) -> list[Arm]:
    if bugs:
        return [Arm(precision=precision, mutant=name) for name in bugs]
    return [arm for arm in model.variants(precision) if arm.precision == precision]


def _row(arm: Arm, result: RunResult) -> dict[str, Any]:
    """Outcomes, and the numbers without what floors make of them."""
    divergence = result.divergence
    texts = next(one for one in result.signals if one.name == "identical texts")
    fits = [fit for fit in result.fits if fit.finite and fit.used]
    return {
        "arm": arm.words,
        "mutant": arm.mutant,
        "verdict": result.verdict.outcome.value,
        "deciding": result.verdict.deciding,
        "reason": result.verdict.reason,
        "outcomes": {one.name: one.outcome.value for one in result.signals},
        "limits": {one.name: one.limit for one in result.signals},
        "fits": [
            [fit.layer, fit.plan, fit.alpha, fit.alpha_error, fit.beta, fit.beta_error, fit.residual, fit.worst_row]
            for fit in fits
        ],
        "factor": max((_beyond(fit.alpha, fit.alpha_error, fit.beta, fit.beta_error) for fit in fits), default=None),
        "residual": max((fit.residual for fit in fits), default=None),
        "row": max((fit.worst_row for fit in fits), default=None),
        "kl": None if divergence is None else divergence.kl_mean,
        "top1": None if divergence is None else divergence.top1,
        "router": min((one.isolated for one in result.agreements if one.tokens), default=None),
        "texts": texts.value,
    }


def _beyond(alpha: float, alpha_error: float, beta: float | None, beta_error: float) -> float:
    """The factor's error beyond four standard errors of the fit, as the signal has it."""
    other = 0.0 if beta is None else abs(beta - 1) - 4 * beta_error
    return max(abs(alpha - 1) - 4 * alpha_error, other, 0.0)


def summarise(rows: Sequence[dict[str, Any]]) -> None:
    """Legal arms by precision against the fixed limits; bugs by name with the signals that caught them."""
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        legal = [row for row in own if row["mutant"] is None]
        if legal:
            _legal_table(model, legal)
        if len(legal) < len(own):
            _bug_table(model, [row for row in own if row["mutant"] is not None])


def _legal_table(model: str, rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{model}: legal variants over {len({row['set'] for row in rows})} problem sets")
    print(f"{'precision':10} {'number':10} {'worst':>12} {'limit':>12}")
    for precision in PRECISIONS:
        own = [row for row in rows if row["precision"] == precision]
        for name in ("factor", "residual", "row", "kl", "top1", "router", "texts"):
            values = [row[name] for row in own if row[name] is not None]
            if values:
                worst = (min if name in LEAST_IS_WORST else max)(values)
                limit = getattr(LIMITS[precision], name, None)
                print(f"{precision:10} {name:10} {worst:12.4g} {limit if limit is not None else 0.999:12.4g}")
    alarms = [row for row in rows if row["verdict"] == Outcome.FAIL]
    print(f"{len(alarms)} alarms among {len(rows)} runs")
    for row in alarms:
        print(f"  set {row['set']}: {row['arm']}: {row['reason']}")


def _bug_table(model: str, rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{model}: known bugs over {len({row['set'] for row in rows})} problem sets")
    print(f"{'precision':10} {'bug':32} {'caught':>7} {'KL':>9} {'same text':>9}  failed in every set")
    for precision, name in dict.fromkeys((row["precision"], row["mutant"]) for row in rows):
        own = [row for row in rows if (row["precision"], row["mutant"]) == (precision, name)]
        caught = sum(row["verdict"] == Outcome.FAIL for row in own)
        always = [
            signal for signal in own[0]["outcomes"] if all(row["outcomes"][signal] == Outcome.FAIL for row in own)
        ]
        kl, texts = min(row["kl"] for row in own), max(row["texts"] for row in own)
        print(f"{precision:10} {name:32} {caught:3}/{len(own):<3} {kl:9.2g} {texts:9.3f}  {', '.join(always)}")
        print(f"{'':43} {own[0]['reason'][:160]}")


if __name__ == "__main__":
    main()
