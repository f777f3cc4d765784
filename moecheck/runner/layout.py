"""Inputs in the arrangement and under the names that a kernel declares, and its output as all others have it."""

from __future__ import annotations

from typing import Any

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.kernel import Declaration
from moecheck.placement import expert_mask
from moecheck.weight_layout import Sizes, WeightLayout, to_layout


def as_declared(case: Case, inputs: dict[str, Any], declaration: Declaration) -> dict[str, Any]:
    """The case's inputs, with weights in the kernel's layout, and an expert mask where the kernel names that."""
    if "expert_mask" in declaration.arguments and "expert_map" in inputs:
        inputs = {**inputs, "expert_mask": expert_mask(inputs["expert_map"])}
    return inputs if declaration.weight_layout is None else in_layout(case, inputs, declaration.weight_layout)


def in_layout(case: Case, inputs: dict[str, Any], layout: WeightLayout) -> dict[str, Any]:
    """The case's inputs, weights in the layout."""
    sizes = Sizes(case.hidden_size, case.intermediate_size, case.shared_intermediate_size)
    return to_layout(inputs, layout, spec=case.spec, sizes=sizes)


def output_width(case: Case, width: int, layout: WeightLayout) -> int:
    """Columns of the output of such a kernel, of `width` columns in all others."""
    return layout.hidden_size(width) if width == case.hidden_size else width


def cut(case: Case, output: AnyArray, layout: WeightLayout) -> AnyArray:
    """The output without padded columns; one of another width is left to be judged as it is."""
    padded = layout.hidden_size(case.hidden_size)
    if layout.hidden_multiple == 1 or output.ndim == 0 or output.shape[-1] != padded:
        return output
    return output[..., : case.hidden_size]
