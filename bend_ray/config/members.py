"""What is done with members: ensemble, evaluate, serve."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bend_ray.config.choices import BASELINES, BaselineName
from bend_ray.config.data import Data
from bend_ray.config.section import Gpus, Section, added, placement


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
    answer_cost: float = added(1.5, off=1.5, ge=1)
    """What an answer of all members may cost, in forward passes of one network (of as many as members stand on): what
    `collect.subset: auto` keeps to."""
    temperature: Annotated[float, Field(gt=0)] | Literal["auto"] = added("auto", off="auto")
    """Temperature of the mean probability: `auto`, the one that `sample` fitted on validation rows and keeps in the
    ensemble; 1: none; another number: that one. Votes do not depend on it."""


class Evaluate(Section):
    baselines: tuple[BaselineName, ...] = tuple(BASELINES)
    """Baselines to run beside ours, each with as many members as ours has."""
    noise: float = Field(0.1, ge=0)
    """noised_originals: standard deviation of the noise, in units of each tensor's spread over the snapshots."""
    averaged: int = Field(16, ge=2)
    """averaged_originals: snapshots averaged for one member."""
    bagging_members: int = Field(0, ge=0)
    """Whole classifiers trained on bootstraps, the honest rival; 0: not asked for."""
    deep_ensemble_members: int = Field(0, ge=0)
    """Whole classifiers trained on all rows from different seeds; 0: not asked for."""
    strangers: tuple[Data, ...] = placement(())
    """Data sets, each with the keys of `data`, of which the classifier knows nothing: how well doubt tells their images
    (at most 500 of each, brought to its size) from test rows. None: test images with their patches shuffled."""


class Serve(Section):
    host: str = "127.0.0.1"
    """IPv4 address or name to listen at; 0.0.0.0: all of this machine's (set BEND_SERVE_TOKEN, too)."""
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
    """Requests at once in a replica; more are answered 503, try again later."""
    timeout: float = Field(30.0, gt=0)
    """Seconds after which a request is given up (503)."""
    max_rows: int = Field(1024, ge=1)
    """Images in one request."""
    max_body: float = Field(8.0, gt=0)
    """MiB of one request."""

    @field_validator("host")
    @classmethod
    def _ipv4(cls, host: str) -> str:
        if ":" in host:  # Ray Serve's HAProxy looks for its replicas at 127.0.0.1
            raise ValueError(f"{host} is no IPv4 address or name (IPv6 is not served); give one such as 127.0.0.1")
        return host

    @model_validator(mode="after")
    def _enough_replicas(self) -> "Serve":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"serve.max_replicas: {self.max_replicas} is less than serve.replicas: {self.replicas}")
        return self
