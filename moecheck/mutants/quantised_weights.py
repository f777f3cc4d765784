"""Mutants of quantised weights: codes, scales and zero points read in the wrong way, before they become numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.quantization import Quantization
from moecheck.quantized_inputs import dequantised

from .call import Call, with_inputs
from .registry import mutant

OP = "fused_experts"
Arrays = dict[str, Any]
MATRICES = ("w13", "w2")


def scheme(case: Case) -> Quantization:
    """How the case's weights are quantised."""
    found = case.spec.experts.quantization
    assert found is not None
    return found


def quantised(case: Case) -> bool:
    return case.spec.experts.quantization is not None


def has(case: Case, predicate: Callable[[Quantization], bool]) -> bool:
    """Whether the case's weights are quantised in such a way."""
    return quantised(case) and predicate(scheme(case))


def several_blocks(case: Case) -> bool:
    """Sums over more than one block in both GEMMs."""
    return has(case, lambda q: 0 < q.columns < min(case.hidden_size, case.intermediate_size) and not q.swizzled)


def _of_arrays(
    name: str,
    words: str,
    change: Callable[[Arrays, Quantization], None],
    when: Callable[[Case], bool],
    *sources: str,
    variant: str = "",
) -> None:
    @mutant(name, words, OP, when=when, sources=sources, variant=variant)
    def changed(call: Call) -> Call:
        """The arguments as a kernel gets them, changed, and then the numbers that they stand for."""
        given = {name: np.array(value) if isinstance(value, np.ndarray) else value
                 for name, value in call.case.inputs().items()}  # fmt: skip
        change(given, scheme(call.case))
        read = dequantised(call.case, given)
        return with_inputs(call, **{matrix: np.nan_to_num(read[matrix]) for matrix in MATRICES})


def _scales(change: Callable[[AnyArray], AnyArray]) -> Callable[[Arrays, Quantization], None]:
    def apply(arrays: Arrays, quantization: Quantization) -> None:
        del quantization
        for matrix in MATRICES:
            arrays[f"{matrix}_scale"] = np.ascontiguousarray(change(arrays[f"{matrix}_scale"]))

    return apply


def _codes(change: Callable[[AnyArray], AnyArray]) -> Callable[[Arrays, Quantization], None]:
    def apply(arrays: Arrays, quantization: Quantization) -> None:
        del quantization
        for matrix in MATRICES:
            arrays[matrix] = np.ascontiguousarray(change(arrays[matrix]))

    return apply


def _zeros_off_by_one(arrays: Arrays, quantization: Quantization) -> None:
    del quantization
    for matrix in MATRICES:
        zeros = arrays[f"{matrix}_zeros"]
        arrays[f"{matrix}_zeros"] = (zeros + (zeros < 15)).astype(zeros.dtype)


def _zeros_dropped(arrays: Arrays, quantization: Quantization) -> None:
    del quantization
    for matrix in MATRICES:
        arrays[f"{matrix}_zeros"] = np.full_like(arrays[f"{matrix}_zeros"], 8)


def _global_scale_dropped(arrays: Arrays, quantization: Quantization) -> None:
    del quantization
    for matrix in MATRICES:
        arrays[f"{matrix}_global_scale"] = np.ones_like(arrays[f"{matrix}_global_scale"])


def _global_scale_of_first(arrays: Arrays, quantization: Quantization) -> None:
    del quantization
    for matrix in MATRICES:
        scales = arrays[f"{matrix}_global_scale"]
        arrays[f"{matrix}_global_scale"] = np.full_like(scales, scales[0])


def _last_block_of_tail(arrays: Arrays, quantization: Quantization) -> None:
    """The scale of a ragged last block is that of the block before: its index is rounded down."""
    del quantization
    for matrix in MATRICES:
        scales = arrays[f"{matrix}_scale"]
        scales[..., -1] = scales[..., -2]


def _halves_exchanged(arrays: Arrays, quantization: Quantization) -> None:
    del quantization
    scales = arrays["w13_scale"]
    arrays["w13_scale"] = np.roll(scales, scales.shape[1] // 2, axis=1)


def _exponent_less_one(scales: AnyArray) -> AnyArray:
    return np.where(scales > 0, scales - 1, scales).astype(scales.dtype)


def _significand_dropped(scales: AnyArray) -> AnyArray:
    values = scales.astype(np.float64)
    return np.asarray(np.exp2(np.floor(np.log2(np.maximum(np.abs(values), 1e-300)))), scales.dtype)


def _nibbles_swapped(codes: AnyArray) -> AnyArray:
    return ((codes >> 4) | (codes << 4)).astype(codes.dtype)


def _as_fnuz(codes: AnyArray) -> AnyArray:
    """The bits of e4m3fn read as e4m3fnuz, whose bias is one more: half of each number."""
    read = codes.view(np.uint8).view(ml_dtypes.float8_e4m3fnuz).astype(np.float64)
    return np.asarray(np.nan_to_num(read).astype(codes.dtype))


_of_arrays(
    "weight_scale_idx_off_by_block",
    "each block of a weight is multiplied with the scale of the next one along the sum",
    _scales(lambda s: np.roll(s, -1, axis=2)),
    several_blocks,
    "vllm-project/vllm#52997",
    "ROCm/aiter#5233",
)
_of_arrays(
    "weight_scale_not_advanced",
    "every block along the sum is multiplied with the scale of the first one",
    _scales(lambda s: np.broadcast_to(s[..., :1], s.shape)),
    several_blocks,
    "ROCm/rocm-libraries#7920",
)
_of_arrays(
    "weight_scale_of_next_row",
    "each row of a weight is multiplied with the scales of the next one",
    _scales(lambda s: np.roll(s, -1, axis=1)),
    lambda case: has(case, lambda q: q.rows == 1 and not q.swizzled),
    "vllm-project/vllm#47910",
)
_of_arrays(
    "weight_scale_of_next_expert",
    "each expert's weights are multiplied with the scales of the next expert",
    _scales(lambda s: np.roll(s, -1, axis=0)),
    lambda case: quantised(case) and case.num_experts > 1 and case.num_local_experts is None,
    "NVIDIA/TensorRT-LLM#10331",
)
_of_arrays(
    "group_idx_ragged",
    "the scale of a shorter last block is that of the block before: its index is rounded down",
    _last_block_of_tail,
    lambda case: has(
        case,
        lambda q: (
            0 < q.columns < min(case.hidden_size, case.intermediate_size)
            and not q.swizzled
            and case.intermediate_size % q.columns != 0
        ),
    ),
    "vllm-project/vllm#52997",
    variant="weights",
)
_of_arrays(
    "weight_scale_gate_up",
    "the scales of gate and up are exchanged, their codes are not",
    _halves_exchanged,
    lambda case: has(case, lambda q: q.rows == 1 and not q.swizzled) and case.spec.experts.gated,
    "vllm-project/vllm#46645",
)
_of_arrays(
    "weight_scale_half",
    "the exponent of E8M0 scales is one too small: every number is half of what it should be",
    _scales(_exponent_less_one),
    lambda case: has(case, lambda q: q.scale == "e8m0"),
    "vllm-project/vllm#43557",
)
_of_arrays(
    "weight_scale_as_power",
    "the significand of float scales is dropped, as if they were E8M0",
    _scales(_significand_dropped),
    lambda case: has(case, lambda q: q.scale in ("float32", "input")),
    "vllm-project/vllm#22399",
    "vllm-project/vllm#38083",
)
_of_arrays(
    "nibble_swap",
    "the two codes of a byte are taken in the wrong order",
    _codes(_nibbles_swapped),
    lambda case: has(case, lambda q: q.packed),
    "sgl-project/sglang#28244",
)
_of_arrays(
    "zp_off_by_one",
    "zero points are one too large, as of checkpoints that store one less",
    _zeros_off_by_one,
    lambda case: has(case, lambda q: q.zero_points),
)
_of_arrays(
    "zp_dropped",
    "zero points are ignored: 8 is taken for all",
    _zeros_dropped,
    lambda case: has(case, lambda q: q.zero_points),
)
_of_arrays(
    "codes_as_fnuz",
    "codes of e4m3fn are read as e4m3fnuz: half of each number",
    _codes(_as_fnuz),
    lambda case: has(case, lambda q: q.weights == "fp8_e4m3fn"),
)
_of_arrays(
    "global_scale_missing",
    "the expert's own scale of nvfp4 weights is left out",
    _global_scale_dropped,
    lambda case: has(case, lambda q: q.scale == "e4m3"),
    "vllm-project/vllm#34577",
)
_of_arrays(
    "global_scale_of_first_expert",
    "every expert has the global scale of the first one",
    _global_scale_of_first,
    lambda case: has(case, lambda q: q.scale == "e4m3"),
    "vllm-project/vllm#37502",
)
_of_arrays(
    "swizzle_ignored",
    "swizzled scales are read row by row",
    _scales(lambda s: s.reshape(s.shape[0], s.shape[2] // 4, s.shape[1], 4).transpose(0, 2, 1, 3).reshape(s.shape)),
    lambda case: has(case, lambda q: q.swizzled),
    "vllm-project/vllm#46645",
)
