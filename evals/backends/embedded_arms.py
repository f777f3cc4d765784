"""An embedded model and its arms: own inference, with any kernel, mutant or precision in its blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from tokenizers import Tokenizer

from moecheck import mutants, references
from moecheck.errors import UsageError
from moecheck.evals import tiny
from moecheck.evals.tiny.block import Block, BlockOutput, ReferenceBlock
from moecheck.evals.tiny.decode import Pieces, greedy
from moecheck.evals.tiny.fault_block import FaultBlock
from moecheck.evals.tiny.faults import fault_of, faults, self_test_faults
from moecheck.evals.tiny.find_kernel import find_kernel, kernel_file
from moecheck.evals.tiny.kernel_block import KernelBlock, check_fits
from moecheck.evals.tiny.models import TOKENIZER, Checkpoint
from moecheck.evals.tiny.network import Network
from moecheck.evals.tiny.text import SEPARATOR
from moecheck.evals.tiny.weights import MoEWeights

from .backend import Backend, ScoredPair
from .records import Arm, Evidence, Fingerprint, FloatRows, Generation, LayerCapture, ModelFacts, Precision, Scored

WATERMARK = 2.0


class EmbeddedModel:
    """A checkpoint in memory, shared by its arms."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tokenizer = Tokenizer.from_file(str(checkpoint.folder / TOKENIZER))

    @property
    def facts(self) -> ModelFacts:
        config = self.checkpoint.config
        shared = config.shared_intermediate_size // config.expert_intermediate_size
        return ModelFacts(
            name=self.checkpoint.name,
            moe_layers=config.moe_layers,
            num_experts=config.num_experts,
            top_k=config.spec.routing.top_k,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            routed_scaling_factor=config.spec.routing.routed_scaling_factor,
            shared_experts=shared,
        )

    def open(self, arm: Arm) -> EmbeddedBackend:
        """One arm; raises UsageError for a kernel or mutant that is unknown, Unsupported for one that cannot run."""
        return EmbeddedBackend(self.checkpoint, self.tokenizer, arm)

    def variants(self, precision: Precision) -> tuple[Arm, ...]:
        """The precision in both orders of the sum over experts, and fp32 in the other order."""
        arms = (Arm(precision=precision), Arm(precision=precision, order="reversed"), Arm(order="reversed"))
        return tuple(dict.fromkeys(arm for arm in arms if arm != Arm()))

    def mutants(self) -> tuple[str, ...]:
        return tuple(faults(self.checkpoint.config))

    def self_test_mutants(self) -> tuple[str, ...]:
        """The mutants of `--self-test`, in the order of its table."""
        return tuple(fault.name for fault in self_test_faults(self.checkpoint.config))

    def mutant_words(self, name: str) -> str:
        """What is wrong, for people."""
        return fault_of(name, self.checkpoint.config).words

    def close(self) -> None:
        """Nothing to give back: memory goes with the object."""


class EmbeddedBackend:
    """One arm of an embedded model."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer, arm: Arm) -> None:
        self.checkpoint, self.tokenizer, self.arm = checkpoint, tokenizer, arm
        self.pieces = Pieces(tokenizer)
        self.sources = [*_sources_of(tiny), Path(__file__)]
        self.blocks = self._blocks()
        self.network = Network(checkpoint.weights, checkpoint.config, self.blocks)

    @property
    def fingerprint(self) -> Fingerprint:
        code = hashlib.sha256()
        for path in sorted(self.sources):
            code.update(path.read_bytes())
        settings = {
            "device": str(self.checkpoint.weights.device),
            "threads": str(torch.get_num_threads()),
            "torch": torch.__version__,
        }
        return Fingerprint(model=self.checkpoint.digest, arm=self.arm.words, code=code.hexdigest(), settings=settings)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def generate(self, prompts: Sequence[str], *, until: Sequence[str], max_new_tokens: int) -> list[Generation]:
        encoded = [self.encode(prompt) for prompt in prompts]
        self._check_room(max(map(len, encoded), default=0) + max_new_tokens)
        if not all(encoded):
            raise UsageError("A prompt has no tokens.")
        # Behind an answer the models were trained on an empty line only: what they write after it is noise.
        answers = greedy(self.network, encoded, self.pieces, until=(*until, SEPARATOR), max_new_tokens=max_new_tokens)
        return [
            Generation(text=answer.text, finish=answer.finish or "length", token_ids=tuple(answer.token_ids))
            for answer in answers
        ]

    @torch.inference_mode()
    def score(self, pairs: Sequence[ScoredPair], *, rows: bool = False) -> list[Scored]:
        sequences, starts = self._sequences(pairs)
        hidden, _ = self.network.start(sequences)
        scored, begin = [], 0
        for sequence, start in zip(sequences, starts, strict=True):
            # The logits at a position are of the token behind it.
            own = hidden[begin + start - 1 : begin + len(sequence) - 1]
            begin += len(sequence)
            logprobs = torch.log_softmax(self.network.logits(own).double(), dim=-1)
            gold = torch.tensor(sequence[start:], device=logprobs.device)
            scored.append(
                Scored(
                    token_ids=tuple(sequence[start:]),
                    logprobs=logprobs.gather(1, gold[:, None])[:, 0].cpu().numpy(),
                    rows=logprobs.float().cpu().numpy() if rows else None,
                    top1=logprobs.argmax(dim=-1).int().cpu().numpy(),
                )
            )
        return scored

    @torch.inference_mode()
    def capture(self, pairs: Sequence[ScoredPair]) -> list[LayerCapture]:
        captures: list[LayerCapture] = []
        sequences, _ = self._sequences(pairs)
        self.network.start(
            sequences, watch=lambda layer, hidden, output: captures.append(_capture(layer, hidden, output))
        )
        return captures

    @torch.inference_mode()
    def replay(self, layer: int, hidden: LayerCapture) -> LayerCapture:
        rows = torch.from_numpy(hidden.hidden).to(self.checkpoint.weights.device)
        return _capture(layer, rows, self.blocks[layer](rows))

    @torch.inference_mode()
    def expert_outputs(self, layer: int, hidden: FloatRows) -> FloatRows:
        block = self.blocks[layer]
        assert isinstance(block, ReferenceBlock), "asked of the reference path"
        rows = torch.from_numpy(hidden).to(self.checkpoint.weights.device)
        every = torch.arange(self.checkpoint.config.num_experts, device=rows.device).expand(len(rows), -1)
        return _rows(block.experts.slots(rows, every))

    def alone(self, layer: int, others: Backend) -> EmbeddedBackend:
        assert isinstance(others, EmbeddedBackend), "an arm of the same model"
        mixed = copy(self)
        mixed.blocks = {**others.blocks, layer: self.blocks[layer]}
        mixed.network = Network(self.checkpoint.weights, self.checkpoint.config, mixed.blocks)
        return mixed

    @torch.inference_mode()
    def evidence(self, pairs: Sequence[ScoredPair]) -> Evidence:
        kernels = {number: block.call for number, block in self.blocks.items() if isinstance(block, KernelBlock)}
        calls = {number: call.calls for number, call in kernels.items()}
        sequences, _ = self._sequences(pairs)
        seen = {}
        if kernels:
            plain = self._all_logits(sequences)
        for number, call in kernels.items():
            call.watermark = WATERMARK
            try:
                seen[number] = not torch.equal(plain, self._all_logits(sequences))
            finally:
                call.watermark = 1.0
        for number, call in kernels.items():
            call.calls = calls[number]
        return Evidence(calls=calls, watermark=seen)

    def close(self) -> None:
        """Nothing to give back: memory goes with the object."""

    def _blocks(self) -> dict[int, Block]:
        arm, config = self.arm, self.checkpoint.config
        layers = {number: self.checkpoint.weights.layers[number].mlp for number in config.moe_layers}
        experts = {number: mlp for number, mlp in layers.items() if isinstance(mlp, MoEWeights)}
        if arm.kernel is not None:
            if arm.mutant is not None:
                raise UsageError("A mutant is a change of the reference path: give --mutant or --kernel, not both.")
            if arm.order != "forward":
                raise UsageError("The order of a kernel's sums is its own.")
            function, declaration = find_kernel(arm.kernel, arm.op)
            check_fits(declaration, config, arm.precision)
            self.sources += kernel_file(declaration).parent.glob("*.py")  # it may import its neighbours
            return {
                number: KernelBlock(function, declaration, mlp, config, precision=arm.precision)
                for number, mlp in experts.items()
            }
        if arm.mutant is not None:
            fault = fault_of(arm.mutant, config)
            self.sources += (path for package in (mutants, references) for path in _sources_of(package))
            return {number: FaultBlock(fault, mlp, config, precision=arm.precision) for number, mlp in experts.items()}
        return {
            number: ReferenceBlock(mlp, config, precision=arm.precision, backwards=arm.order == "reversed")
            for number, mlp in experts.items()
        }

    def _sequences(self, pairs: Sequence[ScoredPair]) -> tuple[list[tuple[int, ...]], list[int]]:
        """Tokens of context and continuation, and where each continuation begins."""
        sequences = [self.encode(context + continuation) for context, continuation in pairs]
        starts = [len(self.encode(context)) for context, _ in pairs]
        if not all(starts):
            raise UsageError("A context has no tokens.")
        self._check_room(max(map(len, sequences), default=0))
        return sequences, starts

    def _check_room(self, tokens: int) -> None:
        limit = self.checkpoint.config.max_positions
        if tokens > limit:
            raise UsageError(
                f"A prompt and its answer may need {tokens} tokens, and {self.checkpoint.name} has {limit} positions: "
                "use fewer examples or a smaller limit of new tokens."
            )

    def _all_logits(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        hidden, _ = self.network.start(sequences)
        return self.network.logits(hidden)


def _sources_of(package: ModuleType) -> list[Path]:
    """The modules of a package."""
    return [path for folder in package.__path__ for path in Path(folder).glob("*.py")]


def _capture(layer: int, hidden: torch.Tensor, output: BlockOutput) -> LayerCapture:
    capture = LayerCapture(layer=layer, hidden=_rows(hidden), output=_rows(output.output))
    if output.topk_ids is not None and output.topk_weights is not None:
        ids = output.topk_ids.cpu().numpy().astype(np.int32)
        capture = replace(capture, topk_ids=ids, topk_weights=_rows(output.topk_weights))
    if output.routed is not None:
        shared = None if output.shared is None else _rows(output.shared)
        capture = replace(capture, routed=_rows(output.routed), shared=shared)
    if output.choice is not None and output.topk_ids is not None:
        capture = replace(capture, choice_gap=_choice_gap(output.choice, output.topk_ids.shape[1]))
    return capture


def _choice_gap(choice: torch.Tensor, top_k: int) -> FloatRows:
    """Between the last chosen and the best rejected score: [T]; Inf where nothing was left to reject."""
    best = choice.topk(min(top_k + 1, choice.shape[1]), dim=-1).values
    gap = best[:, top_k - 1] - best[:, -1]
    return _rows(gap if best.shape[1] > top_k else torch.full_like(gap, float("inf")))


def _rows(tensor: torch.Tensor) -> FloatRows:
    rows: FloatRows = tensor.float().cpu().numpy()
    return rows
