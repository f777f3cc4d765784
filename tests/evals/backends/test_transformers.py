"""Models of transformers with random weights: the reference path, kernels in each seam, bugs, captures, bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")
pytest.importorskip("torch", reason="needs moecheck[e2e]: torch")
pytest.importorskip("transformers", reason="needs moecheck[e2e]: transformers")

import torch
import transformers

from moecheck.errors import Unsupported, UsageError
from moecheck.evals.backends.backend import WhiteBox
from moecheck.evals.backends.embedded import open_model as open_embedded
from moecheck.evals.backends.records import Arm
from moecheck.evals.backends.transformers import HFModel, open_model
from moecheck.evals.signals.attribution import attribution, fit_layer
from moecheck.evals.signals.limits import LIMITS
from moecheck.evals.signals.signal import Outcome
from moecheck.evals.signals.verdict import missing_evidence
from moecheck.evals.tiny.text import TOKENIZER
from tests.bounds import U32, gamma
from tests.evals.random_models import small, write_random

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16}),
    "qwen2_moe": (
        "Qwen2Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16, "norm_topk_prob": False},
    ),
}  # fmt: skip
PAIRS = [("Question: 2 + 3?\nAnswer:", " 5.\n#### 5"), ("Question: Tom has 7 hats.\nAnswer:", " 7 hats.\n#### 7")]
PROMPTS = [context for context, _ in PAIRS]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each architecture, saved by transformers itself, beside those of the embedded inference."""
    made = {}
    for name, (prefix, sizes) in MODELS.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **sizes})
        model = getattr(transformers, f"{prefix}ForCausalLM")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
        shutil.copy(TOKENIZER, made[name] / "tokenizer.json")
    for name in ("tiny-glm4-moe", "tiny-qwen3-moe"):
        made[name] = write_random(tmp_path_factory.mktemp(name), small(name))
    return made


@pytest.fixture(scope="session")
def models(folders: dict[str, Path]) -> dict[str, HFModel]:
    """Each of them open."""
    return {name: open_model(str(folder)) for name, folder in folders.items()}


ALL = [*MODELS, "tiny-glm4-moe"]


@pytest.mark.parametrize("name", ALL)
def test_captures_are_the_blocks_summands(models: dict[str, HFModel], name: str) -> None:
    arm = models[name].open(Arm())
    assert isinstance(arm, WhiteBox)
    captures = arm.capture(PAIRS)
    assert tuple(one.layer for one in captures) == models[name].facts.moe_layers
    tokens = sum(len(arm.encode("".join(pair))) for pair in PAIRS)
    for capture in captures:
        assert capture.hidden.shape == (tokens, models[name].facts.hidden_size)
        assert capture.routed is not None
        assert capture.topk_ids is not None
        assert (capture.shared is None) == (models[name].facts.shared_experts == 0)
        again = arm.replay(capture.layer, capture)
        found = fit_layer(capture, again, plan="whole", row_limit=LIMITS["fp32"].row)
        assert attribution([found], [], models[name].facts, "fp32").outcome is Outcome.PASS


@pytest.mark.parametrize("name", ["tiny-glm4-moe", "tiny-qwen3-moe"])
def test_it_answers_as_the_embedded_inference_does(
    models: dict[str, HFModel], folders: dict[str, Path], name: str
) -> None:
    own = open_embedded(str(folders[name])).open(Arm())
    theirs = models[name].open(Arm())
    answers = [arm.generate(PROMPTS, until=["Question:"], max_new_tokens=12) for arm in (own, theirs)]
    assert [one.token_ids for one in answers[0]] == [one.token_ids for one in answers[1]]
    assert [one.text for one in answers[0]] == [one.text for one in answers[1]]
    scores = [arm.score(PAIRS, rows=True) for arm in (own, theirs)]
    # Sums over H terms through every layer, of log-probabilities of size 10, in fp32.
    config = small(name)
    bound = 10 * gamma(config.hidden_size * config.num_layers, U32)
    for one, two in zip(*scores, strict=True):
        assert one.token_ids == two.token_ids
        assert np.abs(np.asarray(one.logprobs) - np.asarray(two.logprobs)).max() <= bound


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kernel", ["torch/index_add", "torch/topk_routing", "torch/moe_layer"])
def test_a_right_kernel_stands_in_every_seam(models: dict[str, HFModel], name: str, kernel: str) -> None:
    from moecheck.evals.tiny.find_kernel import find_kernel

    try:
        arm = models[name].open(Arm(kernel=kernel, precision="fp32"))
    except UsageError as error:
        if "Unknown kernel" in str(error):
            pytest.fail(str(error))
        raise
    baseline = models[name].open(Arm())
    fits = []
    for capture in baseline.capture(PAIRS):
        replayed = arm.replay(capture.layer, capture)
        fits.append(fit_layer(capture, replayed, plan="whole", row_limit=LIMITS["fp32"].row))
    assert attribution(fits, [], models[name].facts, "fp32").outcome is Outcome.PASS
    assert missing_evidence(arm.evidence(PAIRS), models[name].facts) is None
    assert find_kernel(kernel, None)[1].op == arm.hook.op  # type: ignore[attr-defined]  # a KernelHook


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8"])
def test_a_precision_of_the_experts_is_a_legal_variant(models: dict[str, HFModel], precision: str) -> None:
    model = models["tiny-glm4-moe"]
    captures = model.open(Arm()).capture(PAIRS)
    fits = {}
    for arm in model.variants(precision):  # type: ignore[arg-type]  # a Precision
        opened = model.open(arm)
        fits[arm] = [
            fit_layer(one, opened.replay(one.layer, one), plan="whole", row_limit=LIMITS["fp8"].row) for one in captures
        ]
    for arm, own in fits.items():
        others = [one for other, several in fits.items() if other is not arm for one in several]
        assert attribution(own, others, model.facts, precision).outcome is Outcome.PASS  # type: ignore[arg-type]
        assert (max(one.residual for one in own) > LIMITS["fp32"].residual) == (arm.precision != "fp32")


@pytest.mark.parametrize(
    ("mutant", "words"),
    [
        ("shared/factor", "shared expert weighted 0.400 = 1/routed_scaling_factor"),
        ("shared*factor", "shared expert weighted 2.500 = routed_scaling_factor"),
        ("shared_missing", "shared expert dropped"),
        ("routed/factor", "routed experts weighted 0.400 = 1/routed_scaling_factor"),
        ("whole/factor", "whole layer weighted 0.400"),
        ("routed*1.05", "routed experts weighted 1.050"),
        ("last_slot_dropped", "no combination"),
        ("no_renorm", "no combination"),
    ],
)
def test_a_known_bug_is_named(models: dict[str, HFModel], mutant: str, words: str) -> None:
    model = models["tiny-glm4-moe"]
    assert mutant in model.mutants()
    bad = model.open(Arm(mutant=mutant))
    fits = [
        fit_layer(one, bad.replay(one.layer, one), plan="whole", row_limit=LIMITS["bf16"].row)
        for one in model.open(Arm()).capture(PAIRS)
    ]
    signal = attribution(fits, [], model.facts, "bf16")
    assert signal.outcome is Outcome.FAIL
    assert words in signal.message


def test_rows_that_are_lost_are_found(models: dict[str, HFModel]) -> None:
    model = models["qwen3_moe"]
    (first, *_) = model.open(Arm()).capture(PAIRS * 2)
    found = fit_layer(first, model.open(Arm(mutant="row_lost")).replay(0, first), plan="whole", row_limit=0.1)
    assert found.bad_rows[0] == 63


def test_an_arm_leaves_the_others_alone(models: dict[str, HFModel]) -> None:
    model = models["qwen3_moe"]
    baseline = model.open(Arm())
    before = baseline.score(PAIRS)
    bad = model.open(Arm(mutant="routed*1.05"))
    assert not np.array_equal(bad.score(PAIRS)[0].logprobs, before[0].logprobs)
    assert np.array_equal(baseline.score(PAIRS)[0].logprobs, before[0].logprobs)


def test_answers_end_at_stop_strings_and_do_not_depend_on_padding(models: dict[str, HFModel]) -> None:
    arm = models["mixtral"].open(Arm())
    (free,) = arm.generate(PROMPTS[:1], until=[], max_new_tokens=10)
    stop = free.text[3:5]
    (cut,) = arm.generate(PROMPTS[:1], until=[stop], max_new_tokens=10)
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish == "stop"
    together = arm.generate(PROMPTS, until=[], max_new_tokens=10)
    assert together[0].token_ids == free.token_ids


def test_fingerprints_tell_models_and_arms_apart(models: dict[str, HFModel]) -> None:
    keys = {
        models[name].open(arm).fingerprint.key
        for name in ("mixtral", "qwen3_moe")
        for arm in (Arm(), Arm(precision="bf16"), Arm(mutant="routed*1.05"))
    }
    assert len(keys) == 6


def test_too_long_a_prompt_is_one_sentence(models: dict[str, HFModel]) -> None:
    with pytest.raises(UsageError, match=r"mixtral.* has 256 positions"):
        models["mixtral"].open(Arm()).generate(PROMPTS, until=[], max_new_tokens=400)


@pytest.mark.parametrize(
    ("arm", "error", "words"),
    [
        (Arm(kernel="torch/moe_layerr"), UsageError, "Did you mean"),
        (Arm(kernel="torch/moe_layer", mutant="no_renorm"), UsageError, "not both"),
        (Arm(mutant="shared_missing"), UsageError, "Unknown mutant 'shared_missing'"),
        (Arm(kernel="torch/permute"), Unsupported, "computes permute"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(
    models: dict[str, HFModel], arm: Arm, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        models["mixtral"].open(arm)


def test_a_router_that_nobody_knows_takes_kernels_of_experts_only(models: dict[str, HFModel]) -> None:
    block = replace(models["mixtral"].seams.blocks[0], routing=None)
    assert block.case("fused_experts", num_tokens=4, dtype="fp32").num_experts == 4
    with pytest.raises(UsageError, match="What MixtralTopKRouter computes is not known here"):
        block.case("moe_layer", num_tokens=4, dtype="fp32")


def test_a_missing_model_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"Cannot load .* with transformers"):
        open_model(str(tmp_path))


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    sizes = {name: value for name, value in SIZES.items() if name != "moe_intermediate_size"}
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))
    model.save_pretrained(tmp_path)
    shutil.copy(TOKENIZER, tmp_path / "tokenizer.json")
    with pytest.raises(UsageError, match="has no Mixture-of-Experts layers"):
        open_model(str(tmp_path))


def test_a_broken_configuration_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonesuch"}), encoding="utf-8")
    with pytest.raises(UsageError, match="Cannot load"):
        open_model(str(tmp_path))
