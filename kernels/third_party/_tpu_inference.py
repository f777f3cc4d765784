"""The fused expert-parallel kernel of tpu-inference, imported without the package's own imports."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moecheck
from moecheck.spec import SWIGLUOAI

from ._interpreter_gaps import filled_gaps
from ._pallas import require_tpu

PACKAGE = "tpu_inference"
LANES = 128  # H and I are multiples of it
BLOCK_TOKENS = 8
LAYOUT = moecheck.WeightLayout(
    gate_up="halves", stacked=True, transposed=True, hidden_multiple=LANES, intermediate_multiple=LANES
)
ACTIVATIONS = {
    "silu": moecheck.ExpertSpec(),
    "gelu": moecheck.ExpertSpec(activation="gelu_tanh"),
    "swigluoai": replace(SWIGLUOAI, w13_bias=False, w2_bias=False, gate_up_layout="halves"),
}
_KERNEL = f"{PACKAGE}.kernels.fused_moe.v1.kernel"


@cache
def fused_moe() -> Any:
    """Its module kernels/fused_moe/v1/kernel.py as it is. Raises Unsupported where the package is not installed.

    The packages above it import vLLM and what it needs on a TPU; empty ones with the same paths stand for them, and a
    logger of the standard library for its own.
    """
    found = find_spec(PACKAGE)
    if found is None or found.submodule_search_locations is None:
        raise moecheck.Unsupported(
            "needs tpu-inference, which is not installed: pip install --no-deps tpu-inference==0.32.0"
        )
    root = Path(next(iter(found.submodule_search_locations)))
    for name in ("", ".kernels", ".kernels.fused_moe", ".kernels.fused_moe.v1"):
        package = ModuleType(f"{PACKAGE}{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules.setdefault(package.__name__, package)
    logger = ModuleType(f"{PACKAGE}.logger")
    logger.init_logger = _logger  # type: ignore[attr-defined]  # a stand-in for its module
    sys.modules.setdefault(logger.__name__, logger)
    return import_module(_KERNEL)


def _logger(name: str) -> logging.Logger:
    made = logging.getLogger(name)
    made.warning_once = made.debug  # type: ignore[attr-defined]  # untuned block sizes are no warning here
    return made


def on_ranks(
    hidden: jax.Array,
    logits: jax.Array,
    w13: jax.Array,
    w2: jax.Array,
    w13_bias: jax.Array | None,
    w2_bias: jax.Array | None,
    *,
    num_ranks: int,
    spec: moecheck.MoESpec,
) -> jax.Array:
    """The kernel on a mesh of the first devices. Arguments as its adapters have them. Returns [T, H]."""
    require_tpu()
    activation = _activation(spec.experts)
    routing = _routing(spec.routing)
    if len(jax.devices()) < num_ranks:
        raise moecheck.Unsupported(f"needs {num_ranks} devices, has {len(jax.devices())}")
    tokens, packing = len(hidden), 4 // hidden.dtype.itemsize
    each = max(1, -(-tokens // (num_ranks * packing))) * packing  # tokens of a rank
    block = max(size for size in range(packing, BLOCK_TOKENS + 1, packing) if each % size == 0)
    more = ((0, each * num_ranks - tokens), (0, 0))
    wide = LANES * packing
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:num_ranks]).reshape(1, -1), ("data", "model"))
    with filled_gaps():
        out = fused_moe().fused_ep_moe(
            mesh,
            jnp.pad(hidden, more),
            w13,
            w2,
            jnp.pad(logits, more),
            spec.routing.top_k,
            **routing,
            act_fn=activation,
            b1=None if w13_bias is None else w13_bias[:, :, None].astype(jnp.float32),
            b2=None if w2_bias is None else w2_bias[:, None].astype(jnp.float32),
            bt=block,
            btc=block,
            bf=LANES,
            bfc=LANES,
            bd1=wide,
            bd1c=wide,
            bd2=wide,
            bd2c=wide,
        )
        done: jax.Array = jax.block_until_ready(out)  # type: ignore[no-untyped-call]  # jax leaves it untyped
    own: jax.Array = jax.device_put(done, jax.devices()[0])[:tokens]
    return own


def _activation(spec: moecheck.ExpertSpec) -> str:
    plain = replace(spec, w13_bias=False, w2_bias=False, gate_up_layout="halves")
    for name, known in ACTIVATIONS.items():
        if plain == known:
            return name
    raise moecheck.Unsupported("implements silu, gelu by tanh, and swigluoai, weighted behind the experts")


def _routing(spec: moecheck.RoutingSpec) -> dict[str, object]:
    """Its scoring and renormalisation; a softmax over the chosen logits is a renormalised one."""
    over_selected = spec.softmax_over_selected and not spec.renormalize
    renormalize = spec.renormalize or over_selected
    wanted = moecheck.RoutingSpec(
        top_k=spec.top_k, scoring=spec.scoring, renormalize=spec.renormalize, softmax_over_selected=over_selected
    )
    if spec != wanted or spec.scoring not in ("softmax", "sigmoid"):
        raise moecheck.Unsupported(
            "implements softmax or sigmoid scores, top_k of them, with or without renormalisation"
        )
    return {"scoring_fn": spec.scoring, "renormalize_topk_logits": renormalize}
