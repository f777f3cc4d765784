"""Grade-school word problems in gsm8k's own form, generated: the test set of the embedded models and their training.

`python -m moecheck.evals.problems` writes the files again; they are a function of this code alone.
"""

from .generator import is_held_out, problems
from .story import Problem
from .test_set import few_shot, held_out

__all__ = ["Problem", "few_shot", "held_out", "is_held_out", "problems"]
