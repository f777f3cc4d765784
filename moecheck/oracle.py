"""What a case should give: the reference's outputs, each computed once and shared by all kernels of the op."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import inspect
import os
import pickle
import pkgutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from .cases import Case
from .errors import HarnessError
from .formats import Float64, ulp
from .null_ensemble import VARIANTS, Ensemble, normal_numbers
from .numerics import FLOOR, STORES, Numerics
from .ops import OPS
from .quantized_inputs import dequantised
from .quantizer import CARRIES
from .sampled_inputs import oracle_inputs
from .spec import ExpertSpec, MoESpec, RoutingSpec

REFERENCES = "moecheck.references"
# op -> the stores that its reference reads, where these are not all
STORES_OF = {
    "batched_experts": {"before_bias", "gate_up", "sigmoid", "act", "up", "act_times_up", "per_expert", "out"},
    "expert_outputs": {"before_bias", "gate_up", "sigmoid", "act", "up", "act_times_up", "per_expert", "out"},
    "act_and_mul": {"sigmoid", "act", "up", "act_times_up", "out"},
    "grouped_gemm": {"before_bias", "out"},
    "unpermute": {"topk_weights", "weighted", "combine", "out"},
}
KEPT_INPUTS = 4
KEPT_RESULTS = 16  # in memory, where a folder has them all
EXACT_STORES = Numerics(out="fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorModel:
    """What is expected of out - rounded for an honest kernel, where `rounded` is as in Values.

    deviation: [rows, columns], its standard deviation. disagreement: [rows, columns], the probability that the stored
    bits differ. weights: [rows, columns], c = true / sigma^2 (0 where that is undefined), by which a slope is fitted.
    slope_variance, slope_flip: [rows], Var of sum_i c_i (out_i - rounded_i), and the most that one value adds to it
    which rounds to the other side inside the kernel. mean_variance, mean_flip: [rows], the same for c = 1 / sigma.
    """

    deviation: Float64
    disagreement: Float64
    weights: Float64
    slope_variance: Float64
    slope_flip: Float64
    mean_variance: Float64
    mean_flip: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What an op with one floating-point output should give, float64, all of the output's shape.

    true: the mathematics, unrounded. sigma: standard deviation of an honest kernel's error about it. rounded:
    the reference with the kernel's declared rounding points, `true` when it declares none. model: of the difference
    from `rounded`. ensemble: simulated kernels, where the contract requantises. There sigma contains how far `rounded`
    itself is from `true`, for roundings of equal or structured values are not independent.
    """

    true: Float64
    sigma: Float64
    rounded: Float64
    model: ErrorModel | None = None
    ensemble: Ensemble | None = None

    def copy(self) -> Values:
        """A copy whose rows can be replaced."""
        return self.rows(slice(None), copy=True)

    def rows(self, index: Any, *, copy: bool = False) -> Values:
        """The values of some rows."""

        def take(array: Float64) -> Float64:
            taken: Float64 = array[index]
            return taken.copy() if copy else taken

        model = self.model and ErrorModel(**{f.name: take(getattr(self.model, f.name)) for f in fields(ErrorModel)})
        ensemble = self.ensemble and self.ensemble.rows(index, copy=copy)
        return Values(
            true=take(self.true), sigma=take(self.sigma), rounded=take(self.rounded), model=model, ensemble=ensemble
        )

    def replace_rows(self, index: Any, other: Values, picked: Any) -> None:
        """Put the rows `picked` of `other` in the place of the rows `index`."""
        for name in ("true", "sigma", "rounded"):
            getattr(self, name)[index] = getattr(other, name)[picked]
        if self.model is not None and other.model is not None:
            for f in fields(ErrorModel):
                getattr(self.model, f.name)[index] = getattr(other.model, f.name)[picked]
        if self.ensemble is not None and other.ensemble is not None:
            self.ensemble.replace_rows(index, other.ensemble, picked)


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
        "expert_outputs": spec.experts,
        "batched_experts": spec.experts,
        "moe_layer": spec,
        "expert_parallel_moe": spec,
    }
    return parts.get(op)


def essence(numerics: Numerics, case: Case) -> Numerics:
    """The contract with everything left out that does not matter on a case: contracts that agree there are equal."""
    resolved, spec = numerics.resolve(case.dtype), case.spec
    experts = (spec.experts, spec.shared) if case.op == "moe_layer" else (spec.experts,)
    idle = set(STORES) - STORES_OF.get(case.op, set(STORES))
    if not any(one.w13_bias or one.w2_bias for one in experts):
        idle.add("before_bias")
    if not any(one.changes_up for one in experts):
        idle.add("up")
    if experts[0].quantization is None:
        idle.add("dequantised")
    if all(one.activation != "silu" for one in experts):
        idle.add("sigmoid")
    changes = dict.fromkeys(idle, "fp32")
    if resolved.combine == "fp32":
        changes["combine_order"] = "tree"
    return replace(resolved, **changes)  # type: ignore[arg-type]  # stores and combine_order are strings


@np.errstate(all="ignore")  # a NaN, an infinity and a variance beyond float64 are answers
def call_reference(function: Callable[..., Any], case: Case, inputs: dict[str, Any], **more: object) -> Any:
    """Call a reference with the inputs that its signature names, and the case's spec if it takes one."""
    names = inspect.signature(function).parameters
    arguments = {**inputs, **more}
    if "spec" in names:
        arguments["spec"] = spec_part(case.op, case.spec)
    return function(**{name: value for name, value in arguments.items() if name in names})


class Oracle:
    """References of many cases; safe to share between threads, each result computed once.

    load: where inputs come from, `Case.inputs` unless a run shares them between processes. folder: where processes
    share results, which are then computed once by one of them, and only the last few are kept in memory. threads: that
    work on a sampled case, each on an expert of its own.
    """

    def __init__(
        self,
        load: Callable[[Case], dict[str, Any]] = Case.inputs,
        *,
        folder: str | None = None,
        threads: int = 1,
    ) -> None:
        self._folder, self._threads = folder, threads
        self._lock = threading.Lock()
        self._locks: dict[object, threading.Lock] = {}
        self._results: dict[object, Any] = {}
        self._inputs: dict[str, dict[str, Any]] = {}
        self._load = load

    def inputs(self, case: Case) -> dict[str, Any]:
        """The case's inputs as the references read them; do not modify them. Those of the last few cases are kept.

        Quantised weights are the numbers that their codes stand for: a kernel's own arguments are `Case.inputs`. Of a
        sampled case, only the sampled tokens are here.
        """
        with self._lock_of(("inputs", case.key)):
            with self._lock:
                if case.key in self._inputs:
                    return self._inputs[case.key]
            loaded = oracle_inputs(case) if case.sampled else dequantised(case, self._load(case))
            with self._lock:
                while len(self._inputs) >= KEPT_INPUTS:
                    del self._inputs[next(iter(self._inputs))]
                self._inputs[case.key] = loaded
            return loaded

    def values(self, case: Case, numerics: Numerics | None) -> Values:
        """True value, sigma and rounded value under a declared contract, or under the floor contract for None."""
        essential = None if numerics is None else essence(numerics, case)
        values: Values = self._once(("values", case.key, essential), lambda: self._computed(case, essential))
        return values

    def _computed(self, case: Case, numerics: Numerics | None) -> Values:
        inputs = self.inputs(case)
        if not case.sampled:
            return self._values(case, numerics, inputs, {})
        parallel = importlib.import_module(f"{REFERENCES}._parallel")
        with threadpool_limits(1, "blas"), parallel.experts_at_a_time(self._threads):
            return self._values(case, numerics, inputs, {})

    def layer_values(self, case: Case, numerics: Numerics | None, tokens: list[int], topk: tuple[Any, Any]) -> Values:
        """As `values` of a moe_layer case, for some tokens and a given choice of theirs; not kept.

        topk: weights and ids [len(tokens), slots]. Returns values of len(tokens) rows.
        """
        inputs = self.inputs(case)
        some = {**inputs, **{name: inputs[name][tokens] for name in ("hidden_states", "router_logits")}}
        return self._values(case, numerics, some, {"topk": topk})

    @staticmethod
    def weight_values(
        case: Case, inputs: dict[str, Any], numerics: Numerics | None, ids: Any, *, low_steps: bool = False
    ) -> Values:
        """As `values`, of the routing weights that belong to routed ids [T, top_k]; nothing declared means fp32.

        inputs: of the case. low_steps: whether each step after scores stored low is stored as they are.
        """
        declared = numerics or Numerics()
        contract = Numerics(scores=declared.scores, topk_weights=declared.topk_weights, out=declared.topk_weights)
        return Oracle._values(case, contract, inputs, {"topk_ids": ids, "low_steps": low_steps}, routing=True)

    def hard_bound(self, case: Case, numerics: Numerics | None) -> Float64 | None:
        """Bound on |out - true| of a value op's output that no rounding exceeds; None where none is known; not kept."""
        contract = (numerics or FLOOR).resolve(case.dtype)
        function = getattr(importlib.import_module(f"{REFERENCES}._hard_bound"), case.op, None)
        quantisers = [q for q in (contract.a1_quant, contract.a2_quant) if q is not None]
        saturates = any(q.static or q.scale in CARRIES or q.rounding != "nearest" for q in quantisers)
        # What saturates, and stores of dequantised weights, are not in the bound.
        quantised = saturates or case.spec.experts.quantization is not None
        if function is None or contract.accumulate != "fp32-rn" or quantised:
            return None
        bound: Float64 = call_reference(function, case, self.inputs(case), numerics=contract, dtype=case.dtype)
        return bound

    def outputs(self, case: Case) -> tuple[Any, ...]:
        """The reference's own outputs, for ops whose outputs are compared as structures."""
        module = reference_modules()[case.op]
        result = self._once(
            ("outputs", case.key),
            lambda: call_reference(getattr(module, case.op), case, self.inputs(case)),
        )
        return result if isinstance(result, tuple) else (result,)

    @staticmethod
    @np.errstate(all="ignore")
    def _values(
        case: Case,
        numerics: Numerics | None,
        inputs: dict[str, Any],
        more: dict[str, object],
        *,
        routing: bool = False,
    ) -> Values:
        module = importlib.import_module(f"{REFERENCES}._routing_weights") if routing else reference_modules()[case.op]
        function = module.estimate
        contract = (numerics or FLOOR).resolve(case.dtype)
        # A contract that stores nothing low leaves the true value; else sums along rows are the other estimate's.
        known = numerics is not None and (contract.requantises or any(getattr(contract, n) != "fp32" for n in STORES))
        call = partial(call_reference, function, case, inputs, numerics=contract, dtype=case.dtype, **more)
        about_true = call(both=True) if known else call()
        about = about_true.about_rounded or (call(flips=True) if known else about_true)
        sigma, simulated = about_true.sigma, None
        ensembled = contract.requantises and hasattr(module, "variants")
        low_weights = contract.dequantised != "fp32" and case.spec.experts.quantization is not None
        # Routing weights may all be equal, and so are the errors of their rounding; an expert's are all tokens' own.
        if ensembled or routing or low_weights:
            apart = about.value - about_true.value
            if low_weights and not known:
                floor = replace(EXACT_STORES, dequantised=contract.dequantised)
                apart = call_reference(getattr(module, case.op), case, inputs, numerics=floor) - about_true.value
            sigma = np.hypot(sigma, np.where(np.isfinite(apart), apart, 0.0))
        if ensembled:
            of_expert = partial(normal_numbers, case) if case.sampled else None
            noise = module.Noise(VARIANTS, normal_numbers(case), of_expert)
            simulated = call_reference(
                module.variants, case, inputs, numerics=contract, dtype=case.dtype, noise=noise, **more
            )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ones = 1.0 / sigma
            weights = about_true.value / np.square(sigma)
            disagreement = np.minimum(about.estimate.mean_size / ulp(about.value, contract.out), 1.0)
        weights, ones = (np.where(np.isfinite(c), c, 0.0) for c in (weights, ones))
        (variance, flip), (mean_variance, mean_flip) = about.projections(weights, ones)
        ensemble = None
        if simulated is not None:
            with np.errstate(invalid="ignore"):
                errors = (simulated - about.value).astype(np.float32)
            flips = np.sqrt(about.largest_flip(np.square(ones)) / max(ones.shape[1], 1))
            ensemble = Ensemble(errors=errors, flip=flips)
            variance = np.maximum(variance, ensemble.projected_variance(weights))
            mean_variance = np.maximum(mean_variance, ensemble.projected_variance(ones))
        model = ErrorModel(
            deviation=about.sigma,
            disagreement=disagreement,
            weights=weights,
            slope_variance=variance,
            slope_flip=flip,
            mean_variance=mean_variance,
            mean_flip=mean_flip,
        )
        return Values(true=about_true.value, sigma=sigma, rounded=about.value, model=model, ensemble=ensemble)

    def _once(self, key: object, compute: Callable[[], Any]) -> Any:
        with self._lock_of(key):
            if key not in self._results:
                result = compute() if self._folder is None else _shared(Path(self._folder), key, compute)
                with self._lock:
                    while self._folder is not None and len(self._results) >= KEPT_RESULTS:
                        del self._results[next(iter(self._results))]
                    self._results[key] = result
                return result
            return self._results[key]

    def _lock_of(self, key: object) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(key, threading.Lock())


def _shared(folder: Path, key: object, compute: Callable[[], Any]) -> Any:
    """The result of a key from its file, else computed and put there, while other processes that want it wait."""
    path = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.pickle"
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
        file.seek(0)
        if file.read(1):
            file.seek(0)
            return pickle.load(file)  # written by this run
        result = compute()
        try:
            with path.open("wb") as draft:  # closed here, with what it could not write
                pickle.dump(result, draft, protocol=pickle.HIGHEST_PROTOCOL)
        except OSError:  # a full disk: the next one computes it again
            os.truncate(path, 0)
        return result
