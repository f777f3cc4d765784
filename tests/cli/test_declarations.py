"""What a kernel declares of itself is tried: a false declaration is proven wrong, a true one passes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from moecheck.relations.relation import relations
from tests.cli.command import QUICK, Result, moecheck

ACTIVATION = """\
    import moecheck
    import torch
    import torch.nn.functional as F

    CALLS = []

    @moecheck.kernel("act_and_mul", backend="torch", {declared})
    def h(x, {arguments}):
        CALLS.append(x)
        gate, up = x.float().chunk(2, dim=-1)
        result = (F.silu(gate) * up).to(x.dtype)
        {ending}
"""
ROUTING = """\
    import moecheck
    from moecheck.kernels.torch.routing import topk_routing

    @moecheck.kernel("topk_routing", backend="torch", tie="lowest_index")
    def route(router_logits, spec):
        if {backwards} and spec.num_expert_groups == 1 and not spec.num_fused_shared_experts:
            weights, ids = topk_routing(router_logits=router_logits.flip(1), spec=spec)
            return weights, router_logits.shape[1] - 1 - ids
        return topk_routing(router_logits=router_logits, spec=spec)
"""
BY_COUNT = "result.view(torch.int32)[:1] ^= len(x).bit_length() % 2; return result"
BY_CALL = "result.view(torch.int32)[:1] ^= len(CALLS) % 2; return result"


def run(folder: Path, out: Path, text: str, function: str) -> tuple[Result, str]:
    (folder / "mine.py").write_text(textwrap.dedent(text), encoding="utf-8")
    spec = f"{folder / 'mine.py'}:{function}"
    narrow = QUICK if function == "h" else ("--examples", "0")  # the case of ties is one of bf16
    return moecheck("kernels", *narrow, "--kernel", spec, out=out), spec


def activation(declared: str, ending: str, arguments: str = "") -> str:
    return ACTIVATION.format(declared=declared, ending=ending, arguments=arguments)


@pytest.mark.parametrize(
    ("text", "function", "check"),
    [
        pytest.param(activation("batch_invariant=True", BY_COUNT), "h", "batch_invariance", id="batch"),
        pytest.param(activation("deterministic=True", BY_CALL), "h", "determinism", id="determinism"),
        pytest.param(ROUTING.format(backwards=True), "route", "tie", id="tie"),
    ],
)
def test_a_false_declaration_is_proven_wrong(text: str, function: str, check: str, write: Path, tmp_path: Path) -> None:
    result, spec = run(write, tmp_path, text, function)
    wrong = {line.check for line in result.findings(spec) if line.verdict.value == "proven_wrong"}
    assert result.code == 1, result.out + result.err
    # What breaks a promise of equal bits breaks relations that rest on it too.
    assert {check, "case"} <= wrong <= {check, "case"} | relations().keys()


@pytest.mark.parametrize(
    ("text", "function"),
    [
        pytest.param(activation("batch_invariant=True, deterministic=True", "return result"), "h", id="activation"),
        pytest.param(activation("name=None", BY_COUNT), "h", id="nothing declared"),
        pytest.param(
            activation("batch_invariant=True", "return out.copy_(result)", "out"), "h", id="with `out` of half the rows"
        ),
        pytest.param(
            activation(
                "batch_invariant=True",
                "if len(CALLS) % 2 == 0: raise moecheck.Unsupported('odd call')\n        return result",
            ),
            "h",
            id="half of the tokens declined",
        ),
        pytest.param(ROUTING.format(backwards=False), "route", id="tie"),
    ],
)
def test_a_true_declaration_passes(text: str, function: str, write: Path, tmp_path: Path) -> None:
    result, _ = run(write, tmp_path, text, function)
    assert result.code == 0, result.out + result.err


@pytest.mark.parametrize(
    ("ending", "right"),
    [
        pytest.param("return result", False, id="another array"),
        pytest.param("return [result]", False, id="another array in a list"),
        pytest.param("return 'done'", False, id="no array"),
        pytest.param("out.copy_(result); return result", True, id="a copy of it"),
        pytest.param("out.copy_(result); return [out]", True, id="itself in a list"),
        pytest.param("out.copy_(result)", True, id="nothing"),
    ],
)
def test_out_is_what_is_judged(ending: str, right: bool, write: Path, tmp_path: Path) -> None:
    result, _ = run(write, tmp_path, activation("name=None", ending, "out"), "h")
    record = result.summary()["kernels"][0]
    assert record["verdict"] == ("pass" if right else "proven_wrong")
    assert right or "returned another array; `out` holds something else." in record["message"]
