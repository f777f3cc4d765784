"""The CUDA C++ sources, without a GPU: they compile without spilling; the gate's arithmetic is right on the host."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import moecheck.kernels
from moecheck.formats import ulp
from moecheck.references.topk_routing import sigmoid, sqrt_softplus
from moecheck.scoring.cuda_sources import CUDA_MUTANTS
from moecheck.scoring.rewrite import replaced

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
KERNELS = Path(next(iter(moecheck.kernels.__path__))).resolve()
SOURCES = KERNELS / "cuda" / "csrc"
HOPPER = ("-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "-DMOECHECK_HOPPER")
ULPS = 4  # of a composition of three functions of the C library and a division


def nvcc(*arguments: object) -> str:
    done = subprocess.run(["nvcc", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(path.name for path in SOURCES.glob("*.cu")))
def test_it_compiles_for_hopper_and_keeps_everything_in_registers(name: str, tmp_path: Path) -> None:
    log = nvcc(*HOPPER, "-O3", "-Xptxas", "-v", "-c", SOURCES / name, "-o", tmp_path / "out.o")
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill", log)]
    assert spills
    assert set(spills) == {0}


def test_it_compiles_for_an_older_gpu(tmp_path: Path) -> None:
    nvcc("-std=c++17", "-gencode=arch=compute_80,code=sm_80", "-c", SOURCES / "rows.cu", "-o", tmp_path / "out.o")


@pytest.mark.parametrize("kernel", ["sum_rows_kernelI6__halfLi8E", "sum_rows_kernelI13__nv_bfloat16Li8E",
                                    "sum_rows_kernelIfLi4E", "scatter_rows_kernelI5uint4E",
                                    "gather_rows_kernelI5uint4E"])  # fmt: skip
def test_rows_are_read_and_written_16_bytes_at_a_time(kernel: str, ptx_of_rows: str) -> None:
    (body,) = [text for text in ptx_of_rows.split(".entry ")[1:] if kernel in text.partition("(")[0]]
    assert re.search(r"ld\.global\S*\.v4", body)
    assert re.search(r"st\.global\S*\.v4", body)
    assert not re.search(r"ld\.global\S*[us]16", body)


@pytest.fixture(scope="module")
def ptx_of_rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("ptx") / "rows.ptx"
    nvcc(*HOPPER, "-ptx", SOURCES / "rows.cu", "-o", out)
    return out.read_text(encoding="utf-8")


@pytest.mark.parametrize("one", CUDA_MUTANTS, ids=lambda one: one.name)
def test_each_mutant_fits_the_source(one: object) -> None:
    text = (KERNELS / one.file).read_text(encoding="utf-8")  # type: ignore[attr-defined]  # a SourceMutant
    assert replaced(text, one.rewrites) != text  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    out = tmp_path_factory.mktemp("host") / "gate_math.so"
    nvcc(
        "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "-I", SOURCES, Path(__file__).parent / "gate_math.cu", "-o", out
    )
    library = ctypes.CDLL(str(out))
    for name in ("host_own_score", "host_soft_capped", "host_guarded"):
        getattr(library, name).restype = ctypes.c_float
    library.host_ordered_key.restype = ctypes.c_uint
    return library


@pytest.mark.parametrize(("scoring", "reference"), [(1, sigmoid), (2, sqrt_softplus)], ids=["sigmoid", "sqrt_softplus"])
def test_scores_are_right_where_they_are_tiny_too(host: ctypes.CDLL, scoring: int, reference: object) -> None:
    x = np.concatenate([np.linspace(-86, 86, 4001), [0.0, -0.0, 1e-30, -1e-30, 300.0]]).astype(np.float32)
    got = np.array([host.host_own_score(ctypes.c_float(v), scoring) for v in x], dtype=np.float64)
    expected = reference(x.astype(np.float64))  # type: ignore[operator]
    assert np.all(np.abs(got - expected) <= ULPS * ulp(expected, "fp32"))
    assert host.host_own_score(ctypes.c_float(-100.0), scoring) > 0.0


def test_a_score_that_is_not_finite_counts_as_0(host: ctypes.CDLL) -> None:
    assert [host.host_own_score(ctypes.c_float(math.nan), scoring) for scoring in (1, 2)] == [0.0, 0.0]
    assert host.host_own_score(ctypes.c_float(math.inf), 1) == 1.0
    assert host.host_own_score(ctypes.c_float(math.inf), 2) == 0.0
    assert host.host_own_score(ctypes.c_float(-math.inf), 1) == 0.0


def test_keys_are_ordered_as_the_numbers_are(host: ctypes.CDLL) -> None:
    finite = np.concatenate([-np.logspace(38, -40, 200), [0.0], np.logspace(-40, 38, 200)]).astype(np.float32)
    values = [-math.inf, *np.unique(finite).tolist(), math.inf]
    keys = [host.host_ordered_key(ctypes.c_float(value)) for value in values]
    assert keys == sorted(set(keys))
    assert keys[0] > 0  # below it is only "no expert"
    assert host.host_ordered_key(ctypes.c_float(-0.0)) == host.host_ordered_key(ctypes.c_float(0.0))


def test_soft_cap_and_guards(host: ctypes.CDLL) -> None:
    def call(name: str, *arguments: float | int) -> float:
        given = [ctypes.c_float(a) if isinstance(a, float) else a for a in arguments]
        return float(getattr(host, name)(*given))

    assert call("host_soft_capped", 5.0, 0.0) == 5.0
    assert call("host_soft_capped", math.inf, 30.0) == 30.0
    assert call("host_soft_capped", -math.inf, 30.0) == -30.0
    assert [call("host_guarded", 0.25, rule, 0.5) for rule in range(4)] == [0.25, 0.75, 0.5, 0.25]
    assert [call("host_guarded", 0.0, rule, 0.5) for rule in range(4)] == [0.0, 0.5, 0.5, 1.0]
