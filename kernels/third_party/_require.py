"""What the adapters of CUDA libraries share: reasons to skip, and what a library's activation is called."""

from __future__ import annotations

from importlib.util import find_spec

import torch

import moecheck

PLAIN = moecheck.ExpertSpec()
Routed = tuple[torch.Tensor, torch.Tensor]


def require(package: str, *, install: str | None = None) -> None:
    """Raise Unsupported unless a package is installed and there is a CUDA device, before anything of it is imported.

    install: what pip calls it, if not `package`.
    """
    if find_spec(package) is None:
        raise moecheck.Unsupported(f"needs {package}, which is not installed: pip install {install or package}")
    if not torch.cuda.is_available():
        raise moecheck.Unsupported(f"needs a CUDA device, on which {package} runs")


def require_fields(
    spec: moecheck.ExpertSpec | moecheck.RoutingSpec, library: str, **allowed: tuple[object, ...]
) -> None:
    """Raise Unsupported, naming the first field of a spec whose value is not among the allowed ones."""
    for name, values in allowed.items():
        seen = getattr(spec, name)
        if seen not in values:
            raise moecheck.Unsupported(f"{library} implements {name} in {values}, not {seen!r}")


def require_ids(topk_ids: torch.Tensor, library: str) -> None:
    """Raise Unsupported where a slot has no expert."""
    if any_absent(topk_ids < 0):
        raise moecheck.Unsupported(f"{library} has no absent experts, topk_ids contains -1")


def any_absent(absent: torch.Tensor) -> bool:
    """Whether any entry is true; the host waits for the answer.

    While a graph is captured, which cannot wait, the answer is no: whoever captures a call has made it before.
    """
    return not (absent.is_cuda and torch.cuda.is_current_stream_capturing()) and bool(absent.any())


def require_plain_experts(spec: moecheck.ExpertSpec, library: str, *, activations: tuple[str, ...]) -> None:
    """Raise Unsupported for anything but act(gate) * up with the gate's rows first, weighted behind the experts."""
    require_fields(
        spec,
        library,
        activation=activations,
        gated=(True,),
        gate_up_layout=("halves",),
        swiglu_alpha=(1.0,),
        swiglu_beta=(0.0,),
        swiglu_limit=(None,),
        weight_on_input=(False,),
    )
