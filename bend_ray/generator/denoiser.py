"""The denoiser: the network of the diffusion model, and the conditions it can be given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray.snapshots.snapshots import Fact

TIME_WIDTH = 64


@dataclass(frozen=True)
class Condition:
    """What each latent is conditioned on: a validation loss, a chain, or nothing; and always its trunk, where there are
    several."""

    loss_B: Tensor
    """Standardised: 0 is the snapshots' mean, 1 a standard deviation worse; NaN: any."""
    chain_B: Tensor
    """Number of a chain among those that were seen; -1: any."""
    trunk_B: Tensor | None = None
    """Number of a trunk, where there are several."""

    @property
    def chains(self) -> int:
        """How many chains were seen, where each row has its own."""
        return int(self.chain_B.max()) + 1

    def of(self, row_b: Tensor) -> "Condition":
        trunk_b = self.trunk_B[row_b] if self.trunk_B is not None else None
        return Condition(self.loss_B[row_b], self.chain_B[row_b], trunk_b)

    def drop(self, loss_B: Tensor, chain_B: Tensor) -> "Condition":
        """The same without the loss where ``loss_B``, without the chain where ``chain_B``."""
        loss_B, chain_B = self.loss_B.masked_fill(loss_B, torch.nan), self.chain_B.masked_fill(chain_B, -1)
        return Condition(loss_B, chain_B, self.trunk_B)

    def to(self, device: torch.device | str) -> "Condition":
        trunk_B = self.trunk_B.to(device) if self.trunk_B is not None else None
        return Condition(self.loss_B.to(device), self.chain_B.to(device), trunk_B)

    @staticmethod
    def none(rows: int, device: torch.device | str = "cpu", trunk_B: Tensor | None = None) -> "Condition":
        """That of any loss and any chain, on the trunks ``trunk_B`` where there are several."""
        loss_B, chain_B = torch.full((rows,), torch.nan, device=device), torch.full((rows,), -1, device=device)
        return Condition(loss_B, chain_B, trunk_B)


def condition(facts: Sequence[Fact], trunk_S: Tensor | None = None) -> Condition:
    """What is known of the snapshots: their validation loss, standardised, and their chain, counted from 0; and the
    trunks ``trunk_S`` that they are of, where there are several."""
    loss_S = torch.tensor([fact.val_loss for fact in facts], dtype=torch.float64)
    loss_S = (loss_S - loss_S.mean()) / loss_S.std(correction=0).clamp_min(1e-12)
    order = {chain: i for i, chain in enumerate(dict.fromkeys(fact.chain for fact in facts))}
    return Condition(loss_S.float(), torch.tensor([order[fact.chain] for fact in facts]), trunk_S)


class Denoiser(nn.Module):
    """What the diffusion model predicts, from noisy latents ``z_BZ`` and timesteps ``t_B``: residual blocks, each
    modulated by the time and, where it takes them, by the conditions."""

    def __init__(
        self, latent: int, hidden: int, blocks: int, takes_loss: bool = False, chains: int = 0, trunks: int = 1
    ) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, hidden), nn.SiLU())
        self.enter = nn.Linear(latent, hidden)
        self.blocks = nn.ModuleList([_Block(hidden) for _ in range(blocks)])
        self.leave = nn.Linear(hidden, latent)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.loss = nn.Sequential(nn.Linear(2, hidden), nn.SiLU(), nn.Linear(hidden, hidden)) if takes_loss else None
        self.chain = nn.Embedding(chains + 1, hidden) if chains else None
        self.trunk = nn.Embedding(trunks, hidden) if trunks > 1 else None

    def forward(self, z_BZ: Tensor, t_B: Tensor, condition: Condition | None = None) -> Tensor:
        time_BH = self.time(_embed(t_B))
        if condition is not None and self.loss is not None:
            has_loss_B = ~condition.loss_B.isnan()
            time_BH = time_BH + self.loss(torch.stack([condition.loss_B.nan_to_num(), has_loss_B.float()], dim=1))
        if condition is not None and self.chain is not None:
            time_BH = time_BH + self.chain(condition.chain_B + 1)
        if condition is not None and self.trunk is not None:
            time_BH = time_BH + self.trunk(condition.trunk_B)
        h_BH = self.enter(z_BZ)
        for block in self.blocks:
            h_BH = block(h_BH, time_BH)
        return self.leave(F.silu(h_BH))


class _Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulate = nn.Linear(hidden, 2 * hidden)
        self.first, self.second = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, h_BH: Tensor, time_BH: Tensor) -> Tensor:
        scale_BH, shift_BH = self.modulate(time_BH).chunk(2, dim=-1)
        inner_BH = self.first(self.norm(h_BH) * (1 + scale_BH) + shift_BH)
        return h_BH + self.second(F.silu(inner_BH))


def _embed(t_B: Tensor) -> Tensor:
    """Sinusoids of the timestep (Vaswani et al. 2017), periods from 2 pi to 2 pi times 10,000."""
    half = torch.arange(TIME_WIDTH // 2, device=t_B.device) / (TIME_WIDTH // 2)
    angles = t_B.float()[:, None] * torch.exp(-math.log(10_000) * half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
