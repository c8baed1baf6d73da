"""From Arrow IPC to images; as in `inputs`, nothing that the bytes say of themselves is believed."""

import math
import struct

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from bend_ray.data.preprocess import Preprocess
from bend_ray.errors import DataError
from bend_ray.serving.inputs import MAX_AXES, brief, images, numbers

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
ARROW_NAMES = ("image", "images", "img")


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
    candidates = [name for name in schema.names if name in ARROW_NAMES] or list(schema.names)
    if len(candidates) != 1:
        raise DataError(f"body: which column holds images? Name one of {brief(schema.names)} 'image'")
    return str(candidates[0])


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
