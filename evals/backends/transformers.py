"""The backend of transformers: any MoE model of its version 5, by the hub's id or by path, with arms in its blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from moecheck.errors import UsageError

from .hf_arm import HFArm
from .hf_hooks import MUTANTS, known_mutants
from .hf_layers import Seams, find_blocks
from .records import Arm, ModelFacts, Precision

FP32_LIMIT = 8 << 30  # bytes of a checkpoint up to which the baseline is computed in fp32


def open_model(name_or_path: str) -> HFModel:
    """A model of the hub or of a folder, on the GPU where there is one.

    Raises UsageError for what is not there, cannot be loaded or has no experts, and without transformers.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError("Models of transformers need moecheck[transformers].") from error
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(name_or_path)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name_or_path)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                name_or_path, dtype=_dtype(name_or_path), device_map="auto" if torch.cuda.is_available() else None
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            # transformers' own messages are long; the first line says what is missing
            reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[:1])
            raise UsageError(f"Cannot load {name_or_path} with transformers: {reason[:240]}") from error
    if model.config.get_text_config().to_dict().get("num_experts_per_tok") is None:
        raise UsageError(f"{name_or_path} ({config.model_type}) has no Mixture-of-Experts layers.")
    model.train(False)
    return HFModel(name_or_path, model, tokenizer)


class HFModel:
    """A loaded model, shared by its arms; the seams are installed once."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.seams = Seams(find_blocks(model))
        self.seams.install(model)
        self._digest: str | None = None

    @property
    def facts(self) -> ModelFacts:
        config = self.model.config.get_text_config()
        block = next(iter(self.seams.blocks.values()))
        shared = 0 if block.shared_module is None else int(getattr(config, "n_shared_experts", None) or 1)
        return ModelFacts(
            name=Path(self.name).name if Path(self.name).is_dir() else self.name,
            moe_layers=tuple(self.seams.blocks),
            num_experts=block.num_experts,
            top_k=block.top_k,
            hidden_size=block.hidden_size,
            vocab_size=int(config.vocab_size),
            routed_scaling_factor=float(getattr(config, "routed_scaling_factor", None) or 1.0),
            shared_experts=shared,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the parameters' bytes and the configuration; of what was loaded, wherever it came from."""
        if self._digest is None:
            found = hashlib.sha256(self.model.config.to_json_string().encode())
            for name, tensor in sorted(self.model.state_dict().items()):
                found.update(name.encode())
                found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            vocabulary: Mapping[str, int] = self.tokenizer.get_vocab()
            found.update(repr(sorted(vocabulary.items())).encode())
            self._digest = found.hexdigest()
        return self._digest

    def open(self, arm: Arm) -> HFArm:
        """One arm; raises UsageError for a kernel or mutant that is unknown, Unsupported for one that cannot run."""
        return HFArm(
            self.model,
            self.tokenizer,
            self.seams,
            arm,
            digest=self.digest,
            factor=self.facts.routed_scaling_factor,
            name=self.facts.name,
        )

    def variants(self, precision: Precision) -> tuple[Arm, ...]:
        """The precision in both orders of the sum over experts, and fp32 in the other order."""
        arms = (Arm(precision=precision), Arm(precision=precision, order="reversed"), Arm(order="reversed"))
        return tuple(dict.fromkeys(arm for arm in arms if arm != Arm()))

    def mutants(self) -> tuple[str, ...]:
        return known_mutants(self.seams.blocks, self.facts.routed_scaling_factor)

    def mutant_words(self, name: str) -> str:
        """What is wrong, for people."""
        return MUTANTS[name]

    def close(self) -> None:
        """Nothing to give back: memory goes with the object."""


def _dtype(name_or_path: str) -> Any:
    """fp32 for what is small and here, the checkpoint's own otherwise."""
    folder = Path(name_or_path)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else FP32_LIMIT + 1
    return torch.float32 if size <= FP32_LIMIT else "auto"


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no advice while a model is loaded."""
    from transformers.utils import logging

    own: Any = logging

    level, bars = own.get_verbosity(), own.is_progress_bar_enabled()
    own.set_verbosity_error()
    own.disable_progress_bar()
    try:
        yield
    finally:
        own.set_verbosity(level)
        if bars:
            own.enable_progress_bar()
