"""What a configuration is measured for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Configuration = Mapping[str, int]  # each tunable number by its name


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Experts w13 [experts, 2 intermediate, hidden] and w2 of a format or scheme (`bf16`, `fp8-block`), on a device."""

    device: str
    experts: int
    intermediate: int
    hidden: int
    top_k: int
    weights: str

    def words(self) -> str:
        """`256 experts of 256 x 7168, top 8, fp8-block, on NVIDIA H200`."""
        size = f"{self.experts} experts of {self.intermediate} x {self.hidden}, top {self.top_k}"
        return f"{size}, {self.weights}, on {self.device}"
