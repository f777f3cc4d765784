"""`--require` forbids what a kernel may otherwise declare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import Result, moecheck

BF16 = ("--profile", "quick", "--examples", "0", "--dtype", "bf16", "--jobs", "1")
REQUIRED = ("--require", "topk_weights=fp32")
KERNELS = """\
import moecheck
from moecheck.kernels.torch.activation import act_and_mul
from moecheck.kernels.torch.permute import unpermute
from moecheck.kernels.torch.routing import topk_routing
from moecheck.numerics import INPUT

@moecheck.kernel("unpermute", backend="torch", numerics=moecheck.Numerics(topk_weights=INPUT))
def rounds(permuted, topk_weights, inv_permuted_idx):
    weights = topk_weights.to(permuted.dtype).float()
    return unpermute(permuted=permuted, topk_weights=weights, inv_permuted_idx=inv_permuted_idx)

@moecheck.kernel("topk_routing", backend="torch", numerics=moecheck.Numerics(topk_weights="input"))
def low(router_logits, spec):
    weights, ids = topk_routing(router_logits=router_logits, spec=spec)
    return weights.to(router_logits.dtype).float(), ids

@moecheck.kernel("topk_routing", backend="torch")
def plain(router_logits, spec):
    return topk_routing(router_logits=router_logits, spec=spec)

@moecheck.kernel("act_and_mul", backend="torch")
def shy(x, spec):
    if len(x) == 16:
        raise moecheck.Unsupported("16 rows are too few to look into it")
    return act_and_mul(x=x, spec=spec)
"""


def run(out: Path, *more: str) -> Result:
    return moecheck("kernels", *BF16, *more, out=out)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`--kernel` values by the kernel's name."""
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(KERNELS, encoding="utf-8")
    return {name: f"{path}:{name}" for name in ("rounds", "low", "plain", "shy")}


@pytest.fixture(scope="module")
def forbidden(specs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A kernel that declares routing weights in the input's format, where that is forbidden."""
    return run(tmp_path_factory.mktemp("out"), "--kernel", specs["rounds"], *REQUIRED)


def test_a_low_store_that_is_declared_passes_and_is_named_at_the_top(specs: dict[str, str], tmp_path: Path) -> None:
    allowed = run(tmp_path, "--kernel", specs["rounds"])

    assert allowed.code == 0, allowed.out
    floor, table = allowed.out.index("Declared to round below the floor:"), allowed.out.index("✔ pass")
    assert floor < table
    assert "routing weights: " in allowed.out[floor:table]
    assert allowed.kernel(specs["rounds"])["below_floor"] == ["topk_weights"]


def test_a_low_store_that_is_forbidden_fails_also_when_replayed(forbidden: Result, specs: dict[str, str]) -> None:
    record = forbidden.kernel(specs["rounds"])

    assert forbidden.code == 1
    assert record["check"] == "numerics"
    assert record["message"] == "The run requires topk_weights=fp32, the kernel declares topk_weights=input."
    assert "--require topk_weights=fp32" in forbidden.summary()["command"]
    assert moecheck("replay", record["reproduce"].split()[-1]).code == 1


def test_a_resumed_run_still_requires_it_and_one_of_an_earlier_release_requires_nothing(
    forbidden: Result, specs: dict[str, str]
) -> None:
    folder = forbidden.folder.resolve()
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    lines = (folder / "findings.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "findings.jsonl").write_text("", encoding="utf-8")

    still = moecheck("kernels", "--resume", folder)
    del environment["options"]["require"]
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    kept = [line for line in lines if json.loads(line)["case"] != forbidden.kernel(specs["rounds"])["worst_case"]]
    (folder / "findings.jsonl").write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    earlier = moecheck("kernels", "--resume", folder)

    assert still.code == 1
    assert "The run requires topk_weights=fp32" in still.out
    assert earlier.code == 0


def test_kernels_without_an_output_that_tells_are_held_to_what_they_declare(
    specs: dict[str, str], tmp_path: Path
) -> None:
    words = [word for name in ("low", "plain", "shy") for word in ("--kernel", specs[name])]

    result = run(tmp_path / "out", *words, *REQUIRED, "--require", "act=fp32")

    assert result.kernel(specs["low"])["message"] == (
        "The run requires topk_weights=fp32, the kernel declares topk_weights=input."
    )
    assert result.kernel(specs["plain"])["verdict"] == "pass"
    unsure = {"The run requires act=fp32, which could not be shown: no output tells where it rounds.": 1}
    assert result.kernel(specs["shy"])["undecided"] == unsure
    assert "act=fp32, which could not be shown" in " ".join(result.out.split())
