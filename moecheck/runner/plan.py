"""Which cases a kernel is given, and why it is not given the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moecheck.cases import Case
from moecheck.kernel import Declaration
from moecheck.ops import ALTERNATIVES, OPS
from moecheck.oracle import spec_part
from moecheck.quantization import QUANTISED
from moecheck.runner.target import Target
from moecheck.spec import MoESpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel and the cases it is to be judged on. device: `cpu`, `cuda` or `interpreter`.

    import_seconds: what a fresh process needs to import the kernel; calls are given that much longer.
    left_out: cases that it is not given although it might take them, for `left_out_reason`.
    part: whether it is one of many kernels and so slow that it has few cases and no relations.
    """

    target: Target
    declaration: Declaration
    device: str
    cases: tuple[Case, ...]
    import_seconds: float = 0.0
    left_out: tuple[Case, ...] = ()
    left_out_reason: str = ""
    part: bool = False

    @property
    def interpreted(self) -> bool:
        return self.device == "interpreter"


def lacking(declaration: Declaration, case: Case) -> str | None:
    """Why the kernel cannot be given the case, or None."""
    if case.dtype not in declaration.dtypes:
        return f"declares no {case.dtype}"
    if case.num_ranks > declaration.devices:
        return f"declares devices={declaration.devices}, and the case has {case.num_ranks} ranks"
    scheme = case.spec.experts.quantization
    if scheme is not None and declaration.quantizations and scheme not in declaration.quantizations:
        return f"takes no {scheme.words()}"
    arrays = array_arguments(case)
    missing = sorted(arrays - _own_names(declaration.arguments))
    if missing:
        return f"takes no {', '.join(missing)}"
    integers = {arg.name for arg in OPS[case.op].args if arg.kind == "int"}
    absent = sorted(_own_names(declaration.required) - arrays - integers - {"spec", "out"})
    if absent:
        return f"needs {', '.join(absent)}"
    plain = replace(case.spec, experts=replace(case.spec.experts, quantization=None))
    if "spec" not in declaration.arguments and spec_part(case.op, plain) != spec_part(case.op, MoESpec()):
        return "takes no spec, and the case's is not the default one"
    return None


def other_semantics(declaration: Declaration, case: Case) -> str | None:
    """Why the case's semantics are not the kernel's, or None; cases of its run are usually made for it instead."""
    wanted = spec_part(case.op, case.spec)
    if not declaration.specs or any(_same_part(case, spec, wanted) for spec in declaration.specs):
        return None
    return "implements other semantics than the case's"


def _same_part(case: Case, spec: MoESpec, wanted: object) -> bool:
    quantised = replace(spec, experts=replace(spec.experts, quantization=case.spec.experts.quantization))
    return spec_part(case.op, quantised) == wanted


def _own_names(names: tuple[str, ...]) -> set[str]:
    """The op's own names of the arguments that a kernel names."""
    return {ALTERNATIVES.get(name, name) for name in names}


def array_arguments(case: Case) -> set[str]:
    """Names of the arrays among the case's inputs, without building them."""
    routing, experts = case.spec.routing, case.spec.experts
    optional = {
        "correction_bias": routing.correction_bias != "none",
        "per_expert_scale": routing.per_expert_scale,
        "token_ids": routing.selection == "hash",
        "tid2eid": routing.selection == "hash",
        "latent_down": case.spec.latent_experts,
        "latent_up": case.spec.latent_experts,
        "expert_map": case.num_local_experts is not None and case.op != "moe_layer",
        "hidden_scale": case.hidden_scale,
        "rank_tokens": case.uneven_ranks,
        "expert_placement": case.op == "expert_parallel_moe" and case.map_style != "linear",
        "bias": experts.w13_bias,
        "w13_bias": experts.w13_bias,
        "w2_bias": experts.w2_bias,
        "shared_w13": case.spec.shared_experts != "none",
        "shared_w2": case.spec.shared_experts != "none",
        "shared_gate": case.spec.shared_experts == "gated",
    }
    scheme = experts.quantization
    optional |= {name: scheme is not None and name in scheme.arguments for name in QUANTISED}
    arrays = {arg.name for arg in OPS[case.op].args if arg.kind != "int"}
    return {name for name in arrays if optional.get(name, True)}
