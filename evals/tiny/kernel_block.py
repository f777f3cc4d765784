"""A kernel under test in the model: its op's part of a block, with the reference path around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from moecheck.errors import MoecheckError, Unsupported
from moecheck.evals.backends.records import KernelFailed
from moecheck.formats import FORMATS, store
from moecheck.kernel import Declaration
from moecheck.oracle import spec_part
from moecheck.runner.arrays import JAX_BACKENDS, TORCH_BACKENDS, device_of, to_native, to_numpy
from moecheck.runner.plan import lacking
from moecheck.weight_layout import Sizes, to_layout

from .block import BlockOutput, ReferenceBlock
from .config import TinyConfig
from .quantised import quantised, scheme_of
from .rounding import DTYPES
from .routing import router_logits
from .weights import MoEWeights

LARGEST_EXACT = 256
SEAMS = ("topk_routing", "fused_experts", "moe_layer")


class KernelCall:
    """The kernel with one layer's weights in its own arrays; called with torch tensors, it answers with such.

    calls: how often it was called. watermark: what its first output is multiplied by, 1 except where the harness
    looks whether that is seen in the logits.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        declaration: Declaration,
        config: TinyConfig,
        constants: dict[str, torch.Tensor],
        *,
        precision: str,
    ) -> None:
        self.function, self.declaration = function, declaration
        self.dtype = stored_dtype(declaration, precision)
        self.calls, self.watermark = 0, 1.0
        op, layout = declaration.op, declaration.weight_layout
        spec = config.case(op, num_tokens=1, dtype=self.dtype).spec
        scheme = scheme_of(declaration) if precision == "fp8" else None
        if scheme is not None:
            spec = replace(spec, experts=replace(spec.experts, quantization=scheme))
        self.spec = spec_part(op, spec if layout is None else layout.spec(spec))
        self.width = config.hidden_size
        self.hidden_size = config.hidden_size if layout is None else layout.hidden_size(config.hidden_size)
        arrays: dict[str, Any] = {}
        for name, tensor in constants.items():
            if scheme is not None and name in ("w13", "w2"):
                arrays |= quantised(name, tensor, scheme, self.dtype)
            else:
                arrays[name] = self._array(name, tensor)
        if layout is not None:
            sizes = Sizes(config.hidden_size, config.expert_intermediate_size, config.shared_intermediate_size)
            arrays = to_layout(arrays, layout, spec=spec, sizes=sizes)
        self.constants = {
            name: to_native(np.ascontiguousarray(array), declaration.backend)
            for name, array in arrays.items()
            if name in declaration.arguments
        }

    def __call__(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs as float32 tensors (ids as integers) on the inputs' device."""
        tokens = len(next(iter(inputs.values())))
        rows = compiled_rows(tokens) if self.declaration.backend in JAX_BACKENDS else tokens
        taken = {
            name: self._native(name, functional.pad(tensor, (0, 0, 0, rows - tokens)) if rows > tokens else tensor)
            for name, tensor in inputs.items()
            if name in self.declaration.arguments
        }
        arguments: dict[str, Any] = {**self.constants, **taken}
        if "spec" in self.declaration.arguments:
            arguments["spec"] = self.spec
        if "out" in self.declaration.arguments:
            arguments["out"] = self._poisoned(rows)
        result = self._called(arguments)
        if "out" in arguments and result is None:
            result = arguments["out"]
        self.calls += 1
        results = result if isinstance(result, tuple | list) else (result,)
        device = next(iter(inputs.values())).device
        outputs = tuple(self._tensor(value, device)[:tokens] for value in results)
        self._check_shapes(outputs, tokens)
        if self.watermark != 1.0:
            outputs = (outputs[0] * self.watermark, *outputs[1:])
        return outputs

    def _called(self, arguments: dict[str, Any]) -> Any:
        """What the kernel returns; KernelFailed where it raises."""
        try:
            return self.function(**arguments)
        except MoecheckError:
            raise
        except Exception as error:  # a kernel may raise anything: that is its failure and not ours
            words = " ".join(f"{type(error).__name__}: {error}".split())
            raise KernelFailed(f"{self.declaration.name} raised {words[:300]}.") from error

    def _check_shapes(self, outputs: tuple[torch.Tensor, ...], tokens: int) -> None:
        """Raise KernelFailed for outputs that the layer around the kernel cannot take."""
        routes = self.declaration.op == "topk_routing"
        found = [tuple(output.shape) for output in outputs]
        needed = found[: 2 if routes else 1]
        rows = all(len(shape) == 2 and shape[0] == tokens for shape in needed)
        if not rows or not (len(found) >= 2 and found[0] == found[1] if routes else found[0][1] >= self.width):
            shapes = " and ".join(map(str, map(list, found)))
            raise KernelFailed(f"{self.declaration.name} returned {shapes} for {tokens} tokens of size {self.width}.")

    def _array(self, name: str, tensor: torch.Tensor) -> Any:
        """As the op's argument is stored: the kernel's dtype, or the argument's own one."""
        array = tensor.detach().cpu().numpy()
        return array if name == "correction_bias" else store(array.astype(np.float64), self._format(name))

    def _format(self, name: str) -> str:
        """A router's logits stay in fp32 where the kernel takes that, as in models."""
        if name == "router_logits" and (self.declaration.op == "moe_layer" or "fp32" in self.declaration.dtypes):
            return "fp32"
        return self.dtype

    def _native(self, name: str, tensor: torch.Tensor) -> Any:
        if name == "topk_ids":
            tensor = tensor.to(torch.int32)
        elif name != "topk_weights":
            tensor = tensor.to(DTYPES[self._format(name)])
        if name == "hidden_states" and self.hidden_size > tensor.shape[1]:
            tensor = functional.pad(tensor, (0, self.hidden_size - tensor.shape[1]))
        tensor = tensor.contiguous()
        backend = self.declaration.backend
        if backend not in TORCH_BACKENDS:
            return to_native(to_numpy(tensor), backend)
        # A copy where nothing was converted: a kernel that writes into its input must not change the model's.
        return tensor.to("cuda" if device_of(backend) == "cuda" else "cpu").clone()

    def _poisoned(self, rows: int) -> Any:
        if self.declaration.op == "topk_routing":
            raise Unsupported("topk_routing passes no `out`")
        array = np.full((rows, self.hidden_size), np.nan).astype(FORMATS[self.dtype].storage)
        return to_native(array, self.declaration.backend)

    def _tensor(self, value: Any, device: torch.device) -> torch.Tensor:
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(_as_float32(to_numpy(value)))
        tensor = tensor.detach().to(device)
        return tensor.float() if tensor.is_floating_point() else tensor.long()


class KernelBlock:
    """A block in which the kernel computes routing, the routed experts, or all of it."""

    def __init__(
        self,
        function: Callable[..., Any],
        declaration: Declaration,
        weights: MoEWeights,
        config: TinyConfig,
        *,
        precision: str,
    ) -> None:
        self.reference = ReferenceBlock(weights, config, precision="fp32")
        self.weights, self.op = weights, declaration.op
        constants = {"correction_bias": weights.correction_bias} if weights.correction_bias is not None else {}
        if self.op != "topk_routing":
            constants |= {"w13": weights.w13, "w2": weights.w2}
        if self.op == "moe_layer" and weights.shared is not None:
            constants |= {"shared_w13": weights.shared.w13, "shared_w2": weights.shared.w2}
        self.call = KernelCall(function, declaration, config, constants, precision=precision)

    def __call__(self, hidden: torch.Tensor) -> BlockOutput:
        reference = self.reference
        logits = router_logits(hidden, self.weights.router)
        if self.op == "moe_layer":
            (output, *_) = self.call(hidden_states=hidden, router_logits=logits)
            return BlockOutput(output=output[:, : hidden.shape[1]])
        weights, ids, choice = reference.route(logits)
        if self.op == "topk_routing":
            weights, ids = self.call(router_logits=logits)
            routed = reference.routed(hidden, weights, ids)
        else:
            (routed, *_) = self.call(hidden_states=hidden, topk_weights=weights, topk_ids=ids)
            routed = routed[:, : hidden.shape[1]]
        return reference.finished(hidden, routed, weights, ids, choice)


def compiled_rows(tokens: int) -> int:
    """Rows that a kernel compiled per shape gets, the rest of them zeros that weigh nothing.

    A batch's prompts have a total length of their own, and compiling takes seconds: beyond LARGEST_EXACT rows, four
    sizes for each doubling. Decoding batches stay as they are.
    """
    if tokens <= LARGEST_EXACT:
        return tokens
    step = 1 << (tokens.bit_length() - 3)
    return -(-tokens // step) * step


def check_fits(declaration: Declaration, config: TinyConfig, precision: str) -> None:
    """Raise Unsupported, with the reason, for a kernel that cannot stand in this model at this precision."""
    if declaration.op not in SEAMS:
        raise Unsupported(f"{declaration.name} computes {declaration.op}; in a model runs one of {', '.join(SEAMS)}")
    case = config.case(declaration.op, num_tokens=64, dtype=stored_dtype(declaration, precision))
    if precision == "fp8":
        if declaration.op != "fused_experts":
            raise Unsupported(f"{declaration.name} computes {declaration.op}: fp8 weights are of fused_experts")
        experts = replace(case.spec.experts, quantization=scheme_of(declaration))
        case = replace(case, spec=replace(case.spec, experts=experts))
    reason = lacking(declaration, case)
    if reason is None and declaration.specs:
        known = [spec_part(declaration.op, spec) for spec in declaration.specs]
        own = spec_part(declaration.op, config.case(declaration.op, num_tokens=64, dtype=case.dtype).spec)
        reason = None if own in known else "implements other semantics than this model's"
    if reason is not None:
        raise Unsupported(f"{declaration.name} {reason}")


def stored_dtype(declaration: Declaration, precision: str) -> str:
    """What activations are stored in: the precision, and for fp8 weights bf16 where the kernel takes that."""
    if precision != "fp8":
        return precision
    return "bf16" if "bf16" in declaration.dtypes else declaration.dtypes[0]


def _as_float32(array: Any) -> Any:
    return array.astype(np.float32) if array.dtype.kind not in "iu" else array.astype(np.int64)
