"""What docs/testing.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch  # noqa: F401  # pytester forgets what a run imports first, and torch cannot be imported twice

from tests.cli.command import moecheck

pytest_plugins = ["pytester"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "testing.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_run(pytester: pytest.Pytester) -> None:
    example, drawn, named, _ = BLOCKS
    head = "import pytest\nfrom moecheck.testing import ExpertSpec, MoESpec, RoutingSpec\n"
    plain = "PLAIN_SPEC = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True))\n"
    pytester.makepyfile(head + example + drawn + plain + named)
    few = "test_fused_moe or test_drawn or plain-bf16 or one-token or padding-ids or no-tokens"
    result = pytester.runpytest("-p", "no:cacheprovider", "-k", few)

    outcomes = result.parseoutcomes()
    assert outcomes.pop("deselected") > 10
    assert outcomes == {"passed": 5, "skipped": 1}


def test_the_example_fails_for_a_wrong_kernel(pytester: pytest.Pytester) -> None:
    wrong = BLOCKS[0].replace("silu(gate) * up", "silu(up) * gate")
    assert wrong != BLOCKS[0]
    pytester.makepyfile(wrong)
    result = pytester.runpytest("-p", "no:cacheprovider")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *MoeMismatch: ✘ proven wrong fused_experts*"])


def test_the_captured_call_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = BLOCKS[0].replace("def test_fused_moe():", "if True:")
    exec(example + BLOCKS[3], {})
    result = moecheck("check", "layer3.safetensors")

    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("✔ pass  layer3.safetensors  triton fused_moe\n")
    assert re.search(r"agreement (0\.99|1\.0)", result.out)
