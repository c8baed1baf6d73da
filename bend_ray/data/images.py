"""Images and labels, rows of both, and where images are kept: in memory, or in a file where there are many."""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bend_ray.data.pixels import decoded, drawn, eight
from bend_ray.data.resize import Resize
from bend_ray.errors import DataError

PIECE = 4096
"""Rows that are looked at, converted or copied at once."""
MAX_PIXELS = 89_478_485
"""Of an image in a file, as Pillow's own limit against decompression bombs."""


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, C, H, W) and labels int64 (N,); uint16 where a reader gives 16 bits, until all are read."""

    images: Tensor
    labels: Tensor
    by_class: bool = False
    """Rows lie class by class, so that the first ones are not like the others."""
    names: tuple[str, ...] = ()
    """What its labels are called, where a reader has words; once all is read, the names of the classes."""
    modes: Mapping[str, int] = field(default_factory=dict)
    """Rows of each of Pillow's modes, as they were decoded."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Any) -> "Split":
        """These rows (an index, a mask or a slice)."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])


Splits = dict[str, Split]


class SpillBuffer:
    """Images put one upon another, grey until one in colour comes; in memory, or above ``in_memory`` GiB in a file.

    The file has no name, so that it is gone when the process is, whatever ended it. It lies where the system keeps
    temporary files (TMPDIR), and is read through a memory map.
    """

    def __init__(self, in_memory: float, channels: int = 0, resize: Resize | None = None) -> None:
        self.limit, self.resize = int(in_memory * 2**30), resize
        self.channels, self.size, self.rows, self.first = channels, 0, 0, ""
        self.dtype = np.dtype(np.uint8)
        self.memory = bytearray()
        self.file: IO[bytes] | None = None
        self.modes: Counter[str] = Counter()

    def decode(self, data: bytes, where: str, named: str = "") -> None:
        """Put an encoded image on top. Raises DataError as `decoded`, and as `add` (there as ``named``)."""
        self.add(decoded(data, where, self.modes), named or where)

    def draw(self, image: Image.Image, where: str) -> None:
        """Put one of Pillow's on top, likewise."""
        self.add(drawn(image, where, self.modes), where)

    def add(self, images: np.ndarray, where: str = "") -> None:
        """Put uint8 or uint16 (n, C, H, W) on top. Raises DataError, which begins with ``where``, if they are not
        square or not of the size and the bits of those before."""
        try:
            images = images if self.resize is None else self.resize(images)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
        _, channels, height, width = images.shape
        if height != width:
            raise DataError(
                f"{where} is {width}x{height}; all images must be square and of one size; give data.image_size"
            )
        self.size, self.first = self.size or height, self.first or where
        if height != self.size:
            first = self.first.removeprefix(where.rpartition(": ")[0] + ": ")
            raise DataError(
                f"{where} is {width}x{height}, {first} {self.size}x{self.size}; all images must be square and of one"
                " size; give data.image_size"
            )
        if self.rows and images.dtype != self.dtype:
            bits, before = (8 * dtype.itemsize for dtype in (images.dtype, self.dtype))
            raise DataError(f"{where} is of {bits} bits, those before it of {before}; write all of them alike")
        self.dtype = images.dtype
        self.channels = self.channels or channels
        if channels > self.channels:
            self._colour()
        self._write(images if channels == self.channels else images.repeat(self.channels, 1))
        self.rows += len(images)

    def split(self, labels: Tensor, names: tuple[str, ...] = (), by_class: bool = False) -> Split:
        """All of them with their labels, without a copy."""
        return Split(self.tensor(), labels, by_class, names, dict(self.modes))

    def tensor(self) -> Tensor:
        """All of them, uint8 or uint16 (N, C, H, W), without a copy."""
        shape = (self.rows, self.channels, self.size, self.size)
        if not self.rows:
            return torch.zeros(shape, dtype=torch.uint8)
        if self.file is None:
            return torch.from_numpy(np.frombuffer(self.memory, self.dtype).reshape(shape))
        return torch.from_numpy(np.memmap(self.file, self.dtype, "r+", shape=shape))

    def __del__(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):  # what a full disk has not taken
                self.file.close()  # a map stays

    def _write(self, images: np.ndarray) -> None:
        data = images.tobytes()
        if self.file is None and len(self.memory) + len(data) <= self.limit:
            self.memory += data
            return
        try:
            if self.file is None:
                self.file = tempfile.TemporaryFile(prefix="bend-ray-")  # noqa: SIM115  # it lives as long as the buffer
                self.file.write(self.memory)
                self.memory = bytearray()
            self.file.write(data)
            self.file.flush()
        except OSError as error:
            raise DataError(
                f"data.in_memory: more than {self.rows} images do not fit into {tempfile.gettempdir()}"
                f" ({error.strerror}); set TMPDIR to a folder with room, or raise data.in_memory"
            ) from None

    def _colour(self) -> None:
        grey, file = self.tensor(), self.file
        self.channels, self.rows, self.memory, self.file = 3, 0, bytearray(), None
        if file is not None:
            file.close()
        for piece in grey.split(PIECE):
            self.add(piece.numpy())


def spilled(
    images: Tensor,
    in_memory: float,
    rows: Tensor | None = None,
    channels: int = 0,
    resize: Resize | None = None,
) -> Tensor:
    """A copy of ``images`` (of these ``rows``), as a `SpillBuffer` keeps it; grey ones repeated where ``channels`` is
    3."""
    buffer = SpillBuffer(in_memory, channels, resize)
    for piece in (torch.arange(len(images)) if rows is None else rows).split(PIECE):
        buffer.add(images[piece].numpy())
    return buffer.tensor()


def to_bytes(images: Tensor, bits: int, in_memory: float, where: str) -> Tensor:
    """uint16 images of so many ``bits`` as uint8. Raises DataError, which begins with ``where``, for a larger value."""
    buffer = SpillBuffer(in_memory)
    for piece in images.split(PIECE):
        try:
            buffer.add(eight(piece.numpy(), bits))
        except ValueError as error:
            raise DataError(f"{where} images: {error}") from None
    return buffer.tensor()


def as_images(array: np.ndarray, where: str, fit: tuple[int, int] | None = None) -> Tensor:
    """uint8 (N, C, H, W) from (N, H, W), (N, H, W, C) or (N, C, H, W); uint16 from uint16.

    With ``fit`` (channels and size, all images alike) also from one image: (H, W), (C, H, W) or (H, W, C).
    Raises DataError, which begins with ``where``, for no image, another shape, or numbers that are no pixels.
    """
    if array.size == 0:
        raise DataError(f"{where}: holds no image (shape {array.shape})")
    if array.dtype.kind == "V":
        raise DataError(f"{where}: is of type {array.dtype}, which numpy does not have; save it as float32")
    if not (np.issubdtype(array.dtype, np.number) and np.isrealobj(array) and np.isfinite(array).all()):
        raise DataError(f"{where}: must be finite numbers; found {array.dtype} with NaN, infinity or other things")
    low, high = array.min(), array.max()
    whole = np.issubdtype(array.dtype, np.integer)
    deep = array.dtype == np.uint16
    if low < 0 or (high > (255 if whole else 1) and not deep):
        allowed = "whole numbers from 0 to 255 (uint16: to 65535)" if whole else "fractions from 0 to 1"
        raise DataError(f"{where}: pixels from {low} to {high}; {array.dtype} images must be {allowed}")
    levels = array if deep else array.astype(np.uint8) if whole else np.rint(array * 255.0).astype(np.uint8)
    images = _axes(torch.from_numpy(levels), fit)
    if images is None or images.shape[2] != images.shape[3] or (fit and tuple(images.shape[1:3]) != fit):
        wanted = f"(N, {fit[0]}, {fit[1]}, {fit[1]})" if fit else "square images of 1 or 3 channels"
        raise DataError(f"{where}: has shape {array.shape}; expected {wanted}")
    return images.contiguous()


def _axes(levels: Tensor, fit: tuple[int, int] | None) -> Tensor | None:
    channels, shape = (fit[0],) if fit else (1, 3), tuple(levels.shape)
    if fit and shape == (fit[1], fit[1]):
        return levels[None, None]
    if fit and shape == (fit[0], fit[1], fit[1]):
        return levels[None]
    if fit and shape == (fit[1], fit[1], fit[0]):
        return levels.permute(2, 0, 1)[None]
    if levels.ndim == 3:
        return levels[:, None]
    if levels.ndim == 4 and shape[1] in channels and shape[2] == shape[3]:
        return levels
    if levels.ndim == 4 and shape[3] in channels:
        return levels.permute(0, 3, 1, 2)
    return None
