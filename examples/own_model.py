"""Your own module and your own arrays, from training to an answer: python examples/own_model.py [RUN_DIR]"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bend_ray import Ensemble
from bend_ray.config import loads
from bend_ray.run import Run
from bend_ray.stages import pipeline
from bend_ray.store.folders import Folder


class Net(nn.Module):
    """Any module that gives (B, classes) logits will do; its norms and its last layer are what varies."""

    def __init__(self, classes: int, channels: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU())
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.adaptive_max_pool2d(self.features(x), 2).flatten(1))


def stripes(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 12x12 images of stripes: upright, level, or slanted."""
    draw, (i, j) = np.random.default_rng(seed), np.indices((12, 12))
    labels = draw.integers(3, size=rows)
    waves = np.stack([np.sin(1.3 * way[None] + draw.uniform(0, 6, (rows, 1, 1))) for way in (j, i, (i + j) * 0.7)])
    images = waves[labels, np.arange(rows)] + draw.normal(0, 1, (rows, 12, 12))
    return np.clip(128 + 40 * images, 0, 255).astype(np.uint8), labels


def main(where: str = "runs/own_model") -> None:
    (x_train, y_train), (x_test, y_test) = stripes(900, seed=0), stripes(300, seed=1)
    arrays = Path(where).with_suffix(".npz")
    arrays.parent.mkdir(parents=True, exist_ok=True)
    np.savez(arrays, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    config = f"""
data: {{path: {arrays}}}
classifier: {{target: own_model:Net}}
base: {{epochs: 5, lr: 0.01}}
collect: {{lr: 0.03}}
"""
    pipeline.execute(Run(loads(config, __file__), Folder(where)))
    images = torch.from_numpy(x_test[:8, None])  # uint8 (B, C, H, W)
    answer = Ensemble.load(f"{where}/ensemble").predict(images, strategy="abend")
    print("labels ", y_test[:8].tolist(), "\nanswers", answer.label_B.tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
