"""How expert weights come: as codes with scales, and what the checkpoint says of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .elements import ELEMENTS
from .errors import SpecError

ScaleStorage = Literal["float32", "power_of_two", "input", "e8m0", "e4m3"]
NVFP4_GROUP = 16
# Arguments that only quantised weights come with: those with one row for each expert, and all.
OF_WEIGHTS = tuple(f"{name}_{part}" for name in ("w13", "w2") for part in ("scale", "zeros", "global_scale"))
QUANTISED = (*OF_WEIGHTS, "a1_scale", "a2_scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Weights W = (q - z) s of each expert's matrix [N, K], with one scale for every block of it.

    weights: element format of q, a name in moecheck.elements. rows, columns: of a block, 0 for all of the matrix; the
    scale of W[n, k] is scale[n // rows, k // columns], blocks at the end being smaller. w13 is one matrix: a block may
    hold rows of gate and of up. scale: `float32`; `power_of_two`, float32 too but only powers of two; `input`, stored
    in the dtype of the activations; `e8m0`, uint8 codes of 2^(code - 127); `e4m3`, fp8 codes that an expert's own
    float32 global scale multiplies (nvfp4). zero_points: z is given, one code for every block. swizzled: scales lie in
    tiles of 128 x 4. static_activations: a1_scale and a2_scale are given, by which a kernel that declares a static
    quantiser divides the inputs of its GEMMs.

    Arrays: 8-bit codes as their own dtype (int8 and uint8 for integers), 4-bit codes two to a byte, the even column in
    the low half, 6-bit codes one to a byte. Scales and zeros are [L, ceil(N / rows), ceil(K / columns)].
    """

    weights: str = "fp8_e4m3fn"
    rows: int = 0
    columns: int = 0
    scale: ScaleStorage = "float32"
    zero_points: bool = False
    swizzled: bool = False
    static_activations: bool = False

    def __post_init__(self) -> None:
        if self.weights not in ELEMENTS:
            raise SpecError(f"Quantization.weights={self.weights!r} must be one of {', '.join(ELEMENTS)}.")
        for name in ("rows", "columns"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise SpecError(f"Quantization.{name}={value!r} must be 0 (all of them) or a number of elements.")
        for name in ("zero_points", "swizzled", "static_activations"):
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"Quantization.{name}={getattr(self, name)!r} must be true or false.")
        if self.scale not in ("float32", "power_of_two", "input", "e8m0", "e4m3"):
            raise SpecError(f"Quantization.scale={self.scale!r} must be float32, power_of_two, input, e8m0 or e4m3.")
        if self.scale == "e4m3" and (self.weights, self.rows, self.columns) != ("fp4_e2m1", 1, NVFP4_GROUP):
            raise SpecError("Quantization.scale='e4m3' is of nvfp4: weights='fp4_e2m1', rows=1, columns=16.")
        if self.zero_points and (self.weights != "uint4" or self.scale not in ("float32", "input")):
            raise SpecError("Quantization.zero_points=True needs weights='uint4' and float scales.")
        if self.weights == "uint4" and not self.zero_points:
            raise SpecError("Quantization.weights='uint4' holds no negative numbers without zero_points=True.")

    @property
    def packed(self) -> bool:
        """Whether two codes share a byte."""
        return ELEMENTS[self.weights].bits == 4

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the arguments that the codes w13 and w2 come with."""
        names = ["w13_scale", "w2_scale"]
        names += ["w13_zeros", "w2_zeros"] if self.zero_points else []
        names += ["w13_global_scale", "w2_global_scale"] if self.scale == "e4m3" else []
        return (*names, *(("a1_scale", "a2_scale") if self.static_activations else ()))

    def words(self) -> str:
        """`fp8_e4m3fn weights in blocks of 128 x 128`."""
        if not self.rows and not self.columns:
            where = "with one scale"
        elif self.rows == 1 and not self.columns:
            where = "with a scale for each row"
        elif self.rows == 1:
            where = f"in groups of {self.columns}"
        else:
            where = f"in blocks of {self.rows or 'all'} x {self.columns or 'all'}"
        kind = {"float32": "", "power_of_two": ", powers of two", "input": ", scales in the input's dtype"}
        zeros = " and zero points" if self.zero_points else ""
        return f"{self.weights} weights {where}{kind.get(self.scale, f', {self.scale} scales')}{zeros}"


# The schemes that public checkpoints have, by the names that people use.
SCHEMES = {
    "fp8-tensor-static": Quantization(static_activations=True),
    "fp8-channel": Quantization(rows=1),
    "fp8-block": Quantization(rows=128, columns=128),
    "fp8-block-ue8m0": Quantization(rows=128, columns=128, scale="power_of_two"),
    "fp8-fnuz-channel": Quantization(weights="fp8_e4m3fnuz", rows=1),
    "int8-channel": Quantization(weights="int8", rows=1),
    "int8-block": Quantization(weights="int8", rows=128, columns=128),
    "int8-group128": Quantization(weights="uint8b128", rows=1, columns=128, scale="input"),
    "int4-group32": Quantization(weights="uint4b8", rows=1, columns=32, scale="input"),
    "int4-group64-zeros": Quantization(weights="uint4", rows=1, columns=64, scale="input", zero_points=True),
    "int4-group128": Quantization(weights="uint4b8", rows=1, columns=128, scale="input"),
    "int4-channel": Quantization(weights="uint4b8", rows=1, scale="input"),
    "mxfp4": Quantization(weights="fp4_e2m1", rows=1, columns=32, scale="e8m0"),
    "mxfp6-e2m3": Quantization(weights="fp6_e2m3", rows=1, columns=32, scale="e8m0"),
    "mxfp6-e3m2": Quantization(weights="fp6_e3m2", rows=1, columns=32, scale="e8m0"),
    "mxfp8": Quantization(rows=1, columns=32, scale="e8m0"),
    "mxint4": Quantization(weights="int4", rows=1, columns=32, scale="e8m0"),
    "nvfp4": Quantization(weights="fp4_e2m1", rows=1, columns=NVFP4_GROUP, scale="e4m3"),
    "nvfp4-swizzled": Quantization(weights="fp4_e2m1", rows=1, columns=NVFP4_GROUP, scale="e4m3", swizzled=True),
}


def scheme_name(quantization: Quantization) -> str:
    """The scheme's name, or its format where it has none."""
    return next((name for name, other in SCHEMES.items() if other == quantization), quantization.weights)
