"""Known bugs of MoE kernels, each one change of a reference: hypotheses of the diagnosis, and wrong kernels for tests.

A mutant is one decorated function in the module of its class; the registry finds it by walking this package.
"""

from .registry import Mutant, all_mutants, mutant, mutants_for, mutated_outputs, mutated_value

__all__ = ["Mutant", "all_mutants", "mutant", "mutants_for", "mutated_outputs", "mutated_value"]
