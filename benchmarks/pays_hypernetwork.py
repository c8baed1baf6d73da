"""A network that makes a head for a trunk from closed-form heads and class means there."""

from collections.abc import Sequence

import torch
from pays_heads import Statistics
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray import seeds


class Hypernetwork(nn.Module):
    """A head from closed-form heads and class means, entry by entry: what it adds to the linear discriminant does not
    depend on the order of features (exchangeable layers: Hartford et al. 2018)."""

    def __init__(self, inputs: int, hidden: int = 32) -> None:
        super().__init__()
        self.enter, self.mix = nn.Linear(inputs, hidden), nn.Linear(4 * hidden, hidden)
        self.leave = nn.Linear(hidden, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x_TKPI: Tensor) -> Tensor:
        """``w_TKP`` in units of each feature's spread, features centred; the first input is what it starts from."""
        h = F.silu(self.enter(x_TKPI))
        pooled = [h, *(h.mean(axes, keepdim=True).expand_as(h) for axes in ((2,), (1,), (1, 2)))]
        h = F.silu(self.mix(torch.cat(pooled, dim=-1)))
        return x_TKPI[..., 0] + self.leave(h)[..., 0]


def fitted(
    x_TKPI: Tensor, phi_TBF: Tensor, label_B: Tensor, iterations: int, seed: int, trunks: int = 4, rows: int = 256
) -> Hypernetwork:
    """Trained on the NLL of its heads on rows of the seen trunks; ``phi_TBF``: features, standardised."""
    with seeds.seeded(seed, "hypernetwork"):
        network = Hypernetwork(x_TKPI.shape[-1])
    stream = seeds.generator_for(seed, "hypernetwork", "batches")
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        of = torch.randint(len(x_TKPI), (trunks,), generator=stream)
        index_B = torch.randint(len(label_B), (rows,), generator=stream)
        w_TKP = network(x_TKPI[of])
        logits_TBK = torch.einsum("tbf,tkf->tbk", phi_TBF[of][:, index_B], w_TKP[..., :-1]) + w_TKP[:, None, :, -1]
        loss = F.cross_entropy(logits_TBK.flatten(0, 1), label_B[index_B].repeat(trunks))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def inputs_of(heads: Sequence[Tensor], statistics: Statistics, spread_F: Tensor) -> Tensor:
    """``x_KPI``: closed-form heads and class means in units of each feature's spread; in the bias's column logits at
    the mean, and half the squared length of whitened class means."""
    columns = []
    for w_KP in heads:
        weight_KF, offset_K = statistics.parts(w_KP)
        columns.append(torch.cat([weight_KF * spread_F, offset_K[:, None]], dim=1))
    mean_KF = (statistics.class_KF - statistics.mean_F) / spread_F
    length_K = 0.5 * statistics.whitened_KF.square().sum(1, keepdim=True) / len(spread_F)
    columns.append(torch.cat([mean_KF, length_K], dim=1))
    is_bias_KP = torch.zeros_like(columns[0])
    is_bias_KP[:, -1] = 1
    return torch.stack([*columns, is_bias_KP], dim=-1).float()
