"""Classifiers as the tests of them want them: for grey images of 8x8 pixels and ten classes."""

from typing import Any

from bend_ray.config import Classifier
from bend_ray.models.classifiers import build


def make(seed: int = 0, **keys: Any) -> Any:
    return build(Classifier(**keys), classes=10, channels=1, image_size=8, seed=seed)
