"""Encoded images, read or refused before they cost anything; which kind a body is; and bytes of no kind at all."""

import io
import pickle
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bend_ray.errors import DataError
from bend_ray.serving import inputs, requests
from bend_ray.serving.requests import KindError, kind_of
from image_files import encoded
from serving_bodies import COLOURS, FLAT, GREYS, ONE, PNG, STREAM, WHOLE, as_json, lists, peak_mib, read, refused, same
from serving_helpers import COLOUR, GREY, ROWS, arrow, npy, tensors

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
    same("image", encoded(palette), wanted)
    same("image", encoded(palette, transparency=3), np.where(ONE // 32 == 3, 255, wanted))


def test_16_bits_keep_the_upper_8() -> None:
    same("image", encoded(ONE.astype(np.uint16) * 256 + 77), GREYS[:1])


@pytest.mark.parametrize("size", [(4, 4), (20, 10), (1, 300)])
def test_images_of_another_size_are_fitted(size: tuple[int, int]) -> None:
    body = encoded(np.full(size, 9, np.uint8))
    same("image", body, np.full((1, 1, 8, 8), 9, np.uint8))


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
    refused("image", encoded(Image.fromarray(ONE.astype(np.float32)), "TIFF"), "floating-point numbers of 32 bits")


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
            found, said = requests.read(kind, body, fit, ROWS)
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
