"""A layer's experts with quantised weights, for kernels that take such."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import torch

from moecheck.errors import Unsupported
from moecheck.formats import AnyArray
from moecheck.kernel import Declaration
from moecheck.quantization import Quantization
from moecheck.quantized_inputs import CODE_DTYPES

ELEMENT = "fp8_e4m3fn"


def scheme_of(declaration: Declaration) -> Quantization:
    """The first scheme of e4m3 weights that the kernel takes; raises Unsupported where it takes none.

    Static scales of activations are left out: they would have to be measured first.
    """
    for scheme in declaration.quantizations:
        if scheme.weights == ELEMENT and not scheme.static_activations:
            return scheme
    raise Unsupported(f"{declaration.name} takes no {ELEMENT} weights whose activations have scales of their own")


def quantised(name: str, weights: torch.Tensor, scheme: Quantization, dtype: str) -> dict[str, AnyArray]:
    """`w13` or `w2`, [E, N, K], as codes and scales. dtype: of the activations, in which scales may be stored."""
    quantise = import_module("moecheck.references.quantize_weights").quantize_weights
    parts = [quantise(expert, scheme, dtype) for expert in weights.detach().cpu().double().numpy()]
    codes = np.stack([part.codes for part in parts]).view(CODE_DTYPES[ELEMENT])
    return {name: codes, f"{name}_scale": np.stack([part.scales for part in parts])}
