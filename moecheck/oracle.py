"""What a case should give: the reference's outputs, each computed once and shared by all kernels of the op."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from .cases import Case
from .errors import HarnessError
from .formats import Float64
from .numerics import FLOOR, Numerics
from .ops import OPS
from .spec import ExpertSpec, MoESpec, RoutingSpec

REFERENCES = "moecheck.references"
KEPT_INPUTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What an op with one floating-point output should give, float64, all of the output's shape.

    true: the mathematics, unrounded. sigma: standard deviation of an honest kernel's error about it. rounded:
    the reference with the kernel's declared rounding points, `true` when it declares none.
    """

    true: Float64
    sigma: Float64
    rounded: Float64


@cache
def reference_modules() -> dict[str, ModuleType]:
    """Op name -> its module in moecheck.references, found by walking the package.

    Raises HarnessError with the cure when the package is not where the installation should have it.
    """
    try:
        package = importlib.import_module(REFERENCES)
    except ModuleNotFoundError as error:
        raise HarnessError(
            "moecheck/references does not resolve: this copy lost its symbolic links; "
            "clone again with core.symlinks=true."
        ) from error
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name in OPS:
            found[info.name] = importlib.import_module(f"{REFERENCES}.{info.name}")
    missing = sorted(OPS.keys() - found.keys())
    if missing:
        raise HarnessError(f"No reference for {', '.join(missing)} under {REFERENCES}: the installation is incomplete.")
    return found


def spec_part(op: str, spec: MoESpec) -> MoESpec | ExpertSpec | RoutingSpec | None:
    """The part of a spec that an op reads: what a kernel's `spec` argument receives."""
    parts: dict[str, MoESpec | ExpertSpec | RoutingSpec] = {
        "topk_routing": spec.routing,
        "act_and_mul": spec.experts,
        "fused_experts": spec.experts,
        "moe_layer": spec,
    }
    return parts.get(op)


def call_reference(function: Callable[..., Any], case: Case, inputs: dict[str, Any], **more: object) -> Any:
    """Call a reference with the inputs that its signature names, and the case's spec if it takes one."""
    names = inspect.signature(function).parameters
    arguments = {**inputs, **more}
    if "spec" in names:
        arguments["spec"] = spec_part(case.op, case.spec)
    return function(**{name: value for name, value in arguments.items() if name in names})


class Oracle:
    """References of many cases; safe to share between threads, each result computed once.

    load: where inputs come from, `Case.inputs` unless a run shares them between processes.
    """

    def __init__(self, load: Callable[[Case], dict[str, Any]] = Case.inputs) -> None:
        self._lock = threading.Lock()
        self._locks: dict[object, threading.Lock] = {}
        self._results: dict[object, Any] = {}
        self._inputs: dict[str, dict[str, Any]] = {}
        self._load = load

    def inputs(self, case: Case) -> dict[str, Any]:
        """The case's inputs; do not modify them. Those of the last few cases are kept."""
        with self._lock_of(("inputs", case.key)):
            with self._lock:
                if case.key in self._inputs:
                    return self._inputs[case.key]
            loaded = self._load(case)
            with self._lock:
                while len(self._inputs) >= KEPT_INPUTS:
                    del self._inputs[next(iter(self._inputs))]
                self._inputs[case.key] = loaded
            return loaded

    def values(self, case: Case, numerics: Numerics | None) -> Values:
        """True value, sigma and rounded value under a declared contract, or under the floor contract for None."""
        values: Values = self._once(
            ("values", case.key, numerics), lambda: self._values(case, numerics, self.inputs(case), {})
        )
        return values

    def layer_values(self, case: Case, numerics: Numerics | None, tokens: list[int], topk: tuple[Any, Any]) -> Values:
        """As `values` of a moe_layer case, for some tokens and a given choice of theirs; not kept.

        topk: weights and ids [len(tokens), slots]. Returns values of len(tokens) rows.
        """
        inputs = self.inputs(case)
        some = {**inputs, **{name: inputs[name][tokens] for name in ("hidden_states", "router_logits")}}
        return self._values(case, numerics, some, {"topk": topk})

    def outputs(self, case: Case) -> tuple[Any, ...]:
        """The reference's own outputs, for ops whose outputs are compared as structures."""
        module = reference_modules()[case.op]
        result = self._once(
            ("outputs", case.key),
            lambda: call_reference(getattr(module, case.op), case, self.inputs(case)),
        )
        return result if isinstance(result, tuple) else (result,)

    def _values(self, case: Case, numerics: Numerics | None, inputs: dict[str, Any], more: dict[str, object]) -> Values:
        module = reference_modules()[case.op]
        contract = (numerics or FLOOR).resolve(case.dtype)
        true, sigma = call_reference(module.value_and_sigma, case, inputs, numerics=contract, dtype=case.dtype, **more)
        rounded = true
        if numerics is not None:
            function = getattr(module, case.op)
            rounded = call_reference(function, case, inputs, numerics=contract, dtype=case.dtype, **more)
        return Values(true=true, sigma=sigma, rounded=rounded)

    def _once(self, key: object, compute: Callable[[], Any]) -> Any:
        with self._lock_of(key):
            if key not in self._results:
                self._results[key] = compute()
            return self._results[key]

    def _lock_of(self, key: object) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(key, threading.Lock())
