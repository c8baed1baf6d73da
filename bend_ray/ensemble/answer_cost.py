"""What an answer of all members costs, and which subset keeps it low."""

from torch import nn

from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.models import subset as subsets
from bend_ray.models.trunk import SharedTrunk
from bend_ray.run import Run


def forward_passes(run: Run, module: nn.Module, cut: SharedTrunk) -> float:
    """Multiplications of an answer of all members, in forward passes of one network like ``module``, which was
    ``cut``."""
    x = run.dataset.preprocess(run.dataset.train.images[:2])
    trunk, tail = cut.flops(cut.subset.take(module), x)
    return (run.config.trunks * trunk + run.config.sample.members * tail) / max(1, trunk + tail)


def rule(run: Run) -> str:
    """What `collect.subset` of ``run`` stands for: see `chosen`."""
    spec = run.config.collect.subset
    return chosen(run, run.spec.build(run.seed))[0] if spec == "auto" else spec


def chosen(run: Run, module: nn.Module) -> tuple[str, SharedTrunk]:
    """What `collect.subset` of ``run`` stands for, whose classifier ``module`` is, and ``module`` cut at it: `auto` is
    the head where more would make an answer cost above `ensemble.answer_cost`, for each network that members stand on.
    """
    spec, most = run.config.collect.subset, run.config.ensemble.answer_cost * run.config.trunks
    cut = make_trunk(module, subsets.choose(module, spec), run.spec)
    if spec != "auto" or forward_passes(run, module, cut) <= most:
        return spec, cut
    return "head", make_trunk(module, subsets.choose(module, "head"), run.spec)
