"""Times only of kernels that are right, each in its own process, compared within one run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moecheck.bench.cases import bench_case
from moecheck.bench.entry import Entry, with_ratios
from moecheck.bench.limits import Limits, measure_limits, operands_of
from moecheck.bench.timing import FEWEST, Timing, time_call
from moecheck.bench.work import Work, work_of
from moecheck.cases import Case
from moecheck.errors import UsageError
from moecheck.quantization import SCHEMES
from moecheck.report.bench import cells, duration_words
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec
from tests.cli.command import Result, moecheck

pytestmark = pytest.mark.xdist_group("alone")

TWO = MoESpec(routing=RoutingSpec(top_k=2))
SMALL = Case(op="fused_experts", spec=TWO, num_tokens=6, num_experts=8, hidden_size=32, intermediate_size=16)
# A layer whose full size is small enough for a test.
MODEL, TOKENS = "granite-3-1b-tp8", "3,5"

KERNELS = """
import os
import moecheck
from moecheck.kernels.torch.index_add import fused_experts as index_add

calls = 0

def right(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):
    return index_add(
        hidden_states=hidden_states, w13=w13, w2=w2, topk_weights=topk_weights, topk_ids=topk_ids, spec=spec
    )

def wrong(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):
    return right(
        hidden_states=hidden_states, w13=w13, w2=w2, topk_weights=1.05 * topk_weights, topk_ids=topk_ids, spec=spec
    )

def dies(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):
    os.abort()

def dies_when_timed(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):
    global calls
    calls += 1
    if calls > 1:
        os.abort()
    return right(hidden_states=hidden_states, w13=w13, w2=w2, topk_weights=topk_weights, topk_ids=topk_ids, spec=spec)
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One run of a right, a wrong and two dying kernels, and of one that is slower."""
    folder = tmp_path_factory.mktemp("bench")
    file = folder / "mine.py"
    file.write_text(KERNELS, encoding="utf-8")
    kernels = [f"--kernel={file}:{name}" for name in ("right", "wrong", "dies", "dies_when_timed")]
    return moecheck(
        "bench", "--op", "fused_experts", "--backend", "torch", *kernels, "--kernel", "torch/batched",
        "--model", MODEL, "--tokens", TOKENS, "--seconds", "0.01", out=folder / "reports",
    )  # fmt: skip


def entries(result: Result) -> dict[tuple[str, int], dict[str, object]]:
    data = json.loads((result.folder / "bench.json").read_text(encoding="utf-8"))
    return {(entry["kernel"].rpartition(":")[2], entry["tokens"]): entry for entry in data["entries"]}


@pytest.mark.parametrize("tokens", [3, 5])
@pytest.mark.parametrize(
    ("kernel", "status"),
    [
        ("right", "timed"),
        ("torch/batched", "timed"),
        ("wrong", "wrong"),
        ("dies", "failed"),
        ("dies_when_timed", "failed"),
    ],
)
def test_only_kernels_that_are_right_have_a_time(result: Result, kernel: str, status: str, tokens: int) -> None:
    """And one that dies takes no other with it."""
    entry = entries(result)[kernel, tokens]
    assert entry["status"] == status
    assert (entry["timing"] is not None) == (status == "timed")
    assert bool(entry["reason"]) == (status != "timed")


def test_the_run_fails_and_says_so(result: Result) -> None:
    """Exit code 1, a table on the screen, Markdown and JSON in the folder."""
    assert result.code == 1
    assert "1.00" in result.out
    assert "host (CPU)" in result.out
    text = (result.folder / "bench.md").read_text(encoding="utf-8")
    assert "wrong" in text
    assert f"fused_experts · {MODEL} · bf16" in text


def test_numbers_of_an_entry_fit_together(result: Result) -> None:
    """Rates are the work by the median, and the ratio is to the first kernel."""
    all_of = entries(result)
    first = all_of["right", 5]
    for name in ("right", "torch/batched"):
        entry = all_of[name, 5]
        timing, work = entry["timing"], entry["work"]
        assert isinstance(timing, dict)
        assert isinstance(work, dict)
        assert timing["low"] <= timing["median"] <= timing["high"]
        assert timing["least"] <= timing["low"]
        assert timing["calls"] >= FEWEST
        assert entry["tflops"] == work["flops"] / timing["median"] / 1e12
        assert entry["gbps"] == work["bytes"] / timing["median"] / 1e9
        assert entry["ratio"] == first["timing"]["median"] / timing["median"]  # type: ignore[index]  # timed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--op", "fused_expert"], "fused_experts"),
        (["--op", "grouped_gemm"], "op"),
        (["--model", "mixtral-8x7"], "mixtral-8x7b"),
        (["--tokens", "0"], "positive"),
        (["--kernel", "torch/index_add", "--dtype", "fp8-blok"], "fp8-block"),
        (["--kernel", "torch/index_add", "--baseline", "torch/index_ad"], "torch/index_add"),
        (["--kernel", "torch/permute", "--dtype", "fp8-block"], "fused_experts"),
    ],
)
def test_bad_options_are_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    """And exit code 2."""
    result = moecheck("bench", *arguments, out=tmp_path)
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err


def test_work_of_experts_counts_rows_and_the_experts_in_use() -> None:
    """By hand: 4 tokens at 2 of 8 experts, all at the same two."""
    case = replace(SMALL, num_tokens=4, load="one_expert")
    weights = 3 * 16 * 32
    found = work_of(case)
    assert found.flops == 2 * (4 * 2) * weights
    assert found.bytes == 2 * weights * 2 + 2 * (4 * 32) * 2 + (4 * 2) * 8


def test_padding_and_other_ranks_experts_are_no_work() -> None:
    """Only pairs with an expert here are computed."""
    whole, padded = work_of(replace(SMALL, num_tokens=64)), work_of(replace(SMALL, num_tokens=64, load="padding"))
    local = work_of(replace(SMALL, num_tokens=64, num_local_experts=4))
    assert padded.flops < whole.flops
    assert local.flops < whole.flops


@pytest.mark.parametrize(("scheme", "size"), [("fp8-block", 1 + 4 / 128**2), ("mxfp4", 0.5 + 1 / 32)])
def test_quantised_weights_are_fewer_bytes(scheme: str, size: float) -> None:
    """A code, and a share of its block's scale."""
    spec = replace(TWO, experts=ExpertSpec(quantization=SCHEMES[scheme]))
    case = replace(SMALL, spec=spec, num_tokens=64)
    plain = work_of(replace(SMALL, num_tokens=64, load="random"))
    of_weights = 8 * 3 * 16 * 32
    assert plain.bytes - work_of(case).bytes == pytest.approx(of_weights * (2 - size))


def test_the_roofline_is_the_slower_of_the_two() -> None:
    """Bytes for one token, operations for many."""
    limits = Limits(device="one", bandwidth=1e12, flops={"bf16": 1e15, "fp8": 2e15})
    assert limits.seconds(Work(flops=1e12, bytes=1e6), "bf16") == 1e12 / 1e15
    assert limits.seconds(Work(flops=1e12, bytes=1e6), "fp8") == 1e12 / 2e15
    assert limits.seconds(Work(flops=1e6, bytes=1e9), "bf16") == 1e9 / 1e12
    assert limits.seconds(Work(flops=2e15, bytes=1.0), "fp4") == 1.0  # an unknown format: the best known one


def test_limits_of_this_cpu_are_measured() -> None:
    """Positive, and a name."""
    limits = measure_limits("cpu")
    assert limits.bandwidth > 0
    assert min(limits.flops.values()) > 0
    assert limits.device


@pytest.mark.parametrize(
    ("weights", "operands"), [("bf16", "bf16"), ("fp8-block", "fp8"), ("int8-channel", "int8"), ("mxfp4", "bf16")]
)
def test_operands_are_what_a_kernel_may_multiply(weights: str, operands: str) -> None:
    """4-bit weights are multiplied as the activations are."""
    case = bench_case("qwen3-30b-a3b", "fused_experts", weights=weights, tokens=2, seed=0)
    assert operands_of(case) == operands
    assert case.sampled


def test_sets_of_inputs_take_turns() -> None:
    """No set is left out, and the median is of all calls."""
    seen: list[int] = []
    timing = time_call(
        lambda x: seen.append(int(x[0])), [{"x": np.array([i])} for i in range(3)], "numpy", seconds=1e-9
    )
    assert set(seen[1:]) == {0, 1, 2}
    assert timing.calls >= FEWEST
    assert timing.method == "host"


def test_ratios_are_within_a_group() -> None:
    """Nothing is compared with another number of tokens, and without a baseline's time there is no ratio."""

    def entry(kernel: str, tokens: int, median: float | None) -> Entry:
        timing = None if median is None else Timing.of("host", [median, median, median])
        return Entry(
            kernel=kernel, op="fused_experts", model="m", weights="bf16", tokens=tokens, case="c", device="cpu",
            status="timed" if timing else "wrong", timing=timing,
        )  # fmt: skip

    found = with_ratios([entry("a", 1, 2.0), entry("b", 1, 1.0), entry("a", 2, None), entry("b", 2, 1.0)], "a")
    assert {(e.kernel, e.tokens): e.ratio for e in found} == {
        ("a", 1): 1.0,
        ("b", 1): 2.0,
        ("a", 2): None,
        ("b", 2): None,
    }


def test_an_entry_without_a_time_shows_its_reason() -> None:
    """In place of numbers."""
    entry = Entry(
        kernel="a", op="o", model="m", weights="bf16", tokens=4, case="c", device="cpu", status="wrong", reason="x | y"
    )
    assert cells(entry)[:4] == ["4", "a", "wrong", "x | y"]


def test_unknown_weights_are_refused() -> None:
    """With the near name."""
    with pytest.raises(UsageError, match="fp8-block"):
        bench_case("mixtral-8x7b", "fused_experts", weights="fp8-bloc", tokens=1, seed=0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12.34e-6, "12.3 µs"), (1.234e-3, "1234 µs"), (0.0421, "42.1 ms"), (2.5, "2.50 s")],
)
def test_durations_are_short(seconds: float, words: str) -> None:
    """Four digits at most."""
    assert duration_words(seconds) == words
