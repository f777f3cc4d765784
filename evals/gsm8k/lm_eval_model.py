"""Any of our backends as a model of lm-eval; importing this needs lm-eval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM

from moecheck.errors import Unsupported
from moecheck.evals.backends.records import Generation

from .prompts import batches_of

if TYPE_CHECKING:
    from moecheck.evals.backends.backend import Backend


class BackendLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """Generation in batches that depend on the prompts alone, so that both arms have the same ones."""

    def __init__(
        self,
        backend: Backend,
        *,
        batch_size: int,
        max_new_tokens: int,
        done: Callable[[Sequence[str], Sequence[Generation]], None] | None = None,
    ) -> None:
        super().__init__()
        self._backend, self._size, self._most, self._done = backend, batch_size, max_new_tokens, done

    @property
    def eot_token_id(self) -> int:
        """Stands before an empty context, which gsm8k does not have."""
        return 0

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return list(self._backend.encode(string))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, in the order of the requests."""
        texts = [""] * len(requests)
        # One call may hold several settings of generation; each is a set of batches of its own.
        groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for index, request in enumerate(requests):
            options = request.args[1]
            until = options.get("until") or ()
            until = (until,) if isinstance(until, str) else tuple(until)
            groups.setdefault((until, int(options.get("max_gen_toks") or self._most)), []).append(index)
        for (until, most), members in groups.items():
            prompts = [request.args[0] for request in (requests[index] for index in members)]
            for batch in batches_of(prompts, self._size):
                given = [prompts[index] for index in batch]
                answers = self._backend.generate(given, until=until, max_new_tokens=most)
                for index, answer in zip(batch, answers, strict=True):
                    texts[members[index]] = answer.text
                if self._done is not None:
                    self._done(given, answers)
        return texts

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """Sums of gold log-probabilities and whether each token is the most probable one."""
        results = []
        pairs = [(context, continuation) for (context, continuation), _, _ in requests]
        for start in range(0, len(pairs), self._size):
            for scored in self._backend.score(pairs[start : start + self._size]):
                greedy = scored.top1 is not None and tuple(scored.top1.tolist()) == scored.token_ids
                results.append((float(scored.logprobs.sum()), greedy))
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of no use to gsm8k."""
        raise Unsupported("needs a task of generation or of log-likelihoods of continuations")
