"""The optimisers: Muon for matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .network import TrainedNetwork

MUON_RATE, ADAM_RATE = 0.02, 3e-3
MOMENTUM = 0.95
# Keller Jordan's quintic iteration (https://kellerjordan.github.io/posts/muon/), steep at 0: few steps suffice.
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5


class Muon:
    """Steps along the orthogonalised momentum of every matrix; matrices of one shape are handled together."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in parameters:
            rows, columns = parameter.shape[-2:]
            self.groups.setdefault((rows, columns), []).append(parameter)
        self.momentum: dict[tuple[int, int], torch.Tensor] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step of the learning rate; matrices with more rows than columns go further by sqrt(rows / columns)."""
        for (rows, columns), parameters in self.groups.items():
            gradients = [_given(parameter).view(-1, rows, columns) for parameter in parameters]
            gradient = torch.cat(gradients)
            momentum = self.momentum.setdefault((rows, columns), torch.zeros_like(gradient))
            momentum.lerp_(gradient, 1 - MOMENTUM)
            ahead = gradient.lerp(momentum, MOMENTUM)
            steps = torch.split(orthogonal(ahead), [len(part) for part in gradients])
            scale = -rate * max(1.0, rows / columns) ** 0.5
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.add_(step.reshape(parameter.shape).to(parameter.dtype), alpha=scale)

    def clear(self) -> None:
        for parameters in self.groups.values():
            for parameter in parameters:
                parameter.grad = None


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """About the nearest matrices with singular values 1: [n, rows, columns], in bf16 on a GPU."""
    a, b, c = QUINTIC
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    wide = x.shape[-2] > x.shape[-1]
    x = x.mT if wide else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    found: torch.Tensor = x.mT if wide else x
    return found


class Optimiser:
    """Both together. rate: a share of their learning rates."""

    def __init__(self, network: TrainedNetwork) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in network.named_parameters():
            plain = name.endswith(("router", "embedding")) or parameter.ndim == 1
            (others if plain else matrices).append(parameter)
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(
            others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=others[0].is_cuda
        )

    def step(self, rate: float) -> None:
        """One step, and no gradients afterwards."""
        for group in self.adam.param_groups:
            group["lr"] = ADAM_RATE * rate
        self.adam.step()
        self.muon.step(MUON_RATE * rate)
        self.adam.zero_grad(set_to_none=True)
        self.muon.clear()


def _given(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad
