"""`moecheck e2e`: verdicts and reports on models of random weights, resumed runs, and one sentence for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")
pytest.importorskip("torch", reason="needs moecheck[e2e]: torch")

from tests.cli.command import Result, moecheck
from tests.evals.random_models import small, write_random

QUICK = ("--limit", "4", "--max-new-tokens", "6", "--batch-size", "3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of the embedded layout."""
    return f"embedded:{write_random(tmp_path_factory.mktemp('glm'), small('tiny-glm4-moe'))}"


def e2e(model: str, out: Path, *more: str) -> Result:
    return moecheck("e2e", "--model", model, *QUICK, *more, out=out)


def verdict(result: Result) -> dict[str, str]:
    data = json.loads((result.folder / "e2e.json").read_text(encoding="utf-8"))
    found: dict[str, str] = data["verdict"]
    return found


def test_a_right_kernel_passes_and_is_seen_to_run(model: str, tmp_path: Path) -> None:
    result = e2e(model, tmp_path, "--kernel", "torch/moe_layer", "--dtype", "fp32")
    assert result.code == 0, result.out + result.err
    assert verdict(result)["outcome"] == "pass"
    data = json.loads((result.folder / "e2e.json").read_text(encoding="utf-8"))
    assert all(calls > 0 for calls in data["evidence"]["calls"].values())
    assert data["command"].startswith("moecheck e2e --task gsm8k --model embedded:")
    assert {path.name for path in result.folder.iterdir()} >= {"report.html", "summary.md", "answers.jsonl"}


def test_a_kernel_file_with_a_bug_fails_by_name(model: str, tmp_path: Path) -> None:
    kernel = tmp_path / "mine.py"
    kernel.write_text(
        "import moecheck\nfrom moecheck.kernels.torch.moe_layer import moe_layer\n\n\n"
        "@moecheck.kernel('moe_layer', backend='torch', name='mine')\n"
        "def layer(*, hidden_states, router_logits, w13, w2, correction_bias, shared_w13, shared_w2, spec):\n"
        "    return moe_layer(hidden_states=hidden_states, router_logits=router_logits, w13=w13, w2=w2,\n"
        "                     correction_bias=correction_bias, shared_w13=shared_w13, shared_w2=0.4 * shared_w2,\n"
        "                     spec=spec)\n",
        encoding="utf-8",
    )
    result = e2e(model, tmp_path / "out", "--kernel", f"{kernel}:layer", "--dtype", "fp32")
    assert result.code == 1, result.out + result.err
    assert verdict(result)["deciding"] == "component attribution"
    assert "shared expert weighted 0.400 = 1/routed_scaling_factor" in verdict(result)["reason"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param("raise RuntimeError('tile 3')", "raised RuntimeError: tile 3.", id="raises"),
        pytest.param("return hidden_states[:, :7]", "7] for", id="too narrow"),
        pytest.param("return hidden_states[1:]", "tokens of size 64", id="too few rows"),
    ],
)
def test_a_kernel_that_cannot_be_used_has_failed(model: str, tmp_path: Path, body: str, words: str) -> None:
    kernel = tmp_path / "mine.py"
    arguments = "*, hidden_states, w13, w2, topk_weights, topk_ids"
    kernel.write_text(
        f"import moecheck\n\n\n@moecheck.kernel('fused_experts', backend='torch', name='mine')\n"
        f"def experts({arguments}):\n    {body}\n",
        encoding="utf-8",
    )
    result = e2e(model, tmp_path / "out", "--kernel", f"{kernel}:experts", "--dtype", "fp32")
    assert result.code == 1, result.out + result.err
    assert result.out.startswith("✘ fail: ")
    assert words in result.out


def test_a_mutant_shows_what_detection_looks_like(model: str, tmp_path: Path) -> None:
    result = e2e(model, tmp_path, "--mutant", "drop_r", "--dtype", "fp32")
    assert result.code == 1
    assert "routed experts weighted 0.400 = 1/routed_scaling_factor" in verdict(result)["reason"]


def test_mutants_are_listed(model: str, tmp_path: Path) -> None:
    result = e2e(model, tmp_path, "--mutant", "help")
    assert result.code == 0
    assert "w_sh=1/r  shared expert weighted 1/r instead of 1" in result.out
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_a_run_is_resumed_with_its_own_options(model: str, tmp_path: Path) -> None:
    first = e2e(model, tmp_path, "--mutant", "drop_r", "--dtype", "fp32")
    answers = (first.folder / "answers.jsonl").read_text(encoding="utf-8")
    again = moecheck("e2e", "--resume", first.folder)
    assert again.code == first.code
    assert (first.folder / "answers.jsonl").read_text(encoding="utf-8") == answers
    refused = moecheck("e2e", "--resume", first.folder, "--limit", "3")
    assert refused.code == 2
    assert "leave out --limit" in refused.err


def test_the_self_test_has_a_row_for_each_bug(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moecheck.evals.backends.embedded_arms import EmbeddedModel

    monkeypatch.setattr(EmbeddedModel, "self_test_mutants", lambda self: ("w_sh=1/r", "drop_r"))
    result = e2e(model, tmp_path, "--self-test", "--dtype", "fp32")
    assert result.code == 0, result.out + result.err
    assert "2 of 2 bugs caught, 1 of 1 right arms passed" in result.out
    rows = json.loads((result.folder / "self_test.json").read_text(encoding="utf-8"))
    assert [row["found"] for row in rows] == ["pass", "fail", "fail"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--task", "mmlu"], "Unknown task 'mmlu': only gsm8k", id="task"),
        pytest.param(["--model", "tiny-glm5-moe"], "Did you mean 'tiny-glm4-moe'?", id="model"),
        pytest.param(["--model", "http://x"], "give --baseline URL --candidate URL", id="one server"),
        pytest.param(["--dtype", "bf61"], "--dtype bf61 must be one of", id="dtype"),
        pytest.param(["--margin", "0"], "--margin must be a finite number above 0", id="margin"),
        pytest.param(["--margin", "2"], "--margin 2 must lie between 0 and 1", id="large margin"),
        pytest.param(["--harness", "evalscope"], "must be own or lm-eval", id="harness"),
        pytest.param(["--baseline", "http://x"], "--baseline needs --candidate", id="half a pair"),
        pytest.param(["--baseline", "a", "--candidate", "b", "--kernel", "c"], "leave it out with", id="and kernel"),
        pytest.param(["--baseline", "a", "--candidate", "b", "--self-test"], "leave out --baseline", id="and test"),
        pytest.param(["--served-model", "x"], "is of servers", id="served model"),
        pytest.param(["--self-test", "--kernel", "x"], "leave out --kernel and --mutant", id="self-test and kernel"),
        pytest.param(["--kernel", "x", "--mutant", "y"], "not both", id="kernel and mutant"),
        pytest.param(["--early-stop", "--harness", "lm-eval"], "use --harness own", id="early stop and lm-eval"),
        pytest.param(["--resume", "nowhere"], "no folder of an end-to-end run", id="resume"),
        pytest.param(["--baseline", "http://x", "--candidate", "http://y", "--early-stop"], "in turn", id="and stop"),
    ],
)
def test_bad_input_gets_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = moecheck("e2e", *arguments, *(() if "--resume" in arguments else ("--out", str(tmp_path))))
    assert result.code == 2
    (line,) = result.err.strip().splitlines()
    assert line.startswith("moecheck: ")
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--kernel", "torch/moe_layerr"], "Did you mean 'torch/moe_layer'?", id="kernel"),
        pytest.param(["--mutant", "drop_rr"], "Did you mean 'drop_r'?", id="mutant"),
        pytest.param(["--kernel", "torch/permute"], "torch/permute computes permute", id="another op"),
        pytest.param(["--data", "none.jsonl"], "Cannot read none.jsonl", id="data"),
        pytest.param(["--few-shot", "99"], "8 examples, and --few-shot asks for 99", id="few examples"),
        pytest.param(["--max-new-tokens", "5000"], "positions", id="too long"),
    ],
)
def test_what_does_not_fit_the_model_gets_one_sentence(
    model: str, arguments: list[str], words: str, tmp_path: Path
) -> None:
    given = [word for word in QUICK if "--max-new-tokens" not in arguments or word not in ("--max-new-tokens", "6")]
    result = moecheck("e2e", "--model", model, *given, *arguments, out=tmp_path)
    assert result.code == 2
    assert words in result.err.strip().splitlines()[-1]
    assert "Traceback" not in result.err


def test_a_broken_line_of_data_is_named(model: str, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"question": "1+1?", "answer": "#### 2"}\n{"question": \n', encoding="utf-8")
    result = e2e(model, tmp_path / "out", "--data", str(data))
    assert result.code == 2
    assert "mine.jsonl, line 2: not JSON" in result.err


def test_without_weights_the_default_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moecheck.evals.tiny.models.FOLDER", tmp_path)
    result = moecheck("e2e", out=tmp_path / "out")
    assert result.code == 2
    assert "The weights of tiny-glm4-moe are not in" in result.err


def test_gsm8ks_own_file_with_a_model_of_transformers_through_lm_eval(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="needs moecheck[e2e]: transformers")
    pytest.importorskip("lm_eval", reason="needs moecheck[e2e]: lm-eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("test", "train"):
        rows = [{"question": f"{name} {i}?", "answer": f"It is <<{i}={i}>>{i}.\n#### {i}"} for i in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = str(tmp_path / "test.jsonl")
    folder = model.removeprefix("embedded:")
    result = e2e(
        folder, tmp_path / "out", "--data", data, "--few-shot", "2", "--kernel", "torch/index_add", "--dtype", "fp32"
    )
    assert result.code == 0, result.out + result.err
    saved = json.loads((result.folder / "e2e.json").read_text(encoding="utf-8"))
    assert (saved["harness"], saved["few_shot"]) == ("lm-eval", 2)
    assert "exact_match" in saved["lm_eval"]["candidate"]
