"""The rounding points that a kernel declares: its numerical contract."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from .accumulators import ACCUMULATORS
from .errors import SpecError
from .formats import FORMATS
from .quantizer import Quantizer

CombineOrder = Literal["tree", "slot", "expert", "rank"]
INPUT = "input"
PROFILES = ACCUMULATORS
QUANTISERS = ("a1_quant", "a2_quant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """Where a kernel rounds, in the order of the data flow.

    Each field from `scores` to `out` is a format name (`fp32`, `fp16`, `bf16`), or `input`: the dtype of the case's
    activations. `fp32` means that the value is kept in the fp32 accumulator, which the reference does not round.

    scores: router scores. topk_weights: routing weights as multiplied. dequantised: expert weights that come as codes
    (moecheck.quantization), as multiplied. before_bias: a GEMM's output when it is stored on its own before its bias is
    added. gate_up: output of the first GEMM. sigmoid: of silu, alpha * gate and its
    sigmoid when they are stored on their own before the product with gate. act: act(gate) when it is stored on its own
    before the product with up. up: up + beta when it is stored on its own before that product. act_times_up: input of
    the second GEMM. per_expert: output of the second GEMM. weighted: topk_weight * per_expert. combine: each partial
    sum over a token's experts, added in `combine_order`: by slot, by ascending expert id, or as a tree that keeps fp32;
    by `rank`, of expert_parallel_moe, it is the sum of each rank's own experts, and the sum of these is a tree.
    out: the stored result. accumulate: the accumulator's hardware profile, a name in PROFILES.
    a1_quant, a2_quant: how the input of the first and of the second GEMM is requantised, after `weighted` (where
    weights multiply inputs) and `act_times_up`; None where it is not. A mapping of a Quantizer's fields stands for one.
    """

    scores: str = "fp32"
    topk_weights: str = "fp32"
    dequantised: str = "fp32"
    before_bias: str = "fp32"
    gate_up: str = "fp32"
    sigmoid: str = "fp32"
    act: str = "fp32"
    up: str = "fp32"
    act_times_up: str = "fp32"
    per_expert: str = "fp32"
    weighted: str = "fp32"
    combine: str = "fp32"
    out: str = INPUT
    combine_order: CombineOrder = "tree"
    accumulate: str = "fp32-rn"
    a1_quant: Quantizer | None = None
    a2_quant: Quantizer | None = None

    def __post_init__(self) -> None:
        for name in STORES:
            value = getattr(self, name)
            if value != INPUT and value not in FORMATS:
                raise SpecError(f"Numerics.{name}={value!r} must be 'input' or one of {', '.join(FORMATS)}.")
        if self.combine_order not in get_args(CombineOrder):
            raise SpecError(f"Numerics.combine_order={self.combine_order!r} must be tree, slot, expert or rank.")
        if self.accumulate not in PROFILES:
            raise SpecError(f"Numerics.accumulate={self.accumulate!r} must be one of {', '.join(PROFILES)}.")
        for name in QUANTISERS:
            object.__setattr__(self, name, _quantizer(name, getattr(self, name)))

    @property
    def requantises(self) -> bool:
        """Whether the input of a GEMM is requantised."""
        return self.a1_quant is not None or self.a2_quant is not None

    def resolve(self, dtype: str) -> Numerics:
        """The same contract with every `input` replaced by the case's dtype."""
        changes = {name: dtype for name in STORES if getattr(self, name) == INPUT}
        return replace(self, **changes)  # type: ignore[arg-type]  # only the str fields are in STORES


def _quantizer(name: str, value: object) -> Quantizer | None:
    """The quantiser that a field was given, as itself or as the mapping that JSON makes of it."""
    if value is None or isinstance(value, Quantizer):
        return value
    try:
        return Quantizer(**dict[str, Any](value))  # type: ignore[call-overload]  # what is no mapping is told below
    except (TypeError, ValueError) as error:
        raise SpecError(f"Numerics.{name}={value!r} must be a Quantizer, a mapping of its fields, or None.") from error


STORES = tuple(f.name for f in fields(Numerics) if f.name not in ("combine_order", "accumulate", *QUANTISERS))

# The lowest contract that a kernel may have without declaring it: every store in the dtype of the input,
# scores, routing weights and combine in fp32.
FLOOR = Numerics(
    dequantised=INPUT,
    before_bias=INPUT,
    gate_up=INPUT,
    sigmoid=INPUT,
    act=INPUT,
    up=INPUT,
    act_times_up=INPUT,
    per_expert=INPUT,
    weighted=INPUT,
    out=INPUT,
)
