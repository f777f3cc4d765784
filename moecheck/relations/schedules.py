"""When copies run changes no bit: a kernel waits for all that it reads."""

from __future__ import annotations

from moecheck.cases import Case
from moecheck.ops import OPS
from moecheck.relations.premises import tokens
from moecheck.relations.relation import Call, Inputs, Subject, Trial, relation
from moecheck.relations.rows import EVERY, like_the_case
from moecheck.schedules import OTHERS


def has_schedules(subject: Subject) -> str | None:
    """The kernel's copies are run by an interpreter."""
    return None if subject.declaration.backend == "pallas_tpu" else "has no DMAs that an interpreter runs"


@relation(
    "copies that run as soon as they are started give what copies give that run as late as they may, to the bit",
    ops=tuple(OPS),
    premises=(has_schedules, tokens(1)),
    exact=lambda _: True,
    keeps_shapes=True,
)
def copy_schedules(case: Case, inputs: Inputs) -> Trial:
    """Early copies without and with the detector of races, and late ones without it; the case itself has them with it.

    The detector does not see all: two copies under one semaphore hide each other from it.
    """
    return Trial(
        calls=tuple(Call(case=case, inputs=inputs, schedule=schedule) for schedule in OTHERS),
        pairs=lambda calls: tuple(like_the_case(calls, i + 1, rows=EVERY) for i in range(len(OTHERS))),
    )
