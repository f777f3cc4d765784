"""Finds the contract of a kernel, and judges it: what is declared, and what is hidden."""

from .cases import identification_cases
from .contract import identify, is_known, is_near
from .floor import below_floor, judge_numerics, judge_unseen
from .result import Identified, declaration_sentence
from .routing import observation

__all__ = [
    "Identified",
    "below_floor",
    "declaration_sentence",
    "identification_cases",
    "identify",
    "is_known",
    "is_near",
    "judge_numerics",
    "judge_unseen",
    "observation",
]
