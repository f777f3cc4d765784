"""Experts' weights of large layers: every row of a matrix is a window of one long row of drawn numbers.

Drawing each of 10^10 weights takes minutes, so a stack is made of 2^24 drawn ones, its bank. Row n of expert e is the
bank from (e N + n) STEP modulo the bank's length on. No two rows of a stack begin at the same place, and every weight
differs from its neighbours along each of the three axes as drawn numbers do: a kernel that reads another expert, row,
column or block, or another matrix, multiplies by other numbers in every column.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from . import draw
from .errors import CaseError
from .formats import AnyArray, Float64, to_float64

AT_A_TIME = 1 << 18  # entries, few enough to stay in the cache
LONGEST, SHORTEST = 1 << 24, 1 << 14
# Odd, so that its multiples modulo a power of two are all different; wider than a row, so that neighbours share
# nothing; small enough for many rows in a row, which NumPy copies in one step, without keeping other threads waiting.
STEP = 32749


@dataclass(frozen=True, kw_only=True)
class WindowStack:
    """A stack [count, rows, columns] whose matrices are made when asked for.

    key: what the bank is drawn from. table: [4096] of the storage dtype, from which the bank's entries are drawn.
    numbers: [4096] float64, what these stand for. packed: entries are 4-bit codes, two to a byte of the stack, whose
    matrices then have half as many columns as here.
    Raises CaseError for more rows than a bank has places.
    """

    key: tuple[object, ...]
    table: AnyArray
    numbers: Float64
    count: int
    rows: int
    columns: int
    packed: bool = False

    def __post_init__(self) -> None:
        if self.count * self.rows > LONGEST:
            raise CaseError(f"{self.count} matrices of {self.rows} rows are more rows than {LONGEST}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the stack as a kernel gets it."""
        return self.count, self.rows, self.columns // 2 if self.packed else self.columns

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.table.dtype

    def starts(self, expert: int) -> npt.NDArray[np.int64]:
        """[rows] int64: where in the bank each row of an expert begins."""
        number = np.arange(expert * self.rows, (expert + 1) * self.rows, dtype=np.int64)
        return np.asarray(number * STEP % self._length)

    @cached_property
    def bank(self) -> AnyArray:
        """The drawn entries in storage dtype, as many more than there are places as a row is wide; not packed."""
        return draw.look_up(draw.philox(*self.key), self.table, (self._length + self.columns,))

    @cached_property
    def _bank_numbers(self) -> npt.NDArray[np.float32]:
        """What the bank's entries stand for: fp32 has all numbers of all formats, in half of float64's memory."""
        single = self.numbers.astype(np.float32)
        assert np.array_equal(single, self.numbers)
        return draw.look_up(draw.philox(*self.key), single, (self._length + self.columns,))

    @property
    def _length(self) -> int:
        return int(np.clip(1 << (16 * self.count * self.rows - 1).bit_length(), SHORTEST, LONGEST))

    def expert(self, expert: int) -> AnyArray:
        """One matrix as a kernel gets it."""
        matrix = np.empty((self.rows, self.columns), self.table.dtype)
        for part, rows in self._parts(self.bank, expert):
            matrix[part] = rows
        return matrix[:, 0::2] | (matrix[:, 1::2] << 4) if self.packed else matrix

    def float64(self, expert: int) -> Float64:
        """What the entries of one matrix stand for, [rows, columns] float64."""
        matrix = used_again((self.rows, self.columns))
        for part, rows in self.parts(expert):
            matrix[part] = rows
        return matrix

    def parts(self, expert: int) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """The rows of one matrix, a few at a time, as views of what the bank's entries stand for, exact in fp32."""
        return self._parts(self._bank_numbers, expert)

    def _parts(self, bank: AnyArray, expert: int) -> Iterator[tuple[slice, AnyArray]]:
        first, step, size = expert * self.rows, STEP % self._length, bank.itemsize
        at_a_time, memory, row = max(64, AT_A_TIME // self.columns), bank.view(f"u{size}"), 0
        while row < self.rows:
            start = (first + row) * step % self._length
            before_the_end = -(-(self._length - start) // step)
            count = min(at_a_time, self.rows - row, before_the_end)
            view: AnyArray = np.ndarray(
                (count, self.columns), memory.dtype, memory, offset=start * size, strides=(step * size, size)
            )
            yield slice(row, row + count), view.view(bank.dtype)
            row += count

    def all(self) -> AnyArray:
        """The whole stack."""
        return np.stack([self.expert(e) for e in range(self.count)])

    @classmethod
    def plain(cls, key: tuple[object, ...], shape: tuple[int, int, int], *, scale: float, dtype: str) -> WindowStack:
        """Normal weights of standard deviation `scale` in format `dtype`."""
        table = draw.normal_table(scale, dtype)
        count, rows, columns = shape
        return cls(key=key, table=table, numbers=to_float64(table), count=count, rows=rows, columns=columns)


def used_again(shape: tuple[int, int]) -> Float64:
    """An array of float64 with any content; memory that an earlier one had and that nobody refers to any more.

    Fresh pages for gigabytes of matrices cost more than their numbers, on virtual machines many times more.
    """
    if shape[0] * shape[1] < WORTH_KEEPING:
        return np.empty(shape)
    with _lock:
        for buffer in _buffers:
            if buffer.shape == shape and sys.getrefcount(buffer) == UNUSED:
                return buffer.view()
        if len(_buffers) == MOST_BUFFERS:
            _buffers.clear()
        _buffers.append(np.empty(shape))
        return _buffers[-1].view()


_lock = threading.Lock()
_buffers: list[Float64] = []
MOST_BUFFERS = 128
WORTH_KEEPING = 1 << 17  # numbers; less than that the allocator itself keeps
UNUSED = 3  # references to a buffer that only the list, the loop and the count itself have
