"""What the CUDA C++ kernels compute: on a GPU, or without one their sources as plain C++ (emulation/emulation.h)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from moecheck.formats import AnyArray, store
from moecheck.kernels.cuda import _library, _pairs, plan, routing, rows
from moecheck.kernels.torch.routing import topk_routing as topk_routing_by_torch
from moecheck.numerics import Numerics
from moecheck.references import align_block_size, permute, problem_sizes
from moecheck.runner.arrays import to_native, to_numpy

from .cuda_emulation import TOOLKIT, build, emulate
from .plumbing import check_align_block_size, check_permute, check_problem_sizes, check_unpermute, ids_and_map
from .routing_cases import SPECS, routing_inputs

GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(
    not GPU and (shutil.which("c++") is None or not TOOLKIT.exists()),
    reason="needs a CUDA device, or a C++ compiler and the CUDA toolkit's headers",
)
ULPS = 16  # of weights from two ways of computing the same function in fp32
DTYPES = ("fp32", "fp16", "bf16")


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if GPU:
        yield
        return
    emulate("moecheck.kernels", build(_library.SOURCES, tmp_path_factory.mktemp("emulated")))
    yield
    for module in (_pairs, plan, rows, routing):
        module.library = _library.library  # type: ignore[attr-defined]


def on(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel as a function of NumPy arrays."""

    def call(**arguments: Any) -> Any:
        given = {k: to_native(v, "cuda") if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
        out = kernel(**given)
        if isinstance(out, tuple):
            return tuple(None if value is None else to_numpy(value) for value in out)
        return to_numpy(out)

    return call


@pytest.mark.parametrize("mapped", [False, True], ids=["all experts", "a map"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_permute(dtype: str, mapped: bool) -> None:
    for tokens, experts in ((1, 8), (70, 5), (3400, 60)):  # of one tile, and of more than a warp's 32
        check_permute(on(rows.moe_permute), tokens=tokens, experts=experts, mapped=mapped, dtype=dtype)


@pytest.mark.parametrize("width", [1, 3, 8, 16, 1030])
@pytest.mark.parametrize("apart", [0, 3], ids=["dense", "rows apart"])
def test_permute_moves_rows_and_scales_of_any_width(width: int, apart: int) -> None:
    ids, _ = ids_and_map(tokens=33, experts=7, top_k=3, mapped=False)
    rng = np.random.default_rng(width)
    x = store(rng.normal(size=(33, width + apart)), "bf16")[:, :width]
    scale = rng.random((33, 5)).astype(np.float32)
    got = on(rows.moe_permute)(hidden_states=x, topk_ids=ids, hidden_scale=scale, num_experts=7)
    expected = permute.permute(hidden_states=x, topk_ids=ids, hidden_scale=scale, num_experts=7)
    used = int(expected[2][-1])
    for mine, theirs in zip(got[:2], expected[:2], strict=True):
        assert theirs is not None
        assert np.array_equal(mine[:used].astype(np.float64), theirs[:used])
    assert np.array_equal(got[2], expected[2])
    assert np.array_equal(got[3], expected[3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpermute(dtype: str) -> None:
    for tokens in (1, 65):
        check_unpermute(on(rows.moe_unpermute), tokens=tokens, dtype=dtype, numerics=Numerics())


@pytest.mark.parametrize("top_k", [1, 8, 9, 32])
@pytest.mark.parametrize("width", [13, 64])
def test_unpermute_adds_any_number_of_slots(top_k: int, width: int) -> None:
    rng = np.random.default_rng(top_k)
    permuted = rng.integers(-8, 9, (top_k * 21, width)).astype(np.float32)
    weights = (rng.integers(1, 5, (21, top_k)) / 4).astype(np.float32)  # every sum is exact
    index = rng.permutation(top_k * 21).reshape(21, top_k).astype(np.int32)
    index[::3, 0] = -1
    out = on(rows.moe_unpermute)(permuted=permuted, topk_weights=weights, inv_permuted_idx=index)
    terms = np.where((index >= 0)[..., None], permuted[index] * weights[..., None], 0.0)
    assert np.array_equal(out, terms.sum(axis=1))


def test_shuffle_rows_reads_what_the_map_names() -> None:
    x = np.arange(70, dtype=np.float32).reshape(10, 7)
    row_map = np.array([9, 0, 0, 4, 8], dtype=np.int32)
    for given in (x, x[:, :6]):
        assert np.array_equal(on(rows.shuffle_rows)(x=given, row_map=row_map), given[row_map])


@pytest.mark.parametrize("mapped", [False, True], ids=["all experts", "a map"])
@pytest.mark.parametrize(("tokens", "experts", "block_size"), [(1, 8, 16), (301, 60, 16), (40, 3, 1), (3400, 9, 64)])
def test_metadata(tokens: int, experts: int, block_size: int, mapped: bool) -> None:
    check_align_block_size(
        on(plan.align_block_size), tokens=tokens, experts=experts, block_size=block_size, mapped=mapped
    )
    check_problem_sizes(on(plan.problem_sizes), tokens=tokens, experts=experts, mapped=mapped)


def test_more_experts_than_a_block_has_threads() -> None:
    ids = np.random.default_rng(0).integers(0, 2500, (90, 4)).astype(np.int32)
    sizes: dict[str, Any] = {"num_experts": 2500, "intermediate_size": 48, "hidden_size": 64}
    got, expected = on(plan.problem_sizes)(topk_ids=ids, **sizes), problem_sizes.problem_sizes(topk_ids=ids, **sizes)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    aligned: dict[str, Any] = {"topk_ids": ids, "block_size": 4, "num_experts": 2500}
    got, expected = on(plan.align_block_size)(**aligned), align_block_size.align_block_size(**aligned)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_no_tokens_and_ids_that_are_nobodys() -> None:
    none = np.zeros((0, 2), np.int32)
    x: dict[str, AnyArray] = {"hidden_states": np.zeros((0, 8), np.float32), "topk_ids": none}
    permuted, _, starts, inverse = on(rows.moe_permute)(**x, num_experts=3)
    assert (permuted.shape, starts.tolist(), inverse.shape) == ((0, 8), [0, 0, 0, 0], (0, 2))
    assert on(plan.align_block_size)(topk_ids=none, block_size=4, num_experts=3)[2].tolist() == [0]
    weights, ids = on(routing.topk_routing)(router_logits=np.zeros((0, 8), np.float32), spec=SPECS["softmax"])
    assert weights.shape == ids.shape == (0, 4)
    nobody = np.full((5, 2), -1, np.int32)
    _, _, starts, inverse = on(rows.moe_permute)(
        hidden_states=np.zeros((5, 8), np.float32), topk_ids=nobody, num_experts=3
    )
    assert starts.tolist() == [0, 0, 0, 0]
    assert (inverse == -1).all()


@pytest.mark.parametrize("experts", [40, 300, 1000])
@pytest.mark.parametrize("name", [name for name in SPECS if name != "sparsemixer"])
def test_the_gate(name: str, experts: int) -> None:
    spec = SPECS[name]
    arrays = routing_inputs(spec, tokens=5, experts=experts)
    weights, ids = on(routing.topk_routing)(**arrays, spec=spec)
    expected = topk_routing_by_torch(**{k: torch.from_numpy(v) for k, v in arrays.items()}, spec=spec)
    assert np.array_equal(ids, expected[1].numpy())
    assert np.all(np.abs(weights - expected[0].numpy()) <= ULPS * np.spacing(np.abs(expected[0].numpy())))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("apart", [0, 3], ids=["dense", "rows apart"])
def test_the_gate_reads_rows_that_begin_anywhere(dtype: str, apart: int) -> None:
    levels = np.random.default_rng(1).permuted(np.tile((np.arange(64) - 32) / 8, (9, 1)), axis=1)
    logits = store(np.pad(levels, ((0, 0), (0, apart))), dtype)[:, :64]
    weights, ids = on(routing.topk_routing)(router_logits=logits, spec=SPECS["softmax"])
    plain = topk_routing_by_torch(router_logits=torch.from_numpy(levels.astype(np.float32)), spec=SPECS["softmax"])
    assert np.array_equal(ids, plain[1].numpy())
    assert np.all(np.abs(weights - plain[0].numpy()) <= ULPS * np.spacing(plain[0].numpy()))
