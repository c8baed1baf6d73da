"""Images as Arrow IPC: columns of any kind are the same images, and what does not fit is refused, at no cost."""

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from bend_ray.errors import DataError
from image_files import encoded
from serving_bodies import COLOURS, FLAT, GREYS, ONE, PNG, STREAM, U1, lists, peak_mib, read, refused, same
from serving_helpers import COLOUR, GREY, ROWS, arrow, pictures, tensors


@pytest.mark.parametrize("file", [False, True], ids=["stream", "file"])
@pytest.mark.parametrize(
    "column",
    [
        tensors(GREYS),
        tensors(GREYS[:, 0]),
        tensors((GREYS / 255).astype(np.float32)),
        tensors(GREYS.astype(np.int64)),
        lists(FLAT, 1),
        lists(GREYS[:, 0], 2),
        lists(GREYS, 3),
        lists(GREYS.transpose(0, 2, 3, 1), 3),
        lists(FLAT / 255, 1, pa.float64()),
        pa.array(FLAT.tolist(), pa.large_list(pa.int16())),
        pa.array(FLAT.tolist(), pa.list_(U1, 64)),
        pa.array(GREYS[:, 0].tolist(), pa.list_(pa.list_(U1, 8))),
        pa.array([encoded(image[0]) for image in GREYS]),
        pa.array([encoded(image[0]) for image in GREYS], pa.large_binary()),
        pa.array([{"bytes": encoded(image[0]), "path": "a.png"} for image in GREYS]),
    ],
    ids=lambda column: str(column.type)[:40],
)
def test_arrow_columns_of_any_kind(column: pa.Array, file: bool) -> None:
    same("arrow", arrow({"image": column}, file), GREYS)
    same("arrow", arrow({"label": pa.array(["a", "b", "c"]), "img": column}, file), GREYS)
    same("arrow", arrow({"whatever": column}, file), GREYS)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("make", [lambda array: lists(array, 3), lambda array: tensors(np.ascontiguousarray(array))])
def test_arrow_in_colour(make: Callable[[np.ndarray], pa.Array], last: bool) -> None:
    same("arrow", arrow({"image": make(COLOURS.transpose(0, 2, 3, 1) if last else COLOURS)}), COLOURS)


@pytest.mark.parametrize(
    "array",
    [
        GREYS[:, 0].transpose(0, 2, 1).copy().transpose(0, 2, 1),
        COLOURS.transpose(0, 2, 3, 1),
        np.ascontiguousarray(COLOURS.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    ],
    ids=["NHW, columns first", "NHWC from NCHW", "NCHW from NHWC"],
)
def test_permuted_arrow_tensors_are_refused(array: np.ndarray) -> None:
    """Arrow writes and reads a permutation of three axes as each other's inverse: `to_numpy_ndarray` is wrong."""
    refused("arrow", arrow({"image": tensors(array)}), "permuted", COLOUR if 3 in array.shape[1:] else GREY)


def test_arrow_of_several_batches_is_one() -> None:
    table = pa.table({"image": pa.chunked_array([tensors(GREYS[:2]), tensors(GREYS[2:])])})
    same("arrow", arrow(table), GREYS)


def empty_rows(kind: pa.DataType, rows: int, *children: pa.Array) -> pa.Array:
    """Rows that take no bytes."""
    return pa.Array.from_buffers(kind, rows, [None], children=list(children))


MANY, SIDE, NULL, NONE = 2**40, 2**31 - 1, pa.null(), pa.list_(U1, 0)
NONES = empty_rows(NONE, MANY, pa.array([], U1))
WITHOUT_BYTES = {
    "nulls": empty_rows(NULL, MANY),
    "lists of none": NONES,
    "structs of nothing": empty_rows(pa.struct([]), MANY),
    "tensors of nothing": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(U1, [0]), NONES),
    "lists of nulls": empty_rows(pa.list_(NULL, SIDE), 4, empty_rows(NULL, 4 * SIDE)),
    "lists of lists of none": empty_rows(pa.list_(NONE, SIDE), 4, empty_rows(NONE, 4 * SIDE, pa.array([], U1))),
    "lists of lists of nulls": empty_rows(
        pa.list_(pa.list_(NULL, 2), SIDE), 4, empty_rows(pa.list_(NULL, 2), 4 * SIDE, empty_rows(NULL, 8 * SIDE))
    ),
}


@pytest.mark.parametrize("kind", WITHOUT_BYTES)
def test_arrow_rows_without_bytes_cost_nothing(kind: str) -> None:
    body = arrow({"image": WITHOUT_BYTES[kind]}, allow_64bit=True)
    start = time.thread_time()
    assert len(body) < 1000 and peak_mib(lambda: refused("arrow", body)) < 20
    assert time.thread_time() - start < 0.5
    with pytest.raises(DataError) as error:
        read("arrow", body)
    assert "malloc" not in str(error.value)  # it was not even tried


RAGGED = [FLAT[0, :32].tolist(), [*FLAT[0, 32:].tolist(), *FLAT[1].tolist()]]  # as long as two images
RAGGED_ROWS = [[row.tolist() for row in ONE[:6]] + [ONE[6, :4].tolist(), [*ONE[6, 4:].tolist(), *ONE[7].tolist()]]]
NULL_PIXEL = pa.ExtensionArray.from_storage(
    pa.fixed_shape_tensor(U1, [8, 8]), pa.FixedSizeListArray.from_arrays(pa.array([None, *[1] * 63], U1), 64)
)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"a": tensors(GREYS), "b": tensors(GREYS)}, "which column holds images"),
        ({"image": tensors(GREYS), "img": tensors(GREYS)}, "which column holds images"),
        ({"image": tensors(GREYS)[:0]}, "0 rows"),
        ({"image": tensors(pictures(ROWS + 1))}, f"{ROWS + 1} rows.* 1 to {ROWS}"),
        ({"image": pa.array([PNG, None])}, "1 null"),
        ({"image": pa.array([PNG, b""])}, "row 1: is no image"),
        ({"image": pa.array([{"bytes": None, "path": "a.png"}], pa.struct({"bytes": pa.binary()}))}, "row 0: "),
        ({"image": pa.array([{"path": "a.png"}])}, "bytes"),
        ({"image": pa.array(["a", "b"])}, "neither encoded images nor lists"),
        ({"image": pa.array([1, 2])}, "neither"),
        ({"image": pa.array([1, 1]).dictionary_encode()}, "dictionary"),
        ({"image": tensors(GREYS), "label": pa.array(["a", "b", "a"]).dictionary_encode()}, "dictionary"),
        ({"image": pa.array(FLAT.tolist(), pa.list_view(U1))}, "neither"),
        ({"image": pa.array([PNG], pa.binary(len(PNG)))}, "neither"),
        ({"image": pa.RunEndEncodedArray.from_arrays([2], [1])}, "neither"),
        ({"image": lists(FLAT[:, :63], 1)}, r"has shape \(3, 63\)"),
        ({"image": pa.array([[None] * 64], pa.list_(U1))}, "neither"),
        ({"image": pa.array([[True] * 64])}, "."),
        ({"image": pa.array([[1] * 64], pa.list_(pa.decimal128(4, 0)))}, "."),
        ({"image": pa.array([["1"] * 64])}, "."),
        ({"image": lists(FLAT[:1] + 200.0, 1, pa.float32())}, "fractions"),
        ({"image": pa.array([[float("nan")] * 64])}, "finite"),
        ({"image": tensors(COLOURS)}, "has shape"),
        ({"image": pa.array(RAGGED, pa.list_(U1))}, "."),
        ({"image": pa.array(RAGGED_ROWS, pa.list_(pa.list_(U1)))}, "."),
        ({"image": lists(GREYS[:, None], 4)}, "."),
        ({"image": NULL_PIXEL}, "."),
    ],
    ids=lambda value: ", ".join(f"{k} {v.type}" for k, v in value.items())[:70] if isinstance(value, dict) else value,
)
def test_arrow_that_is_refused(columns: dict[str, pa.Array], sentence: str) -> None:
    refused("arrow", arrow(columns), sentence)


@pytest.mark.parametrize(
    "array",
    [
        COLOURS.transpose(0, 2, 1, 3),
        COLOURS.transpose(0, 2, 3, 1).reshape(2, 64, 3),
    ],
    ids=["HCW", "pixels x C"],
)
def test_arrow_axes_in_no_usual_order_are_refused(array: np.ndarray) -> None:
    refused("arrow", arrow({"image": lists(array, array.ndim - 1)}), ".", COLOUR)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_arrow_is_refused_in_every_batch(codec: str) -> None:
    sentence = "compressed Arrow buffers"
    refused("arrow", arrow({"image": tensors(GREYS)}, compression=codec), sentence)
    refused("arrow", arrow({"image": tensors(GREYS)}, True, compression=codec), sentence)
    # An honest batch in front: what is after a stream's schema and batches may come from another writer.
    schema_and_end = len(arrow(pa.table({"image": tensors(GREYS)[:0]})))
    second = arrow({"image": tensors(GREYS)}, compression=codec)[schema_and_end - 8 :]
    refused("arrow", STREAM[:-8] + second, sentence)


@pytest.mark.parametrize("cut", [1, 7, 9, 64, 200, len(STREAM) - 20])
def test_cut_arrow_is_refused(cut: int) -> None:
    refused("arrow", STREAM[: len(STREAM) - cut])
    same("arrow", STREAM[:-8], GREYS)  # the end mark may be missing


def test_other_things_called_arrow_are_refused() -> None:
    for body in (b"ARROW1", b"ARROW1\0\0", b"\xff" * 8, b"\xff\xff\xff\xff\xff\xff\xff\x7f", PNG, b"\0" * 64, b"PAR1"):
        refused("arrow", body)
    refused("arrow", arrow(pa.table({})), "which column holds images")
