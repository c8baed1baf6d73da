"""What a stage does where the cluster lacks or loses something: cluster."""

from bend_ray.config.section import Section, placement


class Cluster(Section):
    allow_autoscale: bool = placement(False)
    """Where the cluster lacks what a stage asks for: ask its autoscaler and wait, instead of saying so at once."""
    wait: float = placement(600.0, gt=0)
    """Seconds to wait for the autoscaler; also for nodes that were lost, and what a stage needs with them, to be
    replaced."""
    stall: float = placement(900.0, gt=0)
    """Seconds without progress of a worker or actor after which it is killed and started again: a training step, a
    block of members, in evaluate a whole set of classifiers on all rows."""
