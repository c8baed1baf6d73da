"""Images of any size, resized as they are read: in every layout, and of any depth, orientation or transparency."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from bend_ray.config import Data
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.data.preprocess import Preprocess
from bend_ray.data.strangers import load_strangers
from bend_ray.errors import DataError
from image_files import npz, write

Y = [i % 2 for i in range(24)]
SIZE = 8


def sixteen(row: int, most: int) -> Image.Image:
    """Grey of 16 bits and of a shape of its row; the brightest pixel lies in a corner that the middle square lacks."""
    pixels = np.random.default_rng(row).integers(0, most // 2, (10 + row % 3, 14 + row % 5)).astype(np.uint16)
    pixels[0, 0] = most
    return Image.fromarray(pixels)


def lying(row: int) -> Image.Image:
    """In colour, half transparent, to be turned."""
    pixels = np.random.default_rng(row).integers(0, 256, (20 + row % 3, 9 + row % 4, 4)).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 6 if row % 3 else 1
    return image


def laid_out(root: Path, layout: str, images: list[Image.Image]) -> tuple[Data, list[Path]]:
    """The same images as each reader has them, all of them thrice: for training, validation and testing."""
    files = []
    for split in ("train", "val", "test"):
        for row, image in enumerate(images):
            folder = root / split / (f"c{Y[row]}" if layout == "folders" else ".")
            folder.mkdir(parents=True, exist_ok=True)
            files.append(folder / f"{row:02d}.png")
            image.save(files[-1], exif=image.getexif())
        if layout == "metadata":
            rows = [json.dumps({"file_name": f"{row:02d}.png", "label": Y[row]}) for row in range(len(images))]
            (root / split / "metadata.jsonl").write_text("\n".join(rows))
        if layout == "parquet":
            write(root / "tables" / f"{split}-0.parquet", [file.read_bytes() for file in files[-len(images) :]], Y)
    return Data(path=str(root / "tables" if layout == "parquet" else root)), files[-len(images) :]


def in_order(dataset: Dataset, layout: str) -> torch.Tensor:
    """Test images as the rows came: a folder has them class by class."""
    order = sorted(range(len(Y)), key=lambda row: (Y[row], row)) if layout == "folders" else list(range(len(Y)))
    return dataset.test.images[torch.tensor(order).argsort()]


def middle(image: Image.Image) -> np.ndarray:
    side = min(image.size)
    left, upper = (image.width - side) // 2, (image.height - side) // 2
    box = (left, upper, left + side, upper + side)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


@pytest.mark.parametrize("layout", ["folders", "metadata", "parquet"])
def test_sixteen_bits_are_known_before_images_are_resized(tmp_path: Path, layout: str) -> None:
    images = [sixteen(row, 3000) for row in range(len(Y))]
    data, files = laid_out(tmp_path, layout, images)
    data = data.model_copy(update={"image_size": SIZE, "interpolation": "bicubic"})
    dataset = load_dataset(data, 0)
    eight = [Image.fromarray((np.asarray(image) >> 4).astype(np.uint8)) for image in images]
    assert np.array_equal(in_order(dataset, layout)[:, 0].numpy(), np.stack([middle(image) for image in eight]))
    assert torch.equal(in_order(dataset, layout), torch.cat([dataset.preprocess.read(file) for file in files]))
    assert sum("read as 12 bits" in note for note in dataset.notes) == 1 and dataset.preprocess.bits == 12
    assert load_dataset(data.model_copy(update={"bits": 12}), 0).digest() == dataset.digest()
    again = Preprocess.from_json(json.loads(json.dumps(dataset.preprocess.to_json())))
    assert again == dataset.preprocess and again.crop
    with pytest.raises(DataError, match=r"values up to 3000, which is more than the 10 bits"):
        load_dataset(data.model_copy(update={"bits": 10}), 0)


@pytest.mark.parametrize("layout", ["folders", "metadata", "parquet"])
def test_images_are_turned_and_laid_on_white_before_they_are_resized(tmp_path: Path, layout: str) -> None:
    images = [lying(row) for row in range(len(Y))]
    data, files = laid_out(tmp_path, layout, images)
    dataset = load_dataset(data.model_copy(update={"image_size": SIZE, "interpolation": "bicubic"}), 0)
    white = [
        Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
        for upright in map(ImageOps.exif_transpose, images)
    ]
    wanted = np.stack([middle(image) for image in white]).transpose(0, 3, 1, 2)
    assert np.array_equal(in_order(dataset, layout).numpy(), wanted)
    assert torch.equal(in_order(dataset, layout), torch.cat([dataset.preprocess.read(file) for file in files]))


def test_strangers_of_sixteen_bits_are_read_as_training_images(tmp_path: Path) -> None:
    data, _ = laid_out(tmp_path / "own", "folders", [sixteen(row, 3000) for row in range(len(Y))])
    other, files = laid_out(tmp_path / "other", "metadata", [sixteen(row, 200) for row in range(len(Y))])
    dataset = load_dataset(data.model_copy(update={"image_size": SIZE}), 0)
    (images,) = load_strangers([other.model_copy(update={"image_size": SIZE})], dataset, 0).values()
    assert torch.equal(images, torch.cat([dataset.preprocess.read(file) for file in files]))


def test_labels_are_as_they_are_where_the_number_of_classes_is_given(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (30, 4, 4)).astype(np.uint8)
    y = np.array([2, 5, 7] * 10)
    data = npz(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert load_dataset(data, 0).class_names == ("2", "5", "7")
    dataset = load_dataset(data, 0, outputs=9)
    assert dataset.class_names == tuple(map(str, range(9))) and dataset.test.labels.tolist() == y.tolist()
    with pytest.raises(DataError, match=r"^classifier\.classes: 7 is fewer than the 8 of "):
        load_dataset(data, 0, outputs=7)


def test_words_keep_their_names_and_further_classes_have_numbers(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (30, 4, 4)).astype(np.uint8)
    data = npz(tmp_path / "d.npz", x_train=x, y_train=np.array(["cat", "dog", "ape"] * 10))
    dataset = load_dataset(data, 0, outputs=5)
    assert dataset.class_names == ("ape", "cat", "dog", "3", "4") and int(dataset.train.labels.max()) == 2
    data = npz(tmp_path / "e.npz", x_train=x, y_train=np.array(["4", "5", "six"] * 10))
    assert load_dataset(data, 0, outputs=6).class_names == ("4", "5", "six", "3", "class 4", "class 5")
