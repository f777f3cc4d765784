"""The `@moecheck.kernel` decorator: what a kernel under test declares about itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from .errors import UsageError, check_known
from .formats import FORMATS
from .numerics import Numerics
from .ops import ALTERNATIVES, OPS
from .quantization import SCHEMES, Quantization
from .spec import MoESpec
from .tuning import Tuning
from .weight_layout import WeightLayout

Backend = Literal["numpy", "torch", "triton", "cuda", "jax", "pallas_tpu", "pallas_gpu"]
BACKENDS = ("numpy", "torch", "triton", "cuda", "jax", "pallas_tpu", "pallas_gpu")
TieRule = Literal["lowest_index"]
F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What a kernel says of itself; picklable, so it travels between processes without the function.

    name: identity in reports. op, backend: names of moecheck.ops and BACKENDS. dtypes: format names that it accepts.
    numerics: its declared rounding points, None when undeclared. deterministic, batch_invariant: declared capabilities,
    None when undeclared. tie: the declared rule for equal routing scores. specs: the only semantics that it
    implements, () when it reads them from its `spec` argument. arguments: what its signature names,
    required: those of them without a default. weight_layout: how it wants weights, None for the plain arrangement.
    quantizations: how the weights that it takes may be quantised, () for plain ones only. capturable: whether it
    declares that a CUDA graph can hold its call, None when undeclared. devices: the most ranks that it can spread a
    call over; on a CPU, JAX has so many simulated devices in its process. tunable: the name in files of
    configurations (moecheck.tuning), empty where there is nothing to tune.
    origin: file:line of the function. spec_string: how a child process finds it again.
    """

    name: str
    op: str
    backend: str
    dtypes: tuple[str, ...]
    numerics: Numerics | None
    deterministic: bool | None
    batch_invariant: bool | None
    tie: TieRule | None
    specs: tuple[MoESpec, ...]
    arguments: tuple[str, ...]
    required: tuple[str, ...]
    origin: str
    spec_string: str
    weight_layout: WeightLayout | None = None
    quantizations: tuple[Quantization, ...] = ()
    capturable: bool | None = None
    devices: int = 1
    tunable: str = ""


def kernel(
    op: str,
    *,
    backend: Backend,
    name: str | None = None,
    dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16"),
    numerics: Numerics | None = None,
    deterministic: bool | None = None,
    batch_invariant: bool | None = None,
    tie: TieRule | None = None,
    specs: tuple[MoESpec, ...] = (),
    weight_layout: WeightLayout | None = None,
    quantizations: tuple[Quantization, ...] = (),
    capturable: bool | None = None,
    devices: int = 1,
    tuning: Tuning | None = None,
) -> Callable[[F], F]:
    """Declare the decorated function as a kernel under test for `op`; the function itself is returned unchanged.

    The function takes arrays of its backend by the names of `moecheck.ops.OPS[op]`, may take `spec` (the op's part
    of the MoESpec) and `out` (a poisoned output array), and returns the op's outputs in order.
    weight_layout: weights arrive so arranged, and `spec.gate_up_layout` says the same of gate and up.
    quantizations: schemes (moecheck.quantization) of the weights that it takes; plain ones are among them where it has
    defaults for the scales. A kernel that names `w13_scale` and no schemes is tried on all of them.
    capturable: a CUDA graph can hold its call; that is tried on a CUDA device, and reported where nothing is declared.
    devices: over how many devices it can spread a call (cases of expert_parallel_moe with more ranks are skipped).
    tuning: the numbers that `moecheck tune` chooses (docs/tuning.md).
    Raises UsageError for an unknown op, backend or dtype.
    """
    check_known("op", op, OPS)
    check_known("backend", backend, BACKENDS)
    for dtype in dtypes:
        check_known("dtype", dtype, FORMATS)

    def declare(function: F) -> F:
        declaration = describe(
            function,
            op=op,
            backend=backend,
            name=name,
            dtypes=dtypes,
            numerics=numerics,
            deterministic=deterministic,
            batch_invariant=batch_invariant,
            tie=tie,
            specs=specs,
            weight_layout=weight_layout,
            quantizations=quantizations,
            capturable=capturable,
            devices=devices,
        )
        if tuning is not None:
            declaration = replace(declaration, tunable=tuning.kernel)
            function.__moecheck_tuning__ = tuning  # type: ignore[attr-defined]  # functions take attributes
        function.__moecheck__ = declaration  # type: ignore[attr-defined]  # as above
        return function

    return declare


def describe(
    function: Callable[..., object],
    *,
    op: str,
    backend: str,
    name: str | None = None,
    dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16"),
    numerics: Numerics | None = None,
    deterministic: bool | None = None,
    batch_invariant: bool | None = None,
    tie: TieRule | None = None,
    specs: tuple[MoESpec, ...] = (),
    weight_layout: WeightLayout | None = None,
    quantizations: tuple[Quantization, ...] = (),
    capturable: bool | None = None,
    devices: int = 1,
) -> Declaration:
    """The Declaration of a plain function; raises UsageError when its signature cannot serve `op`."""
    if numerics is not None and numerics.accumulate.startswith("hopper-fp8") and not numerics.requantises:
        raise UsageError(
            f"{function.__name__} declares accumulate={numerics.accumulate!r}, which is of fp8 operands; declare "
            "a1_quant or a2_quant with it."
        )
    if numerics is not None and numerics.combine_order == "rank" and op != "expert_parallel_moe":
        raise UsageError(f"{function.__name__} declares combine_order='rank', and {op} knows no ranks.")
    _check_layout(function.__name__, op, weight_layout)
    arguments, required = _argument_names(function, op)
    if not quantizations and "w13_scale" in arguments:
        quantizations = tuple(SCHEMES.values())
    _check_quantised(function.__name__, numerics, quantizations, arguments, required)
    code = inspect.unwrap(function).__code__
    qualified = f"{function.__module__}:{function.__name__}"
    return Declaration(
        name=name or qualified,
        op=op,
        backend=backend,
        dtypes=dtypes,
        numerics=numerics,
        deterministic=deterministic,
        batch_invariant=batch_invariant,
        tie=tie,
        specs=specs,
        weight_layout=weight_layout,
        quantizations=quantizations,
        capturable=capturable,
        devices=devices,
        arguments=arguments,
        required=required,
        origin=f"{code.co_filename}:{code.co_firstlineno}",
        spec_string=qualified,
    )


def _check_layout(name: str, op: str, layout: WeightLayout | None) -> None:
    """Raise UsageError where the op has nothing to arrange so."""
    if layout is None:
        return
    names = OPS[op].arg_names
    if op == "grouped_gemm" and layout != WeightLayout(transposed=layout.transposed):
        raise UsageError(f"{name} declares {layout}; of grouped_gemm's weights only `transposed` can be chosen.")
    if not {"w13", "w"} & set(names):
        raise UsageError(f"{name} declares a weight_layout, and {op} takes no weights.")


def _check_quantised(
    name: str,
    numerics: Numerics | None,
    quantizations: tuple[Quantization, ...],
    arguments: tuple[str, ...],
    required: tuple[str, ...],
) -> None:
    """Raise UsageError for schemes without their arguments, and for static quantisers without their scales."""
    for quantization in quantizations:
        if not isinstance(quantization, Quantization):
            raise UsageError(f"{name} declares the quantization {quantization!r}, which is no moecheck.Quantization.")
        if not {"w13_scale", "w2_scale"} <= set(arguments):
            raise UsageError(f"{name} declares {quantization.words()}, and takes no w13_scale and w2_scale.")
    declared = numerics or Numerics()
    for scale, quantizer in (("a1_scale", declared.a1_quant), ("a2_scale", declared.a2_quant)):
        if quantizer is not None and quantizer.static and scale not in required:
            raise UsageError(f"{name} declares a static quantiser, so it must need {scale}, without a default.")


def _argument_names(function: Callable[..., object], op: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    others = {name for name, own in ALTERNATIVES.items() if own in OPS[op].arg_names}
    known = {*OPS[op].arg_names, *others, "spec", "out"}
    taken, required = [], []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise UsageError(f"{function.__name__} takes *args or **kwargs; name the arguments of {op!r} that it uses.")
        if parameter.name in known:
            taken.append(parameter.name)
            if parameter.default is parameter.empty:
                required.append(parameter.name)
        elif parameter.default is parameter.empty:
            raise UsageError(
                f"{function.__name__} needs the argument {parameter.name!r}, which {op!r} does not have; "
                f"it offers {', '.join(OPS[op].arg_names)}, spec and out."
            )
    return tuple(taken), tuple(required)
