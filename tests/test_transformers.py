"""Hugging Face classifiers, built from a config, are cut like our own and equal the plain loop."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import oracles
from bend_ray.models.partition import partition
from bend_ray.models.subset import choose
from bend_ray.models.trunk import SharedTrunk

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the library warns of its own dependencies as it loads
    from transformers import (
        ConvNextConfig,
        ConvNextForImageClassification,
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )

VIT: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
RESNET: dict[str, Any] = {
    "num_channels": 3,
    "num_labels": 5,
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
CONVNEXT: dict[str, Any] = {
    "num_channels": 3,
    "num_labels": 5,
    "patch_size": 2,
    "num_stages": 2,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
}
pytestmark = pytest.mark.slow

SPECS = ["head", "norm", "norm+head", "regex:layer.*weight", "regex:."]


def vit() -> nn.Module:
    return ViTForImageClassification(ViTConfig(**VIT))


def resnet() -> nn.Module:
    return ResNetForImageClassification(ResNetConfig(**RESNET))


def convnext() -> nn.Module:
    return ConvNextForImageClassification(ConvNextConfig(**CONVNEXT))


@pytest.mark.parametrize("make", [vit, resnet, convnext])
@pytest.mark.parametrize("spec", SPECS)
def test_hugging_face_classifiers_equal_the_loop(
    make: Callable[[], nn.Module], spec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    module = make().eval()
    subset = choose(module, spec)
    cut = partition(module, subset, torch.zeros(2, 3, 16, 16))
    assert isinstance(cut, SharedTrunk) and cut.plan != "whole model"
    # ConvNeXt's first operation has parameters: where all vary, nothing is shared.
    assert (cut.trunk_share > 0) == (make is not convnext or spec != "regex:.")
    theta_MD, x = subset.take(module) + 0.05 * torch.randn(3, subset.D), torch.randn(7, 3, 16, 16)
    expected = oracles.logits_of_whole_models(module, subset, theta_MD, x)
    torch.testing.assert_close(cut.logits(theta_MD, x), expected, atol=2e-5, rtol=1e-5)
    assert None not in cut.kinds  # early stopping can compact
    some = torch.tensor([1, 4, 6])
    shared = cut.rows(cut.trunk(x), some)
    assert shared is not None
    torch.testing.assert_close(cut.members(theta_MD, shared), expected[:, some], atol=2e-5, rtol=1e-5)
    assert "performance drop" not in capfd.readouterr().err
