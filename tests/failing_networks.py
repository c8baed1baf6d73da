"""Small networks that fail, or go wrong, in training alone."""

from typing import Any

import torch
from torch import Tensor, nn

from odd_networks import CLASSES, WIDTH, body


class _Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wrong(self.body(x)))

    def wrong(self, features: Tensor) -> Tensor:
        raise NotImplementedError


class _Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("this backward pass was never written")


class FailsBackward(_Fails):
    def wrong(self, features: Tensor) -> Tensor:
        return _Broken.apply(features)


class ModifiedInPlace(_Fails):
    """What the backward pass needs is overwritten: torch says so in the backward pass, which has no line of ours."""

    def wrong(self, features: Tensor) -> Tensor:
        squared = features.exp()
        loss = squared * squared
        squared += 1
        return loss


class LeafInPlace(_Fails):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def wrong(self, features: Tensor) -> Tensor:
        if self.training:
            self.scale.mul_(1.0)
        return features * self.scale


class FailsInTraining(_Fails):
    def wrong(self, features: Tensor) -> Tensor:
        if self.training:
            raise KeyError("teacher")
        return features


class FailsInChains(_Fails):
    """Where gradients are taken in eval mode, which chains alone do."""

    def wrong(self, features: Tensor) -> Tensor:
        if not self.training and torch.is_grad_enabled() and self.head.weight.requires_grad:
            raise ValueError("not made for that")
        return features


class NoGradient(_Fails):
    def wrong(self, features: Tensor) -> Tensor:
        return features

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).round().detach()


class NanGradient(_Fails):
    """The root of 0 has an infinite slope, and 0 times that is no number."""

    def wrong(self, features: Tensor) -> Tensor:
        return features + (features * 0).sqrt()


class NanInTraining(_Fails):
    def wrong(self, features: Tensor) -> Tensor:
        return features / 0 * 0 if self.training else features


class Writes(_Fails):
    """A parameter that moves as a running mean does."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(WIDTH), requires_grad=False)

    def wrong(self, features: Tensor) -> Tensor:
        if self.training:
            self.mean.data.lerp_(features.detach().mean(0), 0.1)
        return features - self.mean


class Replaces(Writes):
    def wrong(self, features: Tensor) -> Tensor:
        if self.training:
            self.mean = nn.Parameter(self.mean.detach().clone())
        return features - self.mean


class BatchBuffer(_Fails):
    """A buffer with a row for each row of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(8, WIDTH))

    def wrong(self, features: Tensor) -> Tensor:
        if self.training:
            self.last = features.detach()
        return features


class NewBuffer(_Fails):
    def wrong(self, features: Tensor) -> Tensor:
        if self.training and not hasattr(self, "last"):
            self.register_buffer("last", features.detach().mean(0))
        return features


class Sparse(_Fails):
    """A table of which a step changes some rows: its gradient is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, WIDTH, sparse=True)

    def wrong(self, features: Tensor) -> Tensor:
        return features + self.table((features[:, 0].detach() * 8 + 8).long().clamp(0, 15))


class FailsLater(_Fails):
    """At the fifth step of training."""

    steps = 0

    def wrong(self, features: Tensor) -> Tensor:
        self.steps += self.training
        if self.steps > 4:
            raise LookupError("no more of these")
        return features
