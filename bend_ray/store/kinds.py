"""What a run is made of, said once: its artifacts, the stages that make them, and the processes that these start.

Everything that needs to know it (the command line, the order of stages, hashes, resuming, `bend-ray show`, what a
cluster must have, whose seconds are counted) reads it here. Light on purpose: the command line imports it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from bend_ray.config import Config

Kind = Literal["base", "trunks", "snapshots", "search", "generator", "ensemble", "report"]
RIVALS_FOLDER = "rivals"
"""The folder of whole trainings, which follow from what the base follows from."""


@dataclass(frozen=True)
class Artifact:
    """One kind of artifact: a folder of the run that is whole or not there."""

    stage: str
    """The stage that makes it."""
    sections: tuple[str, ...]
    """Sections of the configuration that it depends on, apart from those of its inputs."""
    but: tuple[str, ...] = ()
    """Keys of these that it does not depend on."""
    and_keys: tuple[str, ...] = ()
    """Keys of other sections that it depends on."""
    inputs: tuple[Kind, ...] = ()
    """Artifacts that it is made from."""
    uses_trunks: Callable[["Config"], bool] = lambda config: False
    """Whether it is made from `trunks`, too."""
    wanted: Callable[["Config"], bool] | None = None
    """Whether it is asked for; None: it is always made."""
    timed: Callable[["Config"], list[str]] = lambda config: []
    """Names under which the seconds of its units of work are noted."""
    cost: str = ""
    """What the report's cost counts them as; empty: its stage."""
    unit: str = ""
    """What its units of work are called, in the plural."""
    unit_files: tuple[str, ...] = ()
    """What the names of finished units' files begin with; they are there before the artifact is."""
    manifest: str = "config.json"
    """File that vouches for the others."""
    readme: str = "README.md"
    plural: bool = False
    """Whether it is spoken of in the plural."""

    def made_from(self, config: "Config") -> tuple[Kind, ...]:
        """`inputs`, and `trunks` where they are among them."""
        return (*self.inputs, *(("trunks",) if self.uses_trunks(config) else ()))

    def settings(self, config: "Config") -> dict[str, Any]:
        """The keys that it depends on, and their values."""
        more = config.hashed(*(key.partition(".")[0] for key in self.and_keys))
        return {key: value for key, value in config.hashed(*self.sections).items() if key not in self.but} | {
            key: more[key] for key in self.and_keys if key in more
        }


def numbered(unit: str, number: int) -> str:
    """The name of one unit of many: chain-00012, block-00003, trial-00000."""
    return f"{unit}-{number:05d}"


def trunk_kind(config: "Config") -> Kind:
    """The artifact that must be there before chains can start: the one with the network that members share, or with the
    last of several."""
    return "base" if config.collect.trunk == "base" and config.base.count == 1 else "trunks"


def _starts_from_trunks(config: "Config") -> bool:
    return trunk_kind(config) == "trunks"


def _has_trunks(config: "Config") -> bool:
    return config.cycles > 0 or config.base.count > 1


def _timed_cycles(config: "Config") -> list[str]:
    cycles = [numbered("cycle", i) for i in range(config.cycles)] + ["cycle-average"] * (config.cycles > 0)
    return cycles + [numbered("base", base) for base in range(1, config.base.count)]


def _timed_chains(config: "Config") -> list[str]:
    return [numbered("chain", i) for i in range(config.collect.chains)] + ["chain-align"] * config.collect.aligned


def _timed_trials(config: "Config") -> list[str]:
    return [numbered("trial", i) for i in range(config.search.trials)]


def _timed_blocks(config: "Config") -> list[str]:
    sample = config.sample
    blocks = range(math.ceil(sample.made / sample.block))
    return [
        *(numbered("block", i) for i in blocks),
        *["block-spread"] * (sample.spread == "matched"),
        *["block-doubt"] * (sample.doubt != "none"),
        *["block-distance"] * (sample.distance != "none"),
    ]


ARTIFACTS: dict[Kind, Artifact] = {
    "base": Artifact(
        stage="collect",
        sections=("seed", "data", "classifier", "base", "augment"),
        but=("base.count", "base.cycles", "base.cycle_epochs", "base.cycle_lr"),
        timed=lambda config: ["base"],
        cost="base",
        unit="epochs",
        unit_files=("epoch-",),
    ),
    "trunks": Artifact(
        stage="collect",
        sections=("seed", "base", "augment"),
        inputs=("base",),
        wanted=_has_trunks,
        timed=_timed_cycles,
        cost="cycles",
        unit="networks",
        unit_files=("cycle-", "base-"),
        plural=True,
    ),
    "snapshots": Artifact(
        stage="collect",
        sections=("seed", "collect", "augment"),
        and_keys=("ensemble.answer_cost",),
        inputs=("base",),
        uses_trunks=_starts_from_trunks,
        timed=_timed_chains,
        unit="chains",
        unit_files=("chain-", "raw-"),
        # Readers of a Parquet data set pass over names with an underscore.
        manifest="_config.json",
        readme="_README.md",
        plural=True,
    ),
    "search": Artifact(
        stage="search",
        sections=("seed", "autoencoder", "diffusion", "sample", "search"),
        inputs=("base", "snapshots"),
        uses_trunks=_starts_from_trunks,
        wanted=lambda config: config.search.trials > 0,
        timed=_timed_trials,
        unit="trials",
        unit_files=("trial-",),
    ),
    "generator": Artifact(
        stage="fit",
        sections=("seed", "autoencoder", "diffusion"),
        inputs=("snapshots",),
        timed=lambda config: ["fit"],
    ),
    "ensemble": Artifact(
        stage="sample",
        sections=("seed", "sample"),
        inputs=("generator", "base", "snapshots"),
        uses_trunks=_starts_from_trunks,
        timed=_timed_blocks,
        unit="blocks",
        unit_files=("block-",),
    ),
    "report": Artifact(
        stage="evaluate",
        sections=("seed", "ensemble", "evaluate"),
        inputs=("base", "snapshots", "generator", "ensemble"),
        uses_trunks=_has_trunks,
    ),
}
"""In the order in which they are made."""

STAGES = tuple(dict.fromkeys(artifact.stage for artifact in ARTIFACTS.values()))
"""In order."""


def wanted(config: "Config") -> list[Kind]:
    """The artifacts that a run of ``config`` has."""
    return [kind for kind, artifact in ARTIFACTS.items() if artifact.wanted is None or artifact.wanted(config)]


def after(kind: Kind) -> list[Kind]:
    """The artifacts that are made later than ``kind``."""
    kinds = [*ARTIFACTS]
    return kinds[kinds.index(kind) + 1 :]


@dataclass(frozen=True)
class Processes:
    """Processes that a stage starts, each with as much as two keys of the configuration say."""

    gpus: str
    cpus: str = ""
    """Empty: one core."""
    count: str = ""
    """Key of how many; empty: one is enough to go on."""
    wanted_by: tuple[str, ...] = ()
    """Keys of which one must be set for these processes to be started at all; none: they always are."""


_ACTORS = Processes("sample.gpus_per_actor", "sample.cpus_per_actor", "sample.actors")
_RIVALS = ("evaluate.bagging_members", "evaluate.deep_ensemble_members")
PROCESSES: dict[str, tuple[Processes, ...]] = {
    "collect": (Processes("collect.gpus_per_worker", "collect.cpus_per_worker", "collect.workers"),),
    "search": (Processes("search.gpus_per_trial", "search.cpus_per_trial"),),
    "fit": (Processes("diffusion.gpus"),),
    "sample": (_ACTORS,),
    # Whole trainings are made one by one, as chains are.
    "evaluate": (_ACTORS, Processes("collect.gpus_per_worker", "collect.cpus_per_worker", wanted_by=_RIVALS)),
}
"""By stage: what a cluster must have for it, at the least."""
