"""Everything that a run found, as records; e2e.json is their plain form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from moecheck.evals.backends.records import Arm, Evidence, Fingerprint, ModelFacts
from moecheck.evals.gsm8k.answers import Answer
from moecheck.evals.signals.attribution import LayerFit
from moecheck.evals.signals.divergence import AnswerDivergence, Divergence
from moecheck.evals.signals.routing import LayerAgreement
from moecheck.evals.signals.signal import Signal
from moecheck.evals.signals.texts import TextAgreement
from moecheck.evals.signals.verdict import Verdict
from moecheck.evals.statistics.paired import PairedTable

from .isolated import LayerDepth


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What a legal variant, or the baseline once more, departs by. None where it was not measured."""

    name: str
    divergence: Divergence | None = None
    texts: TextAgreement | None = None
    flips: PairedTable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Of one server arm. tokens_per_second: of all requests together; seconds to the first token and between tokens."""

    tokens_per_second: float
    first_token_median: float
    first_token_p99: float
    between_tokens_median: float
    between_tokens_p99: float
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One paired run. baseline, candidate: what the arms were, in words, with their fingerprints.

    pairs: of answers, question by question. fits, agreements, depth: of the candidate; depth_band: the largest of the
    legal variants. divergences: of the candidate on gold answers. lm_eval: each arm's own table of lm-eval, by arm.
    stopped: what an early stop found. harness: who asked and scored. notes: sentences that a reader should see first.
    """

    facts: ModelFacts
    data: str
    few_shot: int
    batch_size: int
    precision: str
    margin: float
    harness: str
    baseline: Fingerprint
    candidate: Fingerprint
    candidate_arm: Arm | None
    verdict: Verdict
    signals: tuple[Signal, ...]
    evidence: Evidence | None
    pairs: tuple[tuple[Answer, Answer], ...]
    asked: int
    fits: tuple[LayerFit, ...] = ()
    agreements: tuple[LayerAgreement, ...] = ()
    depth: tuple[LayerDepth, ...] = ()
    depth_band: tuple[LayerDepth, ...] = ()
    divergence: Divergence | None = None
    divergences: tuple[AnswerDivergence, ...] = ()
    variants: tuple[Variant, ...] = ()
    lm_eval: Mapping[str, str] = field(default_factory=dict)
    throughput: Mapping[str, Throughput] = field(default_factory=dict)
    stopped: str | None = None
    notes: tuple[str, ...] = ()

    def table(self, which: str) -> PairedTable:
        """The paired 2x2 table by one filter: `strict` or `flexible`."""
        name = f"{which}_right"
        one, two = ([getattr(pair[arm].score, name) for pair in self.pairs] for arm in (0, 1))
        return PairedTable.of(one, two)

    def to_json(self) -> dict[str, Any]:
        """Nested dictionaries and lists of numbers and texts."""
        data = asdict(self)
        data["schema"] = 1
        data["tables"] = {
            f"exact_match,{name}": asdict(self.table(which))
            for name, which in (("strict-match", "strict"), ("flexible-extract", "flexible"))
        }
        data["verdict"]["exit_code"] = self.verdict.exit_code
        return data
