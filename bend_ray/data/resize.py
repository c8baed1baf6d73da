"""From images of any size and shape to square ones of one size."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from bend_ray.config import Data
from bend_ray.data.pixels import eight

BILINEAR = "bilinear"


@dataclass(frozen=True)
class Resize:
    """From images of any size and shape to square ones of one size: the middle square, resized."""

    size: int
    interpolation: str
    bits: int | None = None
    """Bits in use of images of 16 bits; None: they are not known yet."""

    @staticmethod
    def of(data: Data) -> "Resize | None":
        """None where ``data`` leaves images as they are."""
        if data.image_size is None:
            return None
        return Resize(data.image_size, data.interpolation or BILINEAR, data.bits)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(n, C, size, size) from (n, C, H, W), uint8, or uint16: resized as of 8 bits. Where `bits` are not known, all
        pixels of one are then the largest that it had, from which they will be.

        Raises ValueError for a pixel of more bits.
        """
        if images.shape[2:] == (self.size, self.size):
            return images
        if images.dtype == np.uint16:
            if self.bits is None:
                return images.max(axis=(2, 3), keepdims=True).repeat(self.size, 2).repeat(self.size, 3)
            return self(eight(images, self.bits)).astype(np.uint16) << (self.bits - 8)
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
