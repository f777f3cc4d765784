"""A kernel's declared weight layout around its call: inputs arranged before it, the output cut after it."""

from __future__ import annotations

from typing import Any

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.weight_layout import Sizes, WeightLayout, to_layout


def arranged(case: Case, inputs: dict[str, Any], layout: WeightLayout) -> dict[str, Any]:
    """The case's inputs as a kernel of this layout gets them."""
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
