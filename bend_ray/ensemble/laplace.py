"""Last-layer Laplace approximation of one trained classifier (Daxberger et al. 2021), as an ensemble of heads.

The posterior of the last linear layer's weights ``w`` is a Gaussian around the trained ones. Its precision is the
Kronecker-factored generalized Gauss-Newton matrix (Ritter et al. 2018) plus that of the prior:
``A (x) G / N + prior``, where A is the sum over training rows of ``phi phi^T`` (features and a 1), G that of
``diag(p) - p p^T``. The link is Monte Carlo: the mean of the softmax over 64 heads drawn from it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.ensemble import metrics, temperature
from bend_ray.ensemble.aggregate import abend
from bend_ray.ensemble.spill import Logits, Spill, parts_of, pieces
from bend_ray.models.output import logits

SAMPLES = 64
"""Heads that are drawn."""
PRIORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Prior precisions that are tried; the one of lowest NLL on validation rows, each at its own temperature, is taken."""


@dataclass(frozen=True)
class Laplace:
    """The posterior in its eigenbases: ``A = U a U^T``, ``G = V g V^T``."""

    w_KP: Tensor
    """The trained weights, the bias as the last column."""
    a_P: Tensor
    U_PP: Tensor
    g_K: Tensor
    V_KK: Tensor

    def heads(self, prior: float, seed: int) -> Tensor:
        """``w_SKP``: `SAMPLES` heads."""
        K, P = self.w_KP.shape
        noise_SKP = torch.randn(SAMPLES, K, P, generator=seeds.generator_for(seed, "laplace")).double()
        noise_SKP = noise_SKP / (self.g_K[:, None] * self.a_P + prior).sqrt()
        return self.w_KP + self.V_KK @ noise_SKP @ self.U_PP.T


def logits_of(w_SKP: Tensor, phi_BP: Tensor) -> Tensor:
    """``logits_SBK`` (float32) of heads for features with a 1."""
    return torch.einsum("bp,skp->sbk", phi_BP, w_SKP).float()


def last_linear(module: nn.Module, x: Tensor) -> nn.Linear | None:
    """The linear layer whose output is the logits for ``x``; None where there is none."""
    outputs: list[tuple[nn.Linear, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, output: outputs.append((layer, output)))
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        with torch.no_grad():
            logits_BK = logits(module(x))
    finally:
        for hook in hooks:
            hook.remove()
    last = [layer for layer, output in outputs if output.shape == logits_BK.shape and torch.equal(output, logits_BK)]
    return last[-1] if last else None


@torch.no_grad()
def features(module: nn.Module, layer: nn.Linear, x: Tensor) -> Tensor:
    """``phi_BP`` (float64, on the CPU): what ``layer`` reads for ``x``, and a 1."""
    read: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        module(x)
    finally:
        hook.remove()
    phi_BF = read[-1].double().cpu()
    return torch.cat([phi_BF, torch.ones(len(phi_BF), 1, dtype=torch.float64)], dim=1)


def fit(layer: nn.Linear, phi: Iterable[Tensor]) -> Laplace:
    """The posterior from the features of training rows, which come in batches ``phi_BP``."""
    weight_KF = layer.weight.detach().double().cpu()
    bias_K = torch.zeros(len(weight_KF)) if layer.bias is None else layer.bias.detach()
    w_KP = torch.cat([weight_KF, bias_K.double().cpu()[:, None]], dim=1)
    K, P = w_KP.shape
    rows, A_PP, G_KK = 0, torch.zeros(P, P, dtype=torch.float64), torch.zeros(K, K, dtype=torch.float64)
    for phi_BP in phi:
        p_BK = (phi_BP @ w_KP.T).softmax(-1)
        A_PP += phi_BP.T @ phi_BP
        G_KK += p_BK.sum(0).diag() - p_BK.T @ p_BK
        rows += len(phi_BP)
    a_P, U_PP = torch.linalg.eigh(A_PP)
    g_K, V_KK = torch.linalg.eigh(G_KK / max(rows, 1))
    return Laplace(w_KP, a_P.clamp_min(0), U_PP, g_K.clamp_min(0), V_KK)


def note(prior: float) -> str:
    """What was chosen and how, for people."""
    end = ", the largest: hardly any noise" if prior == PRIORS[-1] else ""
    return (
        f"prior precision {prior:g}{end}, of {PRIORS[0]:g} to {PRIORS[-1]:g} tried on validation rows; Kronecker"
        f" factors; mean of the softmax of {SAMPLES} heads"
    )


def chosen_prior(posterior: Laplace, phi_1BP: Logits, label_B: Tensor, seed: int) -> float:
    """The one of `PRIORS` of lowest NLL on validation rows, each at its own temperature; where equal the lowest."""

    def loss(prior: float) -> float:
        w_SKP = posterior.heads(prior, seed)
        parts = (abend(logits_of(w_SKP, phi_1bP[0])) for phi_1bP in parts_of(phi_1BP))
        log_1BK = Spill(prob_bK.clamp_min(metrics.FLOOR).log()[None] for prob_bK in parts)
        fitted = temperature.fit(log_1BK, label_B, seed)
        nll = [metrics.nll(fitted.apply(part_1bK), label_b) for part_1bK, label_b in pieces(log_1BK, label_B)]
        return torch.cat(nll).mean().item()

    return min(PRIORS, key=loss)
