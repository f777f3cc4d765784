"""What the arms of a transformers model do in its blocks: precision, order, known bugs, or the kernel under test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.nn import functional

from moecheck.errors import UsageError, check_known
from moecheck.evals.tiny.config import TinyConfig
from moecheck.evals.tiny.find_kernel import find_kernel
from moecheck.evals.tiny.kernel_block import KernelCall, check_fits
from moecheck.evals.tiny.rounding import operand_of, store_of
from moecheck.kernel import Declaration

from .hf_layers import HFBlock
from .records import Arm

# Known bugs that need no knowledge of the router: name -> what is wrong.
MUTANTS = {
    "shared/factor": "shared expert weighted 1/routed_scaling_factor",
    "shared*factor": "shared expert weighted routed_scaling_factor",
    "shared_missing": "the shared expert is missing",
    "routed/factor": "the routed scaling factor is missing",
    "whole/factor": "routed and shared experts weighted 1/routed_scaling_factor",
    "routed*1.05": "the routed experts weighted 1.05",
    "experts_swapped": "experts 0 and 1 are exchanged",
    "last_slot_dropped": "the last slot of each token is dropped",
    "no_renorm": "every slot weighs the same",
    "row_lost": "the last row of each tile of 64 is lost",
}
OF_SHARED = ("shared/factor", "shared*factor", "shared_missing")


class PlainHook:
    """The reference path: transformers' own eager experts, or its own loop in another precision or order."""

    def __init__(self, arm: Arm, blocks: dict[int, HFBlock]) -> None:
        self.arm, self.blocks = arm, blocks

    def experts(
        self, layer: int, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, original: Callable[..., Any]
    ) -> torch.Tensor:
        if self.arm.precision == "fp32" and self.arm.order == "forward":
            result: torch.Tensor = original(hidden, ids, weights)
            return result
        return experts_in(
            self.blocks[layer], hidden, ids, weights, self.arm.precision, backwards=self.arm.order == "reversed"
        )

    def router(self, layer: int, hidden: torch.Tensor, original: Callable[..., Any]) -> Any:
        return original(hidden)

    def block(self, layer: int, hidden: torch.Tensor, original: Callable[..., Any]) -> Any:
        return original(hidden)


class MutantHook(PlainHook):
    """The reference path with a known bug."""

    def __init__(self, arm: Arm, blocks: dict[int, HFBlock], factor: float) -> None:
        super().__init__(arm, blocks)
        check_known("mutant", arm.mutant or "", known_mutants(blocks, factor))
        self.factor = factor
        self._routed: torch.Tensor | None = None

    def experts(
        self, layer: int, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, original: Callable[..., Any]
    ) -> torch.Tensor:
        name = self.arm.mutant
        if name == "experts_swapped":
            ids = torch.where(ids == 0, 1, torch.where(ids == 1, 0, ids))
        elif name == "last_slot_dropped":
            weights = weights.clone()
            weights[:, -1] = 0
        elif name == "no_renorm":
            weights = weights.mean(dim=-1, keepdim=True).expand_as(weights)
        self._routed = super().experts(layer, hidden, ids, weights, original)
        return self._routed

    def block(self, layer: int, hidden: torch.Tensor, original: Callable[..., Any]) -> Any:
        result = original(hidden)
        output = result[0] if isinstance(result, tuple) else result
        assert self._routed is not None
        routed = self._routed.view(output.shape)
        alpha, beta = self._weights()
        changed = alpha * routed + beta * (output - routed) if (alpha, beta) != (1.0, 1.0) else output
        if self.arm.mutant == "row_lost":
            kept = torch.arange(changed.numel() // changed.shape[-1], device=changed.device) % 64 != 63
            changed = changed * kept.view(*changed.shape[:-1], 1)
        return (changed, *result[1:]) if isinstance(result, tuple) else changed

    def _weights(self) -> tuple[float, float]:
        one, factor = 1.0, self.factor
        return {
            "shared/factor": (one, one / factor),
            "shared*factor": (one, factor),
            "shared_missing": (one, 0.0),
            "routed/factor": (one / factor, one),
            "whole/factor": (one / factor, one / factor),
            "routed*1.05": (1.05, one),
        }.get(self.arm.mutant or "", (one, one))


class KernelHook(PlainHook):
    """The kernel under test in every block. declaration: what it says of itself. calls: by layer."""

    def __init__(self, arm: Arm, blocks: dict[int, HFBlock]) -> None:
        super().__init__(arm, blocks)
        if arm.mutant is not None:
            raise UsageError("A mutant is a change of the reference path: give --mutant or --kernel, not both.")
        function, self.declaration = find_kernel(arm.kernel or "", arm.op)
        self.op = self.declaration.op
        self.calls: dict[int, KernelCall] = {}
        for layer, block in blocks.items():
            # KernelCall and check_fits ask a block for its sizes and its case alone, as they ask a TinyConfig.
            sizes = cast(TinyConfig, block)
            check_fits(self.declaration, sizes, arm.precision)
            self.calls[layer] = KernelCall(
                function, self.declaration, sizes, block.constants(self.op), precision=arm.precision
            )

    def experts(
        self, layer: int, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, original: Callable[..., Any]
    ) -> torch.Tensor:
        if self.op != "fused_experts":
            result: torch.Tensor = original(hidden, ids, weights)
            return result
        out = self.calls[layer](hidden_states=hidden.float(), topk_weights=weights.float(), topk_ids=ids)[0]
        return out[:, : hidden.shape[1]].to(hidden.dtype)

    def router(self, layer: int, hidden: torch.Tensor, original: Callable[..., Any]) -> Any:
        logits, weights, ids = original(hidden)
        if self.op != "topk_routing":
            return logits, weights, ids
        own_weights, own_ids, *_ = self.calls[layer](router_logits=logits.float())
        return logits, own_weights.to(weights.dtype), own_ids.to(ids.dtype)

    def block(self, layer: int, hidden: torch.Tensor, original: Callable[..., Any]) -> Any:
        if self.op != "moe_layer":
            return original(hidden)
        rows = hidden.reshape(-1, hidden.shape[-1])
        router: Any = self.blocks[layer].router_module
        logits, scores, _ = router(rows)
        out = self.calls[layer](hidden_states=rows.float(), router_logits=logits.float())[0]
        output = out[:, : rows.shape[1]].to(hidden.dtype).view(hidden.shape)
        returns_scores = type(self.blocks[layer].module).__name__ == "GptOssMLP"
        return (output, scores) if returns_scores else output


def known_mutants(blocks: dict[int, HFBlock], factor: float) -> tuple[str, ...]:
    """Those that have a meaning in this model."""
    shared = all(block.shared_module is not None for block in blocks.values())
    return tuple(
        name
        for name in MUTANTS
        if (shared or name not in OF_SHARED) and (factor != 1 or not ("/factor" in name or "*factor" in name))
    )


def hook_of(arm: Arm, blocks: dict[int, HFBlock], factor: float) -> PlainHook:
    """Of an arm; raises UsageError or Unsupported for a kernel or mutant that cannot stand in this model."""
    if arm.kernel is not None:
        return KernelHook(arm, blocks)
    return PlainHook(arm, blocks) if arm.mutant is None else MutantHook(arm, blocks, factor)


def declaration_of(hook: PlainHook) -> Declaration | None:
    """Of the kernel under test, if the hook has one."""
    return hook.declaration if isinstance(hook, KernelHook) else None


def experts_in(
    block: HFBlock, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, precision: str, *, backwards: bool
) -> torch.Tensor:
    """Routed experts with stores in `precision` and sums in fp32, by ascending expert or `backwards`: [T, H]."""
    store, operand = store_of(precision), operand_of(precision)
    parts = {name: tensor.detach() for name, tensor in block.weights().items()}
    gate: Any = block.experts_module._apply_gate
    x = store(hidden.float())
    out = torch.zeros_like(x)
    experts = torch.unique(ids[ids < block.num_experts]).tolist()
    for expert in reversed(experts) if backwards else experts:
        tokens, slots = torch.where(ids == expert)
        bias13, bias2 = (None if name not in parts else parts[name][expert].float() for name in ("w13_bias", "w2_bias"))
        gate_up = store(functional.linear(operand(x[tokens]), operand(parts["w13"][expert].float()), bias13))
        inner = store(gate(gate_up))
        rows = store(functional.linear(operand(inner), operand(parts["w2"][expert].float()), bias2))
        out.index_add_(0, tokens, rows * weights[tokens, slots, None].float())
    return store(out).to(hidden.dtype)
