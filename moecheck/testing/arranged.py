"""Arguments from inside an engine whose weights lie as its kernel wants them."""

from __future__ import annotations

from collections.abc import Mapping

from moecheck.errors import UsageError
from moecheck.ops import OPS
from moecheck.spec import ExpertSpec, MoESpec
from moecheck.weight_layout import Sizes, WeightLayout, from_layout

from .host import host_array
from .names import shown

_ARRAYS = {arg.name for op in OPS.values() for arg in op.args if arg.kind != "int"}


def plain_inputs(
    inputs: Mapping[str, object],
    layout: WeightLayout,
    *,
    hidden_size: int,
    intermediate_size: int,
    shared_intermediate_size: int = 0,
    spec: MoESpec | ExpertSpec | None = None,
) -> dict[str, object]:
    """An op's arguments with weights, biases and scales in the plain layout and without padding, as NumPy arrays.

    inputs: as in `capture`, in the kernel's layout. hidden_size, intermediate_size, shared_intermediate_size: of the
    model, before any padding. spec: what the result is to mean; its gate_up_layout says in which order gate and up rows
    are wanted, `halves` by default. An output of a padded kernel is to be cut by the caller: out[..., :hidden_size].
    Raises UsageError or Unsupported where the arrays do not fit the layout and the sizes.
    """
    if not isinstance(layout, WeightLayout):
        raise UsageError(f"layout={shown(layout)} must be a moecheck.WeightLayout.")
    layer = spec if isinstance(spec, MoESpec) else MoESpec(experts=spec or ExpertSpec())
    on_host = {
        name: host_array(name, value) if name in _ARRAYS and value is not None else value
        for name, value in inputs.items()
    }
    present = {name: value for name, value in on_host.items() if value is not None}
    sizes = Sizes(hidden_size, intermediate_size, shared_intermediate_size)
    return from_layout(present, layout, spec=layer, sizes=sizes)
