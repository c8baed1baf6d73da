"""The autoencoder: coordinates in the span to a few latents and back."""

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.config import Autoencoder as Settings
from bend_ray.data.training import Progress
from bend_ray.errors import TrainingError


class Autoencoder(nn.Module):
    """``c_SR -> z_SZ -> c_SR``. Both ways are a linear map, which starts as principal components, plus a small network,
    which starts at zero: training begins at the best linear autoencoder. ``z_SZ`` leaves and enters with mean
    0 and standard deviation 1 over the snapshots."""

    spread_R: Tensor
    mean_Z: Tensor
    std_Z: Tensor

    def __init__(self, rank: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.encode_linear, self.decode_linear = nn.Linear(rank, latent), nn.Linear(latent, rank)
        self.encode_rest, self.decode_rest = _network(rank, latent, hidden), _network(latent, rank, hidden)
        self.register_buffer("spread_R", torch.ones(rank))
        self.register_buffer("mean_Z", torch.zeros(latent))
        self.register_buffer("std_Z", torch.ones(latent))

    def encode(self, c_SR: Tensor) -> Tensor:
        """Latents ``z_SZ``, normalised."""
        return (self._raw(c_SR) - self.mean_Z) / self.std_Z

    def decode(self, z_SZ: Tensor) -> Tensor:
        """Coordinates ``c_SR`` of normalised latents."""
        return self._coordinates(z_SZ * self.std_Z + self.mean_Z)

    def _raw(self, c_SR: Tensor) -> Tensor:
        w_SR = c_SR / self.spread_R
        return self.encode_linear(w_SR) + self.encode_rest(w_SR)

    def _coordinates(self, raw_SZ: Tensor) -> Tensor:
        return (self.decode_linear(raw_SZ) + self.decode_rest(raw_SZ)) * self.spread_R


def _network(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)


def fit(c_SR: Tensor, settings: Settings, seed: int, progress: Progress | None = None) -> Autoencoder:
    """Train an autoencoder on coordinates of snapshots (on their device) and return it in eval mode.

    The loss is the unexplained share of the variance. Noise on the latents (``settings.noise``, in units of their
    spread) makes neighbours of a latent decode to neighbours of the snapshot. Raises TrainingError if the loss is not
    finite.
    """
    S, R = c_SR.shape
    with seeds.seeded(seed, "autoencoder"):
        model = Autoencoder(R, min(settings.latent, R), settings.hidden)
    with torch.no_grad():  # principal components, for coordinates come in order of variance
        for linear in (model.encode_linear, model.decode_linear):
            linear.weight.copy_(torch.eye(*linear.weight.shape))
            linear.bias.zero_()
        model.spread_R.copy_(c_SR.square().mean(0).sqrt())
    model = model.to(c_SR.device)
    variance = c_SR.square().sum(1).mean()
    generator = seeds.generator_for(seed, "autoencoder", "batches")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(settings.iterations, 1))
    size = min(settings.batch_size, S)
    for step in range(settings.iterations):
        batch_BR = c_SR[torch.randperm(S, generator=generator)[:size].to(c_SR.device)]
        raw_BZ = model._raw(batch_BR)
        noise_BZ = torch.randn(raw_BZ.shape, generator=generator).to(c_SR.device)
        # Noise in units of the latents' own spread: they would otherwise grow until it no longer mattered.
        noise_BZ = settings.noise * raw_BZ.detach().std(0, correction=0) * noise_BZ
        loss = (model._coordinates(raw_BZ + noise_BZ) - batch_BR).square().sum(1).mean() / variance
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
