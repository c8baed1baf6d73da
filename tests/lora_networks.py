"""Networks of all kinds of layers that can have adapters."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bend_ray.config import Config
from bend_ray.models import lora_targets
from bend_ray.models.subset import Subset
from bend_ray.models.vit import ViT
from conftest import changed

LORA: dict[str, Any] = {"subset": "lora", "lora_rank": 2, "lr": 0.03}


def of(**collect: Any) -> Config:
    return changed(collect=LORA | collect)


class Attentive(nn.Module):
    """Self-attention, then attention to keys and values of another width: torch's own, in both of its layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.MultiheadAttention(8, 2, batch_first=True)
        self.two = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, 0]
        x = self.one(x, x, x, need_weights=False)[0]
        return self.head(self.two(x, x[..., :6], x[..., :4])[0].mean(1))


class Encoder(nn.Module):
    """Torch's own layers, which take a fast path of their own in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x[:, 0]).mean(1))


class Convolutional(nn.Module):
    """What peft 0.21 gets wrong or refuses: dilation, padding modes, groups, batch-norm statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.Conv2d(1, 8, 3, padding=2, dilation=2, padding_mode="reflect")
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2, padding_mode="circular")
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 3, groups=2)
        self.flat = nn.Conv1d(6, 6, 3, padding=1, padding_mode="replicate")
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.grouped(self.dilated(x).relu()))
        return self.head(self.flat(self.up(x).flatten(2)).mean(2))


class Tied(nn.Module):
    """Two layers of one weight, one of weight norm, and a forward pass that says len(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.normed = parametrizations.weight_norm(nn.Linear(64, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x[:, 0]).relu())
        return self.head(self.normed(x.reshape(len(x), 64)).relu())


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = parametrizations.spectral_norm(nn.Linear(64, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))


def vit() -> ViT:
    return ViT(5, 1, 8, width=12, depth=2, heads=2)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "attentive": Attentive,
    "encoder": Encoder,
    "convolutional": Convolutional,
    "tied": Tied,
}


def made(make: Callable[[], nn.Module], targets: str = "all", **keys: Any) -> tuple[nn.Module, nn.Module, Subset]:
    """A network, a copy that has adapters, and their subset."""
    torch.manual_seed(0)
    plain = make().eval().requires_grad_(False)
    for buffer in plain.buffers():
        if buffer.is_floating_point() and buffer.numel() > 1:
            buffer.uniform_(0.5, 1.5)  # statistics, as a trained network has them
    adapted = copy.deepcopy(plain)
    return plain, adapted, lora_targets.choose(adapted, "lora", of(lora_targets=targets, **keys))


def images(rows: int = 4) -> Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def of_merged(plain: nn.Module, adapted: nn.Module, subset: Subset, theta_MD: Tensor, x: Tensor) -> Tensor:
    """``logits_MBK``: each member's adapters merged into a plain copy."""
    assert subset.lora is not None
    found = []
    for theta_D in theta_MD:
        subset.put(adapted, theta_D)
        one = copy.deepcopy(plain)
        state = subset.lora.merge(adapted, one)
        again = copy.deepcopy(plain)
        again.load_state_dict(plain.state_dict() | state)
        assert torch.equal(again(x), one(x))
        found.append(one(x))
    subset.put(adapted, torch.zeros(subset.D))
    return torch.stack(found)
