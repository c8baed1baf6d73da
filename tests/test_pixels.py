"""Pixels as files have them: their own range, upright, on white; or a sentence that says what the file is."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from bend_ray.config import Config, Data
from bend_ray.data import summary
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.data.pixels import decoded
from bend_ray.data.preprocess import Preprocess
from bend_ray.data.strangers import load_strangers
from bend_ray.errors import ConfigError, DataError
from bend_ray.report import rows as pictures
from image_files import encoded, grey, npz, picture, write
from serving_bodies import read

Y = [i % 2 for i in range(40)]


def sixteen(most: int, count: int = 40) -> list[np.ndarray]:
    images = [np.random.default_rng(i).integers(0, most + 1, (8, 8)).astype(np.uint16) for i in range(count)]
    images[0][0, 0] = most
    return images


def all_images(dataset: Dataset) -> list[bytes]:
    return sorted(
        image.numpy().tobytes() for rows in (dataset.train, dataset.val, dataset.test) for image in rows.images
    )


# --- 16 bits


@pytest.mark.parametrize(
    ("most", "bits"), [(255, 8), (256, 10), (1023, 10), (3000, 12), (4095, 12), (9999, 14), (65535, 16)]
)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "npz"])
def test_sixteen_bits_are_read_by_their_own_range_in_training_and_after(
    tmp_path: Path, most: int, bits: int, form: str
) -> None:
    images = sixteen(most)
    own = {"x_val": np.stack(images), "y_val": Y, "x_test": np.stack(images), "y_test": Y}
    if form == "npz":  # splits of their own: the brightest row may else be cut off for testing
        data = npz(tmp_path / "d.npz", x_train=np.stack(images), y_train=Y, **own)
    else:
        for split in ("train", "val", "test"):
            data = write(tmp_path / f"{split}-0.parquet", [encoded(image, form) for image in images], Y)
        data = Data(path=str(tmp_path))
    dataset = load_dataset(data, seed=0)
    wanted = [image >> (bits - 8) for image in images]
    assert np.array_equal(dataset.train.images[:, 0].numpy(), np.stack(wanted))
    assert any(f"up to {most}, are read as {bits} bits" in note for note in dataset.notes)
    fit = Preprocess.from_json(dataset.preprocess.to_json())
    assert fit.bits == bits
    (tmp_path / "a.png").write_bytes(encoded(images[0]))
    np.save(tmp_path / "a.npy", images[0])
    for one in (fit.read(tmp_path / "a.png"), fit.read(tmp_path / "a.npy"), read("image", encoded(images[0]), fit)):
        assert np.array_equal(one[0, 0].numpy(), wanted[0])
    assert np.array_equal(read("json", f'{{"images": [{images[0].tolist()}]}}'.encode(), fit)[0, 0].numpy(), wanted[0])
    colour = Preprocess(3, 8, (0.0,) * 3, (1.0,) * 3, bits)
    assert np.array_equal(colour.read(tmp_path / "a.png").numpy(), wanted[0][None, None].repeat(3, 1))


def test_an_image_above_the_range_of_training_is_refused(tmp_path: Path) -> None:
    fit = Preprocess(1, 8, (0.0,), (1.0,), 12)
    for body, kind in ((encoded(np.full((8, 8), 5000, np.uint16)), "image"), (b'{"images": [[[5000]]]}', "json")):
        with pytest.raises(DataError, match=r"5000.*0 to 4095|5000.*from 0 to 4095"):
            read(kind, body, fit)
    x = np.stack(sixteen(3000))
    data = npz(tmp_path / "d.npz", x_train=x, y_train=Y, x_test=x * 2, y_test=Y)
    with pytest.raises(DataError, match=r"test images: it has values up to 6000, .*data\.bits: 14"):
        load_dataset(data, seed=0)
    assert load_dataset(data.model_copy(update={"bits": 14}), seed=0).preprocess.bits == 14
    with pytest.raises(DataError, match=r"data\.bits: is for images of 16 bits"):
        load_dataset(
            npz(tmp_path / "e.npz", x_train=picture(0, 40, 8, 8), y_train=Y).model_copy(update={"bits": 14}), 0
        )


def test_ensembles_without_the_key_read_sixteen_bits_as_they_did(tmp_path: Path) -> None:
    fit = Preprocess.from_json({"channels": 1, "image_size": 8, "mean": [0.0], "std": [1.0]})
    image = sixteen(65535)[0]
    (tmp_path / "a.png").write_bytes(encoded(image))
    assert np.array_equal(fit.read(tmp_path / "a.png")[0, 0].numpy(), image >> 8)
    assert "bits" not in fit.to_json()
    for bits in (7, 17, "12", True):
        with pytest.raises(ValueError, match="bits"):
            Preprocess.from_json(fit.to_json() | {"bits": bits})


def test_eight_and_sixteen_bits_do_not_mix(tmp_path: Path) -> None:
    images = [*grey(20), *[encoded(image) for image in sixteen(255, 20)]]
    with pytest.raises(DataError, match=r"row 20 is of 16 bits, those before it of 8"):
        load_dataset(write(tmp_path / "a.parquet", images, Y), seed=0)
    data = npz(tmp_path / "d.npz", x_train=picture(0, 40, 8, 8), y_train=Y, x_test=np.stack(sixteen(255)), y_test=Y)
    with pytest.raises(DataError, match=r"train images have 8 bits, test images 16"):
        load_dataset(data, seed=0)


def test_sixteen_bits_beyond_memory_are_the_same(tmp_path: Path) -> None:
    data = npz(tmp_path / "d.npz", x_train=np.stack(sixteen(3000)), y_train=Y)
    assert load_dataset(data, 0).digest() == load_dataset(data.model_copy(update={"in_memory": 0.0}), 0).digest()


def test_strangers_of_sixteen_bits_are_read_as_training_images_are(tmp_path: Path) -> None:
    data = npz(tmp_path / "d.npz", x_train=np.stack(sixteen(3000)), y_train=Y)
    dark = npz(tmp_path / "e.npz", x_train=np.stack(sixteen(200)), y_train=Y)
    strange = load_strangers([dark], load_dataset(data, 0), 0)["e"]
    assert np.array_equal(strange[:, 0].numpy(), np.stack(sixteen(200)) >> 4)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_colour_of_sixteen_bits_is_refused_where_bits_would_go(tmp_path: Path, form: str) -> None:
    wide = np.random.default_rng(0).integers(0, 3000, (8, 8, 3)).astype(np.uint16)
    if form == "PPM":  # scales by its largest value: nothing is lost but what 8 bits cannot hold
        data = b"P6 8 8 2999\n" + wide.astype(">u2").tobytes()
        wanted = np.rint(wide / 2999 * 255)
        assert np.abs(decoded(data, "a")[0].transpose(1, 2, 0) - wanted).max() <= 1
        return
    data = png16(wide) if form == "PNG" else tiff(wide)
    for read_it in (
        lambda: decoded(data, "a"),
        lambda: Preprocess(3, 8, (0.0,) * 3, (1.0,) * 3).decode(io.BytesIO(data), "a"),
    ):
        with pytest.raises(DataError, match=r"^a:? .*(of 16 bits a channel|3 bands of 16 bits)"):
            read_it()


def png16(array: np.ndarray) -> bytes:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in array)
    head = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


# --- TIFF by its tags


def tiff(
    array: np.ndarray, *, pages: int = 1, photometric: int | None = None, planes: bool = False, **tags: Any
) -> bytes:
    """A TIFF without compression, written by hand. ``tags``: more of them, as t338=(0,); text as bytes."""
    bands = array.shape[2] if array.ndim == 3 else 1
    data = (array.transpose(2, 0, 1) if planes else array).tobytes()
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[array.dtype.kind]
    strips = bands if planes else 1
    values: dict[int, Any] = {
        256: (array.shape[1],), 257: (array.shape[0],), 258: (8 * array.itemsize,) * bands, 259: (1,),
        262: (photometric if photometric is not None else 2 if bands > 2 else 1,), 277: (bands,),
        278: (array.shape[0],), 284: (2 if planes else 1,), 339: (kind,) * bands,
    }  # fmt: skip
    values |= {int(name[1:]): value for name, value in tags.items()}
    out = bytearray(b"II*\0\0\0\0\0")
    place = 4
    for _ in range(pages):
        start = len(out)
        out += data
        size = len(data) // strips
        values[273], values[279] = tuple(start + size * i for i in range(strips)), (size,) * strips
        entries, extra = b"", b""
        after = len(out) + (len(out) % 2)
        out += b"\0" * (after - len(out))
        beyond = after + 2 + 12 * len(values) + 4
        for tag in sorted(values):
            value = values[tag]
            text = isinstance(value, bytes)
            packed = value if text else struct.pack(f"<{len(value)}I", *value)
            count = len(value)
            cell = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", beyond + len(extra))
            extra += packed + b"\0" * (len(packed) % 2) if len(packed) > 4 else b""
            entries += struct.pack("<HHI", tag, 2 if text else 4, count) + cell
        struct.pack_into("<I", out, place, after)
        out += struct.pack("<H", len(values)) + entries
        place = len(out)
        out += b"\0\0\0\0" + extra
    return bytes(out)


U8, U16 = picture(0, 8, 8, 4), np.random.default_rng(0).integers(0, 3000, (8, 8, 3)).astype(np.uint16)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff(U8[..., 0], pages=3), "is a TIFF of 3 pages"),
        (tiff(U8[..., 0], t270=b'{"shape": [16, 8, 8], "truncated": true}\0'), "is a TIFF of 16 pages"),
        (tiff(U8[..., 0], t270=b"ImageJ=1.11a\nimages=5\nslices=5\n\0"), "is a TIFF of 5 pages"),
        (tiff(U16), "is a TIFF of 3 bands of 16 bits, of which 8 bits could be read"),
        (tiff(U16, planes=True), "is a TIFF of 3 bands of 16 bits, its planes apart"),
        (tiff(picture(0, 8, 8, 13)), "is a TIFF of 13 bands, of which 10 may be no alpha"),
        (tiff(picture(0, 8, 8, 2)), "is a TIFF of 2 bands, of which 1 may be no alpha"),
        (tiff(U8), "is a TIFF of 4 bands, of which 1 may be no alpha"),
        (tiff(U8, t338=(0,)), "is a TIFF of 4 bands, of which 1 may be no alpha"),
        (tiff(U8, t338=(2,), t34735=(1, 1, 0, 0)), "is a GeoTIFF of 4 bands, whose last may be near infrared"),
        (tiff(np.zeros((8, 8))), "is a TIFF of floating-point numbers of 64 bits"),
        (tiff(np.zeros((8, 8), np.float32)), "is a TIFF of floating-point numbers of 32 bits"),
        (tiff(np.zeros((8, 8, 3), np.float32)), "is a TIFF of floating-point numbers of 32 bits"),
        (tiff(np.zeros((8, 8), np.int8)), "is a TIFF of signed whole numbers of 8 bits"),
        (tiff(np.zeros((8, 8), np.int16)), "is a TIFF of signed whole numbers of 16 bits"),
        (tiff(np.zeros((8, 8), np.uint32)), "is a TIFF of 32 bits"),
        (tiff(np.zeros((8, 8), np.complex64)), "is a TIFF of complex numbers of 64 bits"),
        (tiff(U16[..., 0], photometric=0), "is a TIFF of 16 bits whose largest value is black"),
        (tiff(U8[..., :3], photometric=8), r"is a TIFF of CIE L\*a\*b\* colours"),
        (tiff(U8[..., :3], photometric=32844), "is a TIFF of photometric interpretation 32844"),
        (tiff(U8[..., 0], t259=(34712,)), "is a TIFF with JPEG 2000 inside"),
    ],
)
def test_a_tiff_that_would_be_misread_is_called_what_it_is(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.tif {said}"):
        decoded(data, "a.tif")
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.tif: {said}"):
        Preprocess(1, 8, (0.0,), (1.0,)).read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (tiff(U8[..., 0]), U8[..., 0]),
        (tiff(U8[..., 0], photometric=0), 255 - U8[..., 0]),
        (tiff(U16[..., 0]), U16[..., 0]),
        (tiff(U8[..., :3]), U8[..., :3]),
        (tiff(U8[..., :3], planes=True), U8[..., :3]),
        (tiff(U8[..., :3], t254=(0,)), U8[..., :3]),
        (encoded(U8[..., :3], "TIFF", compression="tiff_lzw"), U8[..., :3]),
    ],
)
def test_a_plain_tiff_is_its_pixels(data: bytes, wanted: np.ndarray) -> None:
    array = decoded(data, "a.tif")[0]
    assert np.array_equal(array[0] if wanted.ndim == 2 else array.transpose(1, 2, 0), wanted)


# --- orientation, transparency, one colour


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_are_turned_as_exif_says(tmp_path: Path, orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if form in ("JPEG", "WEBP") else {}
    data = encoded(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4), form, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("L"))
    turns = {1: 0, 3: 2, 6: 3, 8: 1}
    if orientation in turns and form in ("PNG", "TIFF"):  # by hand
        assert np.array_equal(wanted, np.rot90(np.arange(64).reshape(8, 8) * 4, turns[orientation]))
    (tmp_path / "a").write_bytes(data)
    fit = Preprocess(1, 8, (0.0,), (1.0,))
    trained = decoded(data, "a")[0]
    for one in (fit.read(tmp_path / "a")[0].numpy(), read("image", data, fit)[0].numpy()):
        assert np.array_equal(one[0], wanted)
    assert np.array_equal(
        trained[0] if form != "WEBP" else np.asarray(Image.fromarray(trained.transpose(1, 2, 0)).convert("L")), wanted
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's own, as it opens the file
def test_broken_exif_does_not_stop_an_image() -> None:
    data = encoded(U8[..., 0], "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decoded(data, "a").shape == (1, 1, 8, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparency_is_on_white(tmp_path: Path, mode: str) -> None:
    """A shape that lies in alpha alone: black on nothing."""
    shape = np.zeros((8, 8), np.uint8)
    shape[2:5, 3:6] = 1
    black, alpha = np.zeros((8, 8), np.uint8), shape * 255
    options: dict[str, Any] = {}
    if mode == "RGBA":
        image = Image.fromarray(np.dstack([black, black, black, alpha]))
    elif mode == "LA":
        image = Image.merge("LA", [Image.fromarray(black), Image.fromarray(alpha)])
    elif mode == "P":
        image = Image.fromarray(shape).convert("P")
        image.putpalette([0, 0, 0] * 256)
        options["transparency"] = 0
    else:  # one value, or one colour, is transparent
        image = Image.fromarray(np.where(shape, 0, 9).astype(np.uint8)).convert(mode)
        options["transparency"] = 9 if mode == "L" else (9, 9, 9)
    data, wanted = encoded(image, "PNG", **options), 255 * (1 - shape)
    trained = decoded(data, "a")[0]
    assert all(np.array_equal(channel, wanted) for channel in trained) and len(trained) == (1 if mode == "L" else 3)
    assert np.array_equal(read("image", data, Preprocess(1, 8, (0.0,), (1.0,)))[0, 0].numpy(), wanted)


def test_half_transparent_pixels_are_between_and_opaque_ones_keep_their_bits() -> None:
    rgba = picture(0, 8, 8, 4)
    share = rgba[..., 3:] / 255
    mixed = decoded(encoded(rgba), "a")[0].transpose(1, 2, 0)
    assert np.abs(mixed - (share * rgba[..., :3] + (1 - share) * 255)).max() <= 1
    rgba[..., 3] = 255
    assert np.array_equal(decoded(encoded(rgba), "a")[0].transpose(1, 2, 0), rgba[..., :3])


def test_a_split_of_one_colour_is_refused_and_one_of_equal_images_is_said(tmp_path: Path) -> None:
    black = encoded(np.zeros((8, 8), np.uint8))
    write(tmp_path / "train-0.parquet", grey(40), Y)
    write(tmp_path / "test-0.parquet", [black] * 4, Y[:4])
    with pytest.raises(DataError, match=r"all 4 test images are of one colour \(0\)"):
        load_dataset(Data(path=str(tmp_path)), seed=0)
    write(tmp_path / "test-0.parquet", grey(1) * 4, Y[:4])
    assert "all 4 test images are the same" in load_dataset(Data(path=str(tmp_path)), seed=0).notes


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "1"])
def test_other_modes_of_pillow_are_its_own_conversion(mode: str) -> None:
    image = Image.fromarray(U8[..., :3]).convert(mode)
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    data = encoded(image if mode != "HSV" else image.convert("RGB"), form)
    with Image.open(io.BytesIO(data)) as read_again:
        wanted = np.asarray(read_again.convert("L" if mode == "1" else "RGB"))
    array = decoded(data, "a")[0]
    assert np.array_equal(array[0] if mode == "1" else array.transpose(1, 2, 0), wanted)


# --- arrays of other kinds


@pytest.mark.parametrize(
    "change",
    [
        lambda x: torch.from_numpy(x).to_sparse(),
        lambda x: (torch.from_numpy(x).float() / 255).double(),
        lambda x: torch.nn.Parameter(torch.from_numpy(x).float() / 255),
        lambda x: np.ma.masked_array(x),
        lambda x: np.asfortranarray(x),
    ],
)
def test_tensors_of_any_kind_are_their_numbers(change: Any) -> None:
    from test_labels import GIVEN, of_target

    x = picture(0, 40, 8, 8)
    dataset = of_target((change(x), np.array(Y)))
    GIVEN.clear()
    assert all_images(dataset) == sorted(image.tobytes() for image in x)


def test_bfloat16_is_read_from_tensors_and_refused_as_numpy_saves_it(tmp_path: Path) -> None:
    from test_labels import GIVEN, of_target

    x = torch.from_numpy(picture(0, 40, 8, 8)).float() / 255
    dataset = of_target((x.bfloat16(), np.array(Y)))
    GIVEN.clear()
    wanted = torch.round(x.bfloat16().float() * 255).to(torch.uint8)
    assert all_images(dataset) == sorted(image.numpy().tobytes() for image in wanted)
    with pytest.raises(DataError, match=r"x_train: is of type \|V2, which numpy does not have; save it as float32"):
        load_dataset(npz(tmp_path / "d.npz", x_train=np.zeros((40, 8, 8), "V2"), y_train=Y), seed=0)


# --- what the dry run shows


def test_what_was_understood_is_said(tmp_path: Path) -> None:
    images = [*grey(38), encoded(picture(0, 8, 8, 3)), encoded(picture(0, 8, 8, 4))]
    dataset = load_dataset(write(tmp_path / "a.parquet", images, Y, ("cat", "dog")), seed=0)
    assert "decoded images by Pillow's modes: L 38, RGB 1, RGBA 1" in dataset.notes
    size, classes = summary.lines(dataset)
    assert size.startswith("images 8x8, in colour, values 0 to 255; mean 0.50")
    cats = int((dataset.train.labels == 0).sum())
    assert classes == f"training rows of classes: cat: {cats}, dog: {len(dataset.train) - cats}"


def test_rows_are_drawn_with_their_labels(tmp_path: Path) -> None:
    dataset = load_dataset(Data(name="digits"), seed=0)
    path = tmp_path / "folder" / "data.png"
    pictures.draw(dataset, str(path))
    with Image.open(path) as image:
        assert image.width > 800 and len(image.convert("L").getcolors() or ()) > 50
    with pytest.raises(ConfigError, match=r"--show-data: .* cannot be written"):
        pictures.draw(dataset, "/dev/null/data.png")


def test_the_new_keys_stand_in_no_hash_of_a_run_of_before() -> None:
    from bend_ray.config.section import off_values

    assert off_values(Data)["test"] == "auto" and off_values(Data)["bits"] is None
    assert Config.model_fields["data"].annotation is Data
