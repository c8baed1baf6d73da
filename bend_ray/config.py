"""The configuration: plain frozen data, unknown keys rejected, one docstring a key.

The command line (``--section.key VALUE``), the table in ``docs/config.md`` and the checks all come from these models.
A key marked ``_placement`` says where work runs or a file lies, not what is computed (files enter by their content;
other threads or a GPU round otherwise): it is in no hash, so that a run begun on a laptop can be finished on a cluster.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bend_ray.errors import ConfigError

BASELINES = (
    "base_model",
    "weight_average",
    "random_originals",
    "noised_originals",
    "averaged_originals",
    "gaussian",
    "swag",
    "autoencoder_only",
)


SEARCHED = ("autoencoder", "diffusion", "sample")
"""Sections whose keys a search may vary."""


def _placement(default: Any, **limits: Any) -> Any:
    return Field(default, json_schema_extra={"placement": True}, **limits)


def _one_or_whole(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"{gpus:g} GPUs: Ray gives a fraction of one, or whole ones")
    return gpus


Gpus = Annotated[float, AfterValidator(_one_or_whole)]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


class Data(Section):
    name: Literal["digits"] | None = None
    """A built-in data set: `digits` (scikit-learn's 1,797 images of 8x8 pixels)."""
    path: str | None = _placement(None)
    """A Parquet file or folder in the Hugging Face Hub's layout; a folder of images, CLASS/x.png or train/CLASS/x.png,
    test/CLASS/x.png; an .npz with x_train, y_train, x_test, y_test; or a folder with x_train.npy, y_train.npy, ..."""
    target: str | None = _placement(None)
    """Your own, "package.module:callable" returning a torch Dataset of (image, label), a pair (x, y) of arrays or
    tensors, or a dict of either for train, validation and test."""
    kwargs: dict[str, Any] = _placement({})
    """Keyword arguments of the target."""
    image_column: str | None = None
    """Column of the images; None: found from the schema."""
    label_column: str | None = None
    """Column of the labels; None: found from the schema."""
    val_fraction: float = Field(0.15, gt=0, lt=1)
    """Share of the training split kept for validation (stratified), where the data has no validation split."""
    test_fraction: float = Field(0.25, gt=0, lt=1)
    """Share of all rows kept for testing (stratified), where the data has no test split."""
    train_limit: int | None = Field(None, ge=1)
    """Use only the first so many training rows (before the validation split); None: all."""
    test_limit: int | None = Field(None, ge=1)
    """Use only the first so many test rows; None: all."""
    in_memory: float = _placement(2.0, ge=0)
    """GiB of decoded images of one split that a process keeps in memory; more lie in a temporary file (in TMPDIR),
    which goes with the process."""

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if [self.name, self.path, self.target].count(None) != 2:
            raise ValueError("give exactly one of data.name, data.path and data.target")
        if self.kwargs and self.target is None:
            raise ValueError("data.kwargs: are those of data.target; give one, or leave them out")
        return self


class Classifier(Section):
    name: Literal["convnet", "mlp", "resnet18", "resnet34", "vit_tiny"] | None = None
    """A built-in classifier."""
    target: str | None = None
    """Your own, "package.module:callable" returning an nn.Module; called with `kwargs` and with those of classes,
    channels and image_size that its signature takes."""
    kwargs: dict[str, Any] = {}
    """Keyword arguments of the classifier."""
    weights: str | None = _placement(None)
    """A trained classifier's state_dict, as .safetensors or saved by torch (.pt, .pth; loaded with weights_only); the
    base is then not trained."""

    @model_validator(mode="after")
    def _one_source(self) -> "Classifier":
        if (self.name is None) == (self.target is None):
            raise ValueError("give exactly one of classifier.name and classifier.target")
        return self


class Base(Section):
    epochs: int = Field(20, ge=1)
    """Passes over the training split."""
    batch_size: int = Field(64, ge=2)
    """Rows a step, over all workers."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["onecycle", "cosine"] = "onecycle"
    """How the learning rate comes and goes: up for a third of the steps and down (one-cycle), or up for a twentieth and
    down along a cosine."""
    weight_decay: float = Field(1e-2, ge=0)
    """Decoupled weight decay."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the exponential moving average of weights and batch-norm statistics, which is what is then validated and
    saved; 0: the last ones are."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type in which the network runs (autocast; weights stay float32); auto: float32 on a CPU, bfloat16 on a GPU that
    has it."""
    shards: int = Field(2, ge=1)
    """Fixed pieces a step's batch is cut into and shared out over the workers; at most so many workers train the
    base. The bits depend on it, and not on the number of workers."""


class Augment(Section):
    """Random changes of training images, the label kept, for the base and for chains; all off by default."""

    crop: int = Field(0, ge=0)
    """Shift by at most so many pixels up or down and left or right, black coming in; 0: no shift."""
    flip: bool = False
    """Mirror each image left and right, or not, as a coin falls."""
    cutout: int = Field(0, ge=0)
    """Side, in pixels, of a square that takes the image's mean, its middle anywhere; 0: none."""


class Collect(Section):
    workers: int | tuple[int, int] = _placement(2)
    """Ray Train workers; [1, 8]: as many as there is room for, while the cluster grows and shrinks (elastic)."""
    chains: int = Field(48, ge=3)
    """Independent fine-tunings of the subset, each from the base on its own bootstrap."""
    snapshots_per_chain: int = Field(2, ge=1)
    """Snapshots kept of each chain, evenly spaced, the last at its end."""
    epochs: float = Field(2.0, gt=0)
    """Passes over the training split that one chain makes."""
    lr: float = Field(0.1, gt=0)
    """Learning rate of a chain: high, for it buys diversity."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """What trains a chain: AdamW without weight decay, or SGD with momentum 0.9, whose rates are other ones."""
    schedule: Literal["constant", "cyclic"] = "constant"
    """Learning rate of a chain: constant, or falling to 0 along a cosine before each snapshot and then high again."""
    batch_size: int = Field(64, ge=1)
    """Rows a step of a chain."""
    bootstrap: bool = True
    """Train each chain on rows drawn with replacement; false: on all rows, in an order of its own."""
    init: Literal["base", "fresh"] = "base"
    """Where a chain starts: at the base (all end in one mode), or with the subset initialised anew (each in its own
    mode)."""
    align: bool | None = None
    """Permute hidden units of each chain, which changes no function, so that chains of different modes lie as near to
    each other as they can; None: where init is fresh."""
    subset: str = "auto"
    """Parameters that vary: auto (norm+head where there are norms, else last_block), head, norm, norm+head, last_block,
    regex:..., or names joined by commas."""
    features: Literal["auto", "none", "float32", "bfloat16", "uint8"] = "auto"
    """What the frozen part of the classifier gives for each row is computed once and kept, as this type; chains then
    train what follows it, several at once. `auto`: float32 where that halves the multiplications of a step, unless rows
    are changed at random (`augment`); `none`: each step runs the whole classifier."""
    at_once: int = Field(16, ge=1)
    """Chains that train at once on kept features, where the graph says that this is fast; their number enters the bits,
    so it does not follow the machine."""
    max_memory: float = _placement(1.0, ge=0)
    """GiB that a worker's kept features may take in memory (on a GPU, there); more lie in a file of its temporary
    folder."""
    gate: float | None = Field(0.2, ge=0, le=1)
    """A snapshot whose validation accuracy lies more than this below the base's is dropped; None: none is."""
    held_out: int = Field(4, ge=1)
    """Whole chains (the last ones) withheld from the generator, to measure novelty and reconstruction honestly."""
    cpus_per_worker: float = _placement(1.0, gt=0)
    """CPU cores of a worker, and (rounded down, at least 1) its threads."""
    gpus_per_worker: Gpus = _placement(0.0, ge=0)
    """GPUs of a worker, from 0 to 1 or a whole number."""

    @property
    def seen_chains(self) -> int:
        """Chains whose snapshots the generator may see: the first ones."""
        return self.chains - self.held_out

    @property
    def aligned(self) -> bool:
        """Whether hidden units are permuted."""
        return self.init == "fresh" if self.align is None else self.align

    @property
    def fewest(self) -> int:
        """Workers that there must be."""
        return min(self.workers) if isinstance(self.workers, tuple) else self.workers

    @field_validator("workers")
    @classmethod
    def _some_workers(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        fewest, most = workers if isinstance(workers, tuple) else (workers, workers)
        if fewest < 1:
            raise ValueError("give a number greater than or equal to 1, or two such as [1, 8]")
        if most < fewest:
            raise ValueError(f"[{fewest}, {most}]: give the smaller number first")
        return workers

    @model_validator(mode="after")
    def _enough_chains(self) -> "Collect":
        if self.seen_chains < 2:
            raise ValueError(
                f"collect.held_out: {self.held_out} of {self.chains} chains withheld leaves fewer than 2 for the"
                " generator; raise collect.chains"
            )
        return self


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
    hidden: int = Field(256, ge=1)
    """Width of the hidden layers (`span`)."""
    channels: int = Field(64, ge=1)
    """Channels of the first convolution, which later ones multiply (`conv`)."""
    iterations: int = Field(500, ge=0)
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
    """What DDPM's network is asked for: a mixture of both (v), the noise, or the clean latent."""
    min_snr: float | None = Field(None, gt=0)
    """Gamma of DDPM's min-SNR weighting of timesteps, 5 in its paper; None: all count alike."""
    condition: tuple[Literal["val_loss", "chain"], ...] = ()
    """What the network is told of a snapshot, so that it can be asked for it: its validation loss, its chain."""
    hidden: int = Field(128, ge=2)
    """Width of the denoiser."""
    blocks: int = Field(3, ge=1)
    """Residual blocks of the denoiser."""
    iterations: int = Field(1000, ge=1)
    """Training steps."""
    batch_size: int = Field(128, ge=1)
    """Latents a step (drawn with replacement, each with its own timestep)."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate (AdamW, cosine)."""
    ema: float = Field(0.995, ge=0, lt=1)
    """Decay of the weights' exponential moving average, which is what is saved and sampled."""
    gpus: Gpus = _placement(0.0, ge=0)
    """GPUs that fitting the autoencoder and the diffusion model asks for."""


class Sample(Section):
    members: int = Field(64, ge=1)
    """Members M: classifiers to generate."""
    sampler: Literal["ddim", "ddpm", "dpm++", "heun"] = "ddim"
    """Sampler of the reverse process: dpm++ (2M) and heun are of second order, heun asks the network twice a step."""
    steps: int = Field(50, ge=1)
    """Reverse steps (at most diffusion.steps)."""
    eta: float = Field(0.0, ge=0)
    """DDIM's noise: 0 deterministic, 1 as much as DDPM."""
    temperature: float = Field(1.0, ge=0)
    """Standard deviation of all noise that sampling starts from and adds: below 1 members are likelier and more
    alike."""
    spread: Annotated[float, Field(ge=0)] | Literal["matched"] = 1.0
    """How far members lie from the mean of the snapshots, times as far as sampled: nearer to it they are better, and
    more alike. `matched`: no further than it takes to disagree as much as snapshots do on validation rows."""
    outside: float = Field(0.0, ge=0)
    """Noise outside the snapshots' span as well: so many standard deviations of each parameter over the snapshots. At 0
    members are combinations of snapshots."""
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
    recalibrate: int = Field(0, ge=0)
    """Batches of 256 training rows on which the statistics of batch norms behind generated parameters are counted anew
    for each member; 0: members share the base's."""
    actors: int = _placement(2, ge=1)
    """Sampling actors."""
    cpus_per_actor: float = _placement(1.0, gt=0)
    """CPU cores of an actor, and (rounded down, at least 1) its threads."""
    gpus_per_actor: Gpus = _placement(0.0, ge=0)
    """GPUs of an actor; a fraction shares one."""

    @property
    def needs_validation(self) -> bool:
        """Whether sampling looks at validation rows."""
        return self.keep != "all" or self.spread == "matched"

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


class Ensemble(Section):
    plan: Literal["graph", "measured", "vmap", "loop"] = "graph"
    """How members run behind what they share: `vmap`, a chunk at once; `loop`, one by one; `graph`, the one that the
    classifier's graph suggests (`bend-ray serve` measures instead); `measured`, the fastest on the first batch of about
    a size."""
    chunk: int = Field(16, ge=1)
    """Members at once under vmap; a measured plan chooses its own."""
    max_memory: float = Field(1.0, gt=0)
    """GiB that members which run at once may take, but for one that needs more alone."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type in which members run; auto: float32 on a CPU, bfloat16 on a GPU, float16 on one without bfloat16."""
    compile: bool = False
    """Try torch.compile on the first batch of about a size, and keep it where it is faster."""


class Domain(Section):
    """The values that a searched key may take: exactly one of the three."""

    choice: tuple[bool | int | float | str, ...] | None = None
    """Any of these."""
    uniform: tuple[float, float] | None = None
    """From low to high, whole numbers where the key takes those."""
    loguniform: tuple[float, float] | None = None
    """Likewise, evenly on a logarithmic scale."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Domain":
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise ValueError("give exactly one of choice, uniform and loguniform")
        if not self.values:
            raise ValueError("choice: give one value or more")
        for ends in (self.uniform, self.loguniform):
            if ends and not ends[0] < ends[1]:
                raise ValueError(f"{ends[0]:g} to {ends[1]:g} is empty; give the lower end first")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform: {self.loguniform[0]:g} is not above 0")
        return self

    @property
    def values(self) -> tuple[bool | int | float | str, ...]:
        """The choices, or both ends."""
        return self.choice or self.uniform or self.loguniform or ()


Objective = Literal["abend_nll", "abend_accuracy", "sbend_accuracy", "disagreement"]

SPACE: dict[str, Any] = {
    "autoencoder.latent": {"choice": [8, 16, 32, 64]},
    "autoencoder.noise": {"loguniform": [0.01, 0.5]},
    "diffusion.hidden": {"choice": [64, 128, 256]},
    "diffusion.iterations": {"loguniform": [300, 2000]},
    "diffusion.lr": {"loguniform": [3e-4, 1e-2]},
    "sample.eta": {"uniform": [0.0, 1.0]},
}


class Search(Section):
    trials: int = Field(0, ge=0)
    """Generators to try, the configuration as it stands being the first; 0: no search."""
    objective: tuple[Objective, ...] = Field(("abend_nll",), min_length=1)
    """What is sought, on the validation split: the lowest abend_nll, or the highest of any other; with several the
    best by the first is taken, and the others' trade-off is shown (Pareto front)."""
    space: dict[str, Domain] = Field(SPACE, validate_default=True)
    """Keys of autoencoder, diffusion and sample, each with the values to try: {choice: [16, 32]},
    {uniform: [0, 1]} or {loguniform: [1e-4, 1e-2]}."""
    method: Literal["tpe", "random"] = "tpe"
    """How the next trial is chosen: Optuna's tree-structured Parzen estimator, or at random."""
    startup: int = Field(8, ge=1)
    """Trials chosen at random before the estimator takes over."""
    early_stop: bool = True
    """Stop a trial that is behind others at a quarter or half of its training (ASHA); not with several objectives."""
    concurrent: int = _placement(2, ge=1)
    """Trials at once."""
    timeout: float = Field(3600.0, gt=0)
    """Seconds after which a trial has failed."""
    cpus_per_trial: float = _placement(1.0, gt=0)
    """CPU cores of a trial, and (rounded down, at least 1) its threads."""
    gpus_per_trial: Gpus = _placement(0.0, ge=0)
    """GPUs of a trial; a fraction shares one."""
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = _placement(())
    """Where trials are logged as well (Ray's integrations; for mlflow and wandb: pip install bend-ray[mlflow] ...)."""


class Evaluate(Section):
    baselines: tuple[Literal[BASELINES], ...] = BASELINES  # type: ignore[valid-type]
    """Null models to run beside ours, each with as many members as ours has."""
    noise: float = Field(0.1, ge=0)
    """noised_originals: standard deviation of the noise, in units of each tensor's spread over the snapshots."""
    averaged: int = Field(16, ge=2)
    """averaged_originals: snapshots averaged for one member."""
    bagging_members: int = Field(0, ge=0)
    """Whole classifiers trained on bootstraps, the honest rival; 0: not asked for."""
    deep_ensemble_members: int = Field(0, ge=0)
    """Whole classifiers trained on all rows from different seeds; 0: not asked for."""


class Cluster(Section):
    allow_autoscale: bool = _placement(False)
    """Where the cluster lacks what a stage asks for: ask its autoscaler and wait, instead of saying so at once."""
    wait: float = _placement(600.0, gt=0)
    """Seconds to wait for the autoscaler; also for nodes that were lost, and what a stage needs with them, to be
    replaced."""
    stall: float = _placement(900.0, gt=0)
    """Seconds without progress of a worker or actor after which it is killed and started again: a training step, a
    block of members, in evaluate a whole set of classifiers on all rows."""


class Serve(Section):
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: all of this machine's (set BEND_SERVE_TOKEN, too)."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen at."""
    replicas: int = Field(1, ge=1)
    """Processes that each hold the ensemble and answer."""
    max_replicas: int | None = Field(None, ge=1)
    """Replicas at most, where more are started under load (Ray Serve's autoscaling); None: always `replicas`."""
    target: float = Field(32.0, gt=0)
    """Requests at once in a replica that autoscaling aims at."""
    cpus_per_replica: float = Field(1.0, gt=0)
    """CPU cores of a replica, and (rounded down, at least 1) its threads."""
    gpus_per_replica: Gpus = Field(0.0, ge=0)
    """GPUs of a replica; a fraction shares one."""
    batch: int = Field(64, ge=1)
    """Rows that are answered at once: those which came while the batch before was answered, at most so many."""
    queue: int = Field(256, ge=1)
    """Requests at once in a replica; more are told to come again (503)."""
    timeout: float = Field(30.0, gt=0)
    """Seconds after which a request is given up (503)."""
    max_rows: int = Field(1024, ge=1)
    """Images in one request."""
    max_body: float = Field(8.0, gt=0)
    """MiB of one request."""

    @model_validator(mode="after")
    def _enough_replicas(self) -> "Serve":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"serve.max_replicas: {self.max_replicas} is less than serve.replicas: {self.replicas}")
        return self


class Config(Section):
    seed: int = Field(0, ge=0)
    """Every random number follows from it."""
    data: Data
    classifier: Classifier
    base: Base = Base()
    augment: Augment = Augment()
    collect: Collect = Collect()
    autoencoder: Autoencoder = Autoencoder()
    diffusion: Diffusion = Diffusion()
    search: Search = Search()
    sample: Sample = Sample()
    ensemble: Ensemble = Ensemble()
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
    serve: Serve = Serve()

    @model_validator(mode="after")
    def _steps_fit(self) -> "Config":
        if self.sample.steps > self.diffusion.steps:
            raise ValueError(f"sample.steps: {self.sample.steps} is more than diffusion.steps: {self.diffusion.steps}")
        return self

    @model_validator(mode="after")
    def _sampling_fits(self) -> "Config":
        if self.collect.features not in ("auto", "none") and self.augment != Augment():
            raise ValueError("collect.features: rows that augment changes have none to keep; use auto or none")
        if self.sample.wanted_loss is not None and "val_loss" not in self.diffusion.condition:
            raise ValueError("sample.wanted_loss: the model is not told of losses; add val_loss to diffusion.condition")
        if self.diffusion.objective == "flow" and (self.sample.eta or self.sample.sampler == "ddpm"):
            raise ValueError("sample.eta: a flow has no noise to add; use ddim with eta 0, dpm++ or heun")
        if self.sample.eta and self.sample.sampler in ("dpm++", "heun"):
            raise ValueError(f"sample.eta: {self.sample.sampler} adds no noise; use ddim, or eta 0")
        if self.sample.guidance != 1 and not self.diffusion.condition:
            raise ValueError("sample.guidance: the model is told of nothing; set diffusion.condition")
        if self.sample.spread == "matched" and self.sample.members < 2:
            raise ValueError("sample.spread: one member does not disagree; give a number")
        if self.search.trials and self.autoencoder.kind == "conv":
            raise ValueError("search.trials: a search works in the snapshots' span; use autoencoder.kind: span")
        if self.search.trials and self.sample.spread == "matched":
            raise ValueError("search.trials: give sample.spread a number, or values to try in search.space")
        return self

    @model_validator(mode="after")
    def _space_fits(self) -> "Config":
        if self.search.trials:
            for key, domain in self.search.space.items():
                for value in domain.values:
                    known = self.as_value(key, value)
                    if not self._goes_with(key, known):
                        raise ValueError(
                            f"search.space.{key}: {known!r} does not go with the other keys; give search.space without"
                            " it"
                        )
        return self

    def _goes_with(self, key: str, value: Any) -> bool:
        try:
            self.with_keys({key: value, "search.space": {}})
        except ValueError:
            return False
        return True

    def as_value(self, key: str, value: Any) -> Any:
        """``value`` in the type of the searched ``key``, for YAML reads 1e-4 as a word. Raises ValueError."""
        section, _, name = key.partition(".")
        if section not in SEARCHED or name not in Config.model_fields[section].annotation.model_fields:  # type: ignore[union-attr]
            near = difflib.get_close_matches(key, [k for k in keys() if k.split(".")[0] in SEARCHED], n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"search.space: {key} is no key of {', '.join(SEARCHED)}{hint}")
        try:
            changed = type(getattr(self, section)).model_validate(getattr(self, section).model_dump() | {name: value})
            return getattr(changed, name)
        except ValidationError as error:
            raise ValueError(f"search.space.{key}: {value!r}: {error.errors()[0]['msg']}") from None

    def with_keys(self, values: dict[str, Any]) -> "Config":
        """This configuration with some dotted keys changed, checked as a whole."""
        raw = self.model_dump()
        for key, value in values.items():
            _set(raw, key, value)
        return Config.model_validate(raw)

    def hashed(self, *sections: str) -> dict[str, Any]:
        """What an artifact depends on: these sections (or plain keys) without the keys of placement."""
        picked: dict[str, Any] = {}
        for section in sections:
            value = getattr(self, section)
            if isinstance(value, Section):
                kept = value.model_dump(mode="json", exclude=placement_keys(type(value)))
                picked |= {f"{section}.{key}": item for key, item in kept.items()}
            else:
                picked[section] = value
        return picked


def placement_keys(section: type[Section]) -> set[str]:
    """Keys that say where work runs or a file lies, not what is computed."""
    return {
        key
        for key, field in section.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("placement")
    }


def keys(model: type[Section] = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its pydantic field, in order."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= keys(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def load(path: str | Path, overrides: dict[str, str] | None = None) -> Config:
    """The configuration in the YAML file at ``path`` with dotted ``overrides`` (their values read as YAML) laid over.

    Raises ConfigError, which names the file, the key, and the nearest known key.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; give the path of a YAML file") from None
    config = loads(text, str(path), overrides)
    # Other processes have other working directories.
    data = config.data.model_copy(update={"path": _absolute(config.data.path)})
    classifier = config.classifier.model_copy(update={"weights": _absolute(config.classifier.weights)})
    return config.model_copy(update={"data": data, "classifier": classifier})


def loads(text: str, where: str, overrides: dict[str, str] | None = None) -> Config:
    """`load` from YAML text that stands at ``where``."""
    raw = _yaml(text, where)
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: holds no configuration; expected sections such as data: and classifier:")
    for key, value in (overrides or {}).items():
        _set(raw, key, _yaml(value, f"--{key}"))
    return parse(Config, raw, where)


Parsed = TypeVar("Parsed", bound=Section)


class Inference(Section):
    """What matters to an ensemble that is there already."""

    ensemble: Ensemble = Ensemble()


class Serving(Inference):
    """What matters to an ensemble that is served."""

    serve: Serve = Serve()


Settings = TypeVar("Settings", bound=Inference)


def inference(model: type[Settings], overrides: dict[str, str], text: str = "", where: str = "") -> Settings:
    """``model``'s part of the configuration in YAML ``text``, which stands at ``where``, with ``overrides`` as in
    `load`."""
    raw = _yaml(text, where)
    mine = {name: raw[name] for name in model.model_fields if name in raw} if isinstance(raw, dict) else {}
    for key, value in overrides.items():
        _set(mine, key, _yaml(value, f"--{key}"))
    return parse(model, mine, where or "command line")


def parse(model: type[Parsed], raw: dict[str, Any], where: str) -> Parsed:
    """``raw`` as a ``model``, or a ConfigError that says ``where`` and which key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, [*keys(model), *model.model_fields], n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(_siblings(key))}"
            raise ConfigError(f"{where}: unknown key {key}{hint}") from None
        message = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
        raise ConfigError(f"{where}: {key + ': ' if key else ''}{message}{got}") from None


def dump(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _absolute(path: str | None) -> str | None:
    return path if path is None or "://" in path else str(Path(path).absolute())


def _siblings(key: str) -> list[str]:
    section = Config.model_fields.get(key.split(".")[0])
    known = section.annotation.model_fields if section and "." in key else Config.model_fields  # type: ignore[union-attr]
    return list(known)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from None


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        inner = raw.get(part)
        raw[part] = inner = inner if isinstance(inner, dict) else {}
        raw = inner
    raw[last] = value
