"""The generator: noise -> latents (diffusion) -> coordinates (autoencoder) -> parameters (span)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.config import Autoencoder as AutoencoderSettings
from bend_ray.config import Diffusion as DiffusionSettings
from bend_ray.config import Sample, placement_keys
from bend_ray.config.choices import SAMPLERS
from bend_ray.config.target import imported
from bend_ray.errors import ArtifactError, ConfigError
from bend_ray.generator import autoencoder as autoencoders
from bend_ray.generator import centres as centring
from bend_ray.generator import diffusion as diffusions
from bend_ray.generator.autoencoder import Autoencoder
from bend_ray.generator.centres import Centres
from bend_ray.generator.denoiser import Condition, condition
from bend_ray.generator.diffusion import Diffusion
from bend_ray.generator.gram import Gram
from bend_ray.generator.samplers import Path
from bend_ray.generator.span import FullSpace, SnapshotStream, Span, head_rows
from bend_ray.models.subset import Subset
from bend_ray.run import Run
from bend_ray.snapshots import parquet
from bend_ray.snapshots.snapshots import Fact, InMemorySnapshots
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import read_tensors

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
    centres: Centres | None = None
    """Of trunks, where there are several: what is taken off parameters before, and put back after."""

    @staticmethod
    def fit(subset: Subset, stream: SnapshotStream, facts: Sequence[Fact], held_out: int, run: Run) -> "Generator":
        """Fit span, autoencoder and diffusion model to the snapshots in ``stream``, one of ``facts`` for each row; the
        last ``held_out`` are only measured. The stream is passed over once (twice where there are several trunks, each
        with a centre), or, by a convolutional autoencoder, held whole.

        ``run`` says how, by which seed and on which device; ``run.progress`` counts the iterations of both trainings.
        Raises TrainingError where they do not stay finite.
        """
        S, autoencoder, T = len(facts) - held_out, run.config.autoencoder, run.config.trunks
        trunk_X = torch.tensor([fact.chain for fact in facts]) % T
        stream, centres = centring.taken_off(stream, trunk_X, S, T)
        gram = Gram.of(stream, S, autoencoder.scaling)
        space: Span | FullSpace
        if autoencoder.kind == "conv":
            space = FullSpace(gram.mean_D, gram.scale_D)
            c_XR = space.encode(torch.cat([theta_Xd for _, theta_Xd in stream()], dim=1))
        else:
            space, c_XR = gram.span(head_rows(stream, S), autoencoder.explained)
        told = condition(facts[:S], centres.trunk_S if centres else None)
        fitted = replace(Generator.fit_in(subset, space, c_XR[:S], run, told), centres=centres)
        error_X = fitted.reconstruction_errors(c_XR, gram.length_X)
        for name, rows in (("train", slice(S)), ("held_out", slice(S, None))):
            fitted.facts[f"unexplained_{name}"] = (error_X[rows].sum() / gram.length_X[rows].sum()).item()
        fitted.facts["snapshots"] = S
        fitted.facts["parts"] = facts[S - 1].chain + 1  # of the snapshots' files; some may hold none
        return fitted

    @staticmethod
    def fit_in(
        subset: Subset,
        span: Span | FullSpace,
        c_SR: Tensor,
        run: Run,
        condition: Condition | None = None,
        callback: Callable[["Generator"], object] | None = None,
        calls: int = 1,
    ) -> "Generator":
        """`fit` where the span is known: autoencoder and diffusion model on the snapshots' coordinates ``c_SR`` in it.

        ``callback`` is called with the generator as it is after each of ``calls`` equal pieces of the diffusion model's
        training. Raises TrainingError as `fit`.
        """
        autoencoder, diffusion, seed, progress = run.config.autoencoder, run.config.diffusion, run.seed, run.progress
        total = autoencoder.iterations + diffusion.iterations

        def diffusion_progress(done: int, _: int) -> None:
            if progress is not None:
                progress(autoencoder.iterations + done, total)

        c_SR, placed = c_SR.to(run.device), span.to(run.device)
        coder = autoencoders.fit(c_SR, autoencoder, seed, progress and (lambda done, _: progress(done, total)))
        facts: dict[str, Any] = {
            "rank": span.R,
            "latent": min(autoencoder.latent, span.R),
            "chains": condition.chains if condition is not None else 0,
            **({"trunks": run.config.trunks} if run.config.trunks > 1 else {}),
            "autoencoder": autoencoder.model_dump(mode="json"),
            "diffusion": diffusion.model_dump(mode="json", exclude=placement_keys(DiffusionSettings)),
        }

        def on_model(model: Diffusion) -> None:
            if callback is not None:
                callback(Generator(subset, placed, coder, model, facts))

        trained = (diffusion, seed, diffusion_progress, on_model, calls, condition, run.config.trunks)
        model = diffusions.fit(coder.encode(c_SR), *trained)
        return Generator(subset, placed, coder, model, facts)

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
        return centring.put_back(self.centres, self.span.decode(c_MR, sample.outside, noise), self.trunks_of(ids))

    def trunks_of(self, ids: Sequence[int]) -> Tensor:
        """Number of the trunk of each of the members ``ids``: they go to all trunks in turn."""
        return torch.tensor(list(ids)) % (self.centres.trunks if self.centres else 1)

    @torch.no_grad()
    def coordinates(self, ids: Sequence[int], seed: int, sample: Sample) -> Tensor:
        """``c_MR`` of the members ``ids`` in the span, without what lies outside it; see `sample`."""
        device = self.span.mean_D.device
        generators = [seeds.generator_for(seed, "member", i) for i in ids]
        Z = len(self.autoencoder.mean_Z)
        z_MZ = torch.stack([torch.randn(Z, generator=generator) for generator in generators]).to(device)
        z_MZ = sample.temperature * z_MZ
        path = Path.of(self.diffusion.alpha_T, self.diffusion.sigma_T, sample.steps)
        denoise = self.diffusion.denoise(sample.steps, self._condition(ids, sample), sample.guidance)
        sampler, extra = SAMPLERS[sample.sampler], dict[str, Any]()
        if sampler.noise == "eta":
            extra["eta"] = sample.eta
        if sampler.noise == "always" or extra.get("eta"):
            drawn = [torch.randn(sample.steps, Z, generator=g) for g in generators]
            extra["noise_NMZ"] = sample.temperature * torch.stack(drawn, dim=1).to(device)
        z_MZ = imported(sampler.sample, "sample.sampler", ConfigError)(denoise, z_MZ, path, **extra)
        assert not isinstance(sample.spread, str)  # the stage knows by then
        return sample.spread * self.autoencoder.decode(z_MZ)

    def _condition(self, ids: Sequence[int], sample: Sample) -> Condition | None:
        """The condition of the members ``ids``: the loss that is wanted, each chain in turn, and their trunk."""
        if not self.diffusion.conditional:
            return None
        wanted = Condition.none(len(ids), trunk_B=self.trunks_of(ids) if self.centres else None)
        if sample.wanted_loss is not None:
            wanted.loss_B.fill_(sample.wanted_loss)
        if self.diffusion.denoiser.chain is not None:
            wanted = replace(wanted, chain_B=torch.tensor(list(ids)) % self.facts["chains"])
        return wanted.to(self.span.mean_D.device)

    @torch.no_grad()
    def encode(self, theta_SD: Tensor, trunk_S: Tensor | None = None) -> Tensor:
        """Latents ``z_SZ`` of parameters, on the CPU: mean 0 and standard deviation 1 over the snapshots fitted."""
        theta_SD = centring.off(self.centres, theta_SD.to(self.span.mean_D.device), trunk_S)
        return self.autoencoder.encode(self.span.encode(theta_SD)).cpu()

    @torch.no_grad()
    def decode(self, z_MZ: Tensor, trunk_M: Tensor | None = None) -> Tensor:
        """``theta_MD`` of normalised latents, on the CPU."""
        theta_MD = self.span.decode(self.autoencoder.decode(z_MZ.to(self.span.mean_D.device)))
        return centring.put_back(self.centres, theta_MD, trunk_M).cpu()

    @torch.no_grad()
    def reconstruction_errors(self, c_XR: Tensor, length_X: Tensor) -> Tensor:
        """Squared distance of snapshots from what encoding and decoding makes of them, standardised; ``length_X`` is
        the squared length of each."""
        device = self.span.mean_D.device
        again_XR = self.autoencoder.decode(self.autoencoder.encode(c_XR.to(device))).cpu()
        inside_X = (c_XR.double() - again_XR).square().sum(1)
        # The rest of each is orthogonal to the span.
        return inside_X + (length_X - c_XR.double().square().sum(1)).clamp_min(0)

    def to(self, device: torch.device | str) -> "Generator":
        span, coder, model = self.span.to(device), self.autoencoder.to(device), self.diffusion.to(device)
        return Generator(self.subset, span, coder, model, self.facts, self.centres and self.centres.to(device))

    def state(self) -> dict[str, Tensor]:
        """All tensors by name: what `load` reads. A span's snapshots are not among them."""
        names = ("mean_D", "scale_D", *(("weights_SR",) if isinstance(self.span, Span) else ()))
        span = {name: getattr(self.span, name) for name in names} | (self.centres.state() if self.centres else {})
        return span | _prefixed("autoencoder", self.autoencoder) | _prefixed("diffusion", self.diffusion)

    @staticmethod
    def load(folder: Folder, stream: InMemorySnapshots | parquet.ShardedSnapshots | None = None) -> "Generator":
        """The generator of the run in ``folder``, with the snapshots that its members are combinations of: ``stream``,
        where they are there already.

        Raises ArtifactError where one is missing, broken or forged.
        """
        where = folder / "generator"
        manifest = artifacts.load(where, "generator")
        facts = manifest.facts
        tensors, _ = read_tensors(where, FILE)
        if "diffusion.reach" in tensors:  # its name in 0.1
            tensors["diffusion.clip"] = tensors.pop("diffusion.reach")
        try:
            subset = Subset.from_json(facts["subset"])
            settings = AutoencoderSettings.model_validate(facts["autoencoder"])
            coder = autoencoders.make(settings, int(facts["rank"]))
            chains, diffusion = int(facts["chains"]), DiffusionSettings.model_validate(facts["diffusion"])
            count = int(facts["parts"])
            centres = Centres.read(tensors, int(facts.get("trunks", 1)), int(facts["snapshots"]), subset.D)
            model = Diffusion(len(coder.mean_Z), diffusion, chains, centres.trunks if centres else 1)
            if not 1 <= chains <= count:
                raise ValueError(f"chains: {chains} in {count} shards")
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
            raise ArtifactError(f"{where}: config.json and {FILE} do not describe one generator ({why})") from None
        if weights_SR is not None:
            stream = parquet.stream(folder / "snapshots", count) if stream is None else stream
            made_of, here = manifest.inputs.get("snapshots"), artifacts.read_manifest(folder / "snapshots", "snapshots")
            other = made_of is not None and here is not None and here.digest != made_of
            if other or stream.subset != subset or len(next(stream())[1]) != len(weights_SR):
                raise ArtifactError(f"{where}: was not fitted on the snapshots in {folder / 'snapshots'}")
            centred = centres.off_stream(stream, centres.trunk_S) if centres else stream
            space = Span(space.mean_D, space.scale_D, centred, weights_SR)
        return Generator(subset, space, coder, model, facts, centres)


def _prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
