"""The embedded backend: what the protocol promises of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs moecheck[e2e]: torch")
pytest.importorskip("tokenizers", reason="needs moecheck[e2e]: tokenizers")

import torch

from moecheck.errors import Unsupported, UsageError
from moecheck.evals.backends.backend import Backend, Model, WhiteBox
from moecheck.evals.backends.embedded import MODELS, open_model
from moecheck.evals.backends.embedded_arms import EmbeddedModel
from moecheck.evals.backends.records import PRECISIONS, Arm
from moecheck.evals.tiny.kernel_block import KernelBlock, compiled_rows
from moecheck.evals.tiny.models import FOLDER
from tests.evals.random_models import small, write_random

PROMPTS = ("Question: Ana has 12 apples.\nAnswer:", "Question: Why?\nAnswer:")
PAIRS = [(PROMPTS[0], " Ana has 12 apples.\n#### 12"), (PROMPTS[1], " So.\n#### 3")]
NUM_EXPERTS, TOP_K = 8, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(tmp_path_factory.mktemp("models") / "random", small("tiny-glm4-moe"), seed=5)


@pytest.fixture(scope="module")
def model(folder: Path) -> EmbeddedModel:
    return open_model(str(folder))


def test_it_has_the_shape_of_the_protocol(model: EmbeddedModel) -> None:
    whole: Model = model
    backend: Backend = whole.open(Arm())
    assert isinstance(backend, WhiteBox)
    assert model.facts.moe_layers == (1, 2)
    assert (model.facts.num_experts, model.facts.top_k, model.facts.shared_experts) == (NUM_EXPERTS, TOP_K, 1)


def test_answers_and_scores_agree_on_the_most_probable_token(model: EmbeddedModel) -> None:
    """Teacher-forced on its own greedy answer, every token is the most probable one."""
    backend = model.open(Arm())
    answers = backend.generate(PROMPTS, until=(), max_new_tokens=12)
    scored = backend.score([(p, a.text) for p, a in zip(PROMPTS, answers, strict=True)], rows=True)
    for answer, one in zip(answers, scored, strict=True):
        if one.token_ids != answer.token_ids:  # the text of random tokens may be cut into others
            continue
        assert one.top1 is not None
        assert tuple(one.top1.tolist()) == answer.token_ids
        assert one.rows is not None
        assert np.array_equal(one.rows.argmax(axis=1), one.top1)


def test_log_probabilities_are_those_of_the_rows(model: EmbeddedModel) -> None:
    one = model.open(Arm()).score(PAIRS, rows=True)[0]
    assert one.rows is not None
    assert one.rows.shape == (len(one.token_ids), model.facts.vocab_size)
    taken = one.rows[np.arange(len(one.token_ids)), list(one.token_ids)]
    assert np.array_equal(taken, one.logprobs.astype(np.float32))
    totals = np.exp(one.rows.astype(np.float64)).sum(axis=1)
    assert np.abs(totals - 1.0).max() <= model.facts.vocab_size * np.finfo(np.float32).eps


def test_a_capture_holds_every_token_of_every_moe_layer_and_replays_to_itself(model: EmbeddedModel) -> None:
    backend = model.open(Arm())
    captures = backend.capture(PAIRS)
    tokens = sum(len(backend.encode(context + continuation)) for context, continuation in PAIRS)
    assert [one.layer for one in captures] == [1, 2]
    for one in captures:
        assert one.hidden.shape == one.output.shape == (tokens, model.facts.hidden_size)
        assert one.routed is not None
        assert one.shared is not None
        assert np.array_equal(one.routed + one.shared, one.output)
        assert one.choice_gap is not None
        assert (one.choice_gap >= 0).all()
        again = backend.replay(one.layer, one)
        assert np.array_equal(again.output, one.output)
        assert again.topk_ids is not None
        assert one.topk_ids is not None
        assert np.array_equal(again.topk_ids, one.topk_ids)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_variants_are_other_arms_that_compute_nearly_the_same(model: EmbeddedModel, precision: str) -> None:
    plain = model.open(Arm()).score(PAIRS)[0].logprobs
    variants = model.variants(precision)  # type: ignore[arg-type]  # one of PRECISIONS
    assert Arm() not in variants
    assert len(set(variants)) == len(variants) >= 1
    for arm in variants:
        found = model.open(arm).score(PAIRS)[0].logprobs
        assert np.isfinite(found).all()
        assert not np.array_equal(found, plain)


@pytest.mark.parametrize(
    ("kernel", "precision"),
    [
        ("torch/index_add", "bf16"),
        ("torch/moe_layer", "fp32"),
        ("torch/topk_routing", "fp32"),
        ("jax/ragged_dot", "fp32"),
    ],
)
def test_a_kernel_is_called_in_every_layer_and_seen_in_the_logits(
    model: EmbeddedModel, kernel: str, precision: str
) -> None:
    if kernel.startswith("jax"):
        pytest.importorskip("jax", reason="needs moecheck[jax]: jax")
    backend = model.open(Arm(kernel=kernel, precision=precision))  # type: ignore[arg-type]  # one of PRECISIONS
    backend.score(PAIRS)
    evidence = backend.evidence(PAIRS)
    assert evidence.calls == {1: 1, 2: 1}
    assert evidence.watermark == {1: True, 2: True}
    assert backend.evidence(PAIRS).calls == evidence.calls  # the watermark's own calls are not counted


def test_a_kernel_whose_result_is_thrown_away_is_not_seen(model: EmbeddedModel) -> None:
    """The one thing that the watermark is for."""
    backend = model.open(Arm(kernel="torch/index_add"))
    block = backend.blocks[1]
    assert isinstance(block, KernelBlock)
    reference, call = block.reference, block.call

    def discarded(hidden: torch.Tensor) -> object:
        logits = torch.nn.functional.linear(hidden, block.weights.router)
        weights, ids, _ = reference.route(logits)
        call(hidden_states=hidden, topk_weights=weights, topk_ids=ids)
        return reference(hidden)

    block.__class__ = type("Discarding", (KernelBlock,), {"__call__": lambda self, hidden: discarded(hidden)})
    assert backend.evidence(PAIRS).watermark == {1: False, 2: True}


def test_the_reference_path_has_no_evidence(model: EmbeddedModel) -> None:
    assert model.open(Arm()).evidence(PAIRS).watermark == {}


def test_fingerprints_tell_arms_and_weights_apart(model: EmbeddedModel, folder: Path, tmp_path: Path) -> None:
    other = open_model(str(write_random(tmp_path / "other", small("tiny-glm4-moe"), seed=6)))
    keys = [
        model.open(Arm()).fingerprint.key,
        model.open(Arm(precision="bf16")).fingerprint.key,
        model.open(Arm(mutant="drop_r")).fingerprint.key,
        model.open(Arm(kernel="torch/index_add")).fingerprint.key,
        other.open(Arm()).fingerprint.key,
    ]
    assert len(set(keys)) == len(keys)
    assert open_model(str(folder)).open(Arm()).fingerprint.key == keys[0]


def test_a_kernels_own_file_is_part_of_its_fingerprint(model: EmbeddedModel, tmp_path: Path) -> None:
    source = "import torch\nfrom moecheck.kernels.torch.index_add import fused_experts as f\n"
    source += "def mine(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):\n"
    source += "    return f(hidden_states=hidden_states, w13=w13, w2=w2, topk_weights=topk_weights, topk_ids=topk_ids, "
    source += "spec=spec)\n"
    keys = []
    for number, text in enumerate((source, source + "# changed\n")):
        path = tmp_path / f"mine_{number}.py"
        path.write_text(text, encoding="utf-8")
        arm = Arm(kernel=f"{path}:mine", op="fused_experts")
        keys.append(model.open(arm).fingerprint.code)
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        pytest.param(Arm(kernel="torch/index_ad"), "Did you mean 'torch/index_add'", id="an unknown kernel"),
        pytest.param(Arm(kernel="nowhere.py:f"), "There is no kernel file nowhere.py", id="a file that is not there"),
        pytest.param(Arm(kernel="setup.py"), "say which function", id="a file without a function"),
        pytest.param(Arm(mutant="dropr"), "Did you mean 'drop_r'", id="an unknown mutant"),
        pytest.param(Arm(kernel="torch/index_add", mutant="drop_r"), "not both", id="both"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_a_sentence(model: EmbeddedModel, arm: Arm, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.open(arm)


def test_a_kernel_that_declines_the_dtype_is_unsupported(model: EmbeddedModel) -> None:
    with pytest.raises(Unsupported, match="w13_scale"):
        model.open(Arm(kernel="torch/fp8_channel", precision="bf16"))


def test_prompts_beyond_the_models_positions_are_refused(model: EmbeddedModel) -> None:
    with pytest.raises(UsageError, match="2048 positions"):
        model.open(Arm()).generate(PROMPTS, until=(), max_new_tokens=3000)


def test_an_unknown_model_is_refused_with_the_near_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'tiny-glm4-moe'"):
        open_model("tiny-glm4")


@pytest.mark.parametrize("name", MODELS)
def test_missing_weights_are_named_with_the_command_that_makes_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moecheck.evals.tiny.models.FOLDER", FOLDER / "nowhere")
    with pytest.raises(UsageError, match=f"python -m moecheck.evals.train {name} --out"):
        open_model(name)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        pytest.param("config.json", "{", "Cannot read", id="no JSON"),
        pytest.param("config.json", '{"model_type": "llama"}', "no model that runs embedded", id="another model"),
        pytest.param("config.json", '{"model_type": "qwen3_moe"}', "has no 'num_local_experts'", id="no such field"),
        pytest.param("model.safetensors", "nothing", "Cannot read", id="broken weights"),
    ],
)
def test_a_broken_folder_is_refused_with_a_sentence(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = write_random(tmp_path / "model", small("tiny-glm4-moe"))
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        open_model(str(folder))


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    config = small("tiny-glm4-moe")
    folder = write_random(tmp_path / "model", replace(config, intermediate_size=96))
    write_random(tmp_path / "other", config)
    (tmp_path / "other" / "config.json").replace(folder / "config.json")
    with pytest.raises(UsageError, match=r"is \[96, 64\], not \[64, 64\]"):
        open_model(str(folder))


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (65, 65), (256, 256), (257, 320), (1000, 1024), (8449, 10240)])
def test_long_batches_have_few_shapes_where_each_is_compiled(tokens: int, rows: int) -> None:
    assert compiled_rows(tokens) == rows


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("moecheck.evals.backends.embedded", ("torch", "tokenizers", "transformers", "jax")),
        ("moecheck.evals.backends.embedded_arms", ("transformers", "jax")),
    ],
)
def test_importing_it_imports_no_more_than_it_needs(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*(name for name in {absent} if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "moecheck.evals.backends.embedded_arms", None)
    monkeypatch.setattr("moecheck.evals.backends.embedded.missing_package", lambda error: "needs tokenizers")
    with pytest.raises(UsageError, match="An embedded model needs tokenizers"):
        open_model(str(folder))
