"""Distributions and rounding points that several published tests share."""

from __future__ import annotations

from moecheck.numerics import INPUT, Numerics
from moecheck.quantizer import Quantizer
from moecheck.spec import MoESpec, RoutingSpec

from .recipe import Draw

TENTH = Draw(std=0.1)
FIFTEENTH = Draw(std=1 / 15)
HUNDREDTH = Draw(std=0.01)
BLOCKS = (128, 128)
ROWS = (1, 0)  # one scale for each row
GROUPS = (1, 128)
SOFTMAX = MoESpec(routing=RoutingSpec())
OVER_SELECTED = MoESpec(routing=RoutingSpec(softmax_over_selected=True))
FP8 = Quantizer(group=128)
# References in the input's format, as torch computes them.
EAGER = Numerics(gate_up=INPUT, act=INPUT, act_times_up=INPUT, per_expert=INPUT)
LOW_WEIGHTS = Numerics(
    gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT, topk_weights=INPUT, weighted=INPUT
)  # SGLang's: the fused activation keeps act(g)
# Requantising kernels. Known bugs of quantisers are simulated with the stores of these; act(g) and w z are kept.
PER_TOKEN = Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT, a1_quant=Quantizer(), a2_quant=Quantizer())
BLOCK_FP8 = Numerics(gate_up=INPUT, act_times_up=INPUT, per_expert=INPUT, a1_quant=FP8, a2_quant=FP8)
