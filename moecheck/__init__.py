"""moecheck: is this Mixture-of-Experts kernel numerically correct?"""

from __future__ import annotations

from .errors import CaseError, HarnessError, MoecheckError, SpecError, Unsupported, UsageError
from .kernel import kernel
from .numerics import Numerics
from .quantization import Quantization
from .quantizer import Quantizer
from .spec import ExpertSpec, MoESpec, RoutingSpec
from .weight_layout import WeightLayout

__all__ = [
    "CaseError",
    "ExpertSpec",
    "HarnessError",
    "MoESpec",
    "MoecheckError",
    "Numerics",
    "Quantization",
    "Quantizer",
    "RoutingSpec",
    "SpecError",
    "Unsupported",
    "UsageError",
    "WeightLayout",
    "kernel",
]
