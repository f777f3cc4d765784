"""A kernel's arguments as arrays of its backend, on its device."""

from __future__ import annotations

from typing import Any

import numpy as np

from moecheck.cases import Case
from moecheck.checks.judge import poison_sizes
from moecheck.errors import Unsupported
from moecheck.formats import FORMATS
from moecheck.kernel import Declaration
from moecheck.ops import OPS
from moecheck.oracle import spec_part
from moecheck.runner.arrays import JAX_BACKENDS, to_native
from moecheck.runner.layout import as_declared, output_width
from moecheck.runner.native_weights import NativeWeights
from moecheck.runner.poison import fill

_weights: dict[tuple[str, str], NativeWeights] = {}  # of the last sampled case


def native_arguments(declaration: Declaration, case: Case, inputs: dict[str, Any]) -> dict[str, Any]:
    """All arguments that the kernel names, for a call whose inputs are not looked at afterwards.

    inputs: as `given_inputs` has them. Raises Unsupported where the case has no such arguments.
    """
    weights = weights_of(case, inputs, declaration).arrays if case.sampled else {}
    plain = as_declared(case, {name: value for name, value in inputs.items() if name not in weights}, declaration)
    arguments = {
        name: to_native(value, declaration.backend) if isinstance(value, np.ndarray) else value
        for name, value in {**plain, **weights}.items()
        if name in declaration.arguments
    }
    if "spec" in declaration.arguments:
        layout = declaration.weight_layout
        arguments["spec"] = spec_part(case.op, case.spec if layout is None else layout.spec(case.spec))
    if "out" in declaration.arguments:
        arguments["out"] = poisoned_output(case, plain, declaration)
    return arguments


def weights_of(case: Case, inputs: dict[str, Any], declaration: Declaration) -> NativeWeights:
    """The weights of a sampled case, from the call before where that had the same."""
    key = (case.key, declaration.name)
    if key not in _weights:
        _weights.clear()  # first, so that two cases' weights are never held together
        _weights[key] = NativeWeights(case, inputs, declaration.backend, declaration.weight_layout)
    return _weights[key]


def forget_weights() -> None:
    """Have the next call draw them again, as a kernel wrote into these."""
    _weights.clear()


def poisoned_output(case: Case, inputs: dict[str, Any], declaration: Declaration) -> Any:
    """What a kernel that takes `out` gets; raises Unsupported where an op or a backend has none."""
    shape, backend, layout = poison_sizes(case, inputs), declaration.backend, declaration.weight_layout
    if shape is None or backend in JAX_BACKENDS:
        raise Unsupported(f"{case.op} passes no `out` to {backend} kernels")
    if layout is not None:
        shape = (*shape[:-1], output_width(case, shape[-1], layout))
    kind = OPS[case.op].outputs[0].kind
    return to_native(fill(np.empty(shape, FORMATS[case.dtype].storage if kind == "input" else kind)), backend)
