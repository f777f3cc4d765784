"""Reproduces fp8 kernels' outputs bit for bit, by a model of how Hopper's fp8 tensor cores add up.

    python tools/h200-third-party-accumulator.py reports/h200/third-party-fp8.npz

The file holds outputs of tools/h200-third-party.py collect. The model, for which this table is the evidence: an
instruction adds 32 products to the accumulator. All of them are aligned to the largest of the accumulator's exponent
and the sums of the operands' exponents, cut off after 13 fractional bits and added exactly; the sum is cut off after 13
fractional bits of its own. `promoted`: after 128 terms the sum goes to an fp32 register.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from moecheck.cases import Case
from moecheck.formats import FORMATS, AnyArray, Float64

BITS, TERMS, BLOCK = 13, 32, 128
NOTHING = -10_000  # the exponent of 0
ROWS = 32  # tokens of a case that are computed
Float32 = np.float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What a kernel does beside its sums. block: scales of 1 x 128 and 128 x 128, or of rows and channels (or given
    ones). powers: scales rounded up to powers of two. act: act(g) is stored on its own. weighted: the weighted rows are
    stored, not the unweighted ones.
    """

    block: bool = False
    powers: bool = False
    act: bool = True
    weighted: bool = False


PIPELINES = {
    "vllm/fp8_block": Pipeline(block=True, weighted=True),
    "vllm/fp8_block_ue8m0": Pipeline(block=True, powers=True, weighted=True),
    "vllm/deep_gemm": Pipeline(block=True, powers=True),
    "vllm/cutlass_fp8_channel": Pipeline(),
    "vllm/cutlass_fp8_tensor": Pipeline(),
    "torch/scaled_grouped_mm": Pipeline(act=False),
}
# Name of a model -> terms until a sum goes to an fp32 register (0: all of them), None for sums in fp32.
MODELS = {"fp32": None, "13 bits, promoted": BLOCK, "13 bits": 0}


def main() -> None:
    """Each kernel and case, with the share of bit-identical outputs under each model."""
    print(f"{'kernel':28} {'T,E,H,I,k':20} " + " ".join(f"{name:>18}" for name in MODELS))
    for path in sys.argv[1:]:
        with np.load(path) as stored:
            for key in stored.files:
                name, record = json.loads(key)[:2]
                case = Case.from_json(record)
                if name in PIPELINES:
                    _print(name, case, stored[key].view(FORMATS[case.dtype].storage))


def _print(name: str, case: Case, out: AnyArray) -> None:
    rows = min(ROWS if case.elements < 1 << 22 else 6, case.num_tokens)
    shares = [
        np.mean(_output(case, PIPELINES[name], rows, promoted).view(np.uint16) == out[:rows].view(np.uint16))
        for promoted in MODELS.values()
    ]
    shape = (case.num_tokens, case.num_experts, case.hidden_size, case.intermediate_size, case.spec.routing.top_k)
    print(f"{name:28} {','.join(map(str, shape)):20} " + " ".join(f"{share:18.4f}" for share in shares), flush=True)


def _output(case: Case, pipeline: Pipeline, rows: int, promoted: int | None) -> AnyArray:
    inputs = case.inputs()
    ids, weights = inputs["topk_ids"][:rows], inputs["topk_weights"][:rows]
    slots = np.zeros((*ids.shape, case.hidden_size))
    x = inputs["hidden_states"][:rows].astype(Float32)
    for expert in range(case.num_experts):
        token, slot = np.where(ids == expert)
        gate_up = _stored(_gemm(x[token], inputs, "13", expert, pipeline, promoted))
        gate, up = np.split(gate_up, 2, axis=1)
        act = (gate / (1 + np.exp(-gate))).astype(Float32)
        hidden = _stored((_stored(act) if pipeline.act else act) * up)
        y = _gemm(hidden, inputs, "2", expert, pipeline, promoted)
        weight = weights[token, slot, None]
        slots[token, slot] = _stored(y * weight) if pipeline.weighted else _stored(y) * weight
    summed: AnyArray = slots.sum(axis=1).astype(Float32).astype(ml_dtypes.bfloat16)
    return summed


def _gemm(
    x: AnyArray, inputs: dict[str, AnyArray], number: str, expert: int, pipeline: Pipeline, promoted: int | None
) -> AnyArray:
    """Product of quantised rows and codes, times the scales: [R, N] float32. number: `13` or `2`."""
    w = inputs[f"w{number}"][expert].astype(np.float64)
    w_scale = inputs[f"w{number}_scale"][expert]
    group = BLOCK if pipeline.block else x.shape[1]
    given = inputs.get(f"a{number[0]}_scale")
    codes, x_scale = _quantised(x, group, pipeline.powers, None if given is None else given.reshape(1, 1))
    total = np.zeros((len(x), len(w)), Float32)
    of_rows = np.repeat(w_scale, BLOCK, axis=0)[: len(w)] if pipeline.block else w_scale
    for block, start in enumerate(range(0, x.shape[1], group)):
        columns = slice(start, start + group)
        part = _sum(codes[:, columns], w[:, columns], promoted)
        total += part * x_scale[:, block, None] * of_rows.reshape(-1, w_scale.shape[1])[:, block]
    return total


def _quantised(x: AnyArray, group: int, powers: bool, given: AnyArray | None) -> tuple[Float64, AnyArray]:
    tiles = x.reshape(len(x), x.shape[1] // group, group)
    scale = np.maximum(np.abs(tiles).max(axis=2), Float32(1e-10)) / Float32(448)
    if powers:
        scale = np.exp2(np.ceil(np.log2(scale.astype(np.float64)))).astype(Float32)
    scale = scale if given is None else np.broadcast_to(given.astype(Float32), scale.shape)
    codes = np.clip(tiles / scale[..., None], -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float64).reshape(x.shape), scale


def _sum(a: Float64, b: Float64, promoted: int | None) -> AnyArray:
    """The codes' products [R, K] x [N, K] added up: [R, N] float32."""
    if promoted is None:
        return (a @ b.T).astype(Float32)
    total = np.zeros((len(a), len(b)), Float32)
    part = promoted or a.shape[1]
    for start in range(0, a.shape[1], part):
        accumulator = np.zeros(total.shape)
        for first in range(start, min(start + part, a.shape[1]), TERMS):
            terms = slice(first, first + TERMS)
            accumulator = _instruction(accumulator, a[:, terms], b[:, terms])
        total += accumulator.astype(Float32)
    return total


def _instruction(accumulator: Float64, a: Float64, b: Float64) -> Float64:
    products = a[:, None, :] * b[None, :, :]
    exponents = np.where(products == 0, NOTHING, _exponent(a)[:, None, :] + _exponent(b)[None, :, :])
    largest = np.maximum(exponents.max(axis=2, initial=NOTHING), _exponent(accumulator))
    unit = _unit(largest)
    total = (np.trunc(products / unit[..., None]).sum(axis=2) + np.trunc(accumulator / unit)) * unit
    unit = _unit(_exponent(total))
    result: Float64 = np.trunc(total / unit) * unit
    return result


def _exponent(x: Float64) -> AnyArray:
    return np.where(x == 0, NOTHING, np.frexp(np.abs(x))[1] - 1)


def _unit(exponent: AnyArray) -> Float64:
    unit: Float64 = np.ldexp(1.0, np.clip(exponent - BITS, -1000, 1000))
    return unit


def _stored(x: AnyArray) -> AnyArray:
    return x.astype(ml_dtypes.bfloat16).astype(Float32)


if __name__ == "__main__":
    main()
