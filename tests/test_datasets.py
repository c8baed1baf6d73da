"""Data sets from real files: what is read, how it is split, and one clear error for everything that cannot be used."""

import io
import itertools
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bend_ray.config import Data
from bend_ray.data.datasets import Dataset, Preprocess, load_dataset
from bend_ray.errors import DataError
from conftest import changed

SHARED = Path(__file__).parents[2] / "shared" / "data"
LABELS = [i % 2 for i in range(40)]
GREY = Preprocess(1, 8, (0.0,), (1.0,))
COLOUR = Preprocess(3, 8, (0.0,) * 3, (1.0,) * 3)


def picture(i: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def grey(count: int, size: int = 8) -> list[bytes]:
    return [encoded(picture(i, size, size)) for i in range(count)]


def colour(count: int, size: int = 8) -> list[bytes]:
    return [encoded(picture(i, size, size, 3)) for i in range(count)]


def write(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    names: Sequence[str] | None = ("cat", "dog"),
    columns: tuple[str, str] = ("image", "label"),
) -> Data:
    """A Parquet file as the Hub writes it; ``names`` None: without the Hub's features."""
    cells = pa.array(
        [{"bytes": data, "path": None} for data in images], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    table = pa.table({columns[0]: cells, columns[1]: pa.array(labels, pa.int64())})
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return Data(path=str(path))


def npz(path: Path, **arrays: Any) -> Data:
    np.savez(path, **arrays)
    return Data(path=str(path))


def lengths(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.val), len(dataset.test)


# --- digits, splits, statistics


def test_digits_are_scaled_from_16_to_255() -> None:
    from sklearn.datasets import load_digits

    dataset = load_dataset(Data(name="digits"), seed=0)
    assert (dataset.name, dataset.classes, dataset.channels, dataset.image_size) == ("digits", 10, 1, 8)
    assert dataset.class_names == tuple("0123456789")
    assert sum(lengths(dataset)) == 1797 and dataset.train.images.dtype == torch.uint8
    found = torch.cat([split.images for split in (dataset.train, dataset.val, dataset.test)]).long()
    assert set(found.unique().tolist()) == {round(v * 255 / 16) for v in range(17)}
    assert int(found.sum()) == sum(round(v * 255 / 16) for v in load_digits().images.flatten().tolist())


def test_rows_of_base_and_chains_are_stratified_disjoint_and_all() -> None:
    dataset = load_dataset(changed().data, 0)
    of_base, of_chains = dataset.divided(0.25, 1.0, 0)
    assert dataset.divided(0.0, 1.0, 0) == (dataset, dataset)
    counts = [torch.bincount(part.train.labels) for part in (of_base, of_chains, dataset)]
    assert torch.equal(counts[0] + counts[1], counts[2])
    assert ((counts[1] - counts[2] / 4).abs() <= 1).all()
    rows = [{image.numpy().tobytes() for image in part.train.images} for part in (of_base, of_chains, dataset)]
    assert rows[0] | rows[1] == rows[2] and not rows[0] & rows[1]
    assert of_chains.test is dataset.test and of_chains.val is dataset.val
    assert dataset.rows_of_each(0.25, 0) == (len(of_base.train), len(of_chains.train))


def test_splits_are_stratified_disjoint_and_a_pure_function_of_the_seed(tmp_path: Path) -> None:
    images = np.arange(200, dtype=np.uint8).repeat(16).reshape(200, 4, 4)  # a row is known by its pixels
    labels = np.array([0] * 120 + [1] * 80)
    data = npz(tmp_path / "d.npz", x_train=images, y_train=labels)
    dataset = load_dataset(data, seed=0)
    assert lengths(dataset) == (127, 23, 50)
    rows = [split.images[:, 0, 0, 0].tolist() for split in (dataset.train, dataset.val, dataset.test)]
    assert sorted(itertools.chain(*rows)) == list(range(200)) and all(part == sorted(part) for part in rows)
    assert Counter(dataset.test.labels.tolist()) == {0: 30, 1: 20}
    assert Counter(dataset.val.labels.tolist()) == {0: 14, 1: 9}
    assert load_dataset(data, seed=0).digest() == dataset.digest() != load_dataset(data, seed=1).digest()


def test_limits_take_the_first_rows_and_leave_the_test_rows_alone() -> None:
    whole = load_dataset(Data(name="digits"), seed=0)
    fewer = load_dataset(Data(name="digits", train_limit=200, test_limit=30), seed=0)
    assert lengths(fewer) == (170, 30, 30)
    assert torch.equal(fewer.test.images, whole.test.images[:30])


def test_statistics_are_of_the_training_rows_alone(tmp_path: Path) -> None:
    x, y = picture(0, 40, 5, 5, 3), np.array(LABELS)
    x[..., 2] = 7  # no spread: the floor
    data = npz(tmp_path / "d.npz", x_train=x, y_train=y, x_val=x[:4], y_val=y[:4], x_test=x[:6] * 0, y_test=y[:6])
    dataset = load_dataset(data, seed=0)
    assert lengths(dataset) == (40, 4, 6)
    pixels = x.reshape(-1, 3) / 255
    assert np.allclose(dataset.preprocess.mean, pixels.mean(0), atol=1e-12)
    assert np.allclose(dataset.preprocess.std, [*pixels.std(0)[:2], 1e-3], atol=1e-12)
    fed = dataset.preprocess(dataset.train.images)
    assert fed.dtype == torch.float32 and fed[:, :2].mean((0, 2, 3)).abs().max() < 1e-6


def test_digest_sees_every_tensor_and_is_stable(tmp_path: Path) -> None:
    x, y = picture(0, 40, 4, 4), np.array(LABELS)
    base = {"x_train": x, "y_train": y, "x_val": x[:4], "y_val": y[:4], "x_test": x[4:8], "y_test": y[4:8]}
    digests = [load_dataset(npz(tmp_path / "d.npz", **base), seed).digest() for seed in (0, 1)]
    for key, array in base.items():
        changed = array.copy()
        changed[(0,) * array.ndim] ^= 1
        digests.append(load_dataset(npz(tmp_path / "d.npz", **base | {key: changed}), 0).digest())
    assert digests[0] == digests[1] and len(set(digests)) == 7


# --- Parquet


@pytest.mark.parametrize(
    "files",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("train-0.parquet", "train-1.parquet", "test.parquet"),
        ("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"),
    ],
)
@pytest.mark.parametrize(
    "validation", [None, "validation-00000-of-00001.parquet", "valid-0.parquet", "val/0000.parquet"]
)
def test_layouts_of_the_hub(tmp_path: Path, files: tuple[str, str, str], validation: str | None) -> None:
    images = grey(46)
    write(tmp_path / files[0], images[:20], LABELS[:20])
    write(tmp_path / files[1], images[20:30], LABELS[20:30])
    write(tmp_path / files[2], images[30:40], LABELS[:10])
    if validation:
        write(tmp_path / validation, images[40:], LABELS[:6])
    dataset = load_dataset(Data(path=str(tmp_path)), seed=0)
    assert dataset.class_names == ("cat", "dog")
    assert lengths(dataset) == ((30, 6, 10) if validation else (25, 5, 10))
    assert torch.equal(dataset.test.images[3, 0], torch.from_numpy(picture(33, 8, 8)))
    if validation:
        assert torch.equal(dataset.train.images[25, 0], torch.from_numpy(picture(25, 8, 8)))


@pytest.mark.parametrize("form", ["path", "uri"])
def test_one_file_is_all_rows_and_columns_may_be_named(tmp_path: Path, form: str) -> None:
    path = tmp_path / "all.parquet"
    write(path, colour(40), LABELS, None, columns=("pixel_values", "fine_label"))
    named = {"image_column": "pixel_values", "label_column": "fine_label"}
    dataset = load_dataset(Data(path=path.as_uri() if form == "uri" else str(path), **named), seed=0)
    assert (lengths(dataset), dataset.channels, dataset.class_names) == ((25, 5, 10), 3, ("0", "1"))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP"])
def test_encodings(tmp_path: Path, form: str) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    data = write(tmp_path / "a.parquet", [encoded(ramp, form)] * 40, LABELS)
    dataset = load_dataset(data, seed=0)
    loss = 8 if form in ("JPEG", "WEBP") else 0  # these two forget a little
    assert (dataset.train.images[0, 0].int() - torch.from_numpy(ramp).int()).abs().max() <= loss
    assert dataset.channels == (3 if form == "WEBP" else 1)  # WebP knows no grey


def test_sixteen_bits_are_scaled_in_training_as_in_prediction(tmp_path: Path) -> None:
    wide = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    dataset = load_dataset(write(tmp_path / "a.parquet", [encoded(wide)] * 40, LABELS), seed=0)
    assert np.array_equal(dataset.train.images[0, 0].numpy(), wide >> 8)
    with pytest.raises(DataError, match=r"row 3 of .*mode F"):
        odd = encoded(np.zeros((8, 8), np.float32), "TIFF")
        load_dataset(write(tmp_path / "b.parquet", [*grey(3), odd, *grey(36)], LABELS), seed=0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_one_image_in_colour_makes_all_colour(tmp_path: Path, mode: str) -> None:
    odd = encoded(Image.fromarray(picture(0, 8, 8, 3)).convert(mode), "TIFF")
    dataset = load_dataset(write(tmp_path / "a.parquet", [*grey(39), odd], LABELS), seed=0)
    assert dataset.channels == 3
    spread = torch.cat([s.images for s in (dataset.train, dataset.val, dataset.test)]).float().std(1).amax((1, 2))
    assert int((spread > 0).sum()) == 1


def test_grey_training_rows_follow_a_test_split_in_colour(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", grey(40), LABELS)
    write(tmp_path / "test-0.parquet", colour(10), LABELS[:10])
    dataset = load_dataset(Data(path=str(tmp_path)), seed=0)
    assert {tuple(s.images.shape[1:]) for s in (dataset.train, dataset.val, dataset.test)} == {(3, 8, 8)}


def replaced(row: int, value: Any, rows: list[Any]) -> list[Any]:
    return [*rows[:row], value, *rows[row + 1 :]]


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (replaced(7, grey(1)[0][:60], grey(40)), LABELS, r"a\.parquet: row 7 .*broken image"),
        (replaced(7, b"nothing", grey(40)), LABELS, r"a\.parquet: row 7 .*broken image"),
        (replaced(7, None, grey(40)), LABELS, r"a\.parquet: row 7 .*no image bytes"),
        (replaced(7, grey(1, 9)[0], grey(40)), LABELS, r"a\.parquet: row 7 is 9x9, row 0 8x8"),
        ([encoded(picture(0, 8, 6))] * 40, LABELS, r"a\.parquet: row 0 .*square"),
        (grey(40), replaced(5, -1, LABELS), r"a\.parquet: train row 5 has label -1"),
        (grey(40), replaced(5, 2, LABELS), r"a\.parquet: train row 5 has label 2, not one of 0 to 1"),
        (grey(40), replaced(5, None, LABELS), r"a\.parquet.* null"),
        (grey(40), [0] * 40, r"a\.parquet: .*one class"),
        (grey(40), [0] * 39 + [1], r"data\.test_fraction: label 1 has one row of 40"),
        (grey(3), LABELS[:3], r"label 1 has one row of 3"),
        ([], [], r"a\.parquet: .*no rows"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, images: list[bytes | None], labels: list[int], said: str) -> None:
    data = write(tmp_path / "a.parquet", images, labels)
    with pytest.raises(DataError, match=said):
        load_dataset(data, seed=0)


def test_splits_too_small_to_cut_name_the_key(tmp_path: Path) -> None:
    data = write(tmp_path / "a.parquet", grey(40), LABELS)
    with pytest.raises(DataError, match=r"data\.val_fraction"):
        load_dataset(data.model_copy(update={"train_limit": 2}), seed=0)
    with pytest.raises(DataError, match=r"data\.test_fraction: 0\.001 of 40"):
        load_dataset(data.model_copy(update={"test_fraction": 0.001}), seed=0)


def test_other_shapes_in_another_split(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", grey(40), LABELS)
    write(tmp_path / "test-0.parquet", grey(10, size=9), LABELS[:10])
    with pytest.raises(DataError, match=r"test images are \(1, 9, 9\), training ones \(1, 8, 8\)"):
        load_dataset(Data(path=str(tmp_path)), seed=0)


def test_columns_that_cannot_be_found(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", grey(40), LABELS, None, columns=("pixels", "kind"))
    with pytest.raises(DataError, match=r"data\.image_column: .*a\.parquet.* pixels, kind"):
        load_dataset(Data(path=str(tmp_path / "a.parquet")), seed=0)
    with pytest.raises(DataError, match=r"data\.label_column: .*'nope'.* pixels, kind"):
        load_dataset(Data(path=str(tmp_path / "a.parquet"), image_column="pixels", label_column="nope"), seed=0)
    with pytest.raises(DataError, match=r"data\.label_column: .*ints"):
        load_dataset(Data(path=str(tmp_path / "a.parquet"), image_column="kind", label_column="pixels"), seed=0)


def test_places_that_hold_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, "nowhere://a/b"):
        with pytest.raises(DataError, match=r"data\.path"):
            load_dataset(Data(path=str(path)), seed=0)
    write(tmp_path / "test-0.parquet", grey(10), LABELS[:10])
    with pytest.raises(DataError, match=r"none of a training split"):
        load_dataset(Data(path=str(tmp_path)), seed=0)
    whole = (tmp_path / "test-0.parquet").read_bytes()
    for broken in (b"", b"PAR1" + bytes(60), whole[:-9], whole[:200] + bytes(99) + whole[299:]):
        (tmp_path / "broken.parquet").write_bytes(broken)
        with pytest.raises(DataError, match=r"broken\.parquet"):
            load_dataset(Data(path=str(tmp_path / "broken.parquet")), seed=0)


# --- .npz


@pytest.mark.parametrize("shape", [(40, 6, 6), (40, 6, 6, 1), (40, 1, 6, 6), (40, 6, 6, 3), (40, 3, 6, 6)])
def test_npz_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = picture(0, *shape)
    data = npz(tmp_path / "d.npz", x_train=x, y_train=LABELS, x_test=x[:5], y_test=np.array(LABELS[:5])[:, None])
    images = load_dataset(data, seed=0).test.images.numpy()
    assert images.shape == (5, 3 if 3 in shape else 1, 6, 6)
    moved = images.transpose(0, 2, 3, 1) if shape[-1] in (1, 3) else images
    assert np.array_equal(moved.reshape(x[:5].shape), x[:5])


X = picture(0, 40, 6, 6)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x_test": X, "y_test": LABELS}, r"no x_train \(it has x_test, y_test\)"),
        ({"x_train": X}, r"x_train and y_train must both be there"),
        ({"x_train": X, "y_train": LABELS, "y_val": LABELS}, r"x_val and y_val must both be there"),
        ({"x_train": X, "y_train": LABELS[:39]}, r"39 labels for 40 images"),
        ({"x_train": X, "y_train": np.array(LABELS) / 2}, r"y_train is float64 .*whole numbers"),
        ({"x_train": X, "y_train": 3}, r"whole numbers of shape"),
        ({"x_train": X[:, :, :5], "y_train": LABELS}, r"shape \(40, 6, 5\); expected square"),
        ({"x_train": X[..., None].repeat(2, 3), "y_train": LABELS}, r"1 or 3 channels"),
        ({"x_train": X.reshape(40, 36), "y_train": LABELS}, r"expected square"),
        ({"x_train": X[:0], "y_train": np.array(LABELS[:0], int)}, r"no image"),
        ({"x_train": X.astype(np.int64) * 2, "y_train": LABELS}, r"whole numbers from 0 to 255"),
        ({"x_train": X.astype(str), "y_train": LABELS}, r"x_train: must be finite numbers"),
        ({"x_train": X, "y_train": [*LABELS[:39], 10**9]}, r"train row 39 has label 1000000000"),
        ({"x_train": X, "y_train": np.array(LABELS, dtype=object)}, r"is no \.npz"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    data = npz(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=rf"d\.npz.*{said}"):
        load_dataset(data, seed=0)


def test_npz_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with pytest.raises(DataError, match=r"data\.path: .*no such file"):
        load_dataset(Data(path=str(path)), seed=0)
    npz(path, x_train=X, y_train=LABELS)
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, X)
    for broken in (b"", b"PK\x03\x04", whole[: len(whole) // 2], array.getvalue()):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"d\.npz: is no \.npz"):
            load_dataset(Data(path=str(path)), seed=0)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", b"\x93NUMPY and no more")
    with pytest.raises(DataError, match=r"d\.npz"):
        load_dataset(Data(path=str(path)), seed=0)


# --- Preprocess


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
    assert np.array_equal(COLOUR.read(path)[0].permute(1, 2, 0).numpy(), np.asarray(palette.convert("RGB")))
    path = tmp_path / "a.tiff"
    path.write_bytes(encoded(np.zeros((8, 8), np.float32), "TIFF"))
    with pytest.raises(DataError, match=r"a\.tiff: .*mode F"):
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


# --- data sets as published


@pytest.mark.parametrize(
    ("name", "column", "shape", "class_names", "label"),
    [
        ("fashion_mnist", "image", (1, 28, 28), ("T - shirt / top", "Ankle boot"), 9),
        ("cifar10", "img", (3, 32, 32), ("airplane", "truck"), 3),
    ],
)
def test_the_first_rows_of_real_data(
    tmp_path: Path, name: str, column: str, shape: tuple[int, ...], class_names: tuple[str, str], label: int
) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the Parquet files of {name} in {SHARED}")
    for file in (SHARED / name).glob("*.parquet"):
        batch = next(pq.ParquetFile(file).iter_batches(600))  # all rows would take a quarter of a minute
        pq.write_table(pa.Table.from_batches([batch]), tmp_path / file.name)
    dataset = load_dataset(Data(path=str(tmp_path), train_limit=500, test_limit=200), seed=0)
    assert lengths(dataset) == (425, 75, 200) and dataset.classes == 10
    assert tuple(dataset.train.images.shape[1:]) == shape
    assert (dataset.class_names[0], dataset.class_names[-1]) == class_names
    row = pq.read_table(next(tmp_path.glob("test*"))).slice(0, 1).to_pylist()[0]
    assert int(dataset.test.labels[0]) == row["label"] == label
    pixels = np.asarray(Image.open(io.BytesIO(row[column]["bytes"])))
    assert np.array_equal(pixels.reshape(*shape[1:], -1), dataset.test.images[0].permute(1, 2, 0).numpy())
