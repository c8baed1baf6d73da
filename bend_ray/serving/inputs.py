"""From bytes to images: PNG, JPEG and the like, JSON, .npy (and Arrow IPC: see `arrow`).

Nothing here believes what a body says of itself: sizes are compared with the bytes that are there before anything is
unpacked, and no pickle is read.
"""

import io
import itertools
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bend_ray.data.preprocess import Preprocess
from bend_ray.errors import DataError

MAX_PIXELS = 1 << 25
"""Of the images in one request together: they take half a gigabyte and a second while they are made smaller."""
JPEG_SCAN, MAX_SCANS = b"\xff\xda", 64
"""A progressive JPEG costs its pixels for each scan."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Of uploaded images: Pillow knows others that unpack while they are opened, or start other programs."""
MAX_AXES = 4


def images(encoded: Iterable[tuple[str, bytes]], fit: Preprocess) -> Tensor:
    """Encoded images with their names, uint8 (B, C, H, W); all together of no more than ``MAX_PIXELS``."""
    decoded, left = [], MAX_PIXELS
    for name, data in encoded:
        area, jpeg = _header(data)
        if jpeg and data.count(JPEG_SCAN) > MAX_SCANS:  # other formats may hold these bytes by chance
            raise DataError(f"{name}: is a JPEG of more than {MAX_SCANS} scans")
        decoded.append(fit.decode(io.BytesIO(data), name, left, FORMATS))
        left -= area
    return torch.cat(decoded)


def _header(data: bytes) -> tuple[int, bool]:
    """Pixels of an encoded image, and whether JPEG is in it; nothing is unpacked. What is no image has none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height, data.startswith(b"\xff\xd8") or image.info.get("compression") == "jpeg"
    except Exception:  # which decoding it says in words
        return 0, False


def numbers(array: np.ndarray, name: str, fit: Preprocess) -> Tensor:
    """`Preprocess.fit` for arrays from clients."""
    if array.dtype.kind not in "uif":
        raise DataError(f"{name}: holds no numbers (type {array.dtype})")
    return fit.fit(array, name)


def load_json(body: bytes, name: str = "body") -> dict[str, Any]:
    """A JSON object. Raises DataError."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{name}: is JSON, but no object with keys such as images")
    return value


def from_json(body: bytes, fit: Preprocess) -> tuple[Tensor, dict[str, Any]]:
    """``{"images": nested lists of pixels, ...}``."""
    content = load_json(body)
    if "images" not in content:
        raise DataError(f"body: has no images; its keys are {', '.join(map(brief, list(content)[:5])) or 'none'}")
    images = content.pop("images")
    if unknown := content.keys() - {"strategy", "members"}:
        raise DataError(f"body: unknown key {brief(min(unknown))}; known are images, strategy, members")
    return numbers(nested(images, "images"), "images", fit), content


def nested(lists: Any, name: str) -> np.ndarray:
    """Nested lists of numbers as an array, int64 or float64."""
    shape: list[int] = []
    level = lists
    while isinstance(level, list) and level and isinstance(level[0], list):
        if len(shape) == MAX_AXES or {type(part) for part in level} != {list} or len({len(part) for part in level}) > 1:
            raise DataError(f"{name}: is no array of numbers: lists must be of one length, {MAX_AXES} deep at most")
        shape.append(len(level))
        level = list(itertools.chain.from_iterable(level))
    if not isinstance(level, list) or not {type(value) for value in level} <= {int, float}:
        raise DataError(f"{name}: holds what is no numbers; it must be nested lists of pixels")
    for outer in range(len(shape) - 1, 0, -1):
        shape[outer] //= shape[outer - 1]
    sides = [*shape, len(level) // math.prod(shape)]
    try:
        return np.array(level, np.float64 if float in map(type, level) else np.int64).reshape(sides)
    except OverflowError:
        raise DataError(f"{name}: holds no numbers of 64 bits") from None


def brief(value: Any) -> str:
    """``value`` in an error: no more than a few words of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def from_npy(body: bytes) -> np.ndarray:
    """The array of a .npy file."""
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(stream)
    except Exception as error:  # the header is read as Python and fails in as many ways
        raise DataError(f"body: is no .npy array ({str(error)[:200]})") from None
    data = memoryview(body)[stream.tell() :]
    if dtype.kind not in "uif" or dtype.subdtype:
        raise DataError(f"body: a .npy of {brief(str(dtype))} holds no numbers")
    if not 0 < len(shape) <= MAX_AXES or not all(type(side) is int and side >= 0 for side in shape):
        raise DataError(f"body: a .npy of shape {brief(shape)}; expected (B, C, H, W)")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise DataError(f"body: a .npy of {dtype} {shape} does not have the {len(data)} bytes that follow its header")
    if not len(data):
        raise DataError(f"body: holds no image (shape {brief(shape)})")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
