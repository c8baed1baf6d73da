"""The generator: noise -> latents (diffusion) -> coordinates (autoencoder) -> parameters (span)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray import artifacts, seeds
from bend_ray.config import Autoencoder as AutoencoderSettings
from bend_ray.config import Diffusion as DiffusionSettings
from bend_ray.config import Sample, placement_keys
from bend_ray.data.training import Progress
from bend_ray.errors import ArtifactError
from bend_ray.folders import Folder
from bend_ray.generator import autoencoder as autoencoders
from bend_ray.generator import diffusion as diffusions
from bend_ray.generator import samplers
from bend_ray.generator.autoencoder import Autoencoder
from bend_ray.generator.denoiser import Condition, condition
from bend_ray.generator.diffusion import Diffusion
from bend_ray.generator.gram import Gram
from bend_ray.generator.samplers import Path
from bend_ray.generator.span import Blocks, FullSpace, Span, first
from bend_ray.tensors import read_tensors
from bend_ray.weights import parts
from bend_ray.weights.snapshots import Fact, Held
from bend_ray.weights.subset import Subset

FILE = "model.safetensors"


@dataclass(frozen=True)
class Generator:
    """Everything between noise and ``theta_MD``."""

    subset: Subset
    span: Span | FullSpace
    autoencoder: Autoencoder
    diffusion: Diffusion
    facts: dict[str, Any]
    """What the networks are built from, and what was measured when they were fitted."""

    @staticmethod
    def fit(
        subset: Subset,
        blocks: Blocks,
        facts: Sequence[Fact],
        held_out: int,
        autoencoder: AutoencoderSettings,
        diffusion: DiffusionSettings,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> "Generator":
        """Fit all three parts to the snapshots in ``blocks``, one of ``facts`` for each row; the last ``held_out`` are
        only measured. The blocks are passed over once, or, by a convolutional autoencoder, held whole.

        ``progress`` counts the iterations of both trainings. Raises TrainingError where they do not stay finite.
        """
        S = len(facts) - held_out
        gram = Gram.of(blocks, S, autoencoder.scaling)
        space: Span | FullSpace
        if autoencoder.kind == "conv":
            space = FullSpace(gram.mean_D, gram.scale_D)
            c_XR = space.encode(torch.cat([theta_Xd for _, theta_Xd in blocks()], dim=1))
        else:
            space, c_XR = gram.span(first(blocks, S), autoencoder.explained)
        asked = condition(facts[:S])
        fitted = Generator.fit_in(subset, space, c_XR[:S], autoencoder, diffusion, seed, device, progress, asked=asked)
        lost_X = fitted.lost(c_XR, gram.length_X)
        for name, rows in (("train", slice(S)), ("held_out", slice(S, None))):
            fitted.facts[f"unexplained_{name}"] = (lost_X[rows].sum() / gram.length_X[rows].sum()).item()
        fitted.facts["snapshots"] = S
        fitted.facts["parts"] = facts[S - 1].chain + 1  # of the snapshots' files; some may hold none
        return fitted

    @staticmethod
    def fit_in(
        subset: Subset,
        span: Span | FullSpace,
        c_SR: Tensor,
        autoencoder: AutoencoderSettings,
        diffusion: DiffusionSettings,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        look: Callable[["Generator"], object] | None = None,
        looks: int = 1,
        asked: Condition | None = None,
    ) -> "Generator":
        """`fit` where the span is known: autoencoder and diffusion model on the snapshots' coordinates ``c_SR`` in it.

        ``look`` is shown the generator as it is after each of ``looks`` equal parts of the diffusion model's training.
        Raises TrainingError as `fit`.
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
            "chains": asked.chains if asked is not None else 0,
            "autoencoder": autoencoder.model_dump(mode="json"),
            "diffusion": diffusion.model_dump(mode="json", exclude=placement_keys(DiffusionSettings)),
        }

        def shown(model: Diffusion) -> None:
            if look is not None:
                look(Generator(subset, there, coder, model, facts))

        model = diffusions.fit(coder.encode(c_SR), diffusion, seed, later, shown, looks, asked)
        return Generator(subset, there, coder, model, facts)

    @torch.no_grad()
    def sample(self, ids: Sequence[int], seed: int, sample: Sample) -> Tensor:
        """``theta_MD`` of the members ``ids``, on the CPU. A member's noise follows from (seed, its id) alone.

        Its bits depend on the number of ids too, by rounding: sample whole blocks where they must be the same.
        """
        return self.parameters(self.coordinates(ids, seed, sample), ids, seed, sample).cpu()

    @torch.no_grad()
    def parameters(self, c_MR: Tensor, ids: Sequence[int], seed: int, sample: Sample) -> Tensor:
        """``theta_MD`` of the members ``ids``, whose coordinates are known."""
        noise = tuple(seeds.generator_for(seed, "outside", i) for i in ids) if sample.outside else ()
        return self.span.decode(c_MR, sample.outside, noise)

    @torch.no_grad()
    def coordinates(self, ids: Sequence[int], seed: int, sample: Sample) -> Tensor:
        """``c_MR`` of the members ``ids`` in the span, without what lies outside it; see `sample`."""
        device = self.span.mean_D.device
        generators = [seeds.generator_for(seed, "member", i) for i in ids]
        Z = len(self.autoencoder.mean_Z)
        z_MZ = torch.stack([torch.randn(Z, generator=generator) for generator in generators]).to(device)
        z_MZ = sample.temperature * z_MZ
        path = Path.of(self.diffusion.alpha_T, self.diffusion.sigma_T, sample.steps)
        denoise = self.diffusion.denoise(sample.steps, self._asked(ids, sample), sample.guidance)
        if sample.sampler == "dpm++":
            z_MZ = samplers.dpm_solver(denoise, z_MZ, path)
        elif sample.sampler == "heun":
            z_MZ = samplers.heun(denoise, z_MZ, path)
        else:
            noise_NMZ = None
            if sample.eta > 0 or sample.sampler == "ddpm":
                drawn = [torch.randn(sample.steps, Z, generator=g) for g in generators]
                noise_NMZ = sample.temperature * torch.stack(drawn, dim=1).to(device)
            if sample.sampler == "ddpm" and noise_NMZ is not None:
                z_MZ = samplers.ddpm(denoise, z_MZ, path, noise_NMZ)
            else:
                z_MZ = samplers.ddim(denoise, z_MZ, path, sample.eta, noise_NMZ)
        assert not isinstance(sample.spread, str)  # the stage knows by then
        return sample.spread * self.autoencoder.decode(z_MZ)

    def _asked(self, ids: Sequence[int], sample: Sample) -> Condition | None:
        """What is asked of the members ``ids``: the loss that is wanted, and each chain in turn."""
        if not self.diffusion.asks:
            return None
        device, asked = self.span.mean_D.device, Condition.none(len(ids))
        if sample.wanted_loss is not None:
            asked.loss_B.fill_(sample.wanted_loss)
        if self.diffusion.denoiser.chain is not None:
            asked = Condition(asked.loss_B, torch.tensor(list(ids)) % self.facts["chains"])
        return asked.to(device)

    @torch.no_grad()
    def encode(self, theta_SD: Tensor) -> Tensor:
        """Latents ``z_SZ`` of parameters, on the CPU: mean 0 and standard deviation 1 over the snapshots fitted."""
        return self.autoencoder.encode(self.span.encode(theta_SD.to(self.span.mean_D.device))).cpu()

    @torch.no_grad()
    def decode(self, z_MZ: Tensor) -> Tensor:
        """``theta_MD`` of normalised latents, on the CPU."""
        return self.span.decode(self.autoencoder.decode(z_MZ.to(self.span.mean_D.device))).cpu()

    @torch.no_grad()
    def lost(self, c_XR: Tensor, length_X: Tensor) -> Tensor:
        """Squared distance of snapshots from what encoding and decoding makes of them, standardised; ``length_X`` is
        the squared length of each."""
        device = self.span.mean_D.device
        again_XR = self.autoencoder.decode(self.autoencoder.encode(c_XR.to(device))).cpu()
        inside_X = (c_XR.double() - again_XR).square().sum(1)
        # The rest of each is orthogonal to the span.
        return inside_X + (length_X - c_XR.double().square().sum(1)).clamp_min(0)

    def to(self, device: torch.device | str) -> "Generator":
        span, coder, model = self.span.to(device), self.autoencoder.to(device), self.diffusion.to(device)
        return Generator(self.subset, span, coder, model, self.facts)

    def state(self) -> dict[str, Tensor]:
        """All tensors by name: what `load` reads. A span's snapshots are not among them."""
        names = ("mean_D", "scale_D", *(("weights_SR",) if isinstance(self.span, Span) else ()))
        span = {name: getattr(self.span, name) for name in names}
        return span | _named("autoencoder", self.autoencoder) | _named("diffusion", self.diffusion)

    @staticmethod
    def load(run: Folder, blocks: Held | parts.Parts | None = None) -> "Generator":
        """The generator of ``run``, with the snapshots that its members are combinations of: ``blocks``, where they are
        there already.

        Raises ArtifactError where one is missing, broken or forged.
        """
        folder = run / "generator"
        manifest = artifacts.load(folder, "generator")
        facts = manifest.facts
        tensors, _ = read_tensors(folder, FILE)
        try:
            subset = Subset.from_json(facts["subset"])
            settings = AutoencoderSettings.model_validate(facts["autoencoder"])
            coder = autoencoders.make(settings, int(facts["rank"]))
            chains, diffusion = int(facts["chains"]), DiffusionSettings.model_validate(facts["diffusion"])
            count = int(facts["parts"])
            model = Diffusion(len(coder.mean_Z), diffusion, chains)
            if not 1 <= chains <= count:
                raise ValueError(f"chains: {chains} in {count} parts")
            space: Span | FullSpace = FullSpace(tensors["mean_D"], tensors["scale_D"])
            if not space.mean_D.shape == space.scale_D.shape == (subset.D,):
                raise ValueError(f"mean_D is {tuple(space.mean_D.shape)}, not {(subset.D,)}")
            for prefix, module in (("autoencoder", coder), ("diffusion", model)):
                module.load_state_dict(
                    {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
                )
                module.eval().requires_grad_(False)
            weights_SR = tensors["weights_SR"] if settings.kind == "span" else None
            if weights_SR is not None and weights_SR.shape != (facts["snapshots"], facts["rank"]):
                raise ValueError(f"weights_SR is {tuple(weights_SR.shape)}")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())
            raise ArtifactError(f"{folder}: config.json and {FILE} do not describe one generator ({why})") from None
        if weights_SR is not None:
            blocks = parts.held(run / "snapshots", count) if blocks is None else blocks
            made_of, here = manifest.inputs.get("snapshots"), artifacts.read_manifest(run / "snapshots", "snapshots")
            other = made_of is not None and here is not None and here.digest != made_of
            if other or blocks.subset != subset or len(next(blocks())[1]) != len(weights_SR):
                raise ArtifactError(f"{folder}: was not fitted on the snapshots in {run / 'snapshots'}")
            space = Span(space.mean_D, space.scale_D, blocks, weights_SR)
        return Generator(subset, space, coder, model, facts)


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
