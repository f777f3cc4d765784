"""The cases of each kernel of a run: usual ones, layers in full size (`--model`, `--tokens`), a grid (`--sweep`)."""

from __future__ import annotations

from moecheck.cases import Case
from moecheck.cli.options import parse_tokens
from moecheck.curated import OWN_ROWS, cases_for, left_out
from moecheck.models import full_size_cases
from moecheck.quantization import Quantization
from moecheck.registry import Found
from moecheck.runner.plan import Plan, lacking, other_semantics
from moecheck.runner.relate import COMPILED
from moecheck.sweep import sweep_cases

MOST_SCHEMES = 3  # of one kernel; drawing and checking each takes seconds


def usual_plan(
    found: Found, *, profile: str, seed: int, model: str | None, examples: int | None, dtype: str | None, alone: bool
) -> Plan:
    """The named and drawn cases of a profile. alone: whether the run is about this kernel or its op, and no others."""
    declaration, interpreted = found.declaration, found.device == "interpreter"
    cases = cases_for(
        declaration.op,
        profile=profile,
        seed=seed,
        small=interpreted,
        model=model,
        examples=examples,
        specs=declaration.specs,
        dtypes=declaration.dtypes if dtype is None else (dtype,),
        quantizations=declaration.quantizations,
        plain_weights="w13_scale" not in declaration.required,
    )
    left, reason = left_out(
        [case for case in cases if lacking(declaration, case) is None],
        profile=profile,
        compiled=declaration.backend in COMPILED,
        interpreted=interpreted,
        alone=alone,
    )
    return Plan(
        target=found.target,
        declaration=declaration,
        device=found.device,
        cases=tuple(case for case in cases if case not in left),
        import_seconds=found.import_seconds,
        left_out=tuple(left),
        left_out_reason=reason,
        part=bool(left) and not alone and (interpreted or declaration.op in OWN_ROWS),
    )


def full_size_plan(found: Found, *, model: str, tokens: str, dtype: str | None, seed: int) -> Plan | None:
    """The plan of one kernel; None for an op whose reference would take too long.

    A kernel of many quantizations runs the first few that can be drawn directly; the others are left out, with the
    reason.
    """
    declaration = found.declaration
    drawn = [scheme for scheme in declaration.quantizations if _is_drawn(scheme)]

    def cases(schemes: list[Quantization], *, plain: bool) -> tuple[Case, ...]:
        return tuple(
            full_size_cases(
                model,
                declaration.op,
                tokens=parse_tokens(tokens),
                dtypes=declaration.dtypes if dtype is None else (dtype,),
                quantizations=tuple(schemes),
                plain_weights=plain,
                seed=seed,
            )
        )

    all_of_op = cases(drawn[:MOST_SCHEMES], plain="w13_scale" not in declaration.required)
    if not all_of_op:
        return None
    wanted = tuple(case for case in all_of_op if other_semantics(declaration, case) is None)
    if not wanted:
        reason = "implements other semantics than the model's"
        return Plan(
            target=found.target,
            declaration=declaration,
            device=found.device,
            cases=(),
            left_out=all_of_op,
            left_out_reason=reason,
        )
    return Plan(
        target=found.target,
        declaration=declaration,
        device=found.device,
        cases=wanted,
        import_seconds=found.import_seconds,
        left_out=cases(drawn[MOST_SCHEMES:], plain=False),
        left_out_reason=f"one of more than {MOST_SCHEMES} quantizations; full-size layers have the first ones only",
    )


def sweep_plan(found: Found, *, dtype: str | None, seed: int) -> Plan:
    """The plan of one kernel with a grid of small cases over (E, top_k, T, groups, widths, dtype or scheme)."""
    declaration = found.declaration
    cases = sweep_cases(
        declaration.op,
        dtypes=declaration.dtypes if dtype is None else (dtype,),
        quantizations=declaration.quantizations[:MOST_SCHEMES],
        plain_weights="w13_scale" not in declaration.required,
        specs=declaration.specs,
        seed=seed,
    )
    return Plan(
        target=found.target,
        declaration=declaration,
        device=found.device,
        cases=tuple(cases),
        import_seconds=found.import_seconds,
    )


def _is_drawn(scheme: Quantization) -> bool:
    return not (scheme.zero_points or scheme.swizzled or scheme.scale == "e4m3")
