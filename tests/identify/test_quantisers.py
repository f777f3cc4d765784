"""A quantiser's arithmetic is named: its division, its least amax, its scales, whatever the kernel declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from moecheck.checks.finding import FAILURES
from moecheck.identify import identification_cases, identify, judge_numerics
from moecheck.kernels.torch import requantised
from moecheck.numerics import QUANTISERS, Numerics
from moecheck.oracle import Oracle
from moecheck.quantiser_rows import between_codes, quantiser_rows
from moecheck.quantizer import NO_EPS, Quantizer
from tests.kernels.experts_case import declaration
from tests.kernels.torch_bridge import on_torch, to_numpy

ORACLE = Oracle()
BOTH = requantised.fp8_requantised_per_token
Requantise = Callable[..., torch.Tensor]


def arithmetic(quantizer: Quantizer) -> Requantise:
    """PyTorch's own arithmetic of a quantiser, as kernels write it."""

    def requantise(x: torch.Tensor, group: int, *, power_of_two: bool = False) -> torch.Tensor:
        rows, width = x.shape
        tiles = torch.nn.functional.pad(x, (0, -width % group)).reshape(rows, -1, group)
        amax = tiles.abs().amax(dim=-1, keepdim=True)
        amax = amax if quantizer.eps == NO_EPS else amax.clamp(min=quantizer.eps)
        largest = torch.full_like(amax, 448.0)
        scale = amax / largest if quantizer.amax == "divide" else amax * (1.0 / largest)
        scale = torch.exp2(torch.ceil(torch.log2(scale))) if quantizer.scale == "power_of_two" else scale
        quotient = tiles / scale if quantizer.division == "divide" else tiles * (1.0 / scale)
        codes = quotient.clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
        return (codes.float() * scale).reshape(rows, -1)[:, :width]

    return requantise


@pytest.mark.parametrize(
    ("quantizer", "words"),
    [
        pytest.param(Quantizer(), "with float scales", id="as declared"),
        pytest.param(Quantizer(division="multiply"), "multiplying by 1 / scale", id="x times 1 / s"),
        pytest.param(Quantizer(amax="multiply"), "of amax times 1 / largest", id="amax times 1 / 448"),
        pytest.param(Quantizer(scale="power_of_two"), "rounded up to powers of two", id="power-of-two scales"),
        pytest.param(Quantizer(eps=1e-4), "amax at least 0.0001", id="another epsilon"),
        pytest.param(Quantizer(eps=NO_EPS), "amax as it is", id="no epsilon"),
    ],
)
def test_the_arithmetic_is_found_and_told(quantizer: Quantizer, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = declaration(BOTH)
    monkeypatch.setattr(requantised, "requantise", arithmetic(quantizer))
    observed = [
        (case, to_numpy(BOTH(**on_torch(ORACLE.inputs(case)), spec=case.spec.experts)))
        for case in identification_cases(declared)
    ]
    found = identify(observed, ORACLE, declared=declared.numerics)
    assert found.known
    wanted = replace(declared.numerics or Numerics(), **dict.fromkeys(QUANTISERS, quantizer))  # type: ignore[arg-type]  # quantisers
    assert found.numerics == wanted
    assert words in found.words()
    judged = judge_numerics(declared.numerics, found)
    # A least amax shows in tokens next to nothing alone: that is told, not failed.
    assert (judged.verdict in FAILURES) == (replace(quantizer, eps=Quantizer().eps) != Quantizer()), judged.message
    assert words in judged.message
    assert ("Declare numerics=" in judged.message) == (quantizer != Quantizer())


def test_ties_are_of_eight_bits_and_depend_on_the_rules() -> None:
    amaxes = [largest for largest, _ in between_codes()]
    assert len(amaxes) > 8
    for _, values in between_codes():
        assert ((values * 2.0**16) % 1 == 0).all()


def test_each_row_has_one_amax_in_every_group() -> None:
    case = next(case for case in identification_cases(declaration(BOTH)) if case.stratum == "quantiser")
    x = np.abs(quantiser_rows(case))
    groups = x[:, : case.hidden_size // 32 * 32].reshape(len(x), -1, 32).max(axis=2)
    for row in range(len(x)):
        if row % 4 < 2:
            assert len(set(groups[row])) == 1
        else:
            assert 0 < groups[row].max() < 2.0**-8
