"""The rounding points that a kernel may declare."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from moecheck.errors import SpecError, UsageError
from moecheck.kernel import describe
from moecheck.numerics import PROFILES, Numerics
from moecheck.quantizer import Quantizer


@pytest.mark.parametrize("profile", PROFILES)
def test_a_known_accumulator_is_taken(profile: str) -> None:
    assert Numerics(accumulate=profile).accumulate == profile


def test_an_accumulator_of_fp8_operands_needs_them() -> None:
    def plain(*, x: object, spec: object) -> object:
        return x

    with pytest.raises(UsageError, match="declare a1_quant or a2_quant"):
        describe(plain, op="act_and_mul", backend="numpy", numerics=Numerics(accumulate="hopper-fp8"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"accumulate": "nonsense"}, r"accumulate='nonsense' must be one of fp32-rn", id="accumulator"),
        pytest.param({"combine_order": "random"}, r"'random' must be tree, slot, expert or rank", id="order"),
        pytest.param(
            {"a2_quant": {"format": "fp4"}}, r"Quantizer.format='fp4' must be one of", id="quantiser's format"
        ),
        pytest.param({"a1_quant": {"size": 1}}, r"a1_quant=.*must be a Quantizer", id="quantiser's field"),
        pytest.param({"a1_quant": 8}, r"a1_quant=8 must be a Quantizer", id="no quantiser"),
        pytest.param({"act": "fp12"}, r"act='fp12' must be 'input' or one of fp32", id="format"),
    ],
)
def test_an_unknown_name_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Numerics(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"format": "fp4"}, r"format='fp4' must be one of fp8_e4m3fn", id="format"),
        pytest.param({"group": -1}, r"group=-1 must be 0", id="group"),
        pytest.param({"scale": "int"}, r"must be float, power_of_two, floor, half_up or cutlass", id="scale"),
        pytest.param({"division": "shift"}, r"division='shift' must be divide or multiply", id="division"),
        pytest.param({"eps": 0.0}, r"eps=0.0 must be positive", id="eps"),
        pytest.param({"amax": "shift"}, r"amax='shift' must be divide or multiply", id="amax"),
        pytest.param({"rounding": "up"}, r"rounding='up' must be nearest or truncate", id="rounding"),
        pytest.param({"static": True, "group": 128}, r"leave group, scale, eps and amax out", id="static"),
        pytest.param({"static": 1}, r"static=1 must be true or false", id="static type"),
    ],
)
def test_an_impossible_quantiser_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Quantizer(**changes)


def test_a_contract_with_quantisers_comes_back_from_json() -> None:
    contract = Numerics(gate_up="input", a2_quant=Quantizer(group=128, scale="power_of_two"))
    again = Numerics(**json.loads(json.dumps(asdict(contract))))
    assert again == contract
    assert hash(again) == hash(contract)
    assert again.resolve("bf16").a2_quant == contract.a2_quant
    assert again.requantises
    assert not Numerics().requantises


def test_a_quantiser_is_told_in_words() -> None:
    assert Quantizer(group=128).words() == "fp8 e4m3 in groups of 128 with float scales"
    words = Quantizer(format="int8", scale="power_of_two", division="multiply").words()
    assert words == "int8 per token with scales rounded up to powers of two, multiplying by 1 / scale"
