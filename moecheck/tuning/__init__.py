"""Kernels with numbers to choose: how they declare them, the files of measured ones, and the search."""

from .layer import Configuration, Layer
from .tunable import VARIABLE, Tuning, is_pinned, pinned

__all__ = ["VARIABLE", "Configuration", "Layer", "Tuning", "is_pinned", "pinned"]
