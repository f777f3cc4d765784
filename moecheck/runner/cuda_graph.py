"""A call as a CUDA graph: captured once, replayed with whatever its buffers hold then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

WARM = 3  # calls before a capture, in which a kernel compiles, tunes itself and allocates


class NotCapturable(Exception):
    """The kernel does what no graph can hold, such as waiting for the device; the text says what was raised."""


class CapturedCall:
    """One call of a kernel on given arrays. `output`: what it returned; a replay writes it again.

    Raises NotCapturable, after which the device can be used as before.
    """

    def __init__(self, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
        import torch

        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                function(**arguments)
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                self.output = function(**arguments)
        except Exception as error:
            torch.cuda.synchronize()
            words = " ".join(str(error).split())[:200]
            raise NotCapturable(f"{type(error).__name__}: {words}") from error

    def replay(self) -> Any:
        """The output, recomputed from what the arrays hold now; not waited for."""
        self._graph.replay()
        return self.output
