"""What an answer of all members costs, and which subset keeps it low."""

from dataclasses import dataclass

from torch import nn

from bend_ray.models.graph import Graph
from bend_ray.models.partition import partition
from bend_ray.models.reach import Reach
from bend_ray.models.reading import reach_of
from bend_ray.models.subset import Choice, Subset, settle
from bend_ray.run import Run


@dataclass(frozen=True)
class Settled:
    """What `collect.subset` stands for."""

    rule: str
    choice: Choice
    reach: Reach
    graph: Graph | None


def settled(run: Run, module: nn.Module | None = None) -> Settled:
    """Of ``run``, whose classifier ``module`` is: `auto` is the head where more would make an answer cost above
    `ensemble.answer_cost`, for each network that members stand on."""
    spec, most = run.config.collect.subset, run.config.ensemble.answer_cost * run.config.trunks
    module = run.spec.build(run.seed) if module is None else module
    reach, graph = reach_of(module, run.dataset.preprocess(run.dataset.train.images[:2]))
    choice = settle(module, spec, reach)
    if spec == "auto" and forward_passes(run, module, choice.subset, graph) > most:
        return Settled("head", settle(module, "head", reach), reach, graph)
    return Settled(spec, choice, reach, graph)


def forward_passes(run: Run, module: nn.Module, subset: Subset, graph: Graph | None = None) -> float:
    """Multiplications of an answer of all members, in forward passes of one network like ``module``, which ``graph`` is
    of."""
    x = run.dataset.preprocess(run.dataset.train.images[:2])
    trunk, tail = partition(module, subset, x, graph=graph).flops(subset.take(module), x)
    return (run.config.trunks * trunk + run.config.sample.members * tail) / max(1, trunk + tail)
