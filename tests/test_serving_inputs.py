"""Bodies of every kind become the same images, and whatever else is sent is refused in a sentence, at no cost."""

import contextlib
import io
import json
import pickle
import resource
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bend_ray.data.datasets import Preprocess
from bend_ray.errors import DataError
from bend_ray.serving import bodies, inputs
from bend_ray.serving.bodies import KindError, kind_of
from serving_helpers import COLOUR, GREY, ROWS, arrow, encoded, npy, npy_of, pictures, tensors

GREYS, COLOURS = pictures(3), pictures(2, COLOUR)
FLAT = GREYS.reshape(3, 64)
ONE = GREYS[0, 0]
PNG = encoded(ONE)
U1 = pa.uint8()


def read(kind: str, body: bytes, fit: Preprocess = GREY) -> torch.Tensor:
    return bodies.read(kind, body, fit, ROWS)[0]


def same(kind: str, body: bytes, images: np.ndarray) -> None:
    """``body`` is read as ``images``, (B, C, H, W)."""
    found = read(kind, body, COLOUR if images.shape[1] == 3 else GREY)
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), images)


def refused(kind: str, body: bytes, sentence: str = ".", fit: Preprocess = GREY) -> None:
    with pytest.raises(DataError, match=sentence) as error:
        read(kind, body, fit)
    assert len(str(error.value)) < 1000


def as_json(images: Any, **more: Any) -> bytes:
    return json.dumps({"images": images} | more).encode()


def lists(array: np.ndarray, depth: int, value: pa.DataType = U1) -> pa.Array:
    for _ in range(depth):
        value = pa.list_(value)
    return pa.array(array.tolist(), value)


@contextlib.contextmanager
def at_most_mib(mib: int) -> Iterator[None]:
    """No more memory than this on top of what is there: what would fill the machine fails instead."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (mib << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def peak_mib(call: Callable[[], None]) -> float:
    """By how much memory grew at most while ``call`` ran, that of C libraries included."""
    own = Path("/proc/self")

    def status(key: str) -> int:
        return int(next(line for line in (own / "status").read_text().splitlines() if line.startswith(key)).split()[1])

    try:
        (own / "clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        pytest.skip("this system does not tell a process's peak of memory")
    before = status("VmRSS")
    with at_most_mib(1024):
        call()
    return (status("VmHWM") - before) / 1024


# --- images


def through_pillow(body: bytes, colour: bool) -> np.ndarray:
    with Image.open(io.BytesIO(body)) as image:
        array = np.asarray(image.convert("RGB" if colour else "L"))
    return array.transpose(2, 0, 1)[None] if colour else array[None, None]


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "TIFF"])
def test_lossless_images_are_their_pixels(form: str) -> None:
    same("image", encoded(ONE, form), GREYS[:1])
    if form != "GIF":  # 256 colours
        same("image", encoded(COLOURS[0].transpose(1, 2, 0), form), COLOURS[:1])


def test_grey_and_colour_go_into_each_other() -> None:
    same("image", PNG, GREYS[:1])
    same("image", encoded(np.stack([ONE] * 3, -1)), GREYS[:1])
    assert np.array_equal(read("image", PNG, COLOUR).numpy(), GREYS[:1].repeat(3, 1))


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("quality", [30, 95])
def test_jpeg_is_what_pillow_reads(colour: bool, quality: int) -> None:
    body = encoded(COLOURS[0].transpose(1, 2, 0) if colour else ONE, "JPEG", quality=quality)
    same("image", body, through_pillow(body, colour))


def test_palettes_are_their_colours() -> None:
    palette = Image.fromarray(ONE // 32).convert("L").convert("P")
    palette.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    wanted = np.stack([ONE // 32, 255 - ONE // 32, np.full_like(ONE, 7)])[None]
    for options in ({}, {"transparency": 3}):
        same("image", encoded(palette, **options), wanted)


def test_16_bits_keep_the_upper_8() -> None:
    same("image", encoded(ONE.astype(np.uint16) * 256 + 77), GREYS[:1])


@pytest.mark.parametrize("size", [(4, 4), (20, 10), (1, 300)])
def test_images_of_another_size_are_fitted(size: tuple[int, int]) -> None:
    body = encoded(np.full(size, 9, np.uint8))
    same("image", body, np.full((1, 1, 8, 8), 9, np.uint8))


# --- JSON


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (GREYS, GREYS),
        (GREYS[:, 0], GREYS),
        (GREYS.transpose(0, 2, 3, 1), GREYS),
        (COLOURS, COLOURS),
        (COLOURS.transpose(0, 2, 3, 1), COLOURS),
        (ONE, GREYS[:1]),
        (GREYS[0], GREYS[:1]),
        (COLOURS[0], COLOURS[:1]),
        (COLOURS[0].transpose(1, 2, 0), COLOURS[:1]),
    ],
    ids=lambda array: "x".join(map(str, array.shape)),
)
@pytest.mark.parametrize("scale", [1, 255])
def test_arrays_with_their_axes_in_any_usual_order(array: np.ndarray, wanted: np.ndarray, scale: int) -> None:
    numbers = array if scale == 1 else array / 255
    same("json", as_json(numbers.tolist()), wanted)
    same("npy", npy(numbers), wanted)


def test_json_says_more_than_images() -> None:
    body = as_json(GREYS.tolist(), strategy="sbend", members=True)
    assert bodies.read("json", body, GREY, ROWS)[1] == {"strategy": "sbend", "members": True}
    same("json", b"\xef\xbb\xbf \n" + body, GREYS)
    same("json", body.decode().encode("utf-16"), GREYS)


def image_with(value: Any) -> bytes:
    return as_json([[[value, *[0] * 7]] + [[0] * 8] * 7])


def text(images: str) -> bytes:
    return b'{"images": ' + images.encode() + b"}"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "is empty"),
        (b"  ", "is no JSON"),
        (b"\xff\xfe\xfd", "is no JSON"),
        (b"[1, 2]", "no object"),
        (b"null", "no object"),
        (b'{"pixels": [], "a": 1}', "has no images; its keys are 'pixels', 'a'"),
        (as_json(FLAT.tolist(), sort="yes"), "unknown key 'sort'"),
        (text("null"), "must be nested lists"),
        (text('"aGk="'), "must be nested lists"),
        (text("7"), "must be nested lists"),
        (text("{}"), "must be nested lists"),
        (text("[]"), "no image"),
        (text("[[[]]]"), "no image"),
        (text("[[[1, 2], [3]]]"), "no array"),
        (text("[[[1, 2], 3]]"), "no array"),
        (text('[["0"]]'), "no numbers"),
        (text("[[true, false]]"), "no numbers"),
        (text("[[null]]"), "no numbers"),
        (text('[[{"a": 1}]]'), "no numbers"),
        (text("[" * 100_000), "is no JSON"),
        (text("[" * 100_000 + "]" * 100_000), "is no JSON"),
        (text("[" * 70 + "]" * 70), "no array"),
        (text("[[1e999]]"), "finite"),
        (text("[[NaN]]"), "finite"),
        (text("[[-Infinity]]"), "finite"),
        (text(f"[[{2**64}]]"), "no numbers"),
        (text(f"[[{10**400}, 0.5]]"), "."),
        (text(f"[[{'9' * 5000}]]"), "is no JSON"),
        (image_with(-1), "pixels from -1"),
        (image_with(256), "to 256"),
        (image_with(2**63), "images: "),
        (image_with(1.5), "pixels from 0"),
        (image_with(-0.1), "pixels from -0.1"),
        (as_json([[0] * 9] * 9), r"has shape \(9, 9\); expected \(N, 1, 8, 8\)"),
        (as_json(COLOURS.tolist()), "has shape"),
        (as_json([[[[[0] * 8] * 8]]]), "has shape"),
        (as_json(GREYS.tolist())[:-9], "is no JSON"),
        (as_json(GREYS.tolist()) + b"{}", "is no JSON"),
    ],
    ids=str,
)
def test_json_that_is_refused(body: bytes, sentence: str) -> None:
    refused("json", body, sentence)


def test_a_bool_among_numbers_is_refused() -> None:
    refused("json", image_with(True))


def test_long_strings_among_short_ones_take_no_memory() -> None:
    body = as_json(["a" * 2000] + [""] * 10_000)  # 32 kB
    assert peak_mib(lambda: refused("json", body, "no number")) < 20


def test_strings_that_memory_cannot_hold_are_refused() -> None:
    with at_most_mib(512):
        refused("json", as_json(["a" * 20_000] + [""] * 20_000))  # 100 kB, which numpy would make 1.6 GB


def test_errors_do_not_repeat_the_body() -> None:
    refused("json", json.dumps(dict.fromkeys(map(str, range(10_000)), 0)).encode(), "has no images")


# --- .npy


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", ">i8", "<u8", "f2", "<f4", ">f4", "<f8"])
def test_npy_of_any_numbers_and_order(dtype: str, fortran: bool, version: tuple[int, int]) -> None:
    array = (COLOURS / 255 if "f" in dtype else COLOURS).astype(dtype)
    same("npy", npy(np.asfortranarray(array) if fortran else array, version), COLOURS)


def header(descr: Any, shape: str) -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n"


WHOLE = npy(GREYS)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (WHOLE[:-1], "does not have the 191 bytes"),
        (WHOLE + b"\0", "does not have the 193 bytes"),
        (WHOLE[:40], "no .npy"),
        (WHOLE[:8], "no .npy"),
        (WHOLE[:3], "no .npy"),
        (b"not numpy", "no .npy"),
        (pickle.dumps(GREYS), "no .npy"),
        (npy(GREYS, (3, 0)), "no .npy"),
        (npy_of(header("|u1", "(1099511627776, 8, 8)")), "does not have the 0 bytes"),
        (npy_of(header("<f8", "(8, 8, 2147483647, 2147483647, 2147483647)"), bytes(64)), "a .npy of"),
        (npy_of(header("|O", "(8,)"), bytes(64)), "a .npy of"),
        (npy_of(header([("a", "|O")], "(8,)"), bytes(64)), "a .npy of"),
        (npy_of("{'descr': '|u1'}\n", bytes(64)), "no .npy"),
        (npy_of("{'descr': '|u1', 'fortran_order': 2, 'shape': (8, 8), }\n", bytes(64)), "no .npy"),
        (npy_of("__import__('os').abort()\n", bytes(64)), "no .npy"),
        (npy_of("(" * 5000, bytes(64)), "no .npy"),
        (npy_of(header("|b1", "(8, 8)"), bytes(64)), "no numbers"),
        (npy_of(header("|S1", "(8, 8)"), bytes(64)), "no numbers"),
        (npy_of(header("<c8", "(8, 8)"), bytes(512)), "no numbers"),
        (npy_of(header("<M8[s]", "(8, 8)"), bytes(512)), "no numbers"),
        (npy_of(header([("a", "|u1")], "(8, 8)"), bytes(64)), "no numbers"),
        (npy_of(header("|u1", "(0, 1, 8, 8)")), "no image"),
        (npy_of(header("|u1", "()"), b"\1"), "shape"),
        (npy(np.full((8, 8), np.nan)), "finite"),
        (npy(np.full((8, 8), np.inf, np.float16)), "finite"),
        (npy(np.full((8, 8), -1, np.int8)), "pixels from -1"),
        (npy(np.full((8, 8), 256, np.int16)), "to 256"),
        (npy(np.full((8, 8), 2.0)), "fractions"),
        (npy_of(header("|u1", "9" * 5000)), "no .npy"),
        (npy_of(header("|u1", "(-8, -8)"), bytes(64)), "."),
        (npy_of(header("|u1", "(-1, -1, 8, 8)"), bytes(64)), "."),
        (npy_of(header("|u1", "(True, True, 8, 8)"), bytes(64)), "."),
        (npy_of(header("|u1", f"({'1, ' * 70}8, 8)"), bytes(64)), "."),
        (npy_of(header("|u1", f"(0, {2**70})")), "."),
        (npy_of(header("|V0", "(1099511627776,)")), "."),
        (npy_of(header("|S0", "(8, 8)")), "."),
        (npy_of(header("(2,)u1", "(8, 4)"), bytes(64)), "."),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_npy_that_is_refused(body: bytes, sentence: str) -> None:
    refused("npy", body, sentence)


# --- Arrow IPC


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


STREAM = arrow({"image": tensors(GREYS)})
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


# --- images that are refused


def png_of(width: int, height: int, colour: int = 0) -> bytes:
    """A black PNG of ``colour`` type 0 (grey) or 6 (RGBA), made without its pixels in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + width * (4 if colour == 6 else 1))
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "body",
    [PNG[:-30], PNG[:20], b"x", b"<svg/>", encoded(ONE, "JPEG")[:100], pickle.dumps(ONE), WHOLE, STREAM],
    ids=lambda body: repr(body[:12]),
)
def test_images_that_are_refused(body: bytes) -> None:
    refused("image", body, "is no image that can be read")


def test_pixels_of_no_known_range_are_refused() -> None:
    refused("image", encoded(Image.fromarray(ONE.astype(np.float32)), "TIFF"), "mode F")


def test_the_pixels_of_all_images_of_a_request_are_counted_together() -> None:
    refused("arrow", arrow({"image": pa.array([png_of(5000, 5000)] * 2)}))


def test_bytes_of_a_scan_by_chance_make_no_jpeg() -> None:
    pixels = np.tile(np.array([0xFF, 0xDA], np.uint8), (40, 20))
    body = encoded(pixels, "BMP")
    assert body.count(inputs.JPEG_SCAN) > inputs.MAX_SCANS
    assert torch.equal(read("image", body), GREY.decode(io.BytesIO(body), "a"))


def test_a_jpeg_of_many_scans_is_refused() -> None:
    body = encoded(np.zeros((8, 8), np.uint8), "JPEG")
    refused("image", body[:-2] + inputs.JPEG_SCAN * 100 + body[-2:], "scans")


@pytest.mark.parametrize("form", ["PPM", "ICO", "TGA", "SGI", "PCX", "DDS"])
def test_formats_that_few_send_are_refused(form: str) -> None:
    refused("image", encoded(ONE, form), "is no image that can be read")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked() -> None:
    body = png_of(6000, 6000)
    assert inputs.MAX_PIXELS < 6000**2 < 1000 * len(body) * 2
    assert peak_mib(lambda: refused("image", body, "6000x6000 pixels")) < 10
    refused("image", png_of(40_000, 1_000), "40000x1000 pixels")


def test_a_bomb_within_an_icon_is_refused_before_it_is_unpacked() -> None:
    png = png_of(6000, 6000, 6)
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png
    assert peak_mib(lambda: refused("image", icon)) < 10


def test_what_needs_another_program_is_not_opened() -> None:
    with pytest.raises(DataError) as error:
        read("image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    assert "Ghostscript" not in str(error.value)


def test_errors_name_no_objects_of_ours() -> None:
    with pytest.raises(DataError) as error:
        read("image", b"x")
    assert "0x" not in str(error.value)


# --- which kind


@pytest.mark.parametrize(
    ("content_type", "body", "kind"),
    [
        ("application/json", b"", "json"),
        ("Application/JSON; charset=utf-8", b"\x93NUMPY", "json"),
        ("application/x-npy", b"", "npy"),
        ("application/vnd.apache.arrow.stream", b"", "arrow"),
        ("application/vnd.apache.arrow.file", b"", "arrow"),
        ("image/png", b"{}", "image"),
        ("image/whatever", b"{}", "image"),
        *((nothing, WHOLE, "npy") for nothing in ("", "application/octet-stream", "application/x-www-form-urlencoded")),
        ("", STREAM, "arrow"),
        ("", arrow({"image": tensors(GREYS)}, True), "arrow"),
        ("", as_json([]), "json"),
        ("", b" \r\n\t" + as_json([]), "json"),
        ("", PNG, "image"),
        ("", b"", "image"),
        ("", b"%PDF", "image"),
    ],
    ids=str,
)
def test_kind_by_type_then_by_the_first_bytes(content_type: str, body: bytes, kind: str) -> None:
    assert kind_of(content_type, body) == kind


@pytest.mark.parametrize("content_type", ["text/plain", "application/pdf", "application/x-tar; a=b", "json", "audio/x"])
def test_types_that_are_not_read(content_type: str) -> None:
    with pytest.raises(KindError, match=rf"^Content-Type: {content_type.split(';')[0]} is not read; send image/png"):
        kind_of(content_type, PNG)


# --- anything at all

VALID: dict[str, list[bytes]] = {
    "json": [as_json(GREYS.tolist()), as_json((COLOURS / 255).tolist(), strategy="abend", members=False)],
    "npy": [WHOLE, npy(np.asfortranarray(COLOURS / 255)), npy(GREYS.astype(">i4"), (2, 0))],
    "arrow": [
        STREAM,
        arrow({"image": tensors(COLOURS)}, True),
        arrow({"image": lists(GREYS[:, 0], 2), "label": pa.array(["a", "b", "c"])}),
        arrow({"image": pa.array([{"bytes": PNG, "path": None}] * 2)}),
        arrow({"image": tensors(GREYS)}, compression="zstd"),
        arrow({"image": lists(FLAT, 1), "label": pa.array([1, 2, 1]).dictionary_encode()}),
    ],
    "image": [
        PNG,
        encoded(COLOURS[0].transpose(1, 2, 0)),
        *(encoded(ONE, form) for form in ("JPEG", "GIF", "BMP", "WEBP", "TIFF")),
    ],
}


def a_tensor_or_a_sentence(kind: str, body: bytes) -> None:
    for fit in (GREY, COLOUR):
        try:
            found, said = bodies.read(kind, body, fit, ROWS)
        except DataError as error:
            assert str(error)
            continue
        assert found.dtype == torch.uint8 and tuple(found.shape[1:]) == (fit.channels, 8, 8) and len(found) > 0
        assert found.nbytes <= 64 * 3 * max(ROWS, len(body)) and isinstance(said, dict)


@pytest.mark.parametrize("kind", VALID)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_bytes_give_a_tensor_or_a_sentence(kind: str, data: st.DataObject) -> None:
    start = data.draw(st.sampled_from([b"", b"{", b"\x93NUMPY\x01\0", b"ARROW1\0\0", b"\xff\xff\xff\xff", PNG[:16]]))
    a_tensor_or_a_sentence(kind, start + data.draw(st.binary(max_size=200)))


@st.composite
def mutated(draw: st.DrawFn, bodies: list[bytes]) -> bytes:
    """A valid body with some bytes flipped, cut, inserted, repeated or made large numbers."""
    body = bytearray(draw(st.sampled_from(bodies)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, min(len(body), draw(st.sampled_from([100, 700, len(body)])))))
        how = draw(st.sampled_from(["flip", "cut", "end", "insert", "number", "repeat"]))
        if how == "flip":
            body[at : at + 1] = bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in body[at : at + 1])
        elif how == "cut":
            del body[at : at + draw(st.sampled_from([1, 2, 4, 8, 64]))]
        elif how == "end":
            del body[at:]
        elif how == "insert":
            body[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif how == "number":
            size, number = draw(st.sampled_from([(1, 255), (4, 2**31 - 1), (4, 2**32 - 1), (8, 2**40), (8, 2**63)]))
            body[at : at + size] = number.to_bytes(size, "little")
        else:
            body[at:at] = body[max(0, at - 8) : at]
    return bytes(body)


@pytest.mark.parametrize("kind", VALID)
@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_broken_bodies_give_a_tensor_or_a_sentence(kind: str, data: st.DataObject) -> None:
    a_tensor_or_a_sentence(kind, data.draw(mutated(VALID[kind])))


@pytest.mark.parametrize("kind", VALID)
def test_valid_bodies_are_read(kind: str) -> None:
    """Or the mutations above would start from nothing."""
    assert len(read(kind, VALID[kind][0], GREY)) > 0 and len(read(kind, VALID[kind][1], COLOUR)) > 0
