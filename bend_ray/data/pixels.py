"""From an encoded image, or one of Pillow's, to numbers: upright, on white, of 8 or 16 bits; or a sentence why not."""

import contextlib
import io
import warnings
from collections import Counter

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from bend_ray.data.tiff import bytes_misread
from bend_ray.errors import DataError

DEEP = "of which 8 bits could be read; write 8 bits a channel"
BITS = (8, 10, 12, 14, 16)
"""Bits that pixels of 16 bits may have in use."""
SIZ = b"\xff\x4f\xff\x51"
"""How the code stream of a JPEG 2000 begins."""


def decoded(data: bytes, where: str, modes: Counter[str] | None = None) -> np.ndarray:
    """An encoded image as (1, C, H, W), grey or in colour as it is, uint8, or uint16 where it is grey of 16 bits; what
    it was is counted in ``modes``. Raises DataError: ``where``, and why not."""
    if why := bytes_misread(data):
        raise DataError(f"{where} {why}")
    try:
        image = Image.open(io.BytesIO(data))
        if why := too_deep(image, data):
            raise DataError(f"{where} {why}")
        image.load()
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{where} is a broken image (in no format that Pillow knows)") from None
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise DataError(f"{where} is a broken image ({error})") from None
    return drawn(image, where, modes)


def drawn(image: Image.Image, where: str, modes: Counter[str] | None = None) -> np.ndarray:
    """An image of Pillow's as `decoded` gives it. Raises DataError for pixels of no known range."""
    grey = is_grey(image)
    try:
        if why := too_deep(image):
            raise ValueError(why)
        array = levels(image, colour=not grey)
    except Exception as error:
        raise DataError(f"{where}: {error}") from None
    if modes is not None:
        modes[image.mode] += 1
    return array[None, None] if grey else array.transpose(2, 0, 1)[None]


def is_grey(image: Image.Image) -> bool:
    return image.mode in ("L", "1", "I", "F") or image.mode.startswith("I;16")


def levels(image: Image.Image, colour: bool) -> np.ndarray:
    """A decoded image, upright and on white, as uint8 (H, W) or, in colour, (H, W, 3); as uint16 (H, W) where it is
    grey of 16 bits. Raises ValueError for pixels of no known range."""
    image = upright(image)
    if image.mode == "I" and image.format == "PPM":  # Pillow has brought it to 0 to 65535
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}; give 8 or 16 bits")
    if image.mode == "LAB":
        raise ValueError("its pixels are CIE L*a*b* colours; write it as RGB")
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts everything above 255 off
        if "transparency" in image.info:
            raise ValueError("it is grey of 16 bits with a transparent value; write it without that")
        return np.asarray(image).astype(np.uint16)
    return np.asarray(on_white(image).convert("RGB" if colour else "L"))


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says, where that can be read."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EXIF may be broken in an image that is not
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            form, turned = image.format, ImageOps.exif_transpose(image)
            turned.format = form
            return turned
    return image


def on_white(image: Image.Image) -> Image.Image:
    """Without transparency: a pixel counts by its alpha, white by the rest of it."""
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La", "P") and "transparency" not in image.info:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def too_deep(image: Image.Image, data: bytes = b"") -> str:
    """What an image is of whose bits Pillow would drop some, as the end of a sentence; asked before it is loaded."""
    for tile in getattr(image, "tile", ()):
        mode = tile[3] if isinstance(tile[3], str) else next(iter(tile[3] or ()), "")
        if isinstance(mode, str) and ";16" in mode and not mode.startswith("I;16"):
            return f"is a {image.format} of 16 bits a channel, {DEEP}"
    if image.format == "JPEG2000" and not image.mode.startswith("I;16"):
        siz = data.find(SIZ)
        if siz >= 0 and (bits := (data[siz + 42] & 127) + 1) > 8:
            return f"is a JPEG 2000 of {bits} bits a channel, {DEEP}"
    return ""


def bits_of(most: int) -> int:
    """The least of `BITS` that hold a value."""
    return next(bits for bits in BITS if most < 1 << bits)


def eight(array: np.ndarray, bits: int) -> np.ndarray:
    """uint16 of so many ``bits`` as uint8, the lowest dropped. Raises ValueError where a value has more."""
    if (most := int(array.max(initial=0))) >> bits:
        raise ValueError(
            f"it has values up to {most}, which is more than the {bits} bits (0 to {(1 << bits) - 1}) of the training"
            f" images; train with data.bits: {bits_of(most)} to take it"
        )
    return (array >> (bits - 8)).astype(np.uint8)
