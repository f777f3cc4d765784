"""What jax's TPU interpreter lacks for kernels of others (0.10.2 and 0.11.2), put in while such a kernel runs.

Views of memory by `ref.bitcast()` and `ref.reshape()` raise AttributeError there; a copy of no elements raises when it
starts at the end of an array, and counts as a race with what lies around it; and a wait for 0 on a semaphore that
nobody has signalled fails.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
from jax._src.state.indexing import NDIndexer, Slice  # type: ignore[attr-defined]  # not exported there
from jax._src.state.types import BitcastTransform, ReshapeTransform

INTERPRETER = import_module("jax._src.pallas.mosaic.interpret.interpret_pallas_call")
MEMORY = import_module("jax._src.pallas.mosaic.interpret.shared_memory")
RACES = import_module("jax._src.pallas.mosaic.interpret.race_detection_state")
to_range = import_module("jax._src.pallas.mosaic.interpret.utils").to_range
Access = Callable[..., Any]


@contextmanager
def filled_gaps() -> Iterator[None]:
    """Kernels that are traced and run inside may use views and empty copies."""
    wait, overlap = MEMORY.Semaphore.wait, RACES._ranges_overlap

    def wait_for_some(self: Any, value: int, *rest: Any, **options: Any) -> None:
        if int(value):
            wait(self, value, *rest, **options)

    def overlap_somewhere(one: Any, other: Any) -> bool:
        return not (_is_empty(one) or _is_empty(other)) and overlap(one, other)

    with (
        patch.object(INTERPRETER, "get", _both(INTERPRETER.get, _reading)),
        patch.object(INTERPRETER, "store", _both(INTERPRETER.store, _storing)),
        patch.object(INTERPRETER, "swap", _both(INTERPRETER.swap, _swapping)),
        patch.object(MEMORY.Semaphore, "wait", wait_for_some),
        patch.object(RACES, "_ranges_overlap", overlap_somewhere),
    ):
        yield


def _both(original: Any, change: Callable[[Access], Access]) -> Access:
    """The interpreter's copies call `__wrapped__`, kernels the function itself."""
    changed = functools.wraps(original)(change(original))
    changed.__wrapped__ = change(original.__wrapped__)
    return changed


def _reading(original: Access) -> Access:
    def get(token: Any, device: Any, core: Any, space: Any, buffer: Any, transforms: Any, *rest: Any, **k: Any) -> Any:
        transforms = jax.tree.map(int, transforms)
        if _is_plain(transforms):
            place = to_range(transforms)
            if _is_empty(place):
                return token, np.zeros([len(range(p.start, p.stop, p.step)) for p in place if isinstance(p, slice)])
            return original(token, device, core, space, buffer, transforms, *rest, **k)
        view = _View(device, core, space, buffer, transforms)
        token, there = original(token, device, core, space, buffer, view.box, *rest, **k)
        return token, view.read(there)

    return get


def _storing(original: Access) -> Access:
    def store(token: Any, device: Any, core: Any, space: Any, buffer: Any, transforms: Any, *r: Any, **k: Any) -> Any:
        transforms = jax.tree.map(int, transforms)
        if _is_plain(transforms) and _is_empty(to_range(transforms)):
            return token
        return original(token, device, core, space, buffer, transforms, *r, **k)

    return store


def _swapping(original: Access) -> Access:
    def swap(
        token: Any, device: Any, core: Any, space: Any, buffer: Any, transforms: Any, new: Any, mask: Any, **k: Any
    ) -> Any:
        transforms = jax.tree.map(int, transforms)
        if _is_plain(transforms):
            return original(token, device, core, space, buffer, transforms, new, mask, **k)
        if mask is not None:
            raise NotImplementedError("a masked store through a view")
        view = _View(device, core, space, buffer, transforms)
        token, there = INTERPRETER.get.__wrapped__(token, device, core, space, buffer, view.box)
        before = view.read(there)
        token, _ = original(
            token, device, core, space, buffer, view.box, view.written(there, np.asarray(new)), None, **k
        )
        return token, before

    return swap


class _View:
    """A view's elements as bytes of the smallest box of its memory that has them. box: transforms that give it."""

    def __init__(self, device: Any, core: Any, space: Any, buffer: Any, transforms: tuple[Any, ...]) -> None:
        name = INTERPRETER.TPU_MEMORY_SPACE_NAMES[int(space)]
        owner = INTERPRETER._local_core_id_or_zero_if_hbm(int(core), name)
        memory = INTERPRETER._get_shared_memory().mem[(name, int(buffer), int(device), owner)]
        shape, size = tuple(memory.logical_shape), memory.dtype.itemsize
        self._dtype = memory.dtype
        places = np.arange(int(np.prod(shape)) * size).reshape(*shape, size)
        for transform in transforms:
            places = _applied(transform, places)
            self._dtype = getattr(transform, "dtype", self._dtype)
        at = np.unravel_index(places // size, shape)
        low = [int(axis.min()) for axis in at]
        high = [int(axis.max()) + 1 for axis in at]
        sizes = [end - start for start, end in zip(low, high, strict=True)]
        self.box = (NDIndexer(tuple(map(Slice, low, sizes)), shape, ()),)
        inside = np.ravel_multi_index([axis - start for axis, start in zip(at, low, strict=True)], sizes)
        self._bytes = inside * size + places % size

    def read(self, box: Any) -> Any:
        """The view's elements, of the box's."""
        raw = np.ascontiguousarray(box).reshape(-1).view(np.uint8)
        return np.ascontiguousarray(raw[self._bytes]).view(self._dtype)[..., 0]

    def written(self, box: Any, new: Any) -> Any:
        """The box with the view's elements replaced."""
        raw = np.ascontiguousarray(box).reshape(-1).view(np.uint8).copy()
        raw[self._bytes] = np.ascontiguousarray(new)[..., None].view(np.uint8)
        return raw.view(box.dtype).reshape(box.shape)


def _applied(transform: Any, places: Any) -> Any:
    """The place of each byte, [..., bytes of an element], in a view. Rows pack into wider ones, low bits first."""
    if isinstance(transform, ReshapeTransform):
        return places.reshape(*transform.shape, places.shape[-1])
    if not isinstance(transform, BitcastTransform):
        return places[to_range((transform,))]
    *outer, rows, columns, size = places.shape
    wanted = np.dtype(transform.dtype).itemsize
    if wanted >= size:
        packed = places.reshape(*outer, rows * size // wanted, wanted // size, columns, size)
        return np.moveaxis(packed, -3, -2).reshape(*outer, rows * size // wanted, columns, wanted)
    parts = places.reshape(*outer, rows, columns, size // wanted, wanted)
    return np.moveaxis(parts, -2, -3).reshape(*outer, rows * size // wanted, columns, wanted)


def _is_plain(transforms: Any) -> bool:
    return not any(isinstance(transform, BitcastTransform | ReshapeTransform) for transform in transforms)


def _is_empty(place: Any) -> bool:
    return any(isinstance(part, slice) and part.stop is not None and part.stop <= (part.start or 0) for part in place)
