"""The compiled kernels, as functions of tensors; built when this module is imported where there is a GPU."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch

from moecheck.errors import Unsupported

from ._build import Recipe, built

SOURCES = Path(__file__).parent / "csrc"
LEAST_CAPABILITY = (8, 0)  # of redux.sync


def missing_device() -> str | None:
    """Why no CUDA kernel can run here."""
    if not torch.cuda.is_available():
        return "needs a CUDA device, and PyTorch sees none"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return "needs a GPU of compute capability 8.0 or newer, not {}.{}".format(*capability)
    return None


def architecture(capability: tuple[int, int]) -> str:
    """The option of nvcc for a GPU: 9.0 gets the instructions that only Hopper has."""
    name = "{}{}".format(*capability) + ("a" if capability == (9, 0) else "")
    return f"-gencode=arch=compute_{name},code=sm_{name}"


def kernels_recipe(folder: Path, capability: tuple[int, int]) -> Recipe:
    """The kernels themselves, plain C to the outside."""
    return Recipe(
        name="moecheck_kernels",
        sources=tuple(sorted(folder.glob("*.cu"))),
        headers=(*sorted(folder.glob("*.cuh")), folder / "launchers.h"),
        cuda_flags=("-O3", architecture(capability), *(("-DMOECHECK_HOPPER",) if capability >= (9, 0) else ())),
    )


def binding_recipe(folder: Path) -> Recipe:
    """The module that hands tensors to them."""
    return Recipe(
        name="moecheck_binding", sources=(folder / "binding.cpp",), headers=(folder / "launchers.h",), python=True
    )


@cache
def library() -> Any:
    """The object whose methods launch the kernels on PyTorch's current stream (csrc/binding.cpp).

    Raises Unsupported with the reason where they cannot run or cannot be built.
    """
    reason = missing_device()
    if reason is not None:
        raise Unsupported(reason)
    kernels = built(kernels_recipe(SOURCES, torch.cuda.get_device_capability()))
    binding = binding_recipe(SOURCES)
    place = importlib.util.spec_from_file_location(binding.name, built(binding))
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module.Kernels(str(kernels))


def _unavailable() -> str | None:
    """Why the kernels cannot run here. Builds them: a call may not take as long as nvcc does."""
    try:
        library()
    except Unsupported as error:
        return str(error)
    return None


UNAVAILABLE = _unavailable()
