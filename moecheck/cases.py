"""The case: a frozen record that builds its own inputs bit for bit, on any machine, from one line of JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from .errors import CaseError, MoecheckError, SpecError, check_known, near
from .formats import FORMATS
from .json_text import loads
from .ops import OPS
from .spec import LATER, MoESpec, identity

Layout = Literal["contiguous", "strided"]
MapStyle = Literal["linear", "round_robin", "shuffled"]

# What the values look like, with the reason why the stratum exists.
STRATA = {
    "random": "normal values, scaled so that gate and up have rms 2 and the output about 1",
    "integer": "an output that every format represents exactly: one missing tile or wrong index is a bit mismatch",
    "positive": "all-positive operands: an accumulator that truncates or is too narrow drifts",
    "cancelling": "outputs small against the terms that they are summed from",
    "outlier": "a few hidden channels 50 times larger, as trained models have them, and a few tokens 64 times",
    "one_hot": "one-hot tokens and identity matrices: the output is the activation, read value by value",
    "zero_rows": "tokens that are entirely zero among others that are not",
    "quantiser": "ties of fp8 codes, and tokens next to nothing: which arithmetic a quantiser of activations has",
}
# Those whose values survive in few bits.
QUANTISED_STRATA = ("random", "positive", "outlier", "zero_rows", "quantiser")
# Those of whose tokens the reference may compute some only.
SAMPLED_OPS = ("fused_experts", "moe_layer", "expert_parallel_moe", "unpermute")
QUANTISED_OPS = ("fused_experts", "expert_parallel_moe")
# Which experts the tokens go to (ops that take topk_ids).
LOADS = {
    "random": "distinct experts drawn uniformly",
    "skewed": "a few experts take most of the tokens, others none",
    "one_expert": "every token goes to the same top_k experts",
    "block_edges": "expert counts at a block size - 1, + 0, + 1, and 0",
    "padding": "padding ids -1: whole tokens and single slots",
    "padding_zero": "padding as expert 0 at weight 0: whole tokens",
}
# What the router logits look like (ops that take router_logits).
LOGITS = {
    "random": "normal logits of standard deviation 1.5",
    "gapped": "logits so far apart that rounding cannot change the choice: exact ids are required",
    "ties": "logits on a coarse grid: many exact ties",
    "near_ties": "neighbouring logits one unit in the last place apart",
    "extreme": "rows all equal, all very negative, very large, with -Inf, +Inf and NaN",
    "negative": "all logits below zero",
}
# And those of layers that are spread over ranks.
RANK_LOGITS = {**LOGITS, "one_rank": "gapped logits by which the last rank's experts come first"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One input to one op, named by its parameters.

    op: name in moecheck.ops.OPS. spec: the layer's semantics; ops read the part that concerns them. dtype: format of
    the activations and weights. num_local_experts: experts on this rank (an expert map is passed), None for all.
    map_style: which these are: the `linear` last ones, every so-many-th (`round_robin`), or any in any order.
    num_ranks: over which tokens and experts are spread (expert_parallel_moe). uneven_ranks: whether `rank_tokens` says
    which rank has how many tokens, one of them none; else a kernel shares them as it likes. There map_style is that of
    `expert_placement`. block_size: of align_block_size. stratum: key of STRATA. load: key of LOADS, LOGITS or
    RANK_LOGITS, by what the op takes.
    layout: `strided` passes rows that are wider in memory than their width. hidden_scale: permute's optional argument.
    latent_size: width of the routed experts of a spec with latent_experts, 0 without.
    sampled: how many tokens the reference computes, chosen by the record (moecheck.sampled_inputs); 0 for all of them.
    Experts' weights of such a case are drawn in another way (moecheck.window_weights), which takes no time.
    seed: drawn numbers are a function of this record. name, reason: of a curated case; not part of its identity.
    """

    op: str
    spec: MoESpec = field(default_factory=MoESpec)
    num_tokens: int = 64
    num_experts: int = 8
    hidden_size: int = 256
    intermediate_size: int = 128
    shared_intermediate_size: int = 0
    num_local_experts: int | None = None
    map_style: MapStyle = "linear"
    block_size: int = 16
    dtype: str = "bf16"
    stratum: str = "random"
    load: str = "random"
    layout: Layout = "contiguous"
    hidden_scale: bool = False
    latent_size: int = field(default=0, metadata=LATER)
    sampled: int = field(default=0, metadata=LATER)
    num_ranks: int = field(default=1, metadata=LATER)
    uneven_ranks: bool = field(default=False, metadata=LATER)
    seed: int = 0
    name: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        for name, kind in (
            ("spec", MoESpec),
            ("hidden_scale", bool),
            ("uneven_ranks", bool),
            ("seed", int),
            ("name", str),
            ("reason", str),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise CaseError(f"{name}={value!r} must be of type {kind.__name__}.")
        for name in ("op", "dtype", "stratum", "load", "layout"):
            if not isinstance(getattr(self, name), str):
                raise CaseError(f"{name}={getattr(self, name)!r} must be of type str.")
        check_known("op", self.op, OPS)
        check_known("dtype", self.dtype, FORMATS)
        check_known("stratum", self.stratum, STRATA)
        check_known("load", self.load, self.loads)
        check_known("layout", self.layout, ("contiguous", "strided"))
        check_known("map_style", self.map_style, ("linear", "round_robin", "shuffled"))
        for size, least in (
            ("num_tokens", 0),
            ("num_experts", 1),
            ("hidden_size", 1),
            ("intermediate_size", 1),
            ("shared_intermediate_size", 0),
            ("latent_size", 0),
            ("sampled", 0),
            ("num_ranks", 1),
            ("block_size", 1),
        ):
            value = getattr(self, size)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise CaseError(f"{size}={value!r} must be an integer of at least {least}.")
        local = self.num_local_experts
        if local is not None and not (type(local) is int and 1 <= local <= self.num_experts):
            raise CaseError(
                f"num_local_experts={local!r} must be an integer and lie between 1 and num_experts={self.num_experts}."
            )
        if (self.spec.shared_experts != "none") != (self.shared_intermediate_size > 0):
            raise CaseError(
                f"shared_experts={self.spec.shared_experts!r} contradicts "
                f"shared_intermediate_size={self.shared_intermediate_size}."
            )
        if self.spec.latent_experts != (self.latent_size > 0):
            raise CaseError(f"latent_experts={self.spec.latent_experts} contradicts latent_size={self.latent_size}.")
        if self.sampled and (self.op not in SAMPLED_OPS or self.stratum != "random"):
            raise CaseError(
                f"sampled={self.sampled} is of the ops {', '.join(SAMPLED_OPS)} and of the stratum 'random', not of "
                f"{self.op} and {self.stratum!r}."
            )
        self._check_quantization()
        self._check_ranks()
        self.spec.routing.check_num_experts(self.num_experts)

    def _check_quantization(self) -> None:
        quantization = self.spec.experts.quantization
        if quantization is None:
            return
        if self.op not in QUANTISED_OPS:
            raise CaseError(f"Quantised weights are of {' and '.join(QUANTISED_OPS)}, not of {self.op}.")
        if self.stratum not in QUANTISED_STRATA:
            raise CaseError(
                f"stratum={self.stratum!r} is lost in quantised weights; use {', '.join(QUANTISED_STRATA)}."
            )
        odd = self.hidden_size % 2 or self.intermediate_size % 2
        if quantization.packed and odd:
            raise CaseError(
                f"hidden_size={self.hidden_size} and intermediate_size={self.intermediate_size} must be even for "
                f"{quantization.weights}, two of which share a byte."
            )

    def _check_ranks(self) -> None:
        if self.op != "expert_parallel_moe":
            if self.num_ranks > 1 or self.uneven_ranks:
                raise CaseError(f"num_ranks={self.num_ranks} and uneven_ranks are of expert_parallel_moe.")
            return
        if self.num_experts % self.num_ranks:
            raise CaseError(f"num_experts={self.num_experts} must be a multiple of num_ranks={self.num_ranks}.")
        routing = self.spec.routing
        special = routing.num_zero_experts or routing.num_fused_shared_experts or self.spec.latent_experts
        extra = routing.selection == "hash" or routing.per_expert_scale or self.spec.shared_experts != "none"
        if special or extra or self.spec.sum_factor != 1.0 or self.num_local_experts is not None:
            raise CaseError(
                "expert_parallel_moe has routed experts only: no shared, identity or latent ones, hash routing, scales "
                "per expert, factor on the sum or num_local_experts."
            )

    @property
    def loads(self) -> dict[str, str]:
        """The `load` names that this op knows, with their reasons."""
        if self.op == "expert_parallel_moe":
            return RANK_LOGITS
        return LOGITS if "router_logits" in OPS[self.op].arg_names else LOADS

    @property
    def id(self) -> str:
        """A stable, readable name: op, dtype, sizes, strata, and eight hex digits over the whole record."""
        top_k = self.spec.routing.top_k
        strata = [text for text in (self.stratum, self.load) if text != "random"]
        parts = [
            self.op,
            self.dtype,
            f"T{self.num_tokens}-E{self.num_experts}-k{top_k}-H{self.hidden_size}-I{self.intermediate_size}",
            *([self.name] if self.name else strata or ["random"]),
            self.digest,
        ]
        return "/".join(parts)

    @property
    def digest(self) -> str:
        """Eight hex digits over everything but name and reason."""
        return _digest(self)

    @property
    def key(self) -> str:
        """What the drawn numbers depend on: the seed and the whole record."""
        return f"{self.seed}/{self.digest}"

    @property
    def elements(self) -> int:
        """Number of expert weights, the size that decides about time and memory."""
        local = self.num_local_experts or self.num_experts
        return local * 3 * (self.latent_size or self.hidden_size) * self.intermediate_size

    def to_json(self) -> dict[str, Any]:
        """Plain data: nested dictionaries of JSON values."""
        return asdict(self)

    def inputs(self) -> dict[str, Any]:
        """The op's arguments by name: NumPy arrays in storage dtype and integers; absent optional ones are left out."""
        from .inputs import build  # the record stays importable without the drawing code

        return build(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """The inverse of `to_json`; raises CaseError or SpecError with one sentence."""
        if not isinstance(data, Mapping):
            raise CaseError(f"A case must be a JSON object, not {type(data).__name__}.")
        names = [f.name for f in fields(cls)]
        for name in data:
            if name not in names:
                raise CaseError(f"A case has no field {name!r}.{near(str(name), names)}")
        values = dict(data)
        try:
            if "spec" in values:
                values["spec"] = MoESpec.from_json(values["spec"])
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise CaseError(f"The case record does not fit: {error}.") from error
        except SpecError as error:
            raise CaseError(f"The case's spec does not fit: {error}") from error


@lru_cache(maxsize=1 << 14)
def _digest(case: Case) -> str:
    data = {name: value for name, value in identity(case).items() if name not in ("name", "reason")}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_case(path: Path) -> tuple[Case, dict[str, Any]]:
    """The case of a file written for a failing kernel, with the file's other fields (kernel, tol, ...).

    Raises CaseError for a file that is missing, truncated, or not a case.
    """
    try:
        data = loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CaseError(f"Cannot read the case file {path}: {error.strerror}.") from error
    except ValueError as error:  # no UTF-8, or no JSON
        raise CaseError(f"The case file {path} is not complete JSON ({error}); save the case again.") from error
    if not isinstance(data, dict):
        raise CaseError(f"The case file {path} must hold a JSON object, not {type(data).__name__}.")
    record = data.get("case", data)
    try:
        return Case.from_json(record), {name: value for name, value in data.items() if name != "case"}
    except MoecheckError as error:
        raise CaseError(f"The case file {path} does not fit: {error}") from error
