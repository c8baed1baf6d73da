"""Preprocessing: image and array files become the pixels that a network takes, or one clear error."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bend_ray.data.preprocess import Preprocess
from bend_ray.errors import DataError
from image_files import X, encoded, picture

GREY = Preprocess(1, 8, (0.0,), (1.0,))
COLOUR = Preprocess(3, 8, (0.0,) * 3, (1.0,) * 3)


def test_preprocess_survives_json_and_refuses_what_is_forged() -> None:
    preprocess = Preprocess(3, 32, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    data = json.loads(json.dumps(preprocess.to_json()))
    assert Preprocess.from_json(data) == preprocess
    for key, value in {"mean": [0.1], "std": [0.5, 0.6, 0.0], "channels": 4, "image_size": 0}.items():
        with pytest.raises(ValueError):
            Preprocess.from_json(data | {key: value})
    with pytest.raises(ValueError):
        Preprocess.from_json(data | {"mean": [0.1, 0.2, float("nan")]})
    with pytest.raises(KeyError):
        Preprocess.from_json({})


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 9, 9, dtype=torch.uint8),
        torch.zeros(2, 3, 8, 8),
    ],
)
def test_preprocess_refuses_what_would_broadcast(images: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"expected torch\.uint8"):
        COLOUR(images)


def test_image_files_are_converted_and_resized(tmp_path: Path) -> None:
    rgb = picture(0, 8, 8, 3)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(rgb))
    assert torch.equal(COLOUR.read(path)[0].permute(1, 2, 0), torch.from_numpy(rgb))
    assert np.array_equal(GREY.read(path)[0, 0].numpy(), np.asarray(Image.fromarray(rgb).convert("L")))
    big = Image.fromarray(picture(1, 20, 30, 3))
    path.write_bytes(encoded(big))
    expected = np.asarray(big.resize((8, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(COLOUR.read(path)[0].permute(1, 2, 0).numpy(), expected)


def test_odd_modes_of_image_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    wide = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024  # Pillow's own conversion makes all but the first white
    path.write_bytes(encoded(wide))
    assert np.array_equal(GREY.read(path)[0, 0].numpy(), wide >> 8)
    palette = Image.fromarray(picture(0, 8, 8, 3)).quantize()
    path.write_bytes(encoded(palette, transparency=bytes(range(64))))
    share = np.minimum(np.asarray(palette), 255)[..., None] / 255.0  # of colour; those from 64 on are opaque
    share = np.where(np.asarray(palette)[..., None] < 64, share, 1.0)
    on_white = share * np.asarray(palette.convert("RGB")) + (1 - share) * 255
    assert np.abs(COLOUR.read(path)[0].permute(1, 2, 0).numpy() - on_white).max() <= 1
    path = tmp_path / "a.tiff"
    path.write_bytes(encoded(np.zeros((8, 8), np.float32), "TIFF"))
    with pytest.raises(DataError, match=r"a\.tiff: .*floating-point numbers of 32 bits"):
        GREY.read(path)


def test_bombs_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(encoded(Image.new("1", (10_000, 10_000))))
    (tmp_path / "a.txt").write_text("no image")
    for name, said in {"bomb.png": "bomb", "a.txt": "no image that can be read", "none.png": "no such file"}.items():
        with pytest.raises(DataError, match=rf"{name}: .*{said}"):
            GREY.read(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.npy: no such file"):
        GREY.read(tmp_path / "none.npy")


@pytest.mark.parametrize(
    ("preprocess", "shape", "axes"),
    [
        (GREY, (8, 8), lambda a: a[None, None]),
        (GREY, (5, 8, 8), lambda a: a[:, None]),
        (GREY, (1, 8, 8), lambda a: a[None]),
        (GREY, (5, 8, 8, 1), lambda a: a.transpose(0, 3, 1, 2)),
        (GREY, (5, 1, 8, 8), lambda a: a),
        (COLOUR, (3, 8, 8), lambda a: a[None]),
        (COLOUR, (8, 8, 3), lambda a: a.transpose(2, 0, 1)[None]),
        (COLOUR, (5, 8, 8, 3), lambda a: a.transpose(0, 3, 1, 2)),
        (COLOUR, (5, 3, 8, 8), lambda a: a),
    ],
)
def test_arrays(
    tmp_path: Path, preprocess: Preprocess, shape: tuple[int, ...], axes: Callable[[np.ndarray], np.ndarray]
) -> None:
    path, array = tmp_path / "a.npy", picture(0, *shape)
    for same in (
        array,
        array.astype(np.int64),
        array / 255,
        (array / 255).astype(np.float32),
        np.asfortranarray(array),
    ):
        np.save(path, same)
        assert np.array_equal(preprocess.read(path).numpy(), axes(array))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((9, 9), np.uint8), r"shape \(9, 9\); expected \(N, 3, 8, 8\)"),
        (np.zeros((8, 8), np.uint8), r"expected \(N, 3, 8, 8\)"),
        (np.zeros((5, 8, 8, 1), np.uint8), r"expected \(N, 3, 8, 8\)"),
        (np.zeros((0, 3, 8, 8), np.uint8), r"no image"),
        (np.full((3, 8, 8), 256), r"from 256 to 256; .*0 to 255"),
        (np.full((3, 8, 8), -1), r"0 to 255"),
        (np.full((3, 8, 8), 1.5), r"fractions from 0 to 1"),
        (np.full((3, 8, 8), np.nan), r"finite"),
        (np.full((3, 8, 8), 1j), r"finite numbers"),
        (np.full((3, 8, 8), "a"), r"finite numbers"),
        (np.full((3, 8, 8), None), r"no \.npy array"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, array: np.ndarray, said: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=rf"a\.npy: .*{said}"):
        COLOUR.read(tmp_path / "a.npy")


def test_array_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.savez(tmp_path / "b.npz", x=X)
    path.write_bytes((tmp_path / "b.npz").read_bytes())
    with pytest.raises(DataError, match=r"a\.npy: .*several arrays"):
        GREY.read(path)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,)}".ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match=r"a\.npy"):
        GREY.read(path)


WHOLE = {
    "a.png": encoded(picture(0, 8, 8, 3)),
    "a.jpg": encoded(picture(0, 8, 8, 3), "JPEG"),
    "a.gif": encoded(picture(0, 8, 8), "GIF"),
    "a.npy": b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '|u1', 'fortran_order': False, 'shape': (8, 8, 3), }".ljust(117)
    + b"\n"
    + bytes(192),
}


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255))),
    cut=st.integers(0, 400),
)
def test_damaged_files_give_pixels_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(WHOLE[name])
    for place, value in edits:
        data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data[: len(data) - cut] if cut < len(data) else data)
    try:
        images = COLOUR.read(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 8, 8)
