"""The search, and `moecheck tune`: a configuration that is wrong gets no time, whatever it would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecheck.tuning import Configuration
from moecheck.tuning.search import BETTER, search
from moecheck.tuning.table import load
from tests.cli.command import Result, moecheck

# Calls sleep longer the smaller `rows` is; `fast` = 2 is fastest and leaves the last token out, 3 dies, and 7 with
# many rows is impossible.
KERNEL = """
import os
import time
import moecheck
from moecheck.kernels.torch.index_add import fused_experts as index_add
from moecheck.tuning import Layer, Tuning

TUNING = Tuning(
    kernel="mine",
    values={"rows": (1, 4), "fast": (0, 1, 2, 3, 7)},
    start=lambda layer, tokens: {"rows": 1, "fast": 0},
    fallback="sleeps longest",
    problem=lambda found, layer: "too fast" if found["fast"] == 7 else None,
)

@moecheck.kernel("fused_experts", backend="torch", name="mine", tuning=TUNING)
def tunable(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):
    layer = Layer(
        device="a CPU", experts=len(w13), intermediate=w2.shape[2], hidden=w2.shape[1], top_k=topk_ids.shape[1],
        weights="bf16",
    )
    found = TUNING.configuration(layer, len(hidden_states)) or {"rows": 1, "fast": 0}
    if found["fast"] == 3:
        os.abort()
    time.sleep(0.0 if found["fast"] == 2 else 0.02 / found["rows"] - 0.003 * found["fast"])
    out = index_add(
        hidden_states=hidden_states, w13=w13, w2=w2, topk_weights=topk_weights, topk_ids=topk_ids, spec=spec
    )
    if found["fast"] == 2:
        out[-1] = 0
    return out

@moecheck.kernel("fused_experts", backend="torch", name="deaf", tuning=TUNING)
def deaf(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):
    return index_add(
        hidden_states=hidden_states, w13=w13, w2=w2, topk_weights=topk_weights, topk_ids=topk_ids, spec=spec
    )

@moecheck.kernel("fused_experts", backend="torch", name="plain")
def plain(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):
    return hidden_states
"""
SIZES = ("--experts", "5", "--intermediate", "16", "--hidden", "32", "--top-k", "2", "--dtype", "bf16")
SHORT = ("--seconds", "0.01", "--sample", "2", "--timeout", "30")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "mine.py"
    path.write_text(KERNEL, encoding="utf-8")
    return path


def text(done: Result) -> str:
    return done.out + done.err


def test_the_search_goes_on_from_the_best_and_never_twice_to_one_configuration() -> None:
    tried: list[Configuration] = []

    def measure(one: Configuration) -> float | None:
        tried.append(dict(one))
        if one == {"a": 2, "b": 2}:
            return None  # wrong, although it would be fastest
        return 10.0 - one["a"] * one["b"]

    best = search({"a": (1, 2, 3), "b": (1, 2, 3)}, {"a": 1, "b": 1}, measure, tries=100)
    assert best is not None
    assert (dict(best.configuration), best.seconds, best.start_seconds) == ({"a": 3, "b": 3}, 1.0, 9.0)
    assert len(tried) == len({tuple(sorted(one.items())) for one in tried})


def test_the_search_ends_after_its_tries() -> None:
    tried: list[Configuration] = []

    def measure(one: Configuration) -> float:
        tried.append(one)
        return 1.0

    search({"a": tuple(range(50))}, {"a": 0}, measure, tries=7)
    assert len(tried) == 7


def test_noise_replaces_nothing() -> None:
    best = search({"a": (0, 1)}, {"a": 0}, lambda one: 1.0 if one["a"] == 0 else BETTER, tries=10)
    assert best is not None
    assert best.configuration == {"a": 0}


def test_a_start_that_has_no_time_is_left_behind() -> None:
    best = search({"a": (0, 1)}, {"a": 0}, lambda one: 1.0 if one["a"] else None, tries=10)
    assert best is not None
    assert (best.configuration, best.start_seconds) == ({"a": 1}, None)
    assert search({"a": (0, 1)}, {"a": 0}, lambda one: None, tries=10) is None


def test_only_right_configurations_are_timed_and_the_file_grows(kernels: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned" / "mine.json"
    done = moecheck("tune", f"{kernels}:tunable", *SIZES, *SHORT, "--tokens", "3,6", "--out", str(out))
    assert done.code == 1, text(done)  # a configuration was wrong
    assert text(done).count("WRONG") >= 2, text(done)
    assert "too fast" in text(done)
    table = load(out)
    assert table.kernel == "mine"
    ((layer, rows),) = table.layers.items()
    assert (layer.experts, layer.intermediate, layer.hidden, layer.top_k) == (5, 16, 32, 2)
    assert rows == {3: {"rows": 4, "fast": 1}, 6: {"rows": 4, "fast": 1}}
    once = ("--tokens", "1", "--tries", "1", "--out", str(out))
    more = moecheck("tune", f"{kernels}:tunable", *SIZES, *SHORT, *once)
    assert more.code == 0, text(more)
    assert sorted(load(out).layers[layer]) == [1, 3, 6]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("KERNELS:tunable",), "Say --model NAME, or all of", id="no sizes"),
        pytest.param(("KERNELS:tunable", "--experts", "4"), "Say --model NAME, or all of", id="some sizes"),
        pytest.param(("KERNELS:tunable", "--model", "mixtral-8x7b", "--hidden", "4"), "has its own sizes", id="both"),
        pytest.param(("KERNELS:tunable", "--model", "mixtrol-8x7b"), "Did you mean 'mixtral-8x7b'", id="no such model"),
        pytest.param(("KERNELS:tunable", *SIZES, "--top-k", "6"), "--top-k 6 must be at most --experts 5", id="top_k"),
        pytest.param(("KERNELS:tunable", *SIZES, "--tokens", "x"), "must be positive numbers", id="tokens"),
        pytest.param(("KERNELS:tunable", *SIZES, "--dtype", "fp9"), "neither a format nor a scheme", id="a dtype"),
        pytest.param(("KERNELS:plain", *SIZES), "declares no numbers to tune", id="not tunable"),
        pytest.param(("KERNELS:deaf", *SIZES), "never asks its tuning", id="a kernel that does not ask"),
        pytest.param(
            ("KERNELS:tunable", *SIZES, "--out", "OTHER"), "is of another/kernel, not of mine", id="another's file"
        ),
        pytest.param(("KERNELS:tunable", *SIZES, "--out", "BROKEN"), "are not JSON", id="a broken file"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], said: str, kernels: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": 2, "kernel": "another/kernel", "layers": []}', encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    files = {"KERNELS": str(kernels), "OTHER": str(tmp_path / "other.json"), "BROKEN": str(tmp_path / "broken.json")}
    words = " ".join(arguments)
    for name, path in files.items():
        words = words.replace(name, path)
    done = moecheck("tune", *words.split(" "))
    assert done.code == 2, text(done)
    assert said in " ".join(text(done).split())
    assert "Traceback" not in text(done)
