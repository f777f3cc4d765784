"""The check of a call's contract: number, shapes and dtypes of the outputs."""

from __future__ import annotations

from typing import Any

from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict
from moecheck.formats import FORMATS, AnyArray
from moecheck.ops import OPS, Arg

INTEGERS = ("int32", "int64", "uint32")


def judge_contract(case: Case, inputs: dict[str, Any], outputs: tuple[AnyArray, ...]) -> Judgement:
    """PASS, or PROVEN_WRONG with the first output whose presence, shape or dtype is not the op's."""
    wanted = OPS[case.op].outputs
    if len(outputs) != len(wanted):
        names = ", ".join(arg.name for arg in wanted)
        return _wrong(f"returned {len(outputs)} outputs, {case.op} has {len(wanted)}: {names}.")
    for arg, sizes, output in zip(wanted, output_sizes(case, inputs), outputs, strict=True):
        optional = arg.name == "permuted_scale" and "hidden_scale" not in inputs
        if optional:
            continue
        if len(output.shape) != len(sizes) or any(
            want is not None and got != want for got, want in zip(output.shape, sizes, strict=True)
        ):
            shape = "[" + ", ".join("any" if size is None else str(size) for size in sizes) + "]"
            return _wrong(f"{arg.name} has shape {list(output.shape)}, expected {shape}.")
        allowed = _dtypes(arg, case)
        if output.dtype.name not in allowed:
            return _wrong(f"{arg.name} has dtype {output.dtype.name}, expected {' or '.join(allowed)}.")
    return Judgement(check="contract", verdict=Verdict.PASS)


def output_sizes(case: Case, inputs: dict[str, Any]) -> list[tuple[int | None, ...]]:
    """Shape of each output of the case's op; None for an axis that the kernel chooses."""
    return [tuple(_size(axis, case, inputs) for axis in arg.axes) for arg in OPS[case.op].outputs]


def _size(axis: str, case: Case, inputs: dict[str, Any]) -> int | None:
    routing = case.spec.routing
    if axis.isdigit():
        return int(axis)
    known = {
        "T": case.num_tokens,
        "H": case.hidden_size,
        "E": case.num_local_experts or case.num_experts,
        "k": routing.top_k,
        "k'": routing.top_k + routing.num_fused_shared_experts,
        "I": case.intermediate_size,
    }
    if axis == "R":
        rows = {"act_and_mul": "x", "grouped_gemm": "x", "shuffle_rows": "row_map", "permute": "topk_ids"}[case.op]
        return int(inputs[rows].size if case.op == "permute" else inputs[rows].shape[0])
    if axis == "C":
        return int(inputs["hidden_states"].shape[1])
    if axis == "W":
        return int(inputs["x"].shape[1])
    if axis == "n":
        return int(inputs["w"].shape[1])
    return known.get(axis)


def _dtypes(arg: Arg, case: Case) -> tuple[str, ...]:
    if arg.kind == "input":
        return (FORMATS[case.dtype].storage.name,)
    return ("float32",) if arg.kind == "float32" else INTEGERS


def _wrong(message: str) -> Judgement:
    return Judgement(check="contract", verdict=Verdict.PROVEN_WRONG, message=message[0].upper() + message[1:])
