"""Which op a set of argument names belongs to, and what is missing of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn, get_args

from moecheck.errors import UsageError, near
from moecheck.kernel import TieRule
from moecheck.ops import OPS
from moecheck.quantization import QUANTISED

# Arguments that a call may leave out.
OPTIONAL = frozenset(
    {"correction_bias", "per_expert_scale", "expert_map", "hidden_scale", "bias", "w13_bias", "w2_bias"}
    | set(QUANTISED)
    | {"shared_w13", "shared_w2", "shared_gate", "token_ids", "tid2eid", "latent_down", "latent_up"}
    | {"rank_tokens", "expert_placement"}
)
TIE_RULES = get_args(TieRule)
_LONGEST = 60  # characters of a value that a sentence repeats


def required(op: str) -> tuple[str, ...]:
    """The arguments without which an op cannot be called, in its order."""
    return tuple(name for name in OPS[op].arg_names if name not in OPTIONAL)


def shown(value: object) -> str:
    """An argument in a sentence: itself, or its kind where that would take more than a few words."""
    text = repr(value)
    return text if len(text) <= _LONGEST and "\n" not in text else f"a {type(value).__name__}"


def check_text(**values: object) -> None:
    """UsageError for the first keyword whose value is no text."""
    for name, value in values.items():
        if not isinstance(value, str):
            raise UsageError(f"{name}={shown(value)} must be text.")


def check_tie(tie: object) -> None:
    """UsageError for what is no rule for equal scores; None is allowed."""
    if tie is not None and not (isinstance(tie, str) and tie in TIE_RULES):
        raise UsageError(f"tie={shown(tie)} must be {' or '.join(map(repr, TIE_RULES))} or None.")


def check_keys(values: Iterable[object]) -> None:
    """UsageError for the first argument whose name is no text."""
    for name in values:
        if not isinstance(name, str):
            raise UsageError(f"{shown(name)} is no name of an argument: the inputs are a dict by names.")


def infer_op(names: Iterable[str]) -> str:
    """The one op that takes all of these arguments and needs no others; UsageError names the choices."""
    known = set(names)
    fitting = [op for op in OPS if set(required(op)) <= known <= set(OPS[op].arg_names)]
    if len(fitting) == 1:
        return fitting[0]
    shared = {op: len(known & set(OPS[op].arg_names)) for op in OPS}
    most = max(shared.values())
    nearest = [op for op in OPS if shared[op] == most] if most else []
    hints = "; ".join(_misfit(op, known) for op in nearest[:3]) or f"there are {', '.join(OPS)}"
    raise UsageError(f"Which op takes {', '.join(sorted(known)) or 'no arguments'}? Say which one ({hints}).")


def check_names(op: str, names: Iterable[str]) -> None:
    """UsageError for the first argument that the op does not have, or for those that it needs and are not given."""
    given = list(names)
    for name in given:
        if name not in OPS[op].arg_names:
            hint = near(name, OPS[op].arg_names) or f" It takes {', '.join(OPS[op].arg_names)}."
            raise UsageError(f"{op} has no argument {name!r}.{hint}")
    quantised = [name for name in QUANTISED if name in given]
    if quantised:
        refuse_quantised(", ".join(quantised))
    missing = [name for name in required(op) if name not in given]
    if missing:
        raise UsageError(f"{op} needs {', '.join(missing)}; given: {', '.join(given) or 'nothing'}.")


def refuse_quantised(found: str) -> NoReturn:
    """UsageError for quantised weights, which only a run of kernels judges."""
    raise UsageError(
        f"Quantised weights ({found}) are judged by `moecheck kernels`; here give w13 and w2 as the numbers that they "
        "stand for, in fp32, and declare the quantisers in numerics."
    )


def _misfit(op: str, names: set[str]) -> str:
    """`fused_experts lacks w2`, `permute does not take w13`."""
    lacking = [name for name in required(op) if name not in names]
    extra = sorted(names - set(OPS[op].arg_names))
    parts = [f"lacks {', '.join(lacking)}"] if lacking else []
    parts += [f"does not take {', '.join(extra)}"] if extra else []
    return f"{op} {' and '.join(parts) or 'fits'}"
