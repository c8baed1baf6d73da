"""What an answer of all members costs, and which subset keeps it low."""

from dataclasses import dataclass

from torch import Tensor, nn

from bend_ray.models import lora_targets
from bend_ray.models.graph import Graph
from bend_ray.models.partition import partition
from bend_ray.models.reach import Reach
from bend_ray.models.reading import reach_of
from bend_ray.models.subset import Choice, Subset, settle
from bend_ray.models.trunk import SharedTrunk
from bend_ray.run import Run


@dataclass(frozen=True)
class Settled:
    """What `collect.subset` stands for."""

    rule: str
    choice: Choice
    reach: Reach
    graph: Graph | None
    """Of the classifier without adapters; None where it cannot be exported."""
    cut: SharedTrunk
    """The classifier at the subset."""


def settled(run: Run, module: nn.Module | None = None) -> Settled:
    """Of ``run``, whose classifier ``module`` is: `auto` is the head where more would make an answer cost above
    `ensemble.answer_cost`, for each network that members stand on. For `lora` the module has adapters from then on."""
    spec, most = run.config.collect.subset, run.config.ensemble.answer_cost * run.config.trunks
    module = run.spec.build(run.seed) if module is None else module
    reach, graph = reach_of(module, _example(run))
    choice = lora_targets.settle(module, spec, run.config, reach)
    cut = cut_at(run, module, choice.subset, graph)
    if spec == "auto" and forward_passes(run, module, cut) > most:
        choice = settle(module, "head", reach)
        return Settled("head", choice, reach, graph, cut_at(run, module, choice.subset, graph))
    return Settled(spec, choice, reach, graph, cut)


def cut_at(run: Run, module: nn.Module, subset: Subset, graph: Graph | None) -> SharedTrunk:
    """``module``, which exports to ``graph`` but for its adapters, cut at ``subset``."""
    return partition(module, subset, _example(run), graph=graph if subset.lora is None else None)


def forward_passes(run: Run, module: nn.Module, cut: SharedTrunk) -> float:
    """Multiplications of an answer of all members, in forward passes of one network like ``module``, which was
    ``cut``."""
    trunk, tail = cut.flops(cut.subset.take(module), _example(run))
    return (run.config.trunks * trunk + run.config.sample.members * tail) / max(1, trunk + tail)


def _example(run: Run) -> Tensor:
    return run.dataset.preprocess(run.dataset.train.images[:2])
