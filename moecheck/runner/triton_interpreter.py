"""Corrects the numerics of Triton's interpreter, which differ from every GPU's.

The stock interpreter multiplies the bit patterns of bfloat16 operands, truncates when it narrows to bfloat16, loses
the carry when it rounds to an 8-bit format and makes Inf and NaN finite there. Here operands are decoded to float32,
casts round to nearest-even as the hardware does, and NumPy's warnings about Inf and NaN are silent, as a GPU is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter

import moecheck

OLDEST, NEWEST = (3, 6), (3, 9)
_METHODS = {
    "cast_impl": ("self", "src", "dst_type"),
    "create_fp_to_fp": ("self", "src", "dst_type", "rounding_mode"),
    "create_dot": ("self", "a", "b", "d", "input_precision", "max_num_imprecise_acc"),
    "binary_op": ("self", "lhs", "rhs", "op"),
}
# Formats whose values the interpreter keeps as bit patterns in unsigned integers.
_CODED = {
    tl.bfloat16: ml_dtypes.bfloat16,
    tl.float8e4nv: ml_dtypes.float8_e4m3fn,
    tl.float8e4b8: ml_dtypes.float8_e4m3fnuz,
    tl.float8e5: ml_dtypes.float8_e5m2,
    tl.float8e5b16: ml_dtypes.float8_e5m2fnuz,
}
STOCK: dict[str, Any] = {name: getattr(interpreter.InterpreterBuilder, name, None) for name in _METHODS}
# Measured on an H200: both of its 8-bit formats saturate, Inf too.
_SATURATING = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}
_FLOATS = {tl.float16: np.float16, tl.float32: np.float32, tl.float64: np.float64}


def correct() -> None:
    """Replace the interpreter's casts, dot, elementwise arithmetic and launch by correct ones; once per process.

    Raises Unsupported where this release of Triton has other internals than those known to be wrong.
    """
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "corrected_by_moecheck", False):
        return
    check_internals()
    launch = interpreter.GridExecutor.__call__

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if not (_known(src.dtype.scalar) and _known(dst_type.scalar)):
            return STOCK["create_fp_to_fp"](self, src, dst_type, rounding_mode)
        toward_zero = rounding_mode == interpreter._ir.ROUNDING_MODE.RTZ
        return _handle(_encode(_decode(src), dst_type.scalar, toward_zero=toward_zero), dst_type.scalar)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar in _CODED or dst_type.scalar in _CODED:
            return create_fp_to_fp(self, src, dst_type, None)
        return STOCK["cast_impl"](self, src, dst_type)

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        if not (_known(a.dtype.scalar) and _known(b.dtype.scalar)):
            return STOCK["create_dot"](self, a, b, d, input_precision, max_num_imprecise_acc)
        product = np.matmul(_decode(a), _decode(b))
        return _handle((product + d.data).astype(d.data.dtype), d.dtype.scalar)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        scalar = lhs.dtype.scalar
        if scalar not in _CODED or rhs.dtype.scalar != scalar:
            return STOCK["binary_op"](self, lhs, rhs, op)
        out = op(_decode(lhs), _decode(rhs))
        return _handle(out if out.dtype == bool else _encode(out, scalar), scalar)

    def silent_launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"), _patched_once():
            return launch(self, *args, **kwargs)

    for method in (create_fp_to_fp, cast_impl, create_dot, binary_op):
        setattr(builder, method.__name__, method)
    interpreter.GridExecutor.__call__ = silent_launch
    builder.corrected_by_moecheck = True


@contextmanager
def _patched_once() -> Iterator[None]:
    """Within a launch, patch Triton's language modules once, not again at each call of a device function.

    The interpreter does so at every call, which takes a quarter of all its time.
    """
    patch: Any = getattr(interpreter, "_patch_lang", None)
    patched: dict[frozenset[int], Any] = {}
    if patch is None:  # another release's way
        yield
        return

    def once(function: Any) -> Any:
        modules = frozenset(id(one) for one in function.__globals__.values() if one is tl or one is tl.core)
        if modules not in patched:
            patched[modules] = patch(function)
        return patched[modules]

    interpreter._patch_lang = once
    try:
        yield
    finally:
        interpreter._patch_lang = patch


def check_internals() -> None:
    """Raise Unsupported unless the interpreter has the methods that are replaced, with the known parameters."""
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if not OLDEST <= version <= NEWEST:
        raise moecheck.Unsupported(
            f"Triton {triton.__version__}: the interpreter's numerics are known for 3.6 to 3.9 only."
        )
    if version < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        raise moecheck.Unsupported(
            f"Triton {triton.__version__}: its interpreter needs NumPy below 2.4, not {np.__version__}."
        )
    for name, parameters in _METHODS.items():
        method = STOCK[name]
        found = None if method is None else tuple(inspect.signature(method).parameters)
        if found != parameters:
            raise moecheck.Unsupported(
                f"Triton {triton.__version__}: InterpreterBuilder.{name} takes {found}, expected {parameters}."
            )


def _known(scalar: Any) -> bool:
    return scalar in _CODED or scalar in _FLOATS


def _decode(handle: Any) -> Any:
    """The values of a float handle, narrow formats as float32."""
    coded = _CODED.get(handle.dtype.scalar)
    if coded is None:
        return handle.data if handle.data.dtype == np.float64 else handle.data.astype(np.float32)
    return np.ascontiguousarray(handle.data).view(coded).astype(np.float32)


def _encode(values: Any, scalar: Any, *, toward_zero: bool = False) -> Any:
    """Values rounded to nearest-even (or toward zero) in format `scalar`, as the interpreter keeps it.

    An overflow, Inf included, saturates where a GPU's conversion does; NaN stays NaN.
    """
    target = _CODED.get(scalar) or _FLOATS[scalar]
    largest = _SATURATING.get(scalar, np.inf)
    values = np.clip(values, -largest, largest)
    with np.errstate(all="ignore"):
        rounded = np.asarray(values).astype(target)
        bits = rounded.view(np.dtype(f"uint{8 * rounded.itemsize}"))
        if toward_zero:
            bits = bits - (np.abs(rounded.astype(np.float64)) > np.abs(values)).astype(bits.dtype)
    return bits if scalar in _CODED else bits.view(target)


def _handle(data: Any, scalar: Any) -> Any:
    return interpreter.TensorHandle(data, scalar)
