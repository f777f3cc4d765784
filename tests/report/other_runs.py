"""Made-up runs of e2e, bench and mutants for the tests of views over many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moecheck.bench.entry import Bench, Entry, with_ratios
from moecheck.bench.limits import Limits
from moecheck.bench.timing import Timing
from moecheck.bench.work import Work
from moecheck.report.bench import write_bench
from moecheck.report.mutants import write_score
from moecheck.report.strict_json import dumps
from moecheck.scoring.result import Cell, MutantScore, Score

BASELINE, FASTER, WRONG = "torch/grouped_mm", "triton/fused_gate_up", "mine.py:wrong|`x`"


def _answer(question: int, text: str, *, right: bool) -> dict[str, Any]:
    asked = f"What <script>alert(1)</script> is number {question}?"
    return {
        "question": {"doc_id": question, "question": asked, "answer": f"#### {question}", "cluster": None},
        "generation": {"text": text},
        "score": {"strict_right": right, "flexible_right": right},
    }


def _signal(name: str, outcome: str, message: str, value: float, limit: float, **numbers: float) -> dict[str, Any]:
    values = {"value": value, "limit": limit, "floor": None, "numbers": numbers}
    return {"name": name, "outcome": outcome, "message": message, **values}


# Of 200 questions 190 and 187 are right, 5 lost and 2 gained.
E2E: dict[str, Any] = {
    "command": "moecheck e2e --model hf:Qwen/Qwen3-30B-A3B --kernel mine.py:my_experts",
    "started": "2026-11-24T03:00:00+00:00",
    "seconds": 321.0,
    "git": None,
    "facts": {"name": "Qwen3-30B-A3B"},
    "data": "gsm8k of the hub",
    "few_shot": 5,
    "asked": 200,
    "harness": "lm-eval",
    "margin": 0.02,
    "baseline": {"arm": "reference path, bf16"},
    "candidate": {"arm": "mine.py:my_experts, bf16"},
    "verdict": {"outcome": "inconclusive", "reason": "Accuracy decides nothing."},
    "notes": ["The run was stopped early."],
    "signals": [
        _signal("component attribution", "pass", "the weights of the components are 1", 1e-4, 2e-3),
        _signal("identical texts", "fail", "150 of 200 greedy answers are the same", 0.75, 0.9),
        _signal(
            "accuracy",
            "inconclusive",
            "95.00 % to 93.50 %, 5 lost, 2 gained: p = 0.23",
            -0.015,
            -0.02,
            mcnemar_p=0.2265625,
            mcnemar_two_sided_p=0.453125,
            tango_lower=-0.0391,
            tango_upper=0.0066,
        ),
    ],
    "pairs": [
        [_answer(1, "one", right=True), _answer(1, "two", right=False)],
        [_answer(2, "two", right=True), _answer(2, "two", right=True)],
    ],
    "tables": {
        "exact_match,strict-match": {"both": 185, "lost": 5, "gained": 2, "neither": 8},
        "exact_match,flexible-extract": {"both": 186, "lost": 4, "gained": 2, "neither": 8},
    },
    "throughput": {"baseline": {"tokens_per_second": 1000.0}, "candidate": {"tokens_per_second": 1250.0}},
    "lm_eval": {"candidate": "|Tasks|Version|\n|-----|------:|\n|gsm8k|      3|\n"},
}


def write_e2e_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "e2e.json").write_text(dumps(E2E), encoding="utf-8")


def write_bench_run(folder: Path) -> None:
    """One layer, two sizes: 200 and 100 µs, 2000 and 500 µs, and a wrong kernel."""
    entries = [
        *(_entry(kernel, tokens, seconds) for kernel, tokens, seconds in (
            (BASELINE, 16, 200e-6), (FASTER, 16, 100e-6), (BASELINE, 4096, 2e-3), (FASTER, 4096, 5e-4))),
        _entry(WRONG, 16, None),
    ]  # fmt: skip
    bench = Bench(
        command="moecheck bench --model qwen3-30b-a3b",
        started="2026-11-23T03:00:00+00:00",
        seconds=17.0,
        baseline=BASELINE,
        limits={"cuda": Limits(device="NVIDIA H200", bandwidth=4.2e12, flops={"bf16": 7.9e14})},
        entries=tuple(with_ratios(entries, BASELINE)),
        skipped={"cuda/fp8": "needs sm100, have sm90"},
    )
    folder.mkdir(parents=True)
    write_bench(folder, bench, {})
    (folder.parent / "latest").unlink()


def _entry(kernel: str, tokens: int, seconds: float | None) -> Entry:
    timing = seconds and Timing(method="graph", median=seconds, low=seconds, high=seconds, least=seconds, calls=9)
    return Entry(
        kernel=kernel,
        op="fused_experts",
        model="qwen3-30b-a3b",
        weights="bf16",
        tokens=tokens,
        case=f"fused_experts/bf16/T{tokens}",
        device="cuda",
        status="timed" if timing else "wrong",
        reason="" if timing else "<b>token 3</b> is wrong | 1",
        timing=timing or None,
        work=Work(flops=1e9, bytes=1e8),
        roofline=1e-4,
    )


def write_mutants_run(folder: Path) -> None:
    """Two mutants, one of which is seen."""
    fields: dict[str, Any] = {"kind": "routing", "ops": ("topk_routing",), "seeds": 20}
    seen = MutantScore(id="drop_r", words="the scaling is forgotten", caught={"topk_routing": 20}, **fields)
    unseen = MutantScore(id="low|sums", words="sums are <i>short</i>", caught={"topk_routing": 3}, **fields)
    cell = {"routing": "softmax", "activation": "silu", "quantisation": "bf16", "plumbing": "plain"}
    score = Score(
        profile="default",
        seeds=20,
        command="moecheck mutants",
        mutants=(seen, unseen),
        coverage=(Cell(cases=12, died=("drop_r",), **cell),),
        started="2026-11-22T03:00:00+00:00",
        seconds=400.0,
    )
    folder.mkdir(parents=True)
    write_score(folder, score, {})
