"""Data sets: how they are split and measured, what is read from .npz files, and one clear error for what is not."""

import io
import itertools
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bend_ray.config import Data
from bend_ray.data.datasets import load_dataset
from bend_ray.errors import DataError
from conftest import changed
from image_files import LABELS, X, lengths, npz, picture

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
    data = npz(tmp_path / "d.npz", x_train=x, y_train=y, x_val=x[:4], y_val=y[:4], x_test=x[:6] // 2, y_test=y[:6])
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


# --- .npz


@pytest.mark.parametrize("shape", [(40, 6, 6), (40, 6, 6, 1), (40, 1, 6, 6), (40, 6, 6, 3), (40, 3, 6, 6)])
def test_npz_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = picture(0, *shape)
    data = npz(tmp_path / "d.npz", x_train=x, y_train=LABELS, x_test=x[:5], y_test=np.array(LABELS[:5])[:, None])
    images = load_dataset(data, seed=0).test.images.numpy()
    assert images.shape == (5, 3 if 3 in shape else 1, 6, 6)
    moved = images.transpose(0, 2, 3, 1) if shape[-1] in (1, 3) else images
    assert np.array_equal(moved.reshape(x[:5].shape), x[:5])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x_test": X, "y_test": LABELS}, r"no x_train \(it has x_test, y_test\)"),
        ({"x_train": X}, r"x_train and y_train must both be there"),
        ({"x_train": X, "y_train": LABELS, "y_val": LABELS}, r"x_val and y_val must both be there"),
        ({"x_train": X, "y_train": LABELS[:39]}, r"39 labels for 40 images"),
        (
            {"x_train": X, "y_train": np.array(LABELS) / 2},
            r"y_train row 1 has label 0\.5; labels must be whole numbers",
        ),
        ({"x_train": X, "y_train": 3}, r"y_train is int64 \(\); .*whole numbers"),
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
