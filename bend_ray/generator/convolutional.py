"""The literature's autoencoder, for comparison with the one in the span: all D parameters, as a signal of one dimension
(p-diff, arXiv 2402.13144)."""

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray.generator.latents import Normalised

KERNEL = 7
MULTIPLES = (1, 2, 4, 4, 0.5)
"""Channels after each convolution, in units of the first one's: 64, 128, 256, 256, 32 as published."""
STRIDE = 2 ** len(MULTIPLES)
"""Values of the signal for one value of what the last convolution leaves."""


class ConvAutoencoder(Normalised):
    """``x_SD -> z_SZ -> x_SD``. Five convolutions that halve the signal and a linear map to the latents, and back so.

    ``x_SD`` are standardised parameters, which zeros fill up to a multiple of 32; what is decoded beyond D is cut off.
    There are no norms: batch norm ties a member to its neighbours in the batch, group norm forgets how large a row is.
    """

    def __init__(self, size: int, latent: int, channels: int) -> None:
        super().__init__(latent)
        self.size = size
        self.length = -(-size // STRIDE)
        widths = [1, *(max(1, round(channels * multiple)) for multiple in MULTIPLES)]
        self.last = widths[-1]
        self.encode_convs = nn.ModuleList(_halve(i, o) for i, o in itertools.pairwise(widths))
        self.encode_last = nn.Linear(self.last * self.length, latent)
        self.decode_first = nn.Linear(latent, self.last * self.length)
        self.decode_convs = nn.ModuleList(_double(i, o) for i, o in itertools.pairwise(widths[::-1]))

    def _raw(self, c_SR: Tensor) -> Tensor:
        h = F.pad(c_SR, (0, self.length * STRIDE - self.size))[:, None]
        for conv in self.encode_convs:
            h = F.silu(conv(h))
        return self.encode_last(h.flatten(1))

    def _coordinates(self, raw_SZ: Tensor) -> Tensor:
        h = self.decode_first(raw_SZ).unflatten(1, (self.last, self.length))
        for conv in self.decode_convs:
            h = conv(F.silu(h))
        return h[:, 0, : self.size]


def _halve(inputs: int, outputs: int) -> nn.Conv1d:
    conv = nn.Conv1d(inputs, outputs, KERNEL, stride=2, padding=KERNEL // 2)
    _start(conv, inputs * KERNEL)
    return conv


def _double(inputs: int, outputs: int) -> nn.ConvTranspose1d:
    conv = nn.ConvTranspose1d(inputs, outputs, KERNEL, stride=2, padding=KERNEL // 2, output_padding=1)
    _start(conv, inputs * KERNEL / 2)  # each value reads every other tap
    return conv


def _start(conv: nn.Conv1d | nn.ConvTranspose1d, fan_in: float) -> None:
    """So that the signal leaves as large as it came (He et al. 2015): torch's own start shrinks it tenfold."""
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=(2 / fan_in) ** 0.5)
    nn.init.zeros_(conv.bias)
