"""Predictions for many rows, part by part: kept in memory where they are few, in a file where they are many."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor

from bend_ray.errors import ResourceError, why

IN_MEMORY = 2**26
"""Bytes of predictions that are kept in memory."""
VALUES = 2**23
"""Predictions that are worked on at once."""
ALIGNED = 64
"""Rows that pieces are multiples of: sums over members are then the same bits as those of all rows at once."""


@dataclass(frozen=True)
class _InFile:
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Spill:
    """``logits_MBK`` on the CPU, in parts of some rows each, which can be gone through any number of times.

    The file has no name, so that it is gone when the process is. It lies where the system keeps temporary files
    (TMPDIR), and is read, not mapped: what was read takes no memory any more.
    """

    def __init__(self, parts: Iterable[Tensor] = ()) -> None:
        self.shape: tuple[int, int, int] = (0, 0, 0)
        self._parts: list[Tensor | _InFile] = []
        self._memory = 0
        self._file: IO[bytes] | None = None
        for part_MbK in parts:
            self.add(part_MbK)

    def add(self, part_MbK: Tensor) -> None:
        """Put these rows below the others. Raises ResourceError where the disk is full."""
        part_MbK = part_MbK.detach().cpu().contiguous()
        M, b, K = part_MbK.shape
        self.shape = (M, self.shape[1] + b, K)
        if self._memory + part_MbK.nbytes <= IN_MEMORY:
            self._memory += part_MbK.nbytes
            self._parts.append(part_MbK)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="bend-ray-", buffering=0)  # noqa: SIM115  # ends with us
            start = self._file.seek(0, 2)
            bytes_left = part_MbK.numpy().data.cast("B")
            while bytes_left:
                bytes_left = bytes_left[self._file.write(bytes_left) :]
        except OSError as error:
            raise ResourceError(
                f"predictions of {M} members for {self.shape[1]} rows do not fit into {tempfile.gettempdir()}"
                f" ({why(error)}); set TMPDIR to a folder with room, or have fewer validation rows"
            ) from None
        self._parts.append(_InFile(start, tuple(part_MbK.shape), part_MbK.dtype))

    def __iter__(self) -> Iterator[Tensor]:
        for part in self._parts:
            yield part if isinstance(part, Tensor) else self._read(part)

    def _read(self, part: _InFile) -> Tensor:
        assert self._file is not None
        values = torch.empty(part.shape, dtype=part.dtype)
        self._file.seek(part.start)
        bytes_left = values.numpy().data.cast("B")
        while bytes_left:
            bytes_left = bytes_left[self._file.readinto(bytes_left) :]  # type: ignore[attr-defined]  # an unbuffered file
        return values

    def __del__(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


Logits = Tensor | Spill
"""``logits_MBK``, whole or in parts."""


def parts_of(logits: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    """``logits``, which may be whole, as parts."""
    return [logits] if isinstance(logits, Tensor) else logits


def split(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """``logits_MbK`` of all ``parts``, at most `VALUES` numbers (or one row) each."""
    for part_MBK in parts:
        M, B, K = part_MBK.shape
        yield from part_MBK.split(_rows(M * K, VALUES, B), dim=1)


def rows_at_once(M: int, K: int, most: int) -> int:
    """How many rows are run at once, at most ``most``, so that their predictions stay few."""
    return _rows(M * K, 2 * VALUES, most)


def _rows(each: int, values: int, most: int) -> int:
    rows = max(1, min(values // each, most))
    return rows - rows % ALIGNED if ALIGNED < rows < most else rows


def pieces(parts: Iterable[Tensor], label_B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """`split`, each with the labels of its rows."""
    start = 0
    for piece_MbK in split(parts):
        end = start + piece_MbK.shape[1]
        yield piece_MbK, label_B[start:end]
        start = end
