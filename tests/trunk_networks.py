"""Small networks of many kinds with their members, and their shared trunks."""

import functools
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray.config import Classifier
from bend_ray.models.classifiers import build
from bend_ray.models.partition import partition
from bend_ray.models.subset import Subset, choose
from bend_ray.models.trunk import SharedTrunk

IMAGE = (1, 8, 8)
same = functools.partial(torch.testing.assert_close, atol=2e-5, rtol=1e-5)  # vmap multiplies in another order


class ResidualBlock(nn.Module):
    """As in torchvision: ReLU and sum are done in place."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.layers = nn.Sequential(ResidualBlock(4, 6), ResidualBlock(6, 8))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.layers(F.relu(self.stem(x), inplace=True)), 1)
        return self.fc(self.dropout(torch.flatten(x, 1)))


class AttentionBlock(nn.Module):
    def __init__(self, width: int, own_attention: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width) if own_attention else None
        self.attention = None if own_attention else nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.attention is not None:
            x = x + self.attention(y, y, y, need_weights=False)[0]
        elif self.qkv is not None:
            q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(y).chunk(3, dim=-1))
            x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, a class token, positions, two blocks of attention; the logits in an object where ``own_attention``."""

    def __init__(self, own_attention: bool, width: int = 8) -> None:
        super().__init__()
        self.own_attention = own_attention
        self.patch = nn.Conv2d(1, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.ModuleList([AttentionBlock(width, own_attention) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Any:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        logits_BK = self.head(self.norm(x)[:, 0])
        return SimpleNamespace(logits=logits_BK, loss=None) if self.own_attention else logits_BK


class Tied(nn.Module):
    """One matrix under two names, used by the second name first; the order in which a graph finds them is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.first(torch.tanh(self.second(x.flatten(1)))))))


class Flat(nn.Module):
    """A small network on the flattened image; subclasses say how its layers are put together."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 6)
        self.norm = nn.LayerNorm(6)
        self.unused = nn.Linear(6, 5)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.norm(self.body(x.flatten(1))))


class BranchOnTheInput(Flat):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x.flatten(1))
        return self.head(self.norm(y) if x.sum() > 0 else y)


MAKE: dict[str, Callable[[], nn.Module]] = {
    "convnet": lambda: build(Classifier(name="convnet", kwargs={"width": 4}), 5, 1, 8, seed=0),
    "mlp": lambda: build(Classifier(name="mlp", kwargs={"hidden": 12}), 5, 1, 8, seed=0),
    "resnet18": lambda: build(Classifier(name="resnet18", kwargs={"width": 4}), 5, 1, 8, seed=0),
    "vit_tiny": lambda: build(
        Classifier(name="vit_tiny", kwargs={"width": 8, "depth": 2, "heads": 2}), 5, 1, 8, seed=0
    ),
    "residual": Residual,
    "vit": lambda: ViT(own_attention=False),
    "vit with .logits": lambda: ViT(own_attention=True),
    "tied": Tied,
}
NAMED = ["head", "norm", "norm+head", "last_block", "regex:."]
MIDDLE = {
    "convnet": "regex:^block2",
    "mlp": r"regex:blocks\.1\.linear",
    "resnet18": r"regex:stages\.1\.0",
    "vit_tiny": r"regex:blocks\.0\.attention|position",
    "residual": "regex:downsample",
    "vit": r"regex:blocks\.0\.attention|token",
    "vit with .logits": r"regex:blocks\.1\.(qkv|mlp)",
    "tied": "first.weight",
}
PLANS: tuple[Literal["vmap", "loop"], ...] = ("vmap", "loop")
CASES = [(model, spec) for model in MAKE for spec in [*(NAMED if model != "vit with .logits" else []), MIDDLE[model]]]


def lively(module: nn.Module) -> nn.Module:
    """``module`` in eval mode with no parameter or statistic at a value that hides a mistake (0 or 1)."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if "running_var" in name:
            tensor.data.uniform_(0.5, 2, generator=generator)
        elif tensor.is_floating_point() and (tensor.ndim < 2 or "token" in name):
            tensor.data += 0.3 * torch.randn(tensor.shape, generator=generator)
    return module.eval()


def made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(make())


def members(module: nn.Module, subset: Subset, M: int) -> Tensor:
    """``theta_MD``: the module's own parameters, noised."""
    noise_MD = torch.randn(M, subset.D, generator=torch.Generator().manual_seed(2))
    return subset.take(module) + 0.3 * noise_MD


def images(B: int) -> Tensor:
    return torch.randn(B, *IMAGE, generator=torch.Generator().manual_seed(B))


@functools.cache
def cut(model: str, spec: str) -> tuple[nn.Module, Subset, SharedTrunk]:
    module = made(MAKE[model])
    subset = choose(module, spec)
    return module, subset, partition(module, subset, torch.zeros(2, *IMAGE))


def quietly_split(module: nn.Module, subset: Subset) -> SharedTrunk:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return partition(module, subset, images(2))
