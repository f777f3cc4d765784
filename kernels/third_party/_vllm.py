"""The parts of vLLM that its adapters call, imported once, and vLLM's name of an activation."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

import moecheck
from moecheck.spec import SWIGLUOAI

from ._require import require, require_ids, require_plain_experts

require("vllm")
os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")  # read at import; a default MoE configuration is no warning here
logging.getLogger("vllm").setLevel(logging.ERROR)

_LAYERS = "vllm.model_executor.layers.fused_moe"
FUSED_MOE: Any = import_module(_LAYERS)
CONFIG: Any = import_module(f"{_LAYERS}.config")
OPS: Any = import_module("vllm._custom_ops")
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_tanh"}
LIBRARY = "vLLM"
# vLLM's own: 1.702, 7 and 1 are built into its kernel.
GPT_OSS = replace(SWIGLUOAI, w13_bias=False, w2_bias=False)


def activation(spec: moecheck.ExpertSpec) -> Any:
    """The MoEActivation of a spec; biases and the place of the weights are left to the caller.

    Raises Unsupported for what its kernels do not compute.
    """
    plain = replace(spec, w13_bias=False, w2_bias=False, weight_on_input=False, quantization=None)
    if plain == GPT_OSS:
        return FUSED_MOE.MoEActivation.SWIGLUOAI
    require_plain_experts(plain, LIBRARY, activations=tuple(ACTIVATIONS))
    return FUSED_MOE.MoEActivation(ACTIVATIONS[spec.activation])


def require_tokens(rows: torch.Tensor) -> None:
    """Raise Unsupported without rows: vLLM's layers return before they launch a kernel."""
    if not len(rows):
        raise moecheck.Unsupported("vLLM does not launch its kernels without tokens")


def require_valid_ids(topk_ids: torch.Tensor) -> None:
    """Raise Unsupported for padding ids: moe_align_block_size of 0.22 counts them outside of its arrays."""
    require_ids(topk_ids, "moe_align_block_size of vLLM 0.22 (vllm-project/vllm#47785)")


def require_slots(topk_ids: torch.Tensor, *, low_sum: bool) -> None:
    """Raise Unsupported unless moe_sum rounds as the kernel declares.

    Up to and in 0.22 it adds 2, 3 and 4 slots in the input's format and others in fp32 (vllm-project/vllm#46643).
    """
    top_k = topk_ids.shape[1]
    if (top_k in (3, 4)) is not low_sum and top_k != 2:
        other = "fp32" if low_sum else "the input's format"
        raise moecheck.Unsupported(f"vLLM adds {top_k} slots in {other}; another kernel of this library declares that")


def require_multiples(size: int, **widths: int) -> None:
    """Raise Unsupported unless each width is a multiple of `size`."""
    for name, width in widths.items():
        if width % size:
            raise moecheck.Unsupported(f"vLLM takes multiples of {size} here, not {name}={width}")
