"""The choice of a kernel, weights of checkpoints in the fused layout and back, and processes that end with theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moecheck.errors import Unsupported, UsageError
from moecheck.models import MODELS
from moecheck.oracle import reference_modules
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec

pytest.importorskip("jax", reason="needs jax")

from moecheck.kernels.jax.auto import MoEBackend, choose, obstacle
from moecheck.kernels.jax.checkpoints import LAYOUTS, fuse, unfuse

E, H, N, S, T = 8, 12, 6, 10, 16  # N: intermediate size
PLAIN = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True))
FITTING: dict[str, Any] = {
    "platform": "tpu", "num_ranks": 4, "hidden_size": 2048, "intermediate_size": 768, "dtype": "bf16", "spec": PLAIN
}  # fmt: skip
OF_LAYOUT = {"qwen3-moe": "qwen3-30b-a3b", "bailing-moe": "ling-mini-2.0", "grok-2": "grok-2"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"platform": "cpu"}, "it is a TPU kernel", id="no TPU"),
        pytest.param({"num_ranks": 1}, "one rank exchanges nothing", id="one rank"),
        pytest.param({"hidden_size": 2880}, "hidden_size=2880", id="hidden size"),
        pytest.param({"intermediate_size": 704}, "intermediate_size=704", id="intermediate size"),
        pytest.param({"dtype": "fp16"}, "not fp16", id="fp16"),
        pytest.param(
            {"spec": replace(PLAIN, experts=ExpertSpec(activation="relu2", gated=False))}, "relu2", id="relu2"
        ),
    ],
)
def test_auto_takes_epmoe_where_the_fused_kernel_has_an_obstacle(change: dict[str, Any], words: str) -> None:
    why = obstacle(**{**FITTING, **change})
    assert why is not None
    assert words in why
    assert choose(MoEBackend.AUTO, why) is MoEBackend.EPMOE
    with pytest.raises(Unsupported, match="the fused kernel cannot"):
        choose(MoEBackend.FUSED, why)


def test_auto_takes_the_fused_kernel_where_it_can() -> None:
    assert obstacle(**FITTING) is None
    assert choose(MoEBackend.AUTO, None) is MoEBackend.FUSED
    assert choose(MoEBackend.EPMOE, None) is MoEBackend.EPMOE


def checkpoint(layout: str) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """A layer's tensors of distinct values, by the names of the layout."""
    names, draw = LAYOUTS[layout], np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {names.router: (E, H)}
    for expert in range(E):
        shapes |= {
            names.gate.format(expert): (N, H),
            names.up.format(expert): (N, H),
            names.down.format(expert): (H, N),
        }
    if names.correction_bias is not None:
        shapes[names.correction_bias] = (E,)
    if names.shared is not None:
        shapes |= dict(zip(names.shared, ((S, H), (S, H), (H, S)), strict=True))
    return {
        f"model.layers.3.{name}": draw.normal(size=shape).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_come_back_bit_for_bit(layout: str) -> None:
    tensors = checkpoint(layout)
    again = unfuse(fuse(tensors, layout, layer=3), layout, layer=3)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        np.testing.assert_array_equal(again[name].view(np.uint16), tensor.view(np.uint16), err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_weights_compute_the_layer_of_the_checkpoint(layout: str) -> None:
    """By the reference on the fused weights, and expert by expert from the tensors' own names."""
    spec = MODELS[OF_LAYOUT[layout]].spec
    routing = replace(spec.routing, num_expert_groups=min(spec.routing.num_expert_groups, 4), top_k=2, topk_groups=1)
    routing = replace(routing, topk_groups=min(2, routing.num_expert_groups))
    spec = MoESpec(routing=routing, experts=spec.experts)
    tensors, names = checkpoint(layout), LAYOUTS[layout]
    wide = {name.removeprefix("model.layers.3."): tensor.astype(np.float64) for name, tensor in tensors.items()}
    fused = fuse(tensors, layout, layer=3)
    x = np.random.default_rng(8).normal(size=(T, H))
    logits = (x @ wide[names.router].T).astype(np.float32)
    np.testing.assert_array_equal((x @ fused.router.astype(np.float64)).astype(np.float32), logits)
    bias = fused.correction_bias
    modules = reference_modules()
    plain = fused.w13.transpose(0, 1, 3, 2).reshape(E, 2 * N, H)
    whole = modules["expert_parallel_moe"].expert_parallel_moe(
        hidden_states=x,
        router_logits=logits,
        w13=plain.astype(np.float64),
        w2=fused.w2.transpose(0, 2, 1).astype(np.float64),
        spec=spec,
        num_ranks=2,
        correction_bias=None if bias is None else bias.astype(np.float32),
    )
    weights, ids = modules["topk_routing"].topk_routing(
        router_logits=logits,
        spec=routing,
        correction_bias=None if bias is None else bias.astype(np.float32),
    )
    wanted = np.zeros((T, H))
    for token in range(T):
        for weight, expert in zip(weights[token], ids[token], strict=True):
            gate, up = (wide[name.format(expert)] @ x[token] for name in (names.gate, names.up))
            hidden = modules["act_and_mul"].activation(gate, spec.experts) * up
            wanted[token] += weight * (wide[names.down.format(expert)] @ hidden)
    size = np.abs(wanted).max()
    # Two float64 evaluations in different orders, of sums of fewer than 2^5 terms each.
    assert np.abs(whole - wanted).max() <= size * 2**5 * np.finfo(np.float64).eps


def test_up_in_place_of_gate_is_seen() -> None:
    tensors = checkpoint("qwen3-moe")
    swapped = {
        name.replace("gate_proj", "?").replace("up_proj", "gate_proj").replace("?", "up_proj"): tensor
        for name, tensor in tensors.items()
    }
    assert not np.array_equal(
        fuse(tensors, "qwen3-moe", layer=3).w13.view(np.uint16), fuse(swapped, "qwen3-moe", layer=3).w13.view(np.uint16)
    )


def test_bad_checkpoints_are_told_in_words() -> None:
    tensors = checkpoint("qwen3-moe")
    with pytest.raises(UsageError, match="qwen3-moe"):
        fuse(tensors, "qwen3", layer=3)
    with pytest.raises(UsageError, match=r"no tensor 'model\.layers\.4\.mlp"):
        fuse(tensors, "qwen3-moe", layer=4)
    with pytest.raises(UsageError, match="nothing for it"):
        unfuse(fuse(tensors, "qwen3-moe", layer=3), "bailing-moe", layer=3)
    short = {**tensors, "model.layers.3.mlp.experts.5.up_proj.weight": np.zeros((N - 1, H), ml_dtypes.bfloat16)}
    with pytest.raises(UsageError, match=r"experts\.5\.up_proj"):
        fuse(short, "qwen3-moe", layer=3)


def test_helpers_end_with_the_process_that_started_them() -> None:
    """It is killed, as a worker that hangs is."""
    pytest.importorskip("torch", reason="needs torch")
    program = (
        "import sys, time\n"
        "from moecheck.kernels.torch._rank_group import rank_group\n"
        "group = rank_group(2, 'cpu')\n"
        "print(*[helper._process.pid for helper in group._helpers], flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        helpers = [int(pid) for pid in owner.stdout.readline().split()]
        owner.send_signal(signal.SIGKILL)
    assert len(helpers) == 3
    patience = time.monotonic() + 20
    while any(_is_alive(pid) for pid in helpers) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not [pid for pid in helpers if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    """A process that has ended and that nobody has waited for is not."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_every_tensor_of_a_layer_is_in_the_fused_weights() -> None:
    fused = fuse(checkpoint("bailing-moe"), "bailing-moe", layer=3)
    shapes = {field.name: getattr(fused, field.name).shape for field in fields(fused)}
    assert shapes == {
        "w13": (E, 2, H, N),
        "w2": (E, N, H),
        "router": (H, E),
        "correction_bias": (E,),
        "shared_w13": (2, H, S),
        "shared_w2": (S, H),
    }
