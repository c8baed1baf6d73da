"""Snapshots in a space of few dimensions, and generators fitted on them."""

from typing import Any

import torch
from torch import Tensor

from bend_ray.config import Autoencoder, Diffusion, Sample
from bend_ray.generator.generator import Generator
from bend_ray.generator.gram import Gram
from bend_ray.generator.span import Scaling, Span
from bend_ray.models.subset import Subset
from bend_ray.run import Run
from bend_ray.snapshots.snapshots import Fact, InMemorySnapshots
from conftest import changed

SUBSET = Subset(("small.weight", "large.weight", "still.bias"), ((4, 5), (30,), (3,)), ("float32",) * 3)
S, R = 24, 6
CODER = Autoencoder(explained=1.0, latent=4, hidden=16, iterations=20)
MODEL = Diffusion(steps=40, hidden=16, blocks=2, iterations=30, batch_size=16)
SAMPLE = Sample(steps=10)


def snapshots(seed: int = 0) -> Tensor:
    """``theta_SD`` in a space of R dimensions; tensors of very different size, one that never moves."""
    stream = torch.Generator().manual_seed(seed)
    plane = torch.Generator().manual_seed(99)
    theta_SD = torch.randn(S, R, generator=stream) @ torch.randn(R, SUBSET.D, generator=plane)
    theta_SD[:, :20] *= 1e-3
    theta_SD[:, 50:] = torch.tensor([1.0, -2.0, 0.0])
    return theta_SD


def held(theta_SD: Tensor) -> InMemorySnapshots:
    return InMemorySnapshots(SUBSET, theta_SD)


def span_of(theta_SD: Tensor, explained: float = 1.0, scaling: Scaling = "tensor") -> Span:
    return Gram.of(held(theta_SD), len(theta_SD), scaling).span(held(theta_SD), explained)[0]


def facts(rows: int = 2 * S) -> list[Fact]:
    """Two snapshots a chain, the later chains the better."""
    return [Fact(chain=i // 2, step=i % 2, seed=0, val_loss=1 / (1 + i), val_accuracy=0.5) for i in range(rows)]


def fitted(seed: int = 0, model: Diffusion = MODEL, **changes: Any) -> Generator:
    """On 24 snapshots, with as many withheld."""
    both = held(torch.cat([snapshots(), snapshots(1)]))
    return Generator.fit(SUBSET, both, facts(), S, run_with(CODER.model_copy(update=changes), model, seed))


def run_with(autoencoder: Autoencoder = CODER, diffusion: Diffusion = MODEL, seed: int = 0) -> Run:
    """A run, in no folder, that fits generators so."""
    sections = {"seed": seed, "autoencoder": autoencoder, "diffusion": diffusion}
    return Run(changed().model_copy(update=sections))


def coordinates() -> Tensor:
    theta_SD = snapshots()
    return span_of(theta_SD).encode(theta_SD)
