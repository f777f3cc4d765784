"""A block with a known bug: the corpus's change of the call, computed in torch in the arm's precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from moecheck.formats import AnyArray
from moecheck.mutants.call import Call, Mutation, Outputs, slots_of, value
from moecheck.spec import ExpertSpec, MoESpec

from .block import BlockOutput, ReferenceBlock, rounded
from .config import TinyConfig
from .experts import Experts, feed_forward, weighted_sum
from .faults import Fault
from .rounding import store_of
from .routing import router_logits
from .weights import DenseWeights, MoEWeights

PLAIN = ExpertSpec()


class FaultBlock:
    """The reference path under a fault; where the fault has no meaning in a call, the reference path itself."""

    def __init__(self, fault: Fault, weights: MoEWeights, config: TinyConfig, *, precision: str) -> None:
        self.fault, self.config, self.precision = fault, config, precision
        self.reference = ReferenceBlock(weights, config, precision=precision)
        self.router = weights.router
        self.device = weights.router.device
        constants = {"correction_bias": weights.correction_bias, "w13": weights.w13, "w2": weights.w2}
        if weights.shared is not None:
            constants |= {"shared_w13": weights.shared.w13, "shared_w2": weights.shared.w2}
        self.constants = {name: t.cpu().numpy() for name, t in constants.items() if t is not None}
        # What a fault leaves as it was needs no conversion: prepared weights by the arrays that they were made from.
        self.prepared: dict[tuple[int, int], Any] = {
            (id(self.constants["w13"]), id(self.constants["w2"])): self.reference.experts
        }
        if weights.shared is not None:
            key = (id(self.constants["shared_w13"]), id(self.constants["shared_w2"]))
            self.prepared[key] = self.reference.shared

    def __call__(self, hidden: torch.Tensor) -> BlockOutput:
        logits = router_logits(hidden, self.router)
        call = self._call(hidden, logits)
        if not self.fault.applies(call):
            return self.reference(hidden)
        mutation = self.fault.change(call)
        _, ids, choice = self.reference.route(logits)
        slots = self._slots(mutation, ids)
        with np.errstate(all="ignore"):
            output = store_of(self.precision)(self._value(mutation))
        weights, chosen = slots if slots is not None else (None, None)
        return BlockOutput(output=output, topk_weights=weights, topk_ids=chosen, choice=choice)

    def _call(self, hidden: torch.Tensor, logits: torch.Tensor) -> Call:
        case = self.config.case("moe_layer", num_tokens=len(hidden), dtype="fp32")
        dynamic = {"hidden_states": hidden.cpu().numpy(), "router_logits": logits.cpu().numpy()}
        return Call(case=case, inputs={**dynamic, **self.constants})

    def _slots(self, mutation: Mutation, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What the faulty router chose, filled up to top_k slots with -1; None where the fault is not of one call."""
        if not isinstance(mutation, Call):
            return None
        weights, chosen = (self._tensor(array) for array in slots_of(mutation))
        missing = ids.shape[1] - chosen.shape[1]
        if missing < 0:
            return None
        pad = torch.nn.functional.pad
        return pad(weights, (0, missing)), pad(chosen.long(), (0, missing), value=-1)

    def _value(self, mutation: Mutation) -> torch.Tensor:
        """The mutation's output: [T, H] float32."""
        if isinstance(mutation, Call):
            return self._layer(mutation)
        if isinstance(mutation, tuple):
            return torch.stack([self._term(term.call, term.factor, term.rows) for term in mutation]).sum(dim=0)
        assert not isinstance(mutation, Outputs), "a layer's output is a sum"
        return self._tensor(mutation)

    def _term(self, call: Call, factor: Any, rows: Any) -> torch.Tensor:
        out = self._layer(call)
        if rows is not None:
            out = out[torch.as_tensor(np.array(rows), device=self.device)]
        by = self._tensor(np.asarray(factor, dtype=np.float64))
        return torch.where(by == 0.0, 0.0, by * out)

    def _layer(self, call: Call) -> torch.Tensor:
        """A whole layer as references.moe_layer defines it, of the parts that a fault can change here."""
        spec: MoESpec = call.case.spec
        if not _in_torch(spec):
            return self._tensor(value(call))
        inputs, slots = call.inputs, slots_of(call)
        hidden = self._tensor(inputs["hidden_states"])
        experts: Experts = self._kept(inputs["w13"], inputs["w2"], shared=False)
        experts = Experts(experts.w13, experts.w2, self.precision, _activation(spec.experts))
        weights, ids = self._tensor(slots.weights), self._tensor(slots.ids).long()
        out = store_of(self.precision)(weighted_sum(experts.slots(hidden, ids), weights))
        if spec.routing.scaling_placement == "routed_output":
            out = out * spec.routing.routed_scaling_factor
        if spec.shared_experts == "ungated":
            shared = self._kept(inputs["shared_w13"], inputs["shared_w2"], shared=True)
            out = out + feed_forward(hidden, shared, self.precision, _activation(spec.shared))
        return out

    def _kept(self, w13: AnyArray, w2: AnyArray, *, shared: bool) -> Any:
        known = self.prepared.get((id(w13), id(w2)))
        if known is not None:
            return known
        first, second = self._tensor(w13), self._tensor(w2)
        if shared:
            return rounded(DenseWeights(w13=first, w2=second), self.precision)
        return Experts.prepared(first, second, self.precision)

    def _tensor(self, array: AnyArray) -> torch.Tensor:
        """float32 for floating point, int64 for integers, on the model's device."""
        array = np.asarray(array)
        kind = np.int64 if array.dtype.kind in "iu" else np.float32
        return torch.from_numpy(np.ascontiguousarray(array.astype(kind, copy=False))).to(self.device)


def _in_torch(spec: MoESpec) -> bool:
    routing, experts = spec.routing, (spec.experts, spec.shared)
    return (
        not routing.num_zero_experts
        and not routing.num_fused_shared_experts
        and routing.scaling_placement != "sum"
        and spec.shared_experts != "gated"
        and not spec.latent_experts
        and spec.sum_factor == 1.0
        and not any(one.weight_on_input or one.w13_bias or one.w2_bias for one in experts)
    )


def _activation(spec: ExpertSpec) -> Any:
    """The activation of a spec, gate and up in its layout."""
    from moecheck.kernels.torch.activation import act_and_mul

    return lambda gate_up: act_and_mul(x=gate_up, spec=spec)
