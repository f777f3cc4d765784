"""Random cases of fused_experts for the kernels' own tests, and how a kernel's output is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moecheck.formats import AnyArray, Float64, store, to_float64
from moecheck.kernel import Declaration
from moecheck.references.fused_experts import estimate, fused_experts
from moecheck.spec import ExpertSpec
from tests.bounds import largest_z

Kernel = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsCase:
    """Sizes and spec of one case; the arrays follow from them."""

    tokens: int = 24
    hidden: int = 64
    intermediate: int = 48
    experts: int = 8
    top_k: int = 2
    spec: ExpertSpec = field(default_factory=ExpertSpec)
    padding: bool = False
    expert_map: bool = False

    def inputs(self, dtype: str) -> dict[str, AnyArray]:
        """NumPy arrays by argument name, stored in format `dtype`; pre-activations have rms 2, outputs about 1."""
        rng = np.random.default_rng(self.tokens * 1009 + self.experts)
        rows = 2 * self.intermediate if self.spec.gated else self.intermediate
        local = self.experts // 2 if self.expert_map else self.experts
        arrays = {
            "hidden_states": rng.normal(size=(self.tokens, self.hidden)),
            "w13": rng.normal(size=(local, rows, self.hidden)) * 2 / np.sqrt(self.hidden),
            "w2": rng.normal(size=(local, self.hidden, self.intermediate)) / np.sqrt(self.intermediate),
        }
        if self.spec.w13_bias:
            arrays["w13_bias"] = rng.normal(size=(local, rows))
        if self.spec.w2_bias:
            arrays["w2_bias"] = rng.normal(size=(local, self.hidden))
        stored: dict[str, AnyArray] = {name: store(values, dtype) for name, values in arrays.items()}
        order = np.argsort(rng.random((self.tokens, self.experts)), axis=1)
        ids = order[:, : self.top_k].astype(np.int32)
        if self.padding:
            ids[::3, 0] = -1
        weights = rng.random((self.tokens, self.top_k)).astype(np.float32) + np.float32(0.1)
        stored |= {"topk_ids": ids, "topk_weights": weights}
        if self.expert_map:
            expert_map = np.full(self.experts, -1, dtype=np.int32)
            expert_map[1::2] = np.arange(local, dtype=np.int32)
            stored["expert_map"] = expert_map
        return stored


def declaration(kernel: Kernel) -> Declaration:
    """What the decorated function says of itself."""
    declared = kernel.__moecheck__  # type: ignore[attr-defined]  # set by moecheck.kernel
    assert isinstance(declared, Declaration)
    return declared


def name_of(value: object) -> str | None:
    """The test id of a parameter that is a kernel: its name."""
    declared = getattr(value, "__moecheck__", None)
    return None if declared is None else str(declared.name)


def worst_z(out: AnyArray, inputs: dict[str, Any], *, case: ExpertsCase, kernel: Kernel, dtype: str) -> float:
    """Largest |out - reference| / sigma under the kernel's declared contract; NaN and wrong shapes fail.

    Elements with sigma 0 must be equal to the reference: they count as infinite otherwise.
    """
    assert out.shape == inputs["hidden_states"].shape
    value, sigma = estimate(**inputs, spec=case.spec, numerics=declaration(kernel).numerics, dtype=dtype)
    error: Float64 = np.abs(to_float64(out) - value)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where((sigma == 0) & (error == 0), 0.0, error / sigma)
    return float(np.max(z, initial=0.0))


def z_bound(out: AnyArray) -> float:
    """The largest |z| that an honest kernel reaches in an output of this size."""
    return largest_z(max(1, out.size))


def bit_agreement(
    out: AnyArray, inputs: dict[str, AnyArray], *, case: ExpertsCase, kernel: Kernel, dtype: str
) -> float:
    """Share of elements that equal the reference with the declared contract's roundings."""
    reference = fused_experts(**inputs, spec=case.spec, numerics=declaration(kernel).numerics, dtype=dtype)
    return float(np.mean(to_float64(out) == reference))
