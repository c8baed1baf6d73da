"""From snapshots to members: autoencoder, diffusion, sample."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bend_ray.config.choices import SamplerName
from bend_ray.config.section import Gpus, Section, added, placement


class Autoencoder(Section):
    kind: Literal["span", "conv"] = "span"
    """`span`: on coordinates in the snapshots' span, at a cost that does not grow with D; `conv`: a 1-D convolutional
    one on all D parameters, as in the literature, for comparison."""
    explained: float = Field(0.999, gt=0, le=1)
    """Share of the snapshots' variance that the span must keep; it sets the rank R."""
    scaling: Literal["tensor", "parameter", "none"] = "tensor"
    """What counts as much as what in the span: each tensor's values are divided by their spread over the snapshots, or
    each parameter's by its own, or none is."""
    latent: int = Field(32, ge=1)
    """Latent size Z, cut to R where that is smaller."""
    hidden: int = Field(128, ge=1)
    """Width of the hidden layers (`span`)."""
    channels: int = Field(64, ge=1)
    """Channels of the first convolution, which later ones multiply (`conv`)."""
    iterations: int = Field(150, ge=0)
    """Training steps."""
    batch_size: int = Field(64, ge=1)
    """Snapshots a step."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate (AdamW, cosine)."""
    noise: float = Field(0.05, ge=0)
    """Standard deviation of the noise added to normalised latents in training."""
    input_noise: float = Field(0.0, ge=0)
    """Standard deviation of the noise added to the input in training, in units of each coordinate's spread."""
    kl: float = Field(0.0, ge=0)
    """Weight of the Kullback-Leibler divergence from a standard normal (variational autoencoder); 0: a plain one."""


class Diffusion(Section):
    objective: Literal["ddpm", "flow"] = "ddpm"
    """DDPM, or rectified flow (flow matching) with the same network."""
    steps: int = Field(1000, ge=2)
    """Diffusion steps T in training."""
    schedule: Literal["linear", "cosine"] = "cosine"
    """Noise schedule of DDPM."""
    prediction: Literal["v", "epsilon", "x0"] = "v"
    """What DDPM's network is asked for: a mixture of both (v), the noise (epsilon; with a linear schedule it wants many
    more steps than 50, see the log), or the clean latent."""
    min_snr: float | None = Field(None, gt=0)
    """Gamma of DDPM's min-SNR weighting of timesteps, 5 in its paper; None: all count alike."""
    condition: tuple[Literal["val_loss", "chain"], ...] = ()
    """What the network is told of a snapshot, so that it can be asked for it: its validation loss, its chain."""
    hidden: int = Field(64, ge=2)
    """Width of the denoiser."""
    blocks: int = Field(3, ge=1)
    """Residual blocks of the denoiser."""
    iterations: int = Field(300, ge=1)
    """Training steps."""
    batch_size: int = Field(128, ge=1)
    """Latents a step (drawn with replacement, each with its own timestep)."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate (AdamW, cosine)."""
    ema: float = Field(0.995, ge=0, lt=1)
    """Decay of the weights' exponential moving average, which is what is saved and sampled."""
    gpus: Gpus = placement(0.0, ge=0)
    """GPUs that fitting the autoencoder and the diffusion model asks for."""


class Sample(Section):
    members: int = Field(64, ge=1)
    """Members M: classifiers to generate."""
    sampler: SamplerName = "ddim"
    """Sampler of the reverse process: dpm++ (2M) and heun are of second order, heun asks the network twice a step."""
    steps: int = Field(20, ge=1)
    """Reverse steps (at most diffusion.steps)."""
    eta: float = Field(0.0, ge=0)
    """DDIM's noise: 0 deterministic, 1 as much as DDPM."""
    temperature: float = Field(1.0, ge=0)
    """Standard deviation of all noise that sampling starts from and adds: below 1 members are likelier and more
    alike."""
    spread: Annotated[float, Field(ge=0)] | Literal["matched"] = 1.0
    """How far members lie from the mean of the snapshots, times as far as sampled: nearer to it they are better, and
    more alike. `matched`: no further than it takes to disagree as much as snapshots do on validation rows
    (for chains of one mode)."""
    outside: float = Field(0.0, ge=0)
    """Noise outside the snapshots' span as well: so many standard deviations of each parameter over the snapshots. At 0
    members are combinations of snapshots."""
    doubt: Literal["auto", "none", "laplace"] = added("auto", off="none")
    """Noise on the head of each member where training rows do not pin it down: the shape of a Laplace approximation's
    posterior, as large as leaves the loss on validation rows as it is. Members then disagree about inputs unlike the
    training rows. `auto`: laplace where the subset is one linear layer that gives the logits, else none."""
    distance: Literal["auto", "none", "cosine", "gaussian"] = added("auto", off="none")
    """How answers measure the distance of an input to the training rows, in the features that members share. `cosine`:
    the mean cosine distance to the 10 nearest of at most 5,000 rows; `gaussian`: the Mahalanobis distance to the
    nearest class, from at most 20,000 rows. `auto`: cosine where the subset is one layer that reads features of
    single rows, else none."""
    wanted_loss: float | None = None
    """Validation loss that members are asked to have, in standard deviations from the snapshots' mean, below 0 better
    than that (needs val_loss in diffusion.condition); None: any."""
    guidance: float = Field(1.0, ge=0)
    """Strength of the condition (classifier-free guidance): 1 as learnt, above 1 exaggerated."""
    keep: Literal["all", "best", "greedy"] = "all"
    """Which of the candidates become members: all, those of lowest loss on validation rows, or those that make the best
    ensemble there, some more than once (greedy selection)."""
    candidates: int | None = Field(None, ge=1)
    """Members to choose from (keep: best or greedy); None: four times `members`."""
    block: int = Field(16, ge=1)
    """Members sampled at once: the unit of work, the same for any number of actors."""
    reestimate_batch_norm: int = Field(0, ge=0)
    """Batches of 256 training rows on which the statistics of batch norms behind generated parameters are re-estimated
    for each member; 0: members share the base's."""
    actors: int = placement(2, ge=1)
    """Sampling actors."""
    cpus_per_actor: float = placement(1.0, gt=0)
    """CPU cores of an actor, and (rounded down, at least 1) its threads."""
    gpus_per_actor: Gpus = placement(0.0, ge=0)
    """GPUs of an actor; a fraction shares one."""

    @property
    def needs_validation(self) -> bool:
        """Whether sampling looks at validation rows."""
        return self.keep != "all" or self.spread == "matched" or self.doubt != "none" or self.distance != "none"

    @property
    def made(self) -> int:
        """Members sampled, before any are chosen."""
        return self.members if self.keep == "all" else self.candidates or 4 * self.members

    @model_validator(mode="after")
    def _enough_candidates(self) -> "Sample":
        if self.candidates is not None and self.keep == "all":
            raise ValueError("sample.candidates: all are kept; set sample.keep to best or greedy")
        if self.made < self.members:
            raise ValueError(f"sample.candidates: {self.candidates} is less than sample.members: {self.members}")
        return self
