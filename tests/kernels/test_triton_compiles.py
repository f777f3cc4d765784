"""The Triton kernels compile for a Hopper GPU without one: the interpreter accepts what a compiler does not.

Loop-carried shapes, layouts, shared memory and registers are known to the compiler alone.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moecheck.kernels.triton import (
    _jit_align,
    _jit_gemm,
    _jit_one_launch,
    _jit_quantised,
    _jit_routing,
    _jit_rows,
    _tiles,
)
from moecheck.tuning.table import load

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    "bf16": ("x", "w", "w13", "bias", "h", "y", "rows", "out"),
    "fp32": ("topk_weights", "weights", "logits", "scale", "scales", "x_scale", "w_scale"),
    "i32": (
        "ids", "expert_map", "counts", "totals", "sorted_token_ids", "expert_ids", "num_tokens_post_padded", "starts",
        "inverse", "index", "topk_ids", "sizes",
    ),
}  # fmt: skip
TYPES = {name: f"*{dtype}" for dtype, names in POINTERS.items() for name in names}
FLOATS = ("eps", "factor", "shared_weight")
FP8 = {"x": "*fp8e4nv", "w": "*fp8e4nv"}
ACTIVATION = {"INTERLEAVED": False, "LIMIT": 0.0, "ALPHA": 1.0, "BETA": 0.0, "ACTIVATION": "silu"}
TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "EVEN_N": False, "EVEN_K": False}
OF_IDS = {"HAS_MAP": True, "BY_LOCAL": True, "BINS": 32, "CHUNK": 128}
QUANTISED = TILE | {"PAIRS_PER_ROW": 2, "HAS_BIAS": True, "WEIGHTED": True, "BLOCK_K": 128}
GATE = {
    "TOP_K": 3, "SHARED": 1, "CAP": 30.0, "BY_LOGITS": False, "OVER_SELECTED": False, "HAS_SCALE": True, "GROUPS": 3,
    "TOPK_GROUPS": 2, "TOP2": True, "GROUP_FILL": float("-inf"), "RENORMALIZE": True, "NORM": 2, "EPS_RULE": "add",
    "BLOCK_T": 4, "BLOCK_G": 4, "BLOCK_P": 16, "BLOCK_S": 4,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cold_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this test's own, so that what another version compiled is not taken for this one's."""
    folder = tmp_path_factory.mktemp("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        yield
    shutil.rmtree(folder)


def compiled(
    function: Any, constants: dict[str, Any], *, warps: int = 4, stages: int = 2, types: dict[str, str] | None = None
) -> Any:
    """The kernel as a cubin's record, from a signature of aligned pointers and sizes that are multiples of 16."""
    known = TYPES | (types or {})
    signature, attributes, values = {}, {}, {}
    for place, name in enumerate(function.arg_names):
        if name in constants:
            signature[name], values[(place,)] = "constexpr", constants[name]
            continue
        signature[name] = "fp32" if name in FLOATS else known.get(name, "i32")
        if name not in (*FLOATS, "num_tokens_post_padded"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=HOPPER, options={"num_warps": warps, "num_stages": stages})


@pytest.mark.parametrize("weighted", [False, True])
def test_experts(weighted: bool) -> None:
    gate_up = {"TOP_K": 2, "HAS_BIAS": True, "WEIGHTED": weighted, "LEAST_M": 32} | ACTIVATION | TILE
    down = {"PAIRS_PER_ROW": 2, "HAS_BIAS": True, "WEIGHTED": not weighted, "ON_INPUT": weighted, "LEAST_M": 32} | TILE
    for function, constants in ((_jit_gemm.gate_up_kernel, gate_up), (_jit_gemm.grouped_gemm_kernel, down)):
        assert "wgmma" in compiled(function, constants).asm["ptx"]


def largest(part: str) -> _tiles.Configuration:
    """The measured configuration whose accumulators are the largest."""
    packaged = _tiles.TUNING.packaged
    assert packaged is not None
    every = [_tiles.from_numbers(found) for rows in load(packaged).layers.values() for found in rows.values()]
    return max(every, key=lambda one: one.block_m * getattr(one, part).block_n)


@pytest.mark.parametrize("part", ["gate_up", "down"])
def test_the_largest_measured_tiles_fit_into_shared_memory_and_registers(part: str, tmp_path: Path) -> None:
    found = largest(part)
    one = getattr(found, part)
    tile = {"BLOCK_M": found.block_m, "BLOCK_N": one.block_n, "BLOCK_K": one.block_k, "EVEN_N": True, "EVEN_K": True}
    tile |= {"HAS_BIAS": False, "LEAST_M": 64}
    if part == "gate_up":
        made = compiled(
            _jit_gemm.gate_up_kernel, {"TOP_K": 2, "WEIGHTED": False} | ACTIVATION | tile, warps=one.num_warps,
            stages=one.num_stages,
        )  # fmt: skip
    else:
        made = compiled(
            _jit_gemm.grouped_gemm_kernel, {"PAIRS_PER_ROW": 1, "WEIGHTED": True, "ON_INPUT": False} | tile,
            warps=one.num_warps, stages=one.num_stages,
        )  # fmt: skip
    assert made.metadata.shared <= _tiles.SHARED_MEMORY
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(made.asm["cubin"])
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    used = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    assert "STACK:0 " in used, used  # what does not fit into registers goes to the stack


@pytest.mark.parametrize(("group", "native"), [(128, False), (128, True), (0, False)])
def test_quantised_experts(group: int, native: bool) -> None:
    constants = QUANTISED | {"INTEGER": False, "SCALE_ROWS": group or 1, "GROUP": group, "NATIVE": native}
    made = compiled(_jit_quantised.quantised_gemm_kernel, constants, types=FP8)
    assert ("e4m3.e4m3" in made.asm["ptx"]) == native


@pytest.mark.parametrize(
    ("ordered", "native", "block_m", "chunk"), [(True, False, 8, 8), (False, False, 64, 0), (True, True, 64, 8)]
)
def test_one_launch(ordered: bool, native: bool, block_m: int, chunk: int) -> None:
    constants = {
        "TOP_K": 8, "SLOTS": 8, "HAS_MAP": True, "WEIGHTED": True, "ORDERED": ordered, "CHUNK": chunk,
        "SCALES_IN_TURNS": chunk == 8, "GROUP": 128, "NATIVE": native, "LARGEST": 448.0, "LEAST_AMAX": 1e-10,
        "LIMIT": 0.0, "ALPHA": 1.0, "BETA": 0.0, "ACTIVATION": "silu", "BLOCK_M": block_m, "ROWS": max(16, block_m),
        "UP_N": 64, "DOWN_N": 128, "BLOCK_K": 128, "BLOCK_H": 128,
    }  # fmt: skip
    codes = dict.fromkeys(("x", "w13", "w2"), "*fp8e4nv")
    sums = dict.fromkeys(("h", "parts", "w13_scale", "w2_scale"), "*fp32")
    integers = dict.fromkeys(("ticket", "ready", "arrived"), "*i32")
    made = compiled(_jit_one_launch.one_launch_kernel, constants, types=codes | sums | integers, stages=3)
    assert made.metadata.shared <= _tiles.SHARED_MEMORY
    text = made.asm["ptx"]
    assert ("e4m3.e4m3" in text) == native
    assert ".acq_rel" in text  # what one program stores is seen by those that wait for it


def test_integer_experts() -> None:
    constants = QUANTISED | {"INTEGER": True, "SCALE_ROWS": 1, "GROUP": 0, "NATIVE": False}
    assert "s8" in compiled(_jit_quantised.quantised_gemm_kernel, constants, types={"x": "*i8", "w": "*i8"}).asm["ptx"]


@pytest.mark.parametrize(("static", "weighted", "integer"), [(True, False, False), (False, True, True)])
def test_quantisers(static: bool, weighted: bool, integer: bool) -> None:
    constants = {
        "GROUP": 128, "BLOCK": 128, "LARGEST": 448.0, "LEAST_AMAX": 1e-10, "INTEGER": integer, "STATIC": static,
        "WEIGHTED": weighted,
    }  # fmt: skip
    codes = {"codes": "*i8" if integer else "*fp8e4nv"}
    assert compiled(_jit_quantised.quantise_rows_kernel, constants, types=codes).asm["cubin"]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("bias", ["select", "logits"])
def test_gate(scoring: str, bias: str) -> None:
    constants = GATE | {"SCORING": scoring, "BIAS": bias}
    assert compiled(_jit_routing.topk_routing_kernel, constants, types={"bias": "*fp32"}).asm["cubin"]


def test_sorting_by_expert() -> None:
    without_map = {name: value for name, value in OF_IDS.items() if name != "BY_LOCAL"}
    for function, constants in (
        (_jit_align.align_few_kernel, OF_IDS | {"PERMUTES": False, "BLOCK": 16, "BLOCKS": 32}),
        (_jit_align.align_few_kernel, OF_IDS | {"PERMUTES": True, "BLOCK": 1, "BLOCKS": 32}),
        (_jit_align.align_kernel, OF_IDS | {"PERMUTES": False}),
        (_jit_align.count_chunks_kernel, OF_IDS),
        (_jit_align.add_chunks_kernel, {"BLOCK": 32}),
        (_jit_align.place_kernel, OF_IDS | {"PERMUTES": True, "PART": 32}),
        (_jit_align.problem_sizes_kernel, without_map),
    ):
        assert compiled(function, constants).asm["cubin"]


def test_rows() -> None:
    tokens, rows = {"TOP_K": 3, "BLOCK_T": 2, "BLOCK_W": 64}, {"BLOCK_R": 2, "BLOCK_W": 64}
    for function, constants, types in (
        (_jit_rows.gather_rows_kernel, rows, {"rows": "*i32"}),
        (_jit_rows.scatter_rows_kernel, tokens, {}),
        (_jit_rows.sum_rows_kernel, tokens | {"WEIGHTED": True, "BY_SLOT": False, "HAS_MAP": False}, {}),
        (_jit_rows.sum_rows_kernel, tokens | {"WEIGHTED": False, "BY_SLOT": True, "HAS_MAP": True}, {}),
        (_jit_rows.act_and_mul_kernel, rows | ACTIVATION, {}),
    ):
        assert compiled(function, constants, types=types).asm["cubin"]
