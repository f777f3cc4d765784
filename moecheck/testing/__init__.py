"""For other projects' tests: judge a kernel's output, draw its inputs, keep a call for later."""

from __future__ import annotations

from moecheck.cases import Case
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec
from moecheck.weight_layout import WeightLayout

from .arranged import plain_inputs
from .capture import capture
from .close import MoeMatch, MoeMismatch, assert_moe_close
from .draws import contiguous, moe_cases
from .native import inputs_for

__all__ = [
    "Case",
    "ExpertSpec",
    "MoESpec",
    "MoeMatch",
    "MoeMismatch",
    "Numerics",
    "RoutingSpec",
    "WeightLayout",
    "assert_moe_close",
    "capture",
    "contiguous",
    "inputs_for",
    "moe_cases",
    "plain_inputs",
]
