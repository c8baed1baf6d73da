"""Residual networks of basic blocks (He et al. 2016), with a stem for small images or for large ones."""

from typing import Literal

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = Shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class Shortcut(nn.Module):
    """A 1x1 convolution and batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ResNet(nn.Module):
    """Four stages of basic blocks, each of twice the width and half the size of the one before, and a linear head.

    ``stem``: "cifar", a 3x3 convolution, for images of 32 pixels or so; "imagenet", a 7x7 convolution of stride 2 and
    a pool, for 224.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        width: int = 64,
        stem: Literal["cifar", "imagenet"] = "cifar",
    ) -> None:
        super().__init__()
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem must be cifar or imagenet, not {stem!r}")
        large = stem == "imagenet"
        self.conv = nn.Conv2d(channels, width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pool: nn.Module = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        inputs, stages = width, []
        for i, count in enumerate(blocks):
            outputs = width * 2**i
            strides = [1 if i == 0 else 2, *[1] * (count - 1)]
            stages.append(
                nn.Sequential(*(BasicBlock(inputs if j == 0 else outputs, outputs, s) for j, s in enumerate(strides)))
            )
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return self.head(self.stages(x).mean((2, 3)))


def resnet18(classes: int, channels: int, width: int = 64, stem: Literal["cifar", "imagenet"] = "cifar") -> ResNet:
    """18 layers."""
    return ResNet(classes, channels, (2, 2, 2, 2), width, stem)


def resnet34(classes: int, channels: int, width: int = 64, stem: Literal["cifar", "imagenet"] = "cifar") -> ResNet:
    """34 layers."""
    return ResNet(classes, channels, (3, 4, 6, 3), width, stem)
