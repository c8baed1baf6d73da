"""Networks that do what the check of a classifier looks for, for grey images of 8x8 pixels and five classes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray.models import check
from bend_ray.models.subject import Subject

CLASSES = 5


class Plain(nn.Module):
    """Features and a head. ``change`` is called with features and module, ``end`` with logits, module and features."""

    def __init__(self, change: Any = None, end: Any = None, **parts: nn.Module) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.body = nn.Linear(64, 16)
        for name, part in parts.items():
            setattr(self, name, part)
        self.head = nn.Linear(16, CLASSES)
        self.change, self.end = change, end

    def forward(self, x: Tensor) -> Any:
        x = F.gelu(self.body(self.flat(x)))
        x = x if self.change is None else self.change(x, self)
        y = self.head(x)
        return y if self.end is None else self.end(y, self, x)


class SelfSet(nn.Module):
    """Sets shift and scale from its first batch, as ActNorm does, in the modes that it is told."""

    def __init__(self, modes: tuple[bool, ...] = (True, False), flag: str = "buffer") -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.ones(16))
        self.modes = modes
        if flag == "buffer":
            self.register_buffer("is_set", torch.tensor(False))
        else:
            self.is_set: Any = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_set and self.training in self.modes:
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                self.scale.copy_(1 / (x.std(0) + 1e-6))
            self.is_set = torch.tensor(True) if isinstance(self.is_set, Tensor) else True
        return (x + self.shift) * self.scale


class Experts(nn.Module):
    """Each of a few experts takes so many rows, the first ones that want it; others get nothing."""

    def __init__(self, room: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(16, 3)
        self.experts = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.room = room

    def forward(self, x: Tensor) -> Tensor:
        choice, out = self.router(x).argmax(1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (choice == number).nonzero().flatten()[: self.room]
            out[rows] = expert(x[rows])
        return x + out


class Leaky(nn.Module):
    """A spiking layer's potential, kept from one call to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.potential: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.potential = 0.5 * self.potential + x.detach()
        return x + self.potential


class StaysOn(nn.Dropout):
    """Monte Carlo dropout."""

    def train(self, mode: bool = True) -> "StaysOn":
        return super().train(True)


class Observer(nn.Module):
    """As quantisation observers do, follows the largest value in eval mode as well."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: Tensor
        self.register_buffer("largest", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        self.largest = 0.5 * self.largest + 0.5 * x.detach().abs().max()
        return (x / self.largest * 8).round() / 8


def images(rows: int = 40) -> Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def checked(make: Callable[[], nn.Module], shards: tuple[int, ...] = (32,), **keys: Any) -> Any:
    """The network, once it was tried."""

    def again() -> nn.Module:
        torch.manual_seed(1)
        return make().eval()

    module = again()
    given: dict[str, Any] = {"x": images(), "classes": CLASSES, "shards": shards}
    check.on_rows(Subject(module, again, **given | keys))
    return module
