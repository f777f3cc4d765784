"""The CUDA C++ kernels: what they say where they cannot run, and their host side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moecheck import RoutingSpec, Unsupported, registry
from moecheck.kernels.cuda import _library, _pairs, plan, routing, rows
from moecheck.kernels.cuda._library import SOURCES, architecture, kernels_recipe, missing_device
from moecheck.kernels.cuda._matrix import side_by_side
from moecheck.runner.worker import inspect_module
from moecheck.scoring.cuda_sources import CUDA_MUTANTS
from moecheck.scoring.source_kernels import kernel_trials

NAMES = {"cuda/align_block_size", "cuda/problem_sizes", "cuda/moe_permute", "cuda/moe_unpermute", "cuda/shuffle_rows",
         "cuda/topk_routing"}  # fmt: skip
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a CUDA device")


@no_gpu
def test_without_a_gpu_every_kernel_is_skipped_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [f"moecheck.kernels.cuda.{name}" for name in ("plan", "rows", "routing")]
    monkeypatch.setattr(registry, "builtin_modules", lambda: modules)
    found = registry.discover_builtin(memory=4 << 30, jobs=1)
    assert found.skipped == dict.fromkeys(NAMES, "needs a CUDA device, and PyTorch sees none")
    assert not found.found
    assert not found.broken


@no_gpu
def test_without_a_gpu_a_call_says_why() -> None:
    assert {module.UNAVAILABLE for module in (plan, rows, routing)} == {missing_device()}
    with pytest.raises(Unsupported, match="needs a CUDA device"):
        rows.shuffle_rows(x=torch.zeros(2, 3), row_map=torch.zeros(2, dtype=torch.int32))
    assert inspect_module("moecheck.kernels.cuda.rows").skip == missing_device()


@no_gpu
def test_without_a_gpu_no_mutant_of_them_counts() -> None:
    found = kernel_trials(CUDA_MUTANTS[:2], seeds=1, jobs=1)
    assert found.skipped == {one.name: missing_device() for one in CUDA_MUTANTS[:2]}
    assert not found.scores
    assert not found.alarms


def test_an_old_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert missing_device() == "needs a GPU of compute capability 8.0 or newer, not 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert missing_device() is None


def test_each_gpu_gets_its_own_code() -> None:
    assert architecture((9, 0)) == "-gencode=arch=compute_90a,code=sm_90a"
    assert architecture((8, 6)) == "-gencode=arch=compute_86,code=sm_86"
    hopper, ampere = (kernels_recipe(SOURCES, capability) for capability in ((9, 0), (8, 0)))
    assert "-DMOECHECK_HOPPER" in hopper.cuda_flags
    assert "-DMOECHECK_HOPPER" not in ampere.cuda_flags
    assert hopper.key != ampere.key


def test_every_source_is_built_or_included() -> None:
    kernels, binding = kernels_recipe(SOURCES, (9, 0)), _library.binding_recipe(SOURCES)
    named = {*kernels.sources, *kernels.headers, *binding.sources, *binding.headers}
    assert named == {path for path in Path(SOURCES).iterdir() if path.is_file()}


@pytest.mark.parametrize("pairs", [0, 1, 256, 257, 262_144, 262_145, 50_000_000])
def test_tiles_are_whole_warps_and_not_too_many(pairs: int) -> None:
    tile = _pairs.tile_of(pairs)
    assert tile % 32 == 0
    assert tile >= _pairs.LEAST_TILE
    assert -(-pairs // tile) <= _pairs.MOST_TILES


def test_a_matrix_is_copied_only_where_its_rows_are_torn() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    assert side_by_side(x) is x
    assert side_by_side(x[:, :3]).data_ptr() == x.data_ptr()
    assert torch.equal(side_by_side(x.T), x.T)
    for torn in (x.T, torch.from_numpy(np.zeros((0, 8), np.float32)), torch.empty_strided((0, 8), (1, 3))):
        assert side_by_side(torn).stride(1) == 1  # the launchers refuse all others


def test_experts_of_a_map_are_counted() -> None:
    assert _pairs.local_experts(7, None) == 7
    assert _pairs.local_experts(4, torch.tensor([-1, 1, 0, -1], dtype=torch.int32)) == 2
    with pytest.raises(Unsupported, match="12288 experts at most, not 12289"):
        _pairs.planned(torch.zeros(1, 1, dtype=torch.int32), None, num_experts=12_289, buckets=12_289)


@pytest.mark.parametrize(
    ("spec", "experts", "message"),
    [
        (RoutingSpec(), 1025, "num_experts up to 1024, not 1025"),
        (RoutingSpec(top_k=33), 64, "top_k up to 32, not 33"),
        (RoutingSpec(num_expert_groups=33, topk_groups=2), 66, "num_expert_groups up to 32, not 33"),
        (RoutingSpec(selection="sparsemixer"), 8, "selection='topk', not 'sparsemixer'"),
        (RoutingSpec(selection="hash"), 8, "selection='topk', not 'hash'"),
        (RoutingSpec(correction_bias="select"), 8, "correction_bias, which was not given"),
        (RoutingSpec(per_expert_scale=True), 8, "per_expert_scale, which was not given"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_gate_says_what_it_does_not_implement(spec: RoutingSpec, experts: int, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        routing.check(spec, num_experts=experts, bias=False, scale=False)


def test_factor_and_shared_weight_go_where_the_spec_puts_them() -> None:
    def placed(**fields: Any) -> tuple[float, float]:
        found = routing.options(RoutingSpec(routed_scaling_factor=2.5, num_fused_shared_experts=1, **fields))
        return found["factor"], found["shared_weight"]

    assert placed() == (2.5, 1.0)
    assert placed(scaling_placement="routed_output") == (1.0, 0.4)
    assert placed(scaling_placement="sum", shared_slot_ranks=2) == (1.0, 0.2)
    assert placed(scaling_needs_renormalize=True) == (1.0, 1.0)
    assert placed(scaling_needs_renormalize=True, renormalize=True) == (2.5, 1.0)
