"""Images and labels, rows of both, and where images are kept: in memory, or in a file where there are many."""

import contextlib
import io
import tempfile
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bend_ray.config import Data
from bend_ray.errors import DataError

PIECE = 4096
"""Rows that are looked at, converted or copied at once."""
MAX_PIXELS = 89_478_485
"""Of an image in a file, as Pillow's own limit against decompression bombs."""
BILINEAR = "bilinear"


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, C, H, W) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor
    by_class: bool = False
    """Rows lie class by class, so that the first ones are not like the others."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Any) -> "Split":
        """These rows (an index, a mask or a slice)."""
        return Split(self.images[rows], self.labels[rows])


Splits = dict[str, Split]


@dataclass(frozen=True)
class Resize:
    """From images of any size and shape to square ones of one size: the middle square, resized."""

    size: int
    interpolation: str

    @staticmethod
    def of(data: Data) -> "Resize | None":
        """None where ``data`` leaves images as they are."""
        return None if data.image_size is None else Resize(data.image_size, data.interpolation or BILINEAR)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, C, size, size) from uint8 (n, C, H, W)."""
        if images.shape[2:] == (self.size, self.size):
            return images
        # Pillow's, as of images that are sent later; a grey one has no axis of channels there.
        ones = [Image.fromarray(one.transpose(1, 2, 0) if len(one) == 3 else one[0]) for one in images]
        return np.stack([np.asarray(self.image(one)).reshape(self.size, self.size, -1) for one in ones]).transpose(
            0, 3, 1, 2
        )

    def image(self, image: Image.Image) -> Image.Image:
        """The same of one of Pillow's."""
        side = min(image.size)
        left, upper = (image.width - side) // 2, (image.height - side) // 2
        box = (left, upper, left + side, upper + side)
        if image.size == (self.size, self.size):
            return image
        return image.resize((self.size, self.size), Image.Resampling[self.interpolation.upper()], box=box)


class SpillBuffer:
    """Images put one upon another, grey until one in colour comes; in memory, or above ``in_memory`` GiB in a file.

    The file has no name, so that it is gone when the process is, whatever ended it. It lies where the system keeps
    temporary files (TMPDIR), and is read through a memory map.
    """

    def __init__(self, in_memory: float, channels: int = 0, resize: "Resize | None" = None) -> None:
        self.limit, self.resize = int(in_memory * 2**30), resize
        self.channels, self.size, self.rows, self.first = channels, 0, 0, ""
        self.memory = bytearray()
        self.file: IO[bytes] | None = None

    def add(self, images: np.ndarray, where: str = "") -> None:
        """Put uint8 (n, C, H, W) on top. Raises DataError, which begins with ``where``, if they are not square or not
        of the size of those before."""
        images = images if self.resize is None else self.resize(images)
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
        self.channels = self.channels or channels
        if channels > self.channels:
            self._colour()
        self._write(images if channels == self.channels else images.repeat(self.channels, 1))
        self.rows += len(images)

    def tensor(self) -> Tensor:
        """All of them, uint8 (N, C, H, W), without a copy."""
        shape = (self.rows, self.channels, self.size, self.size)
        if not self.rows:
            return torch.zeros(shape, dtype=torch.uint8)
        if self.file is None:
            return torch.frombuffer(self.memory, dtype=torch.uint8).reshape(shape)
        return torch.from_numpy(np.memmap(self.file, np.uint8, "r+", shape=shape))

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
    resize: "Resize | None" = None,
) -> Tensor:
    """A copy of ``images`` (of these ``rows``), as a `SpillBuffer` keeps it; grey ones repeated where ``channels`` is
    3."""
    buffer = SpillBuffer(in_memory, channels, resize)
    for piece in (torch.arange(len(images)) if rows is None else rows).split(PIECE):
        buffer.add(images[piece].numpy())
    return buffer.tensor()


def pixels(image: Image.Image, colour: bool) -> np.ndarray:
    """A decoded image as uint8 (H, W) or, in colour, (H, W, 3). Raises ValueError for pixels of no known range."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts everything above 255 off
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}; give 8 or 16 bits")
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette with transparency is not converted in one step
    return np.asarray(image.convert("RGB" if colour else "L"))


def decoded(data: bytes, where: str) -> np.ndarray:
    """An encoded image as uint8 (1, C, H, W), grey or in colour as it is. Raises DataError: ``where``, and why not."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError:
        raise DataError(f"{where} is a broken image (in no format that Pillow knows)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} is a broken image ({error})") from None
    return drawn(image, where)


def drawn(image: Image.Image, where: str) -> np.ndarray:
    """An image of Pillow's as `decoded` gives it. Raises DataError for pixels of no known range."""
    grey = image.mode in ("L", "1", "I", "F") or image.mode.startswith("I;16")
    try:
        array = pixels(image, colour=not grey)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    return array[None, None] if grey else array.transpose(2, 0, 1)[None]


def as_images(array: np.ndarray, where: str, fit: tuple[int, int] | None = None) -> Tensor:
    """uint8 (N, C, H, W) from (N, H, W), (N, H, W, C) or (N, C, H, W).

    With ``fit`` (channels and size, all images alike) also from one image: (H, W), (C, H, W) or (H, W, C).
    Raises DataError, which begins with ``where``, for no image, another shape, or numbers that are no pixels.
    """
    if array.size == 0:
        raise DataError(f"{where}: holds no image (shape {array.shape})")
    if not (np.issubdtype(array.dtype, np.number) and np.isrealobj(array) and np.isfinite(array).all()):
        raise DataError(f"{where}: must be finite numbers; found {array.dtype} with NaN, infinity or other things")
    low, high = array.min(), array.max()
    whole = np.issubdtype(array.dtype, np.integer)
    if low < 0 or high > (255 if whole else 1):
        allowed = "whole numbers from 0 to 255" if whole else "fractions from 0 to 1"
        raise DataError(f"{where}: pixels from {low} to {high}; {array.dtype} images must be {allowed}")
    levels = array.astype(np.uint8) if whole else np.rint(array * 255.0).astype(np.uint8)
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
