"""Keys of the generator to search, and their values: search."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bend_ray.config.section import Gpus, Section, current, placement

SEARCHED = ("autoencoder", "diffusion", "sample")
"""Sections whose keys a search may vary."""


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
    concurrent: int = placement(2, ge=1)
    """Trials at once."""
    timeout: float = Field(3600.0, gt=0)
    """Seconds after which a trial has failed."""
    cpus_per_trial: float = placement(1.0, gt=0)
    """CPU cores of a trial, and (rounded down, at least 1) its threads."""
    gpus_per_trial: Gpus = placement(0.0, ge=0)
    """GPUs of a trial; a fraction shares one."""
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = placement(())
    """Where trials are logged as well (Ray's integrations; mlflow and wandb are installed apart)."""

    @field_validator("space", mode="before")
    @classmethod
    def _current_keys(cls, space: Any) -> Any:
        return {current(key): domain for key, domain in space.items()} if isinstance(space, dict) else space
