"""Small networks of other fields, each with something that a classifier of images seldom has."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

CLASSES, WIDTH = 10, 12
PIXELS = 64


def body(inputs: int = PIXELS) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, WIDTH), nn.Tanh())


class _Odd(nn.Module):
    """A body, and beside a plain head something that is odd."""

    def __init__(self, inputs: int = PIXELS) -> None:
        super().__init__()
        self.body = body(inputs)
        self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH) / 3)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        return self.odd(features) + self.head(features)

    def odd(self, features: Tensor) -> Tensor:
        raise NotImplementedError


class InList(_Odd):
    """A parameter that a plain list holds as well, from which it is read."""

    def __init__(self, inputs: int = PIXELS) -> None:
        super().__init__(inputs)
        self.weights = [self.weight]

    def odd(self, features: Tensor) -> Tensor:
        return features @ self.weights[0].T


class InClosure(_Odd):
    """A parameter that a function has closed over."""

    def __init__(self) -> None:
        super().__init__()
        weight = self.weight
        self.product = lambda features: features @ weight.T

    def odd(self, features: Tensor) -> Tensor:
        return self.product(features)


class FilterAtEval(_Odd):
    """A filter that is worked out when eval() is called, as equivariant networks do."""

    def train(self, mode: bool = True) -> "FilterAtEval":
        super().train(mode)
        self.filter = None if mode else self.weight.detach().sin()
        return self

    def odd(self, features: Tensor) -> Tensor:
        return features @ (self.weight.sin() if self.filter is None else self.filter).T


class CacheAtFirstUse(_Odd):
    """Worked out at the first forward pass in eval mode, and dropped at train(), as Gaussian processes do."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Tensor | None = None

    def train(self, mode: bool = True) -> "CacheAtFirstUse":
        super().train(mode)
        if mode:
            self.cache = None
        return self

    def odd(self, features: Tensor) -> Tensor:
        if self.training:
            return features @ self.weight.sin().T
        if self.cache is None:
            self.cache = self.weight.detach().sin()
        return features @ self.cache.T


class CacheForEver(_Odd):
    """Worked out at the first forward pass, whatever the mode, and never again."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Tensor | None = None

    def odd(self, features: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.weight.detach().sin()
        return features @ self.cache.T


class SharedMemory(_Odd):
    """Another tensor on the memory of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.data = self.weight.data

    def odd(self, features: Tensor) -> Tensor:
        return features @ self.data.T


class WeightNorm(_Odd):
    def __init__(self, old: bool = False) -> None:
        super().__init__()
        of = torch.nn.utils.weight_norm if old else parametrizations.weight_norm
        self.normed = of(nn.Linear(WIDTH, CLASSES))

    def odd(self, features: Tensor) -> Tensor:
        return self.normed(features) + features @ self.weight.T


class Pruned(_Odd):
    def __init__(self) -> None:
        super().__init__()
        prune.l1_unstructured(self.head, "weight", amount=0.4)

    def odd(self, features: Tensor) -> Tensor:
        return features @ self.weight.T


class Hypernetwork(_Odd):
    """One network gives the weights of another."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(4))
        self.hyper = nn.Linear(4, WIDTH * CLASSES)

    def odd(self, features: Tensor) -> Tensor:
        return features @ (self.hyper(self.code).reshape(CLASSES, WIDTH) + self.weight).T


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient / (1 + x.abs()) ** 2


class Spiking(_Odd):
    """Leaky neurons over four steps; their state is set back at the start of each pass, or (``keeps``) is not."""

    def __init__(self, keeps: bool = False) -> None:
        super().__init__()
        self.keeps, self.state = keeps, torch.zeros(1, CLASSES)

    def odd(self, features: Tensor) -> Tensor:
        if not self.keeps or len(self.state) != len(features):
            self.state = torch.zeros(len(features), CLASSES)
        spikes = torch.zeros(len(features), CLASSES)
        for _ in range(4):
            self.state = 0.9 * self.state.detach() + features @ self.weight.T
            spike = _Spike.apply(self.state - 0.5)
            self.state = self.state - spike * 0.5
            spikes = spikes + spike
        return spikes


class NeuralODE(_Odd):
    """Euler steps."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Linear(CLASSES, CLASSES)

    def odd(self, features: Tensor) -> Tensor:
        state = features @ self.weight.T
        for _ in range(6):
            state = state + 0.2 * self.field(state).tanh()
        return state


class Experts(_Odd):
    """Each row goes to the expert that a gate chooses."""

    def __init__(self, by_index: bool = True) -> None:
        super().__init__()
        self.by_index = by_index
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList([nn.Linear(WIDTH, CLASSES) for _ in range(3)])

    def odd(self, features: Tensor) -> Tensor:
        share, chosen = self.gate(features).softmax(-1).max(-1)
        if not self.by_index:
            every = torch.stack([expert(features) for expert in self.experts], 1)
            picked = every.gather(1, chosen[:, None, None].expand(-1, 1, CLASSES))[:, 0]
            return picked * share[:, None] + features @ self.weight.T
        out = features @ self.weight.T
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(features[rows]) * share[rows, None])
        return out


class ActNorm(nn.Module):
    """Scale and shift of the first batch that it meets."""

    shift: Tensor
    log_scale: Tensor
    initialised: Tensor

    def __init__(self, width: int, in_buffers: bool = False) -> None:
        super().__init__()
        for name in ("shift", "log_scale"):
            if in_buffers:
                self.register_buffer(name, torch.zeros(width))
            else:
                self.register_parameter(name, nn.Parameter(torch.zeros(width)))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.initialised:
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                self.log_scale.copy_(-x.std(0).clamp_min(1e-3).log())
                self.initialised.fill_(True)
        return (x + self.shift) * self.log_scale.exp()


class Flow(_Odd):
    """A coupling layer after an ActNorm, as in normalising flows."""

    def __init__(self, in_buffers: bool = False) -> None:
        super().__init__()
        self.norm = ActNorm(WIDTH, in_buffers)
        self.coupling = nn.Linear(WIDTH // 2, WIDTH)

    def odd(self, features: Tensor) -> Tensor:
        first, second = self.norm(features).chunk(2, -1)
        scale, shift = self.coupling(first).chunk(2, -1)
        return torch.cat([first, second * scale.tanh().exp() + shift], -1) @ self.weight.T


class Complex(_Odd):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(WIDTH, CLASSES, dtype=torch.complex64) / 4)

    def odd(self, features: Tensor) -> Tensor:
        spectrum = torch.fft.fft(features) @ self.mix
        return spectrum.abs() + features @ self.weight.T


class Quantised(_Odd):
    """Made for quantisation-aware training: observers learn ranges in eval mode, too."""

    def __init__(self, observes: bool = True) -> None:
        super().__init__()
        from torch.ao import quantization

        self.fake = quantization.FakeQuantize(
            observer=quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=255
        )
        if not observes:
            self.fake(torch.tensor([-1.0, 1.0]))
            quantization.disable_observer(self.fake)

    def odd(self, features: Tensor) -> Tensor:
        return self.fake(features) @ self.weight.T


class Recurrent(_Odd):
    """An LSTM over the features."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, CLASSES, batch_first=True)

    def odd(self, features: Tensor) -> Tensor:
        return self.lstm(features.unflatten(-1, (-1, 3)))[0][:, -1] + features @ self.weight.T


class SpectralNorm(_Odd):
    def __init__(self) -> None:
        super().__init__()
        self.normed = parametrizations.spectral_norm(nn.Linear(WIDTH, CLASSES))

    def odd(self, features: Tensor) -> Tensor:
        return self.normed(features) + features @ self.weight.T


class PlainStatistics(_Odd):
    """A running mean that is a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(WIDTH)

    def odd(self, features: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * features.detach().mean(0)
        return (features - self.mean) @ self.weight.T


class PlainProjection(_Odd):
    """Random, and a plain attribute, so that every seed has another one."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.randn(WIDTH, WIDTH) / 3

    def odd(self, features: Tensor) -> Tensor:
        return features @ self.projection @ self.weight.T


class HalfInside(_Odd):
    """A part in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(WIDTH, CLASSES).bfloat16().requires_grad_(False)

    def odd(self, features: Tensor) -> Tensor:
        return self.low(features.bfloat16()).float() + features @ self.weight.T


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class Gated(nn.Module):
    """A branch behind a gate that is 0 at first, as residual networks have them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.gate, self.head = inner, nn.Parameter(torch.zeros(CLASSES)), nn.Linear(PIXELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) + self.gate * self.inner(x)
