"""From the body of a request to images: PNG, JPEG and the like, JSON, .npy, Arrow IPC.

Nothing here believes what a body says of itself: sizes are compared with the bytes that are there before anything is
unpacked, and no pickle is read.
"""

import io
import itertools
import json
import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from bend_ray.data.datasets import Preprocess
from bend_ray.errors import DataError

MAX_PIXELS = 1 << 25
"""Of the images in one request together: they take half a gigabyte and a second while they are made smaller."""
JPEG_SCAN, MAX_SCANS = b"\xff\xda", 64
"""A progressive JPEG costs its pixels for each scan."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Of uploaded images: Pillow knows others that unpack while they are opened, or start other programs."""
MAX_AXES = 4
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
KINDS = {
    "application/json": "json",
    "application/x-npy": "npy",
    "application/vnd.apache.arrow.stream": "arrow",
    "application/vnd.apache.arrow.file": "arrow",
}
MAGIC = {b"\x93NUMPY": "npy", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow", b"{": "json"}
ARROW_NAMES = ("image", "images", "img")


class KindError(DataError):
    """The body is of no kind that can be read."""


def kind_of(content_type: str, body: bytes) -> str:
    """json, npy, arrow or image: as the type says, or as the body begins where the type says nothing of use."""
    plain = content_type.split(";")[0].strip().lower()
    if plain in KINDS:
        return KINDS[plain]
    if plain.startswith("image/"):
        return "image"
    if plain not in ("", "application/octet-stream", "application/x-www-form-urlencoded"):
        raise KindError(f"Content-Type: {plain[:60]} is not read; send image/png, image/jpeg, {', '.join(KINDS)}")
    head = body[:64].lstrip() if body[:1].isspace() else body
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "image")


def read(kind: str, body: bytes, fit: Preprocess, max_rows: int) -> tuple[Tensor, dict[str, Any]]:
    """Images, uint8 (B, C, H, W), and what else a JSON body said. Raises DataError, which says what is wrong."""
    if not body:
        raise DataError("body: is empty; send an image, JSON, .npy or Arrow IPC")
    if kind == "json":
        return from_json(body, fit)
    if kind == "npy":
        return numbers(from_npy(body), "body", fit), {}
    if kind == "arrow":
        return from_arrow(body, fit, max_rows), {}
    return images([("body", body)], fit), {}


def images(encoded: Iterable[tuple[str, bytes]], fit: Preprocess) -> Tensor:
    """Encoded images with their names, uint8 (B, C, H, W); all together of no more than ``MAX_PIXELS``."""
    found, left = [], MAX_PIXELS
    for name, data in encoded:
        area, jpeg = _header(data)
        if jpeg and data.count(JPEG_SCAN) > MAX_SCANS:  # other formats may hold these bytes by chance
            raise DataError(f"{name}: is a JPEG of more than {MAX_SCANS} scans")
        found.append(fit.decode(io.BytesIO(data), name, left, FORMATS))
        left -= area
    return torch.cat(found)


def _header(data: bytes) -> tuple[int, bool]:
    """Pixels of an encoded image, and whether JPEG is in it; nothing is unpacked. What is no image has none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height, data.startswith(b"\xff\xd8") or image.info.get("compression") == "jpeg"
    except Exception:  # which decoding it says in words
        return 0, False


def numbers(array: np.ndarray, name: str, fit: Preprocess) -> Tensor:
    """`Preprocess.fit` for arrays from strangers."""
    if array.dtype.kind not in "uif":
        raise DataError(f"{name}: holds no numbers (type {array.dtype})")
    return fit.fit(array, name)


def load_json(body: bytes, name: str = "body") -> dict[str, Any]:
    """A JSON object. Raises DataError."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{name}: is JSON, but no object with keys such as images")
    return found


def from_json(body: bytes, fit: Preprocess) -> tuple[Tensor, dict[str, Any]]:
    """``{"images": nested lists of pixels, ...}``."""
    found = load_json(body)
    if "images" not in found:
        raise DataError(f"body: has no images; its keys are {', '.join(map(brief, list(found)[:5])) or 'none'}")
    images = found.pop("images")
    if unknown := found.keys() - {"strategy", "members"}:
        raise DataError(f"body: unknown key {brief(min(unknown))}; known are images, strategy, members")
    return numbers(nested(images, "images"), "images", fit), found


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


def from_arrow(body: bytes, fit: Preprocess, max_rows: int) -> Tensor:
    """A table's column of images: encoded bytes (as on the Hugging Face Hub), tensors, or lists of numbers."""
    body = body[8:] if body.startswith(b"ARROW1") else body  # a file is a stream with an index, which we do not follow
    try:
        refuse_compressed(body)
        table = pa.ipc.open_stream(body).read_all()
        table.validate(full=True)
        name = _image_column(table.schema)
        column, where = table.column(name), f"column {name!r}"
        # A row may take no bytes at all, so their number is checked before anything is made of them.
        if not 0 < len(column) <= max_rows or column.null_count:
            raise DataError(f"{where}: {len(column)} rows, {column.null_count} null; give 1 to {max_rows} whole ones")
        column = column.combine_chunks()
        if isinstance(column, pa.FixedShapeTensorArray):
            return numbers(_tensors(column, where), where, fit)
        if pa.types.is_struct(column.type):
            column = column.field("bytes")
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            return images(((f"{where} row {row}", data or b"") for row, data in enumerate(column.to_pylist())), fit)
        return numbers(_unnested(column, where, fit), where, fit)
    except DataError:
        raise
    except Exception as error:  # Arrow's own exceptions, and those of its bindings
        why = " ".join(str(error).split())[:200]
        raise DataError(f"body: is no whole Arrow IPC stream or file ({why})") from None


def _tensors(column: pa.FixedShapeTensorArray, where: str) -> np.ndarray:
    shape, order = column.type.shape, column.type.permutation
    if order is not None and list(order) != sorted(order):  # pyarrow writes the inverse of what Arrow's format says
        raise DataError(f"{where}: its tensors are permuted; send them in the order of their axes (C-contiguous)")
    values = column.storage.flatten()
    if values.null_count or not 0 < len(shape) < MAX_AXES or len(values) != len(column) * math.prod(shape):
        raise DataError(f"{where}: tensors of shape {brief(shape)} that are not whole")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), *shape)


def _unnested(column: pa.Array, where: str, fit: Preprocess) -> np.ndarray:
    """An array from lists of numbers: flat rows (C * H * W), or nested as the array's axes are."""
    shape = [len(column)]
    while len(shape) < MAX_AXES and any(is_list(column.type) for is_list in LISTS):
        lengths = pc.min_max(pc.list_value_length(column))
        shortest, longest = lengths["min"].as_py(), lengths["max"].as_py()
        if column.null_count or shortest != longest or not longest:
            raise DataError(f"{where}: its lists are empty, not all of one length, or hold nulls")
        shape.append(longest)
        if math.prod(shape) > shape[0] * fit.channels * fit.image_size**2:  # before more is made of it: see above
            raise DataError(
                f"{where}: holds neither encoded images nor lists of {fit.channels}x{fit.image_size}x.. pixels"
            )
        column = column.flatten()
    if (
        len(shape) == 1
        or column.null_count
        or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type))
    ):
        raise DataError(f"{where}: holds neither encoded images nor lists of numbers ({brief(str(column.type))})")
    if len(shape) == 2 and shape[1] == fit.channels * fit.image_size**2:
        shape = [shape[0], fit.channels, fit.image_size, fit.image_size]
    return column.to_numpy(zero_copy_only=False).reshape(shape)


def _image_column(schema: pa.Schema) -> str:
    found = [name for name in schema.names if name in ARROW_NAMES] or list(schema.names)
    if len(found) != 1:
        raise DataError(f"body: which column holds images? Name one of {brief(schema.names)} 'image'")
    return str(found[0])


def refuse_compressed(body: bytes) -> None:
    """Raises DataError for compressed buffers, whose size once unpacked is only a promise, and for dictionaries.

    Messages are flatbuffers (Arrow's Message.fbs): a record batch that is compressed has its fourth field.
    """
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if message.type not in ("schema", "record batch"):
            raise DataError(f"body: an Arrow message of kind {message.type}; send plain columns")
        if message.type == "record batch":
            metadata = message.metadata.to_pybytes()
            root = struct.unpack_from("<I", metadata, 0)[0]
            header = _field(metadata, root, 2)
            batch = header + struct.unpack_from("<I", metadata, header)[0]
            if _field(metadata, batch, 3):
                raise DataError("body: compressed Arrow buffers are not read; write them without compression")


def _field(metadata: bytes, table: int, index: int) -> int:
    """Where field ``index`` of a flatbuffer's table stands; 0 where it is not there."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    size = struct.unpack_from("<H", metadata, vtable)[0]
    slot = 4 + 2 * index
    offset = struct.unpack_from("<H", metadata, vtable + slot)[0] if slot < size else 0
    return table + offset if offset else 0
