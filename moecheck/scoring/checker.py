"""Mutants of the checker: moecheck's own functions with a bug in their source, tried on outputs that are known."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from threadpoolctl import threadpool_limits

from .result import CHECKER, MutantScore
from .rewrite import Rewrite, rewritten
from .self_test import prepare, self_test


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckerMutant:
    """One function of the checker with one change. module, name.function: where; class.method for a method."""

    name: str
    words: str
    module: str
    function: str
    find: str
    put: str
    sources: tuple[str, ...] = ()


def _one(name: str, words: str, module: str, function: str, find: str, put: str, *sources: str) -> CheckerMutant:
    module = f"moecheck.{module}"
    return CheckerMutant(
        name=f"checker: {name}", words=words, module=module, function=function, find=find, put=put, sources=sources
    )


_STATISTICS, _VALUES, _JUDGE = "checks.statistics", "checks.values", "checks.judge"
_SAMPLE, _MEAN_SQUARES = "checks.sample", "checks.mean_squares"
_MUTANTS = (
    _one("abs dropped", "errors below zero count as small", "metrics", "abs_err", "np.abs(out - ref)", "out - ref"),
    _one("NaN is a wildcard", "an error that is NaN counts as none", "metrics", "abs_err",
         "np.where(np.isnan(error), np.inf, error)", "np.where(np.isnan(error), 0.0, error)"),
    _one("NaN passes the comparison", "an element fails only if its error is larger than the bound", _VALUES,
         "judge_values", "error <= allowed", "~(out - expected.true > allowed)"),
    _one("any for all", "a case fails only if every element is wrong", _VALUES, "judge_values", "beyond.any()",
         "beyond.all()"),
    _one("judged where the output is finite", "elements are left out where the output is not finite", _VALUES,
         "judge_values", "_defined(expected)", "_defined(expected) & np.isfinite(out)"),
    _one("tolerance doubled", "the bound of an element is twice what rounding explains", "bounds", "z_limit",
         "SLACK * np.sqrt(2 * np.log(2 * max(elements, 1) / FALSE_ALARM))",
         "2.0 * SLACK * np.sqrt(2 * np.log(2 * max(elements, 1) / FALSE_ALARM))"),
    _one("tolerance of nothing", "the bound of an element is a tenth of a sigma", "bounds", "z_limit",
         "SLACK * np.sqrt(2 * np.log(2 * max(elements, 1) / FALSE_ALARM))", "0.1 * SLACK"),
    _one("tolerance by the number of elements", "the bound grows with the number of elements, as a sum's would",
         "bounds", "z_limit", "np.sqrt(2 * np.log(2 * max(elements, 1) / FALSE_ALARM))", "float(max(elements, 1))"),
    _one("sigma 0 explains all", "where equality is required anything is allowed", "bounds", "value_bound",
         "np.where(explains, z_limit(sigma.size) * np.where(explains, sigma, 0.0) + FLUSHED, 0.0)",
         "np.where(explains, z_limit(sigma.size) * np.where(explains, sigma, 0.0) + FLUSHED, np.inf)"),
    _one("sigma of the output itself", "the expected error is taken from the kernel's own output", _JUDGE, "_expected",
         "oracle.values(case, numerics)",
         "replace(oracle.values(case, numerics), sigma=np.abs(np.nan_to_num(out)) + 1.0)"),
    _one("compared with itself", "the kernel's output takes the place of the reference", _JUDGE, "_expected",
         "oracle.values(case, numerics)", "replace(oracle.values(case, numerics), true=out, rounded=out)"),
    _one("vacuous cases pass", "a case that zeros would pass counts as passed", _JUDGE, "_values",
         "is_vacuous(values, tol=limits.tol, exact=exact)", "False"),
    _one("empty cases pass", "a run in which nothing was shown counts as passed", "checks.finding", "verdict_of",
         "(Verdict.SKIP, Verdict.VACUOUS, Verdict.INCONCLUSIVE)", "(Verdict.SKIP,)", "ROCm/aiter#4398"),
    _one("failures outvoted", "a run fails only if its last check does", "checks.finding", "verdict_of",
         "[verdict for verdict in verdicts if verdict in FAILURES]", "[v for v in verdicts[-1:] if v in FAILURES]"),
    _one("exactness not required", "integer cases are judged by rounding bounds", _VALUES, "judge_values",
         "_allowed(expected, exact=exact)", "_allowed(expected, exact=False)"),
    _one("shapes not compared", "outputs of any shape are taken", "checks.contract", "judge_contract",
         "want is not None and got != want", "want is not None and got < 0"),
    _one("dtypes not compared", "outputs of any dtype are taken", "checks.contract", "judge_contract",
         "output.dtype.name not in allowed", "output.dtype.name == ''"),
    _one("outputs not counted", "further outputs are not looked at", "checks.contract", "judge_contract",
         "len(outputs) != len(wanted)", "len(outputs) < 0"),
    _one("statistics one-sided", "a statistic fails only above its limit", _SAMPLE, "Statistic.passes",
         "abs(self.value) <= self.limit", "self.value <= self.limit"),
    _one("statistics never judged", "averages are only taken of very many elements", _STATISTICS, "judge_statistics",
         "np.count_nonzero(used) < FEWEST", "np.count_nonzero(used) < 1000000000"),
    _one("squares of signed errors", "the root mean square is of the mean instead of the squares", _SAMPLE,
         "Squares.of", "np.square(z)", "np.square(np.mean(z)) + 0.0 * z"),
    _one("columns along the wrong axis", "columns are averaged over the wrong axis, so that each is a row",
         _MEAN_SQUARES, "_mean_squares", "np.sqrt(squares.by_column / np.maximum(counts, 1))",
         "np.full(len(counts), np.sqrt(squares.total / np.maximum(counts.sum(), 1)))"),
    _one("rows along the wrong axis", "the errors of a row are averaged over all rows", _MEAN_SQUARES, "_worst_group",
         "np.add.reduceat(by_row[groups.rows], groups.starts)", "groups.sizes * by_row.mean()"),
    _one("slope limit tenfold", "a factor must be ten times as large to be seen", "bounds", "projection_limit",
         "7.5 * np.sqrt(variance) + flips * flip", "75.0 * np.sqrt(variance) + 10.0 * flips * flip"),
    _one("bits not compared", "a declared contract is not held against the bits", _JUDGE, "_statistics",
         'declared and numerics is not None and stored_as != "fp32"', "False"),
    _one("any choice is legal", "every set of experts is taken", "checks.routing", "judge_routing", "judged & ~legal",
         "judged & legal & ~legal"),
    _one("ids not in range", "ids beyond the last expert are taken", "checks.routing", "_structure",
         "(routed < 0) | (routed >= E)", "routed < 0"),
    _one("ids not distinct", "an expert may be chosen twice", "checks.routing", "_structure",
         "ordered[:, 1:] == ordered[:, :-1]", "ordered[:, 1:] < ordered[:, :-1]"),
    _one("ids compared for equality", "a token's slots must stand in the reference's order", "checks.routing",
         "judge_routing", "legal_rows(choice, routed, routing)",
         "(routed == reference_modules()['topk_routing'].top_ids(choice.c, routing.top_k)).all(axis=1)"),
    _one("weights not compared", "routing weights of any size are taken", "checks.routing", "_judge_weights",
         "error <= allowed", "error <= 1.0 + allowed"),
    _one("weights of any token", "weights are compared after sorting all of them", "checks.routing", "_judge_weights",
         "metrics.abs_err(weights, expected)",
         "metrics.abs_err(np.sort(weights, axis=0), np.sort(expected, axis=0))"),
    _one("rows of blocks not compared", "blocks may hold any rows", "checks.structure", "_aligned",
         "np.array_equal(np.sort(ids[start:stop]), np.sort(want_ids[start:stop]))", "True"),
    _one("experts of blocks not compared", "blocks may belong to any expert", "checks.structure", "_aligned",
         "(got_experts != want_experts).any()", "False"),
    _one("legal sets of any score", "scores may be off by a whole unit before a choice is illegal", "checks.legal_sets",
         "choice_of", "np.zeros_like(c) if exact else "
         "score_eps(c - bias if by_logits else scores, bias, dtype, spread=spread)", "np.ones_like(c)"),
)  # fmt: skip


def checker_mutants() -> tuple[CheckerMutant, ...]:
    """All of them."""
    return _MUTANTS


def checker_trial(name: str) -> MutantScore | list[str]:
    """What became of one mutant of the checker; without a name, what the checker as it is gets wrong."""
    with threadpool_limits(1, "blas"):
        prepare()
        if not name:
            return self_test()
        one = next(one for one in _MUTANTS if one.name == name)
        with planted(one), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a broken checker may average nothing
            noticed = self_test()
    return MutantScore(
        id=one.name,
        kind=CHECKER,
        words=one.words,
        sources=one.sources,
        ops=("self-test",),
        seeds=1,
        caught={"self-test": int(bool(noticed))},
        checks=tuple(sorted({"known right" if text.endswith("right") else "known wrong" for text in noticed})),
        expected=("known",),
        seen_on=noticed[0] if noticed else "",
        why="" if noticed else "every item of the self-test is judged as before",
    )


@contextmanager
def planted(one: CheckerMutant) -> Iterator[None]:
    """Put the changed function in the place of the right one, in every module of moecheck that holds it."""
    module = importlib.import_module(one.module)
    owner, _, method = one.function.rpartition(".")
    source = rewritten(inspect.getsource(module), (Rewrite(function=method, find=one.find, put=one.put),))
    changed = _compiled(source, module.__dict__, owner, method)
    if owner:
        holder = getattr(module, owner)
        places = [(holder, method, inspect.getattr_static(holder, method))]
    else:
        right = getattr(module, method)
        places = [
            (other, name, right)
            for module_name, other in list(sys.modules.items())
            if module_name.split(".")[0] == "moecheck" and other is not None
            for name, value in list(vars(other).items())
            if value is right
        ]
    for place, name, _ in places:
        setattr(place, name, changed)
    try:
        yield
    finally:
        for place, name, right in places:
            setattr(place, name, right)


def _compiled(source: str, names: dict[str, Any], owner: str, method: str) -> Any:
    """The function of a rewritten module, in the namespace of the right one."""
    body: list[ast.stmt] = ast.parse(source).body
    if owner:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == owner).body
    (node,) = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == method)
    found: dict[str, Any] = {}
    code = ast.Module(body=[ast.parse("from __future__ import annotations").body[0], node], type_ignores=[])
    exec(compile(ast.fix_missing_locations(code), f"<{method}, mutated>", "exec"), names, found)
    return found[method]
