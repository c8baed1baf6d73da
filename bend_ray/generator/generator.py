"""The generator: noise -> latents (diffusion) -> coordinates (autoencoder) -> parameters (span)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray import artifacts, seeds
from bend_ray.config import Autoencoder as AutoencoderSettings
from bend_ray.config import Diffusion as DiffusionSettings
from bend_ray.config import Sample
from bend_ray.data.training import Progress
from bend_ray.errors import ArtifactError
from bend_ray.folders import Folder
from bend_ray.generator import autoencoder as autoencoders
from bend_ray.generator import diffusion as diffusions
from bend_ray.generator import samplers
from bend_ray.generator import span as spans
from bend_ray.generator.autoencoder import Autoencoder
from bend_ray.generator.diffusion import Diffusion
from bend_ray.generator.span import Blocks, Span
from bend_ray.weights.subset import Subset

FILE = "model.safetensors"


@dataclass(frozen=True)
class Generator:
    """Everything between noise and ``theta_MD``."""

    subset: Subset
    span: Span
    autoencoder: Autoencoder
    diffusion: Diffusion
    facts: dict[str, Any]
    """Sizes that the networks are built from, and what was measured when they were fitted."""

    @staticmethod
    def fit(
        subset: Subset,
        blocks: Blocks,
        held_out_theta_SD: Tensor,
        autoencoder: AutoencoderSettings,
        diffusion: DiffusionSettings,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> "Generator":
        """Fit all three parts to the snapshots in ``blocks``; the withheld ones are only measured.

        ``progress`` counts the iterations of both trainings. Raises TrainingError where they do not stay finite.
        """
        span = spans.fit(blocks, autoencoder.explained)
        theta_SD = torch.cat([theta_Sd for _, theta_Sd in blocks()], dim=1)
        fitted = Generator.fit_in(subset, span, span.encode(theta_SD), autoencoder, diffusion, seed, device, progress)
        unexplained = {"train": fitted.unexplained(theta_SD), "held_out": fitted.unexplained(held_out_theta_SD)}
        fitted.facts.update({f"unexplained_{name}": share for name, share in unexplained.items()})
        return fitted

    @staticmethod
    def fit_in(
        subset: Subset,
        span: Span,
        c_SR: Tensor,
        autoencoder: AutoencoderSettings,
        diffusion: DiffusionSettings,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        look: Callable[["Generator"], object] | None = None,
        looks: int = 1,
    ) -> "Generator":
        """`fit` where the span is known: autoencoder and diffusion model on the snapshots' coordinates ``c_SR`` in it.

        ``look`` is shown the generator as it is after each of ``looks`` equal parts of the diffusion model's training.
        """
        total = autoencoder.iterations + diffusion.iterations

        def later(done: int, _: int) -> None:
            if progress is not None:
                progress(autoencoder.iterations + done, total)

        c_SR, there = c_SR.to(device), span.to(device)
        coder = autoencoders.fit(c_SR, autoencoder, seed, progress and (lambda done, _: progress(done, total)))
        facts: dict[str, Any] = {
            "rank": span.R,
            "latent": min(autoencoder.latent, span.R),
            "autoencoder_hidden": autoencoder.hidden,
            "denoiser_hidden": diffusion.hidden,
            "denoiser_blocks": diffusion.blocks,
            "schedule": diffusion.schedule,
            "steps": diffusion.steps,
        }

        def shown(model: Diffusion) -> None:
            if look is not None:
                look(Generator(subset, there, coder, model, facts))

        model = diffusions.fit(coder.encode(c_SR), diffusion, seed, later, shown, looks)
        return Generator(subset, there, coder, model, facts)

    @torch.no_grad()
    def sample(self, ids: Sequence[int], seed: int, sample: Sample) -> Tensor:
        """``theta_MD`` of the members ``ids``, on the CPU. A member's noise follows from (seed, its id) alone.

        Its bits depend on the number of ids too, by rounding: sample whole blocks where they must be the same.
        """
        return self.span.decode(self.coordinates(ids, seed, sample)).cpu()

    @torch.no_grad()
    def coordinates(self, ids: Sequence[int], seed: int, sample: Sample) -> Tensor:
        """``c_MR`` of the members ``ids`` in the span; see `sample`."""
        device = self.span.mean_D.device
        generators = [seeds.generator_for(seed, "member", i) for i in ids]
        Z = len(self.autoencoder.mean_Z)
        z_MZ = torch.stack([torch.randn(Z, generator=generator) for generator in generators]).to(device)
        eta = 1.0 if sample.sampler == "ddpm" else sample.eta
        noise_NMZ = None
        if eta > 0:
            noise_NMZ = torch.stack([torch.randn(sample.steps, Z, generator=g) for g in generators], dim=1).to(device)
        alpha_bar_T = self.diffusion.alpha_bar_T
        return self.autoencoder.decode(
            samplers.ddim(self.diffusion.velocity, z_MZ, alpha_bar_T, sample.steps, eta, noise_NMZ)
        )

    @torch.no_grad()
    def encode(self, theta_SD: Tensor) -> Tensor:
        """Latents ``z_SZ`` of parameters, on the CPU: mean 0 and standard deviation 1 over the snapshots fitted."""
        return self.autoencoder.encode(self.span.encode(theta_SD.to(self.span.mean_D.device))).cpu()

    @torch.no_grad()
    def decode(self, z_MZ: Tensor) -> Tensor:
        """``theta_MD`` of normalised latents, on the CPU."""
        return self.span.decode(self.autoencoder.decode(z_MZ.to(self.span.mean_D.device))).cpu()

    def unexplained(self, theta_SD: Tensor) -> float:
        """Share of the variance (standardised, about the mean of what was fitted) lost by encoding and decoding."""
        span = self.span.to("cpu")
        x_SD = span.standardise(theta_SD)
        lost = (x_SD - span.standardise(self.decode(self.encode(theta_SD)))).square().sum()
        return (lost / x_SD.square().sum().clamp_min(1e-12)).item()

    def to(self, device: torch.device | str) -> "Generator":
        span, coder, model = self.span.to(device), self.autoencoder.to(device), self.diffusion.to(device)
        return Generator(self.subset, span, coder, model, self.facts)

    def state(self) -> dict[str, Tensor]:
        """All tensors by name: what `load` reads."""
        span = {name: getattr(self.span, name) for name in ("mean_D", "scale_D", "basis_RD")}
        return span | _named("autoencoder", self.autoencoder) | _named("diffusion", self.diffusion)

    @staticmethod
    def load(folder: Folder) -> "Generator":
        """The generator in ``folder`` (RUN/generator). Raises ArtifactError where it is missing, broken or forged."""
        facts = artifacts.load(folder, "generator").facts
        tensors, _ = artifacts.read_tensors(folder, FILE)
        try:
            subset = Subset.from_json(facts["subset"])
            R, Z = int(facts["rank"]), int(facts["latent"])
            coder = Autoencoder(R, Z, int(facts["autoencoder_hidden"]))
            width, blocks = int(facts["denoiser_hidden"]), int(facts["denoiser_blocks"])
            model = Diffusion(Z, width, blocks, str(facts["schedule"]), int(facts["steps"]))
            span = Span(tensors["mean_D"], tensors["scale_D"], tensors["basis_RD"])
            if span.basis_RD.shape != (R, subset.D) or not span.mean_D.shape == span.scale_D.shape == (subset.D,):
                raise ValueError(f"basis_RD is {tuple(span.basis_RD.shape)}, not {(R, subset.D)}")
            for prefix, module in (("autoencoder", coder), ("diffusion", model)):
                module.load_state_dict(
                    {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
                )
                module.eval().requires_grad_(False)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())
            raise ArtifactError(f"{folder}: config.json and {FILE} do not describe one generator ({why})") from None
        return Generator(subset, span, coder, model, facts)


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
