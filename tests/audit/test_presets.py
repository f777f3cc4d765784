"""Presets: every one is whole, says where it comes from, and holds the numbers that its source has."""

from __future__ import annotations

import re

import pytest

from moecheck.audit import PRESETS, Preset
from moecheck.audit.corpus import corpus, hindsight
from moecheck.audit.subject import OPS
from moecheck.mutants import mutants_for

ALL = [pytest.param(preset, id=name) for name, preset in PRESETS.items()]


@pytest.mark.parametrize("preset", ALL)
def test_its_cases_can_be_built(preset: Preset) -> None:
    for setting in preset.settings:
        case = preset.case(setting, 7)
        assert case.seed == 7
        assert case.num_tokens == setting.tokens
        assert case.spec.routing.top_k == setting.top_k
        assert setting.hidden % setting.narrow[0] == 0
        assert setting.intermediate % setting.narrow[1] == 0
        assert mutants_for(case, preset.contract)
    own = list(preset.own_subjects(7))
    assert own
    assert all(subject.case.op == preset.op and subject.contract == preset.contract for subject in own)


@pytest.mark.parametrize("preset", ALL)
def test_it_says_where_it_comes_from(preset: Preset) -> None:
    assert re.match(r"[\w-]+/[\w-]+ [\w/]+\.py", preset.source)
    assert preset.scaled
    assert preset.scaled[-1] != "."
    assert preset.op in OPS


def test_there_is_one_for_each_of_these_projects() -> None:
    owners = {preset.source.partition("/")[0] for preset in PRESETS.values()}
    wanted = {"vllm-project", "sgl-project", "Aleph-Alpha", "deepseek-ai", "flashinfer-ai", "linkedin"}
    assert owners == wanted


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vllm-fused-moe", "|d| <= 0.02"),
        ("vllm-cutlass-fp8", "|d| <= 0.055 + 0.01 |out|"),
        ("vllm-block-fp8", "|d| <= 0.035 + 0.035 |ref|"),
        ("vllm-moe-layer", "|d| <= 0.035 + 0.035 |out|"),
        ("vllm-grouped-topk", "|d| <= 0.02"),
        ("sglang-fused-moe", "|d| <= 0.01 + 0.1 |ref|"),
        ("sglang-triton-fused-moe", "|d| <= 1e-05 + 1e-05 |ref|"),
        ("sgl-jax-fused-moe", "|d| <= 0.2 + 0.2 |ref|"),
        ("alpha-moe", "|d| <= 0.02 + 0.1 |ref|"),
        ("deepgemm-fp8", "calc_diff <= 0.001"),
        ("deepgemm-bf16", "calc_diff <= 1e-05"),
        ("flashinfer-trtllm-bf16", "|d| <= 0.1 + 0.85 |out| in 92.5 % of the elements"),
        ("flashinfer-fuzz-bf16", "|d| <= 0.001 + 0.05 max|ref| + 0.05 |ref|"),
        ("flashinfer-bench-moe", "|d| <= 0.01 or |d| <= 0.01 |ref| in 95 % of the elements"),
        ("liger-bf16", "|d| <= 0.1 + 0.01 |ref|"),
        ("liger-fp32", "|d| <= 0.001 + 0.0001 |ref|"),
    ],
)
def test_its_tolerance_is_that_of_the_source(name: str, words: str) -> None:
    assert PRESETS[name].criterion.words() == words


def test_the_corpus_gives_most_bugs_of_its_ops_a_meaning() -> None:
    cases = corpus(0)
    assert {case.dtype for case in cases} == {"bf16"}
    assert len({one.id for case in cases for one in mutants_for(case)}) > 90
    assert len(hindsight()) == len(set(hindsight().values()))
