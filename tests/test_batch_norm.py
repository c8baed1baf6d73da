"""Batch-norm statistics counted anew for each member are those that torch counts in training mode."""

import copy
import functools
import warnings

import pytest
import torch
from torch import Tensor, nn

from bend_ray.config import Classifier, Data
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble import batch_norm
from bend_ray.errors import ModelError
from bend_ray.models.classifiers import build
from bend_ray.models.partition import partition
from bend_ray.models.subset import Subset, choose
from bend_ray.models.trunk import SharedTrunk
from oracles import logits_of_whole_models

IMAGE = (1, 8, 8)
same = functools.partial(torch.testing.assert_close, atol=2e-5, rtol=1e-5)


class InPlace(nn.Module):
    """ReLU in place, as in torchvision: the graph is decomposed, and its batch norm another operation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False, momentum=0.3, eps=1e-2)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        return self.head(self.relu(self.norm2(self.conv2(x))).mean((2, 3)))


class Flat(nn.Module):
    """Batch norm of vectors, the second one used twice, and one that never counts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm1 = nn.Linear(64, 6), nn.BatchNorm1d(6)
        self.again, self.norm2 = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.never = nn.BatchNorm1d(6, track_running_stats=False)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm1(self.body(x.flatten(1))))
        x = self.norm2(self.again(x))
        return self.head(self.never(self.norm2(self.again(torch.tanh(x)))))


class Branches(InPlace):
    """Cannot be exported."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


MAKE = {
    "convnet": lambda: build(Classifier(name="convnet", kwargs={"width": 4}), 5, 1, 8, seed=0),
    "resnet18": lambda: build(Classifier(name="resnet18", kwargs={"width": 4}), 5, 1, 8, seed=0),
    "in place": InPlace,
    "flat": Flat,
    "branches": Branches,
}


def batches(count: int = 3) -> list[Tensor]:
    stream = torch.Generator().manual_seed(3)
    return [torch.randn(16, *IMAGE, generator=stream) + i for i in range(count)]


@functools.cache
def cut(model: str, spec: str) -> tuple[nn.Module, Subset, SharedTrunk]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MAKE[model]()
    module.eval()
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.running_var is not None:
            child.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(4))
    subset = choose(module, spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it cannot be exported
        return module, subset, partition(module, subset, torch.zeros(2, *IMAGE))


def members(module: nn.Module, subset: Subset, M: int) -> Tensor:
    noise_MD = torch.randn(M, subset.D, generator=torch.Generator().manual_seed(2))
    return subset.take(module) + 0.3 * noise_MD


def counted_by_torch(module: nn.Module, subset: Subset, theta_D: Tensor, names: tuple[str, ...]) -> Tensor:
    """What the batch norms of ``names`` count in training mode, as in `swa_utils.update_bn`."""
    module = copy.deepcopy(module)
    subset.put(module, theta_D)
    for path, child in module.named_modules():
        if f"{path}.running_mean" in names:
            child.reset_running_stats()
            child.momentum = None  # all batches count alike
            child.train()
    with torch.no_grad():
        for x in batches():
            module(x)
    buffers = dict(module.named_buffers())
    return torch.cat([buffers[name].reshape(-1) for name in names])


CASES = [
    ("convnet", "norm+head", ["block2.norm", "block3.norm"]),  # the first batch norm sees what no member changes
    ("convnet", "regex:conv", ["block1.norm", "block2.norm", "block3.norm"]),
    ("convnet", "last_block", ["block3.norm"]),
    ("resnet18", "last_block", ["stages.3.1.norm1", "stages.3.1.norm2"]),
    ("in place", "regex:conv1", ["norm1", "norm2"]),
    ("in place", "norm", ["norm2"]),
    ("flat", "regex:body", ["norm1", "norm2"]),
    ("flat", "regex:again", ["norm2"]),
]


@pytest.mark.parametrize(("model", "spec", "norms"), CASES)
def test_statistics_are_those_that_torch_counts(model: str, spec: str, norms: list[str]) -> None:
    module, subset, trunk = cut(model, spec)
    assert trunk.statistics == tuple(f"{norm}.{name}" for norm in norms for name in ("running_mean", "running_var"))
    theta_MD = members(module, subset, 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found_MV = batch_norm.statistics(trunk, theta_MD, batches())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    expected_MV = torch.stack([counted_by_torch(module, subset, theta_D, trunk.statistics) for theta_D in theta_MD])
    same(found_MV, expected_MV, atol=1e-4, rtol=1e-4)
    assert (found_MV[0] - found_MV[1]).abs().max() > 1e-2


def test_what_cannot_be_exported_counts_all_its_statistics() -> None:
    module, subset, trunk = cut("branches", "head")
    assert trunk.plan == "whole model" and len(trunk.statistics) == 4
    theta_MD = members(module, subset, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found_MV = batch_norm.statistics(trunk, theta_MD, batches())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(child.training for child in module.modules())
    assert isinstance(module.norm2, nn.BatchNorm2d) and module.norm2.momentum == 0.3
    same(found_MV, torch.stack([counted_by_torch(module, subset, t, trunk.statistics) for t in theta_MD]), atol=1e-4)


def test_a_head_leaves_nothing_to_count() -> None:
    module, subset, trunk = cut("convnet", "head")
    assert trunk.statistics == ()
    found_MV = batch_norm.statistics(trunk, members(module, subset, 3), batches())
    assert found_MV.shape == (3, 0)


@pytest.mark.parametrize(
    ("model", "spec"),
    [("convnet", "norm+head"), ("resnet18", "last_block"), ("in place", "norm"), ("branches", "norm")],
)
def test_members_use_their_own_statistics(model: str, spec: str) -> None:
    module, subset, trunk = cut(model, spec)
    reestimation = reestimated(module, subset)
    wide = reestimation.subset
    assert wide.names[: len(subset.names)] == subset.names and wide.D > subset.D
    theta_MD = members(module, subset, 3)
    own_MD = reestimation(theta_MD)
    assert torch.equal(own_MD[:, : subset.D], theta_MD) and own_MD.shape == (3, wide.D)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        cut_wide = partition(module, wide, torch.zeros(2, *IMAGE))
    assert (cut_wide.statistics, cut_wide.trunk_share) == (trunk.statistics, trunk.trunk_share)
    x = batches(1)[0]
    same(cut_wide.logits(own_MD, x), logits_of_whole_models(module, wide, own_MD, x), atol=1e-4, rtol=1e-4)
    assert (cut_wide.logits(own_MD, x) - trunk.logits(theta_MD, x)).abs().max() > 1e-2
    same(cut_wide.logits(reestimation.as_trained(theta_MD), x), trunk.logits(theta_MD, x))


@functools.cache
def digits() -> Dataset:
    return load_dataset(Data(name="digits"), 0)


def reestimated(module: nn.Module, subset: Subset) -> batch_norm.BatchNormReestimation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it cannot be exported
        return batch_norm.BatchNormReestimation.of(module, subset, digits(), 2, 0)


def test_batches_are_training_rows_and_follow_from_the_seed() -> None:
    dataset = digits()
    first, again, other = (list(batch_norm.batches(dataset, 3, seed)) for seed in (0, 0, 1))
    assert [tuple(x.shape) for x in first] == [(batch_norm.ROWS, 1, 8, 8)] * 3
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    train = {row.numpy().tobytes() for row in dataset.preprocess(dataset.train.images)}
    assert all(row.numpy().tobytes() in train for x in first for row in x)


def test_parameters_that_do_not_fit() -> None:
    _, subset, trunk = cut("convnet", "norm+head")
    with pytest.raises(ModelError, match=f"D = {subset.D}"):
        batch_norm.statistics(trunk, torch.zeros(2, subset.D + 1), batches())
