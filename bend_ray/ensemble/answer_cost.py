"""What an answer of all members costs, and which subset keeps it low."""

from torch import nn

from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.models import subset as subsets
from bend_ray.models.subset import Subset
from bend_ray.run import Run


def forward_passes(run: Run, module: nn.Module, subset: Subset) -> float:
    """Multiplications of an answer of all members, in forward passes of one network like ``module``."""
    x = run.dataset.preprocess(run.dataset.train.images[:2])
    trunk, tail = make_trunk(module, subset, run.spec).flops(subset.take(module), x)
    return (run.config.trunks * trunk + run.config.sample.members * tail) / max(1, trunk + tail)


def rule(run: Run, module: nn.Module | None = None) -> str:
    """What `collect.subset` of ``run`` stands for, whose classifier ``module`` is: `auto` is the head where more would
    make an answer cost above `ensemble.answer_cost`, for each network that members stand on."""
    collect, most = run.config.collect, run.config.ensemble.answer_cost * run.config.trunks
    if collect.subset != "auto":
        return collect.subset
    module = run.spec.build(run.seed) if module is None else module
    return "auto" if forward_passes(run, module, subsets.choose(module, "auto")) <= most else "head"
