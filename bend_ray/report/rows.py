"""A picture of rows as a classifier gets them, with their labels."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from bend_ray.data.datasets import Dataset
from bend_ray.data.images import Split
from bend_ray.data.splits import in_turn
from bend_ray.errors import ConfigError, why

COLUMNS, TRAINING = 8, 5
"""Rows of images: of training rows so many, of validation and test rows one each."""
LETTERS = 16


def draw(dataset: Dataset, path: str) -> None:
    """A PNG file of training rows of each class in turn, then validation and test rows. Raises ConfigError where it
    cannot be written."""
    splits = {"training": dataset.train, "validation": dataset.val, "test": dataset.test}
    shown = [(name, rows, COLUMNS * (TRAINING if name == "training" else 1)) for name, rows in splits.items()]
    grid = TRAINING + 2
    figure = Figure(figsize=(1.3 * COLUMNS, 1.55 * grid), dpi=100)
    cells = iter(figure.subplots(grid, COLUMNS).flat)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.97, wspace=0.05, hspace=0.3)
    for name, rows, count in shown:
        chosen = _chosen(rows, count)
        for number in range(count):
            axes = next(cells)
            axes.set_axis_off()
            if number >= len(chosen):
                continue
            row = int(chosen[number])
            image = rows.images[row].permute(1, 2, 0).numpy()
            axes.imshow(image[..., 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
            label = dataset.class_names[int(rows.labels[row])]
            axes.set_title(f"{label[:LETTERS]}\n{name} {row}", fontsize=7)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", metadata={"Software": None})
    except OSError as error:
        raise ConfigError(f"--show-data: {path} cannot be written ({why(error)})") from None


def _chosen(rows: Split, count: int) -> torch.Tensor:
    """The first of each class in turn."""
    return in_turn(rows.labels)[:count]
