"""Known bugs for a block of a model: the corpus's mutants of a whole layer, and a few that it has no number for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moecheck.errors import UsageError, check_known
from moecheck.formats import Float64
from moecheck.mutants import mutants_for
from moecheck.mutants.call import Call, Mutation, Term, slots_of, with_slots
from moecheck.mutants.routing import effective_factor
from moecheck.mutants.shared import has_shared, routed_only, shared_only, weighed

from .config import TinyConfig

TILE = 64  # rows of which the last one is lost
CAPACITY = 1.25  # slots an expert has room for, relative to an even load
RANKS = 2
TOKENS = 64  # of the case that decides which mutants have a meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A change of a layer's call. name: as `--mutant` takes it. words: what is wrong. change: as of a mutant.

    applies: whether it has a meaning on a call, for a batch may be too small for it.
    """

    name: str
    words: str
    change: Callable[[Call], Mutation]
    applies: Callable[[Call], bool] = lambda call: call.case.num_tokens > 0


def faults(config: TinyConfig) -> dict[str, Fault]:
    """Every fault that has a meaning in this model, by name."""
    case = config.case("moe_layer", num_tokens=TOKENS, dtype="fp32")
    own = [fault for fault in _OWN if has_shared(case) or fault.name not in _OF_SHARED]
    corpus = [
        Fault(
            name=mutant.id,
            words=mutant.words,
            change=mutant.of_call,
            applies=lambda call, mutant=mutant: mutant.applies(call.case),  # type: ignore[misc]  # bound early
        )
        for mutant in mutants_for(case)
    ]
    return {fault.name: fault for fault in (*corpus, *own)}


def fault_of(name: str, config: TinyConfig) -> Fault:
    """The fault of that name; raises UsageError for an unknown one, offering the near name."""
    known = faults(config)
    check_known("mutant", name, known)
    return known[name]


def _routed_by(factor: float) -> Callable[[Call], Mutation]:
    def change(call: Call) -> Mutation:
        if not has_shared(call.case):
            return (Term(call=call, factor=factor),)
        return Term(call=routed_only(call), factor=factor), Term(call=shared_only(call))

    return change


def _experts_swapped(call: Call) -> Call:
    ids = slots_of(call).ids
    return with_slots(call, ids=np.where(ids == 0, 1, np.where(ids == 1, 0, ids)))


def _tile_row_lost(call: Call) -> Mutation:
    kept: Float64 = (np.arange(call.case.num_tokens) % TILE != TILE - 1).astype(np.float64)[:, None]
    return (Term(call=call, factor=kept),)


def _over_capacity_dropped(call: Call) -> Call:
    """An expert takes its first tokens up to its capacity; slots beyond weigh nothing."""
    slots = slots_of(call)
    room = int(np.ceil(CAPACITY * slots.ids.size / call.case.num_experts))
    weights = slots.weights.copy()
    for expert in range(call.case.num_experts):
        rows, places = np.nonzero(slots.ids == expert)
        weights[rows[room:], places[room:]] = 0.0
    return with_slots(call, weights=weights)


def _shared_by_ranks(call: Call) -> Mutation:
    return weighed(call, RANKS * effective_factor(call.case))


_OWN = (
    Fault(name="shared x1.1", words="shared expert weighted 1.1", change=lambda call: weighed(call, 1.1)),
    Fault(
        name="w_sh=r*ranks",
        words=f"shared expert weighted r on each of {RANKS} ranks whose outputs are added up",
        change=_shared_by_ranks,
    ),
    Fault(name="routed x1.05", words="routed experts weighted 1.05", change=_routed_by(1.05)),
    Fault(name="routed x1.01", words="routed experts weighted 1.01", change=_routed_by(1.01)),
    Fault(name="experts_swapped", words="experts 0 and 1 are exchanged", change=_experts_swapped),
    Fault(name="tile_row_lost", words=f"the last row of every {TILE} is zero", change=_tile_row_lost),
    Fault(
        name="capacity_drop",
        words=f"what exceeds {CAPACITY} times an expert's even load is dropped",
        change=_over_capacity_dropped,
    ),
)
_OF_SHARED = {"shared x1.1", "w_sh=r*ranks"}

# The faults that a self-test shows, in the order of its table; a model without shared experts has some of them only.
SELF_TEST = (
    "w_sh=1/r", "w_sh=r", "w_sh=r*ranks", "shared x1.1", "shared_missing", "w_sh=Sum/r", "drop_r", "r_twice",
    "routed x1.05", "routed x1.01", "renorm_all/net weights", "renorm_all/shared score 1", "renorm_flip",
    "biased_scores_as_weights", "bias_ignored", "groups_ignored", "group_score_max_vs_top2",
    "sigmoid<->softmax/softmax", "sigmoid<->softmax/sigmoid", "experts_swapped", "k-1", "tile_row_lost",
    "capacity_drop", "swap_gate_up",
)  # fmt: skip


def self_test_faults(config: TinyConfig) -> tuple[Fault, ...]:
    """Those of SELF_TEST that have a meaning in this model."""
    known = faults(config)
    found = tuple(known[name] for name in SELF_TEST if name in known)
    if not found:
        raise UsageError("This model has no layer that a fault could be put into.")
    return found
