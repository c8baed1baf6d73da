"""The gate (`collect.gate`): snapshots far less accurate than the base are dropped, and enough must be left."""

from collections.abc import Sequence

from bend_ray.config import Collect
from bend_ray.errors import TrainingError
from bend_ray.folders import Folder
from bend_ray.progress import counted
from bend_ray.weights.snapshots import Fact


def passing(collect: Collect, facts: Sequence[Fact], base_accuracy: float) -> list[int]:
    """Which of the snapshots with these ``facts`` are kept."""
    if collect.gate is None:
        return list(range(len(facts)))
    least = base_accuracy - collect.gate
    return [i for i, fact in enumerate(facts) if fact.val_accuracy >= least]


def check_left(collect: Collect, chains: Sequence[int], run: Folder) -> None:
    """Raises TrainingError where the gate has left too little; ``chains``: of each snapshot that passed it, or each
    chain that has some."""
    seen = {chain for chain in chains if chain < collect.seen_chains}
    if len(seen) < 2 or len(seen) == len(set(chains)):
        left, withheld = (counted(count, "chains") for count in (len(seen), len(set(chains) - seen)))
        raise TrainingError(
            f"collect.gate: {collect.gate} below the base's validation accuracy is more than most snapshots reach: it"
            f" leaves snapshots of {left} for the generator, which needs 2, and of {withheld} withheld, of which it"
            f" needs 1. Raise collect.epochs or the gate, or lower collect.lr; then delete {run / 'snapshots'} or use"
            " another --run-dir"
        )


def in_words(collect: Collect, dropped: int) -> str:
    """What became of the snapshots."""
    if collect.gate is None:
        return "no gate (collect.gate), no snapshot dropped"
    said = f"{counted(dropped, 'snapshots')} dropped by the gate"
    return f"{said} (validation accuracy more than {collect.gate:g} below the base's)"
