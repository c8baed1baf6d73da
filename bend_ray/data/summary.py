"""What a user should see of data before anything is trained on it: sizes, range, rows of classes."""

import torch

from bend_ray.data.classes import brief
from bend_ray.data.datasets import Dataset
from bend_ray.data.images import PIECE


def lines(dataset: Dataset) -> list[str]:
    """Of the images, and of the training rows of each class, the first and the last of many."""
    lows, highs = zip(*(tuple(map(int, piece.aminmax())) for piece in dataset.train.images.split(PIECE)), strict=True)
    size, colour = dataset.image_size, "in colour" if dataset.channels == 3 else "grey"
    counts = torch.bincount(dataset.train.labels, minlength=dataset.classes).tolist()
    mean, std = (
        ", ".join(f"{value:.3f}" for value in values) for values in (_of(dataset, "mean"), _of(dataset, "std"))
    )
    each = brief([f"{name}: {count}" for name, count in zip(dataset.class_names, counts, strict=True)])
    return [
        f"images {size}x{size}, {colour}, values {min(lows)} to {max(highs)}; mean {mean}, standard deviation {std}",
        f"training rows of classes: {each}",
    ]


def _of(dataset: Dataset, what: str) -> tuple[float, ...]:
    values: tuple[float, ...] = getattr(dataset.preprocess, what)
    return values
