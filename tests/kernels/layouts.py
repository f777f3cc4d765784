"""Arguments in the weight layout that a kernel declares, as a run hands them over."""

from __future__ import annotations

from typing import Any

from moecheck.formats import AnyArray
from moecheck.spec import ExpertSpec, MoESpec, RoutingSpec
from moecheck.weight_layout import Sizes, WeightLayout, to_layout


def layout_of(kernel: object) -> WeightLayout | None:
    """What the kernel declares."""
    layout: WeightLayout | None = getattr(kernel, "__moecheck__").weight_layout  # noqa: B009  # mypy knows no attribute
    return layout


def cut(kernel: object, arguments: dict[str, Any], out: AnyArray) -> AnyArray:
    """The kernel's output without padded columns."""
    layout = layout_of(kernel)
    padded = layout is not None and layout.hidden_multiple > 1
    return out[..., : arguments["hidden_states"].shape[-1]] if padded else out


def as_declared(kernel: object, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of fused_experts or grouped_gemm, and the spec that goes with them."""
    layout = layout_of(kernel)
    if layout is None:
        return arguments
    spec = MoESpec(routing=RoutingSpec(top_k=1), experts=arguments.get("spec", ExpertSpec()))
    sizes = Sizes(*arguments["w2"].shape[1:]) if "w2" in arguments else Sizes(0, 0)
    arranged = to_layout(arguments, layout, spec=spec, sizes=sizes)
    return arranged | ({"spec": layout.spec(spec).experts} if "spec" in arguments else {})
