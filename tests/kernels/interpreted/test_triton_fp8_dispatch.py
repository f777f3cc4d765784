"""Which way a call of fp8 experts takes, that it is told, and that it computes what that way computes."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moecheck import ExpertSpec, MoESpec, RoutingSpec
from moecheck.cases import Case
from moecheck.kernels.triton import fp8_dispatch
from moecheck.kernels.triton._one_launch import SCHEME, TUNING, by_rule
from moecheck.kernels.triton.experts import fused_gate_up
from moecheck.kernels.triton.fp8_dispatch import MOST_ROWS, choose, fp8_experts
from moecheck.kernels.triton.fp8_one_launch import fp8_one_launch
from moecheck.kernels.triton.quantised_experts import fp8_block
from moecheck.quantization import SCHEMES
from moecheck.runner.arrays import to_native
from moecheck.tuning import VARIABLE, Layer
from moecheck.tuning.table import Table, write
from moecheck.tuning.tunable import forget

LAYER = Layer(device="a GPU", experts=256, intermediate=256, hidden=7168, top_k=8, weights=SCHEME)
HERE = Layer(device="Triton's interpreter", experts=4, intermediate=64, hidden=96, top_k=2, weights=SCHEME)
CASE = Case(
    op="fused_experts",
    spec=MoESpec(routing=RoutingSpec(top_k=2), experts=ExpertSpec(quantization=SCHEMES[SCHEME])),
    num_tokens=4, num_experts=4, hidden_size=96, intermediate_size=64, dtype="bf16",
)  # fmt: skip


@pytest.fixture(autouse=True)
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that holds configurations of both layers for 16 tokens."""
    path = tmp_path / "tuned.json"
    write(path, Table(kernel=TUNING.kernel, layers={one: {16: by_rule(one, 16)} for one in (LAYER, HERE)}))
    monkeypatch.setenv(VARIABLE, str(path))
    forget()
    yield path
    forget()


def given() -> dict[str, Any]:
    tensors = {name: to_native(np.array(value), "torch") for name, value in CASE.inputs().items()}
    return {**tensors, "spec": CASE.spec.experts}


@pytest.mark.parametrize(
    ("tokens", "options", "path", "said"),
    [
        pytest.param(1, {}, "one launch", "rows of an expert on average", id="decoding"),
        pytest.param(256, {}, "one launch", "8 rows of an expert", id="a large batch"),
        pytest.param(MOST_ROWS * 32, {}, "two launches", "no configuration was measured", id="nothing measured near"),
        pytest.param(MOST_ROWS * 32 + 1, {}, "two launches", f"more than {MOST_ROWS}", id="prefill"),
        pytest.param(1, {"biases": True}, "two launches", "no biases", id="biases"),
        pytest.param(1, {"gate_up_layout": "up_first"}, "two launches", "up_first", id="ups first"),
        pytest.param(1, {"capability": (8, 0)}, "dequantise", "without fp8 conversion (8.0)", id="an A100"),
        pytest.param(1, {"scale_block": (1, 128)}, "dequantise", "scales of 1 x 128", id="scales of rows"),
    ],
)
@pytest.mark.filterwarnings("ignore:The configurations")
def test_the_rule(tokens: int, options: dict[str, Any], path: str, said: str) -> None:
    choice = choose(LAYER, tokens, **({"capability": (9, 0)} | options))
    assert choice.path == path
    assert said in choice.reason
    assert (choice.configuration is not None) == (path == "one launch")


def test_an_unmeasured_layer_takes_two_launches_after_one_warning(tuned: Path) -> None:
    other = Layer(**(asdict(LAYER) | {"hidden": 4096}))
    with pytest.warns(UserWarning, match=r"are for another shape .* is left for the two-launch kernel") as warned:
        choices = [choose(other, tokens, capability=(9, 0)) for tokens in (1, 2, 1)]
    assert [choice.path for choice in choices] == ["two launches"] * 3
    assert len(warned) == 1


def test_a_broken_file_takes_two_launches_after_one_warning(tuned: Path) -> None:
    tuned.write_text("{", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"are not JSON.* is left for the two-launch kernel"):
        choice = choose(LAYER, 1, capability=(9, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(LAYER, 16, capability=(9, 0)) == choice
    assert choice.path == "two launches"


def test_an_impossible_configuration_takes_two_launches(tuned: Path) -> None:
    data = json.loads(tuned.read_text(encoding="utf-8"))
    data["layers"][0]["tokens"]["16"] |= {"block_m": 128, "up_n": 128, "num_stages": 4, "num_warps": 4}
    tuned.write_text(json.dumps(data), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"bytes of shared memory.* is left for the two-launch kernel"):
        assert choose(LAYER, 1, capability=(9, 0)).path == "two launches"


def test_each_way_is_its_kernel_and_is_logged(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = given()
    with caplog.at_level(logging.INFO, logger=fp8_dispatch.log.name):
        out, choice = fp8_experts(**tensors)
        assert choice.path == "one launch"
        assert choice.configuration == by_rule(HERE, 16)
        # Slots of two experts: a sum of two terms has one result in either order.
        assert torch.equal(out, fp8_one_launch(**tensors))
        monkeypatch.setattr(fp8_dispatch, "MOST_ROWS", 0)
        out, choice = fp8_experts(**tensors)
        assert choice.path == "two launches"
        assert torch.equal(out, fp8_block(**tensors))
    assert [record.message.split(": ")[1] for record in caplog.records] == ["one launch", "two launches"]


def test_other_scales_are_dequantised() -> None:
    tensors = given()
    rows = {name: tensors[name][:, :, :1].expand(-1, -1, 1).repeat_interleave(2, dim=1) for name in ("w13_scale",)}
    rows["w13_scale"][:, 1] *= 2.0
    out, choice = fp8_experts(**(tensors | rows))
    assert choice.path == "dequantise"
    scale = rows["w13_scale"].repeat_interleave(64, dim=1)
    w13 = (tensors["w13"].float() * scale).bfloat16()
    w2 = (tensors["w2"].float() * tensors["w2_scale"][:, :1, :1]).bfloat16()
    plain = {name: tensors[name] for name in ("hidden_states", "topk_weights", "topk_ids", "spec")}
    assert torch.equal(out, fused_gate_up(w13=w13, w2=w2, **plain))
