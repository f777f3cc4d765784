"""The model of Hopper's fp8 tensor cores gives the bits that kernels on one gave, and sums in fp32 do not."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.formats import FORMATS, AnyArray

ROOT = Path(__file__).parents[2]
OUTPUTS = ROOT / "reports/h200/third-party-fp8.npz"
TOKENS = 16  # of the smallest cases
ROWS = 3  # of these, computed here


@cache
def tool() -> Any:
    name = "h200_third_party_accumulator"
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools/h200-third-party-accumulator.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def stored(kernel: str) -> tuple[Case, AnyArray]:
    with np.load(OUTPUTS) as outputs:
        for key in outputs.files:
            name, record = json.loads(key)[:2]
            case = Case.from_json(record)
            if name == kernel and case.num_tokens == TOKENS:
                return case, outputs[key].view(FORMATS[case.dtype].storage)
    raise AssertionError(f"no output of {kernel} with {TOKENS} tokens")


@pytest.mark.parametrize(
    ("kernel", "right", "wrong"),
    [
        pytest.param("torch/scaled_grouped_mm", 128, 0, id="promoted every 128 terms"),
        pytest.param("vllm/cutlass_fp8_channel", 0, 128, id="never promoted, a scale for each row"),
        pytest.param("vllm/cutlass_fp8_tensor", 0, 128, id="never promoted, one scale"),
    ],
)
def test_sums_are_cut_off_as_the_model_says(kernel: str, right: int, wrong: int) -> None:
    case, out = stored(kernel)
    pipeline = tool().PIPELINES[kernel]
    assert np.array_equal(tool()._output(case, pipeline, ROWS, right), out[:ROWS])
    assert not np.array_equal(tool()._output(case, pipeline, ROWS, wrong), out[:ROWS])
    assert not np.array_equal(tool()._output(case, pipeline, ROWS, None), out[:ROWS])
