"""Chains and their snapshots: collect."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from bend_ray.config.section import Gpus, Section, added, placement


class Collect(Section):
    workers: int | tuple[int, int] = placement(2)
    """Ray Train workers; [1, 8]: as many as there is room for, while the cluster grows and shrinks (elastic)."""
    chains: int = Field(24, ge=3)
    """Independent fine-tunings of the subset, each from the base on its own bootstrap."""
    snapshots_per_chain: int = Field(2, ge=1)
    """Snapshots kept of each chain, evenly spaced, the last at its end."""
    epochs: float = Field(2.0, gt=0)
    """Passes over the training split that one chain makes."""
    lr: float | None = Field(None, gt=0)
    """Learning rate of a chain: high, for it buys diversity. None: 0.01 where the subset is one layer, as a head is,
    else 0.1."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """What trains a chain: AdamW without weight decay, or SGD with momentum 0.9, whose rates are other ones."""
    schedule: Literal["constant", "cyclic"] = "constant"
    """Learning rate of a chain: constant, or falling to 0 along a cosine before each snapshot and then high again."""
    batch_size: int = Field(64, ge=1)
    """Rows a step of a chain."""
    unseen: float = Field(0.0, ge=0, le=0.5)
    """Share of the training rows that is kept from the base, and on which alone chains train: to them a trunk that has
    fitted its own rows says what it will say of new ones. 0: base and chains train on all rows."""
    bootstrap: bool = True
    """Train each chain on rows drawn with replacement; false: on all rows, in an order of its own."""
    balanced: bool = added(False, off=False)
    """Draw the rows of a chain's bootstrap so that all classes come alike, however rare one is; validation rows stay
    as they are."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of a chain's target spread evenly over all classes. Chains behind a trunk that has fitted its rows (last
    block, head) grow too sure; the base's own smoothing keeps them from it."""
    init: Literal["base", "fresh"] = "base"
    """Where a chain starts: at the base, or the trunk in its place (all end in one mode), or with the subset
    initialised anew (each in its own mode)."""
    align: bool | None = None
    """Permute hidden units of each chain, which changes no function, so that chains of different modes lie as near to
    each other as they can; None: where init is fresh."""
    trunk: Literal["auto", "base", "average", "each"] = added("auto", off="base")
    """The network that chains start from and members share: the base, or one whose weights are the average of those
    that the cycles ended with (`base.cycles`), its batch-norm statistics estimated again. `each`: the base and each of
    these ends, chains and members dealt out to them in turn; an answer then costs a forward pass of each. `auto`: the
    average where there are cycles, else the base."""
    subset: str = "auto"
    """Parameters that vary: head, norm, norm+head, last_block, regex:..., or names joined by commas. auto: norm+head
    where there are norms, else last_block, but the head where answers of all members would then cost more than
    `ensemble.answer_cost`."""
    augment: bool | None = None
    """Whether chains train on changed images (`augment`), as the base does; false: on the images as they are, so that
    what the frozen part gives can be kept. None: where `trunk` is the base."""
    features: Literal["auto", "none", "float32", "bfloat16", "uint8"] = "auto"
    """What the frozen part of the classifier gives for each row is computed once and kept, as this type; chains then
    train what follows it, several at once. `auto`: float32 where that halves the multiplications of a step, unless rows
    are changed at random; `none`: each step runs the whole classifier."""
    at_once: int = Field(16, ge=1)
    """Chains that train at once on kept features, where the graph says that this is fast; their number enters the bits,
    so it does not follow the machine."""
    max_memory: float = placement(1.0, ge=0)
    """GiB that a worker's kept features may take in memory (on a GPU, there); more lie in a file of its temporary
    folder."""
    accuracy_filter: float | None = Field(0.2, ge=0, le=1)
    """A snapshot whose validation accuracy lies more than this below the trunk's is dropped; None: none is."""
    held_out: int = Field(4, ge=1)
    """Whole chains (the last ones) withheld from the generator, to measure novelty and reconstruction honestly."""
    cpus_per_worker: float = placement(1.0, gt=0)
    """CPU cores of a worker, and (rounded down, at least 1) its threads."""
    gpus_per_worker: Gpus = placement(0.0, ge=0)
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
    def _balanced_by_drawing(self) -> "Collect":
        if self.balanced and not self.bootstrap:
            raise ValueError("collect.balanced: true with collect.bootstrap: false, which draws none; give one alone")
        return self

    @model_validator(mode="after")
    def _enough_chains(self) -> "Collect":
        if self.seen_chains < 2:
            raise ValueError(
                f"collect.held_out: {self.held_out} of {self.chains} chains withheld leaves fewer than 2 for the"
                " generator; raise collect.chains"
            )
        return self
