"""Small networks of many kinds, and the symmetries that are found in them."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray.alignment.symmetry import Symmetry
from bend_ray.config import Classifier
from bend_ray.models.classifiers import build
from bend_ray.models.graph import Graph, export
from bend_ray.models.subset import choose

IMAGE = (1, 8, 8)
EVERYTHING = "regex:."


def built_in(name: str, **kwargs: Any) -> nn.Module:
    return build(Classifier(name=name, kwargs=kwargs), 5, 1, 8, seed=0)


class Flattened(nn.Module):
    """Channels times pixels become the inputs of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.body = nn.Linear(6 * 16, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.body(self.pool(F.silu(self.conv(x))).flatten(1))))


class ResidualMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 12), nn.Hardtanh(), nn.Dropout(0.1), nn.Linear(12, 8))
            for _ in range(2)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Grouped(nn.Module):
    """A depthwise convolution, a grouped one with two inputs and three outputs a group, group norm, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.act = nn.PReLU(8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.norm = nn.GroupNorm(4, 12)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.grouped(self.act(self.depthwise(self.stem(x)))))).amax((2, 3))


class Attention(nn.Module):
    """Both ways of torch's own attention, rows of the image as tokens, a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 12)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x[:, 0])], 1)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.layer(x)[:, 0])


class Gated(nn.Module):
    """A hidden layer in two halves, one the gate of the other; each half of the next is read apart and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 12)
        self.halves = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.body(x.flatten(1)).chunk(2, dim=-1)
        hidden = torch.sigmoid(gate) * value
        return self.head(torch.cat([half(hidden).relu() for half in self.halves], -1))


class Assorted(nn.Module):
    """Operations that the others lack: tokens with positions from a table, products of matrices, halves, pieces."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 6, 3, padding=1, padding_mode="reflect")
        self.position = nn.Embedding(16, 6)
        self.bias = nn.Parameter(torch.randn(9, 6))
        self.register_buffer("places", torch.arange(16))
        self.mix, self.shift = nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.randn(10))
        self.qkv = nn.Linear(5, 18)
        self.out = nn.Linear(6, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.interpolate(self.patch(x), scale_factor=0.25, mode="nearest"), (1, 1, 1, 1))
        x = x.flatten(2).transpose(1, 2) + self.position(self.places) + self.bias[self.places % 9]
        x = F.glu(torch.addmm(self.shift, x.reshape(-1, 6), self.mix).unflatten(0, (-1, 16)))
        q, k, v = self.qkv(x).view(-1, 16, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.baddbmm(torch.zeros(16, 16), q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=0.5)
        mixed = torch.matmul(scores.softmax(-1).unflatten(0, (-1, 2)), v).transpose(1, 2).flatten(2)
        first, second = torch.stack([self.out(mixed), self.out(-mixed)]).relu().sum(2).split(1)
        return self.head((first * second.sigmoid())[0])


class Tied(nn.Module):
    """One matrix and one norm, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 6)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x.flatten(1)))
        return self.head(self.norm(self.second(torch.tanh(self.first(x)))))


class NormReadElsewhere(Tied):
    """A batch norm whose weight is not its own alone cannot take up a move."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x.flatten(1))) * self.norm.weight)


class Cumulated(nn.Module):
    """An operation that units' order matters to, after one layer of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 7)
        self.body = nn.Linear(7, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x.flatten(1)).tanh()).cumsum(-1))


class Branching(Cumulated):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else self.head(self.body(self.stem(x.flatten(1))))


class Cut(nn.Module):
    """Hidden units read by place, in unequal parts, joined to others, counted by threes and by twos."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(64, 6), nn.Linear(64, 8), nn.Linear(64, 3)
        self.threes, self.twos, self.both = nn.Linear(64, 12), nn.Linear(64, 12), nn.Linear(64, 12)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        parts = self.second(x).split([3, 5], -1)
        logits_BK = self.head(torch.cat([self.third(x) * parts[0], parts[1]], -1)) * self.first(x)[:, :1]
        threes, twos = self.threes(x).unflatten(1, (4, 3)), self.twos(x).unflatten(1, (6, 2))
        mixed = threes.transpose(1, 2).flatten(1) * twos.transpose(1, 2).flatten(1)
        both = self.both(x).unflatten(1, (4, 3)).amax(2).sum(1) + self.both(x).unflatten(1, (6, 2)).amax(2).sum(1)
        return logits_BK + mixed.sum(1, keepdim=True) * both[:, None]


MAKE: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: built_in("mlp", hidden=12),
    "convnet": lambda: built_in("convnet", width=4),
    "resnet18": lambda: built_in("resnet18", width=4),
    "resnet34": lambda: built_in("resnet34", width=4),
    "vit_tiny": lambda: built_in("vit_tiny", width=12, depth=2, heads=3),
    **{
        cls.__name__: cls
        for cls in (Flattened, ResidualMLP, Grouped, Attention, Gated, Assorted, Tied, NormReadElsewhere, Cut)
    },
    "Cumulated": Cumulated,
    "Branching": Branching,
}


def transformed(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns of its own dependencies as it loads
        hf = pytest.importorskip("transformers")
        common = {"num_channels": 1, "num_labels": 5}
        configs: dict[str, Callable[[], Any]] = {
            "ViT": lambda: hf.ViTConfig(
                **common, image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=24,
            ),
            "ResNet": lambda: hf.ResNetConfig(
                **common, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
            ),
            "ConvNext": lambda: hf.ConvNextConfig(
                **common, patch_size=2, num_stages=2, depths=[1, 1], hidden_sizes=[4, 8]
            ),
        }  # fmt: skip
        return getattr(hf, f"{name}ForImageClassification")(configs[name]())


@functools.cache
def made(model: str) -> nn.Module:
    """In eval mode, no parameter or statistic at a value that hides a mistake (0 or 1)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MAKE[model]() if model in MAKE else transformed(model)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if "running_var" in name:
            tensor.data.uniform_(0.5, 2, generator=generator)
        elif tensor.is_floating_point():
            tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)
    return module.eval()


def of(module: nn.Module, spec: str) -> Symmetry:
    return Symmetry.of(module, choose(module, spec), torch.zeros(2, *IMAGE))


@functools.cache
def exported(model: str) -> Graph:
    return export(made(model), torch.zeros(2, *IMAGE))


@functools.cache
def found(model: str, spec: str) -> Symmetry:
    with pytest.MonkeyPatch.context() as patch:  # exporting takes most of the time, and knows nothing of subsets
        patch.setattr("bend_ray.alignment.symmetry.export", lambda module, example_x: exported(model))
        return of(made(model), spec)


def shuffled(symmetry: Symmetry, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(group.size, generator=generator) for group in symmetry.groups]


def inverse(permutations: list[Tensor]) -> list[Tensor]:
    return [p.argsort() for p in permutations]
