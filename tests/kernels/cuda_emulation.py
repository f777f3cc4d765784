"""The CUDA C++ kernels without a GPU: their sources as plain C++ (emulation/emulation.h), called as the binding is."""

from __future__ import annotations

import ctypes
import importlib
import re
import subprocess
from ctypes import byref, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

HEADER = Path(__file__).parent / "emulation" / "emulation.h"
TOOLKIT = Path("/usr/local/cuda/include")
ALIGNED = ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error")  # as on a GPU, such an access is a fault
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # MoecheckDtype
LAUNCH = re.compile(r"(\w+(?:<[\w, ]+>)?)<<<([^;]+?), ([^,;]+?), ([^,;]+?), stream>>>\(")
DYNAMIC = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?([\w ]+?) (\w+)\[\];")


def as_plain_cpp(text: str) -> str:
    """A .cu file with its launches and dynamic shared memory as calls of the emulation."""
    text = re.sub(r"\bblockDim\.x", "emulation::block_size()", text)
    text = LAUNCH.sub(r"emulation::launch(\2, \3, \4, \1, ", text)
    return DYNAMIC.sub(r"\1* \2 = static_cast<\1*>(emulation::dynamic_shared());", text)


def build(sources: Path, folder: Path) -> Emulated:
    """The kernels of a folder of sources, compiled by the host's compiler into `folder`."""
    objects = []
    for file in sorted(sources.glob("*.cu")):
        plain = folder / f"{file.stem}.cpp"
        plain.write_text(as_plain_cpp(file.read_text(encoding="utf-8")), encoding="utf-8")
        objects.append(plain)
    library = folder / "kernels.so"
    flags = ("-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-ffp-contract=off", *ALIGNED)
    includes = ("-include", HEADER, "-I", sources, "-I", TOOLKIT)
    command = ["c++", *flags, *map(str, includes), *map(str, objects), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    return Emulated(library)


def emulate(package: str, kernels: Emulated) -> None:
    """Have the kernels of a package, `moecheck.kernels` or a copy of it, run on the emulation from now on."""
    for name in ("_pairs", "plan", "rows", "routing"):
        module = importlib.import_module(f"{package}.cuda.{name}")
        module.library = lambda: kernels  # type: ignore[attr-defined]


class Gate(ctypes.Structure):
    """MoecheckGate of csrc/launchers.h."""

    _fields_ = (
        [(name, c_void_p) for name in ("logits", "logit_bias", "choice_bias", "expert_scale", "weights", "ids")]
        + [(name, c_int64) for name in ("stride", "num_tokens")]
        + [(name, c_int32) for name in ("dtype", "num_experts", "top_k", "num_groups", "topk_groups", "num_shared",
                                        "scoring", "eps_rule", "by_logits", "over_selected", "top2_sum", "mask_zero",
                                        "renormalize")]
        + [(name, c_float) for name in ("softcap", "norm", "eps", "factor", "shared_weight")]
    )  # fmt: skip


class Pairs(ctypes.Structure):
    """MoecheckPairs of csrc/launchers.h."""

    _fields_ = (
        ("ids", c_void_p), ("expert_map", c_void_p), ("num_pairs", c_int64), ("num_experts", c_int32),
        ("num_buckets", c_int32), ("by_global", c_int32),
    )  # fmt: skip


class Emulated:
    """The methods of the binding's Kernels, on CPU tensors."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def _call(self, name: str, *arguments: Any) -> None:
        given = [_pointer(a) if a is None or isinstance(a, torch.Tensor) else a for a in arguments]
        error = getattr(self.library, f"moecheck_{name}")(*given, None)
        assert error == 0, f"{name}: cudaError {error}"

    def gate(
        self, logits: Any, logit_bias: Any, choice_bias: Any, scale: Any, weights: Any, ids: Any, options: Any
    ) -> None:
        tensors = {"logits": logits, "logit_bias": logit_bias, "choice_bias": choice_bias, "expert_scale": scale,
                   "weights": weights, "ids": ids}  # fmt: skip
        sizes = {"stride": logits.stride(0), "num_tokens": len(logits), "num_experts": logits.shape[1]}
        _check_rows(logits)
        addresses = {name: _pointer(tensor) for name, tensor in tensors.items()}
        self._call("gate", byref(Gate(**addresses, **sizes, dtype=DTYPES[logits.dtype], **options)))

    def plan(self, ids: Any, map_: Any, experts: int, by_global: bool, tile: int, counts: Any, totals: Any) -> None:
        pairs = _pairs(ids, map_, experts, counts.shape[1], by_global)
        self._call("plan", byref(pairs), c_int64(tile), c_int64(len(counts)), counts, totals)

    def starts(
        self, totals: Any, multiple: int, starts: Any, sizes1: Any, sizes2: Any, inter: int, hidden: int
    ) -> None:
        self._call("starts", totals, len(totals), multiple, starts, sizes1, sizes2, inter, hidden)

    def place(
        self, ids: Any, map_: Any, experts: int, by_global: bool, tile: int, multiple: int, counts: Any, totals: Any,
        starts: Any, position_of_pair: Any, pair_at: Any,
    ) -> None:  # fmt: skip
        pairs = _pairs(ids, map_, experts, counts.shape[1], by_global)
        self._call("place", byref(pairs), c_int64(tile), c_int64(len(counts)), multiple, counts, totals, starts,
                   position_of_pair, pair_at)  # fmt: skip

    def blocks(
        self, ids: Any, map_: Any, experts: int, starts: Any, block: int, pair_at: Any, expert_of_block: Any, post: Any
    ) -> None:
        pairs = _pairs(ids, map_, experts, len(starts) - 1, True)
        self._call("blocks", byref(pairs), starts, c_int64(pair_at.numel()), block, pair_at, expert_of_block, post)

    def scatter_rows(self, x: Any, positions: Any, out: Any) -> None:
        _check_rows(x)
        size = x.element_size()
        self._call("scatter_rows", x, c_int64(x.stride(0) * size), c_int64(len(x)), c_int64(x.shape[1] * size),
                   positions, positions.shape[1], out)  # fmt: skip

    def gather_rows(self, x: Any, row_map: Any, out: Any) -> None:
        _check_rows(x)
        size = x.element_size()
        self._call("gather_rows", x, c_int64(x.stride(0) * size), c_int64(len(x)), c_int64(x.shape[1] * size), row_map,
                   c_int64(len(row_map)), out)  # fmt: skip

    def sum_rows(self, rows: Any, weights: Any, index: Any, out: Any) -> None:
        _check_rows(rows)
        self._call("sum_rows", rows, DTYPES[rows.dtype], c_int64(rows.stride(0)), c_int64(len(rows)),
                   c_int64(rows.shape[1]), weights, index, c_int64(len(index)), index.shape[1], out)  # fmt: skip


def _check_rows(x: torch.Tensor) -> None:
    assert x.shape[1] <= 1 or x.stride(1) == 1, "as the binding's check_rows"


def _pairs(ids: Any, map_: Any, experts: int, buckets: int, by_global: bool) -> Pairs:
    for indices in (ids, map_):
        assert indices is None or (indices.dtype == torch.int32 and indices.is_contiguous()), "as the binding's array()"
    return Pairs(ids=_pointer(ids), expert_map=_pointer(map_), num_pairs=ids.numel(), num_experts=experts,
                 num_buckets=buckets, by_global=by_global)  # fmt: skip


def _pointer(tensor: torch.Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())
