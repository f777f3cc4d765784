"""One arm of a transformers model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moecheck.errors import UsageError
from moecheck.evals import tiny
from moecheck.evals.tiny.find_kernel import kernel_file

from .backend import ScoredPair
from .hf_hooks import KernelHook, PlainHook, declaration_of, hook_of
from .hf_layers import Seams
from .records import Arm, Evidence, Fingerprint, FloatRows, Generation, LayerCapture, Scored

WATERMARK = 2.0


@dataclass(slots=True)
class _Recorder:
    """The arm's hook with its ears open: what goes into each block and its parts, and what comes out."""

    inner: PlainHook
    blocks: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    def experts(self, layer: int, hidden: Any, ids: Any, weights: Any, original: Any) -> torch.Tensor:
        routed = self.inner.experts(layer, hidden, ids, weights, original)
        self.blocks.setdefault(layer, {}).update(ids=ids, weights=weights, routed=routed)
        return routed

    def router(self, layer: int, hidden: Any, original: Any) -> Any:
        result = self.inner.router(layer, hidden, original)
        self.blocks.setdefault(layer, {})["logits"] = result[0]
        return result

    def block(self, layer: int, hidden: Any, original: Any) -> Any:
        result = self.inner.block(layer, hidden, original)
        output = result[0] if isinstance(result, tuple) else result
        self.blocks.setdefault(layer, {}).update(hidden=hidden, output=output)
        return result


class HFArm:
    """A model with one hook in its blocks; arms of one model take turns."""

    def __init__(
        self, model: Any, tokenizer: Any, seams: Seams, arm: Arm, *, digest: str, factor: float, name: str
    ) -> None:
        self.model, self.tokenizer, self.seams, self.arm = model, tokenizer, seams, arm
        self._digest, self._name = digest, name
        self.hook = hook_of(arm, seams.blocks, factor)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else model.config.eos_token_id
        self._ends = {end} if isinstance(end, int) else set(end or ())
        pad = tokenizer.pad_token_id
        self._pad = int(pad if pad is not None else next(iter(self._ends), 0))

    @property
    def fingerprint(self) -> Fingerprint:
        import transformers

        folders = (Path(__file__).parent, Path(tiny.__file__).parent)
        sources = [path for folder in folders for path in sorted(folder.glob("*.py"))]
        declaration = declaration_of(self.hook)
        if declaration is not None:
            sources.append(kernel_file(declaration))
        code = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
        settings = {
            "device": str(self.model.device),
            "dtype": str(self.model.dtype),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": str(torch.get_num_threads()),
        }
        return Fingerprint(model=self._digest, arm=self.arm.words, code=code.hexdigest(), settings=settings)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], *, until: Sequence[str], max_new_tokens: int) -> list[Generation]:
        encoded = [self.encode(prompt) for prompt in prompts]
        self._check_room(max(map(len, encoded), default=0) + max_new_tokens)
        longest = max(map(len, encoded))
        ids = torch.full((len(prompts), longest), self._pad)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):  # on the left, so that all answers begin in one column
            ids[row, longest - len(tokens) :] = torch.tensor(tokens)
            mask[row, longest - len(tokens) :] = 1
        device = self.model.device
        with self.seams.active(self.hook):
            out = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self._pad,
                eos_token_id=sorted(self._ends) or None,
                stopping_criteria=[self._stopper(longest, until)],
            )
        return [self._answer(row, until, max_new_tokens) for row in out[:, longest:].tolist()]

    @torch.inference_mode()
    def score(self, pairs: Sequence[ScoredPair], *, rows: bool = False) -> list[Scored]:
        ids, mask, starts = self._padded(pairs)
        with self.seams.active(self.hook):
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        scored = []
        for row, start in enumerate(starts):
            end = int(mask[row].sum())
            table = torch.log_softmax(logits[row, start - 1 : end - 1].double(), dim=-1)  # of the token behind each
            gold = ids[row, start:end]
            scored.append(
                Scored(
                    token_ids=tuple(gold.tolist()),
                    logprobs=table.gather(1, gold[:, None])[:, 0].cpu().numpy(),
                    rows=table.float().cpu().numpy() if rows else None,
                    top1=table.argmax(dim=-1).int().cpu().numpy(),
                )
            )
        return scored

    @torch.inference_mode()
    def capture(self, pairs: Sequence[ScoredPair]) -> list[LayerCapture]:
        ids, mask, _ = self._padded(pairs)
        with self._recorded() as recorder:
            self.model(input_ids=ids, attention_mask=mask, use_cache=False)
        kept = mask.flatten().bool()
        return [self._capture(layer, recorder.blocks[layer], kept) for layer in self.seams.blocks]

    @torch.inference_mode()
    def replay(self, layer: int, hidden: LayerCapture) -> LayerCapture:
        rows = torch.from_numpy(hidden.hidden.copy()).to(self.model.device, self.model.dtype)
        with self._recorded() as recorder:
            self.seams.blocks[layer].module(rows[None])
        return self._capture(layer, recorder.blocks[layer], torch.ones(len(rows), dtype=torch.bool))

    @torch.inference_mode()
    def evidence(self, pairs: Sequence[ScoredPair]) -> Evidence:
        if not isinstance(self.hook, KernelHook):
            return Evidence()
        calls = {layer: call.calls for layer, call in self.hook.calls.items()}
        plain = self._logits(pairs)
        seen = {}
        for layer, call in self.hook.calls.items():
            call.watermark = WATERMARK
            try:
                seen[layer] = not torch.equal(plain, self._logits(pairs))
            finally:
                call.watermark = 1.0
        for layer, call in self.hook.calls.items():
            call.calls = calls[layer]
        return Evidence(calls=calls, watermark=seen)

    def close(self) -> None:
        """Nothing to give back: the weights are the model's."""

    @contextmanager
    def _recorded(self) -> Iterator[_Recorder]:
        recorder = _Recorder(self.hook)
        with self.seams.active(recorder):
            yield recorder

    def _logits(self, pairs: Sequence[ScoredPair]) -> torch.Tensor:
        ids, mask, _ = self._padded(pairs)
        with self.seams.active(self.hook):
            logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits

    def _padded(self, pairs: Sequence[ScoredPair]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Ids and mask [B, S], padded on the right, and where each continuation begins."""
        sequences = [self.encode(context + continuation) for context, continuation in pairs]
        starts = [len(self.encode(context)) for context, _ in pairs]
        longest = max(map(len, sequences))
        self._check_room(longest)
        ids = torch.full((len(pairs), longest), self._pad)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(sequences):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return ids.to(self.model.device), mask.to(self.model.device), starts

    def _capture(self, layer: int, seen: dict[str, torch.Tensor], kept: torch.Tensor) -> LayerCapture:
        def rows(name: str) -> FloatRows | None:
            tensor = seen.get(name)
            if tensor is None:
                return None
            found: FloatRows = tensor.reshape(-1, tensor.shape[-1])[kept.to(tensor.device)].float().cpu().numpy()
            return found

        hidden, output, routed = rows("hidden"), rows("output"), rows("routed")
        assert hidden is not None
        assert output is not None
        ids, logits = rows("ids"), rows("logits")
        shared = None
        if routed is not None:
            if self.seams.blocks[layer].shared_module is not None:
                shared = output - routed
            else:
                routed = output  # with whatever the block does to the sum
        return LayerCapture(
            layer=layer,
            hidden=hidden,
            output=output,
            topk_ids=None if ids is None else ids.astype(np.int32),
            topk_weights=rows("weights") if ids is not None else None,
            routed=routed,
            shared=shared,
            choice_gap=None if logits is None else self._choice_gap(layer, logits),
        )

    def _choice_gap(self, layer: int, logits: FloatRows) -> FloatRows | None:
        """[T] between the last chosen and the best rejected score; None where the router's rule is not known."""
        from moecheck.evals.tiny.routing import choice_scores

        block = self.seams.blocks[layer]
        if block.routing is None or block.top_k >= block.num_experts:
            return None
        bias: Any = getattr(block.router_module, "e_score_correction_bias", None)
        cpu_bias = None if bias is None else bias.detach().float().cpu()
        best = choice_scores(torch.from_numpy(logits), cpu_bias, block.routing).topk(block.top_k + 1, dim=-1).values
        gap: FloatRows = (best[:, -2] - best[:, -1]).numpy()
        return gap

    def _stopper(self, start: int, until: Sequence[str]) -> Any:
        """Marks rows whose answer has a stop string; only the last tokens are looked at, and a few more."""

        def stop(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            tail = ids[:, max(start, ids.shape[1] - 24) :]
            texts = self.tokenizer.batch_decode(tail, skip_special_tokens=False)
            return torch.tensor([any(one in text for one in until) for text in texts], device=ids.device)

        return stop

    def _answer(self, tokens: list[int], until: Sequence[str], most: int) -> Generation:
        kept: list[int] = []
        for token in tokens:
            kept.append(token)
            if token in self._ends:
                break
            if any(stop in self.tokenizer.decode(kept[-24:], skip_special_tokens=False) for stop in until):
                break
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        raw = self.tokenizer.decode(kept, skip_special_tokens=False)
        places = [text.find(stop) for stop in until if stop in text]
        stopped = bool(places) or (kept[-1:] != [] and kept[-1] in self._ends) or any(stop in raw for stop in until)
        return Generation(
            text=text[: min(places)] if places else text,
            finish="stop" if stopped or len(kept) < most else "length",
            token_ids=tuple(kept),
        )

    def _check_room(self, tokens: int) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and tokens > limit:
            raise UsageError(
                f"A prompt and its answer may need {tokens} tokens, and {self._name} has {limit} positions: use fewer "
                "examples (--few-shot) or --max-new-tokens."
            )
