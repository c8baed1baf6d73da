"""The autoencoder: coordinates to a few latents and back."""

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.config import Autoencoder as Settings
from bend_ray.errors import TrainingError
from bend_ray.generator.convolutional import ConvAutoencoder
from bend_ray.generator.latents import Normalised
from bend_ray.progress import ProgressCallback

START_LOG_VARIANCE = -6.0
"""Logarithm of the latents' variance at which a variational autoencoder starts."""


class SpanAutoencoder(Normalised):
    """Both ways are a linear map, which starts as principal components, plus a small network, which starts at zero:
    training begins at the best linear autoencoder."""

    spread_R: Tensor

    def __init__(self, rank: int, latent: int, hidden: int) -> None:
        super().__init__(latent)
        self.encode_linear, self.decode_linear = nn.Linear(rank, latent), nn.Linear(latent, rank)
        self.encode_rest, self.decode_rest = _network(rank, latent, hidden), _network(latent, rank, hidden)
        self.register_buffer("spread_R", torch.ones(rank))

    def start(self, c_SR: Tensor) -> None:
        """At principal components, for coordinates come in order of variance."""
        with torch.no_grad():
            for linear in (self.encode_linear, self.decode_linear):
                linear.weight.copy_(torch.eye(*linear.weight.shape))
                linear.bias.zero_()
            self.spread_R.copy_(c_SR.square().mean(0).sqrt())

    def _raw(self, c_SR: Tensor) -> Tensor:
        w_SR = c_SR / self.spread_R
        return self.encode_linear(w_SR) + self.encode_rest(w_SR)

    def _coordinates(self, raw_SZ: Tensor) -> Tensor:
        return (self.decode_linear(raw_SZ) + self.decode_rest(raw_SZ)) * self.spread_R


Autoencoder = SpanAutoencoder | ConvAutoencoder


def _network(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)


def make(settings: Settings, R: int) -> Autoencoder:
    """The untrained autoencoder for ``R`` coordinates."""
    Z = min(settings.latent, R)
    if settings.kind == "conv":
        return ConvAutoencoder(R, Z, settings.channels)
    return SpanAutoencoder(R, Z, settings.hidden)


def fit(c_SR: Tensor, settings: Settings, seed: int, progress: ProgressCallback | None = None) -> Autoencoder:
    """Train an autoencoder on coordinates of snapshots (on their device) and return it in eval mode.

    The loss is the unexplained share of the variance. Noise on the input (``settings.input_noise``, in units of each
    coordinate's spread) and on the latents (``settings.noise``, in units of theirs) makes neighbours of a latent decode
    to neighbours of the snapshot. With ``settings.kl`` it is variational (Kingma & Welling 2014): the latents' noise is
    learnt, and held against a standard normal. Raises TrainingError if the loss is not finite.
    """
    S, R = c_SR.shape
    with seeds.seeded(seed, "autoencoder"):
        model = make(settings, R)
        # Used in training only.
        log_variance = nn.Linear(R, len(model.mean_Z)).to(c_SR.device) if settings.kl else None
    if isinstance(model, SpanAutoencoder):
        model.start(c_SR.cpu())
    model = model.to(c_SR.device)
    Z = len(model.mean_Z)
    if log_variance is not None:
        nn.init.zeros_(log_variance.weight)
        nn.init.constant_(log_variance.bias, START_LOG_VARIANCE)
    variance, spread_R = c_SR.square().sum(1).mean(), c_SR.square().mean(0).sqrt()
    generator = seeds.generator_for(seed, "autoencoder", "batches")
    learnt = [*model.parameters(), *(log_variance.parameters() if log_variance is not None else ())]
    optimizer = torch.optim.AdamW(learnt, lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(settings.iterations, 1))
    size = min(settings.batch_size, S)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(c_SR.device)

    for step in range(settings.iterations):
        batch_BR = c_SR[torch.randperm(S, generator=generator)[:size].to(c_SR.device)]
        seen_BR = batch_BR
        if settings.input_noise:
            seen_BR = batch_BR + settings.input_noise * spread_R * noise(size, R)
        raw_BZ = model._raw(seen_BR)
        # In units of the latents' own spread: they would otherwise grow until it no longer mattered.
        noisy_BZ = raw_BZ + settings.noise * raw_BZ.detach().std(0, correction=0) * noise(size, Z)
        divergence: Tensor | float = 0.0
        if log_variance is not None:
            log_BZ = log_variance(seen_BR / spread_R.clamp_min(1e-12))
            noisy_BZ = noisy_BZ + (0.5 * log_BZ).exp() * noise(size, Z)
            divergence = 0.5 * (raw_BZ.square() + log_BZ.exp() - 1 - log_BZ).sum(1).mean()
        unexplained = (model._coordinates(noisy_BZ) - batch_BR).square().sum(1).mean() / variance
        loss = unexplained + settings.kl * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if not torch.isfinite(loss):
            raise TrainingError(f"autoencoder: the loss is not finite at step {step}; lower autoencoder.lr")
        if progress is not None:
            progress(step + 1, settings.iterations)
    with torch.no_grad():
        raw_SZ = model._raw(c_SR)
        model.mean_Z.copy_(raw_SZ.mean(0))
        model.std_Z.copy_(raw_SZ.std(0, correction=0).clamp_min(1e-6))
    return model.eval().requires_grad_(False)
