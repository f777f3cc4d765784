"""The records that cross the border between a backend and the harness: plain numbers, text and NumPy arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from moecheck.errors import MoecheckError

Precision = Literal["fp32", "bf16", "fp16", "fp8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "fp8")
Order = Literal["forward", "reversed"]
Finish = Literal["stop", "length"]
FloatRows = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


class KernelFailed(MoecheckError):
    """The kernel under test raised, or returned what no layer can take: the run ends, and the kernel has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of the comparison: what computes the MoE layers of the model.

    kernel: spec string of the kernel under test as `moecheck kernels --kernel` takes it, None for the reference path.
    op: what an undeclared function computes. precision: what the kernel or, on the reference path, the experts get and
    store (the rest of the model stays as it is). order: of the sum over a token's experts, on the reference path only:
    `reversed` is a legal variant. mutant: name of a known bug put into this arm, None for none.
    """

    kernel: str | None = None
    op: str | None = None
    precision: Precision = "fp32"
    order: Order = "forward"
    mutant: str | None = None

    @property
    def words(self) -> str:
        """`reference path, fp32` or `torch.index_add, bf16, mutant shared-0.4`."""
        parts = [self.kernel or "reference path", self.precision]
        parts += ["sum in reversed order"] if self.order == "reversed" else []
        parts += [f"mutant {self.mutant}"] if self.mutant else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What decides an arm's outputs: results of another fingerprint must never be reused.

    model: SHA-256 of the weights, configuration and tokenizer, or what a server says of itself. arm: the arm's words.
    code: SHA-256 of the source files that compute it (kernel's file included). settings: dtype, device, threads.
    """

    model: str
    arm: str
    code: str
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """64 hexadecimal digits."""
        parts = [self.model, self.arm, self.code, sorted(self.settings.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the report and the names of factors need to know of a model.

    moe_layers: numbers of the layers with experts, in order. shared_experts: how many, 0 for none.
    """

    name: str
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    hidden_size: int
    vocab_size: int
    routed_scaling_factor: float = 1.0
    shared_experts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When one answer arrived, in seconds since its request was sent. arrivals: of each chunk, ascending."""

    first_token: float
    total: float
    arrivals: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One greedy answer. text: up to and without the stop string. token_ids: as generated, the ones of the stop string
    and the end token included; None where a server does not tell. finish: why it ended.
    """

    text: str
    finish: Finish
    token_ids: tuple[int, ...] | None = None
    timing: Timing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A gold continuation of n tokens under teacher forcing.

    token_ids: the n tokens. logprobs: [n] float64, ln p(token | what precedes). rows: [n, vocab_size] float32, ln p of
    the whole vocabulary, None where it was not asked for or cannot be had. top1: [n] int32, the most probable token,
    None where unknown.
    """

    token_ids: tuple[int, ...]
    logprobs: npt.NDArray[np.float64]
    rows: FloatRows | None = None
    top1: Ids | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCapture:
    """What went through one MoE block, padding left out; T tokens of hidden size H.

    hidden: [T, H] float32, the block's input as the block gets it (after the norm). output: [T, H] float32, what the
    block adds to the residual stream. topk_ids: [T, k] int32 and topk_weights: [T, k] float32 as multiplied (the
    routed scaling factor in them, if it is applied to them), None where a kernel of the whole layer hides them.
    routed, shared: [T, H] float32, the two summands of `output` (routed with its factor), None where hidden;
    shared is None where the model has no shared experts. choice_gap: [T] float32, the gap between the last chosen and
    the best rejected expert in the score that chooses, for leaving out ties; None where hidden. choice_seen: [T], where
    ids were inferred from `output`: of which tokens they could be, None where they are the arm's own.
    """

    layer: int
    hidden: FloatRows
    output: FloatRows
    topk_ids: Ids | None = None
    topk_weights: FloatRows | None = None
    routed: FloatRows | None = None
    shared: FloatRows | None = None
    choice_gap: npt.NDArray[np.float32] | None = None
    choice_seen: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """That the kernel under test really computed the layers.

    calls: layer -> calls of the kernel since the arm was opened (the watermark's own are not counted). watermark:
    layer -> whether the model's logits changed when the kernel's result in that layer was changed on purpose; empty
    where that is impossible. launched: names of device kernels that were seen, where the backend can tell.
    """

    calls: Mapping[int, int] = field(default_factory=dict)
    watermark: Mapping[int, bool] = field(default_factory=dict)
    launched: tuple[str, ...] = ()
