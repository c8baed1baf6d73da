"""From an image, in a file or in memory, to what a classifier is fed."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bend_ray.config.data import Interpolation
from bend_ray.data.images import MAX_PIXELS, as_images
from bend_ray.data.pixels import eight, levels, too_deep
from bend_ray.data.resize import BILINEAR, Resize
from bend_ray.data.tiff import misread
from bend_ray.errors import DataError

HEAD = 65536
"""Bytes of a file in which its header is looked for."""


@dataclass(frozen=True)
class Preprocess:
    """From pixels to what a classifier is fed; statistics are of the training split alone, unless told otherwise."""

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bits: int | None = None
    """Bits in use of training images of 16 bits; None: these were of 8. Images of 16 bits are then read as of 16."""
    interpolation: str = BILINEAR
    """How images of another size are resized."""
    crop: bool = False
    """Whether the middle square of an image is taken, or all of it, be it stretched."""

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32: over 255, minus mean, over standard deviation, each channel by its own.

        Raises DataError for another type or shape: one channel would silently be spread over three.
        """
        wanted = (self.channels, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or images.shape[1:] != wanted:
            raise DataError(
                f"images of {images.dtype} {tuple(images.shape)} given; expected torch.uint8 (B, *{wanted})"
            )
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return (images.float() / 255 - mean) / std

    def read(self, path: str | Path) -> Tensor:
        """Images in a file, uint8 (N, C, H, W): an image of any common format, or a .npy array.

        Raises DataError, which names the file, where it cannot be read or does not fit.
        """
        if Path(path).suffix.lower() == ".npy":
            return self._array(Path(path))
        try:
            with warnings.catch_warnings(), Path(path).open("rb") as file:
                warnings.simplefilter("ignore")  # odd metadata
                return self.decode(file, str(path))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None

    def decode(
        self, file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
    ) -> Tensor:
        """An encoded image as uint8 (1, C, H, W), its sides made ``image_size``; of any of Pillow's ``formats``.

        Raises DataError, which begins with ``name``, where it cannot be read or has more than ``max_pixels``.
        """
        if why := misread(file):
            raise DataError(f"{name}: {why}")
        head = file.read(HEAD)
        file.seek(-len(head), io.SEEK_CUR)
        try:
            with Image.open(file, formats=formats) as image:
                if image.width * image.height > max_pixels:  # before anything is unpacked
                    size = f"{image.width}x{image.height}"
                    raise ValueError(f"a decompression bomb? It has {size} pixels, at most {max_pixels} are read")
                if why := too_deep(image, head):
                    raise ValueError(why)
                return self.fitted(image)
        except UnidentifiedImageError:
            raise DataError(f"{name}: is no image that can be read; give PNG, JPEG or .npy") from None
        except Exception as error:  # decoders raise nearly anything on broken bytes
            raise DataError(f"{name}: is no image that can be read ({error}); give PNG, JPEG or .npy") from None

    def fitted(self, image: Image.Image) -> Tensor:
        """A decoded image as `decode` gives it. Raises ValueError for pixels of no known range."""
        size, array = (self.image_size, self.image_size), levels(image, colour=self.channels == 3)
        if array.dtype == np.uint16:
            grey = eight(array, self.bits or 16)
            array = grey if self.channels == 1 else grey[..., None].repeat(3, axis=2)
        one = Image.fromarray(array)
        if self.crop:
            one = Resize(self.image_size, self.interpolation).image(one)
        one = one if one.size == size else one.resize(size, Image.Resampling[self.interpolation.upper()])
        return torch.from_numpy(np.array(one)).reshape(1, *size, -1).permute(0, 3, 1, 2)

    def fit(self, array: np.ndarray, name: str) -> Tensor:
        """Numbers as images, uint8 (N, C, H, W): whole ones from 0 to 255, or of as many bits as training images of 16
        bits had in use where they are no uint8, fractions from 0 to 1; axes as they come.

        Raises DataError, which begins with ``name``, for anything else.
        """
        fit = (self.channels, self.image_size)
        if self.bits is None or not np.issubdtype(array.dtype, np.integer) or array.dtype == np.uint8:
            return as_images(array, name, fit) if array.dtype != np.uint16 else as_images(array.astype(int), name, fit)
        if array.size and not 0 <= array.min() <= array.max() < 1 << self.bits:
            raise DataError(
                f"{name}: pixels from {array.min()} to {array.max()}; whole numbers must be from 0 to"
                f" {(1 << self.bits) - 1}, as in training, or uint8 from 0 to 255"
            )
        return as_images((array.astype(np.uint16) >> (self.bits - 8)).astype(np.uint8), name, fit)

    def _array(self, path: Path) -> Tensor:
        try:
            # Mapped, for a forged header could otherwise ask for more memory than there is.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                array.close()
                raise ValueError("it is an .npz of several arrays")
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except Exception as error:  # a broken header is parsed as Python and fails in as many ways
            raise DataError(f"{path}: is no .npy array of numbers ({error})") from None
        return self.fit(array, str(path))

    def to_json(self) -> dict[str, Any]:
        data = {
            "channels": self.channels,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        bits = {} if self.bits is None else {"bits": self.bits}
        return data | bits | self._resizing()

    def _resizing(self) -> dict[str, Any]:
        """Nothing where it is as in runs that know no other."""
        usual = self.interpolation == BILINEAR and not self.crop
        return {} if usual else {"interpolation": self.interpolation, "crop": self.crop}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Preprocess":
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        mean, std = (tuple(float(value) for value in data[key]) for key in ("mean", "std"))
        channels, size = int(data["channels"]), int(data["image_size"])
        if channels not in (1, 3) or size < 1 or not len(mean) == len(std) == channels:
            raise ValueError(f"{channels} channels of size {size} with {len(mean)} means and {len(std)} deviations")
        if not (np.isfinite(mean + std).all() and min(std) > 0):
            raise ValueError("means and deviations must be finite, deviations above 0")
        bits = data.get("bits")
        if bits is not None and (type(bits) is not int or not 8 <= bits <= 16):
            raise ValueError(f"{bits} bits")
        interpolation = data.get("interpolation", BILINEAR)
        if interpolation not in get_args(Interpolation):
            raise ValueError(f"interpolation {interpolation!r} is none of {', '.join(get_args(Interpolation))}")
        return Preprocess(channels, size, mean, std, bits, interpolation, bool(data.get("crop", False)))
