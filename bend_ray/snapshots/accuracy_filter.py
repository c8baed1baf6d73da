"""The accuracy filter (`collect.accuracy_filter`): snapshots far less accurate than the trunk are dropped, and enough
must be left."""

from collections.abc import Sequence

from bend_ray.config import Collect
from bend_ray.errors import TrainingError
from bend_ray.progress import counted
from bend_ray.snapshots.snapshots import Fact
from bend_ray.store.folders import Folder


def passing(collect: Collect, facts: Sequence[Fact], trunk_accuracy: float) -> list[int]:
    """Which of the snapshots with these ``facts`` are kept."""
    if collect.accuracy_filter is None:
        return list(range(len(facts)))
    least = trunk_accuracy - collect.accuracy_filter
    return [i for i, fact in enumerate(facts) if fact.val_accuracy >= least]


def check_left(collect: Collect, chains: Sequence[int], run: Folder, trunks: int = 1) -> None:
    """Raises TrainingError where the filter has left too little on one of so many ``trunks``; ``chains``: of each
    snapshot that passed it, or each chain that has some."""
    seen = {chain for chain in chains if chain < collect.seen_chains}
    fewest = min(len([chain for chain in seen if chain % trunks == trunk]) for trunk in range(trunks))
    if fewest < 2 or len(seen) == len(set(chains)):
        left, withheld = (counted(count, "chains") for count in (fewest, len(set(chains) - seen)))
        left += f" on one of {trunks} trunks" if trunks > 1 else ""
        raise TrainingError(
            f"collect.accuracy_filter: {collect.accuracy_filter} below the {_trunk(collect)}'s validation accuracy is"
            f" more than most snapshots reach: it leaves snapshots of {left} for the generator, which needs 2, and of"
            f" {withheld} withheld, of which it needs 1. Raise collect.epochs or the filter, or lower collect.lr; then"
            f" delete {run / 'snapshots'} or use another --run-dir"
        )


def _trunk(collect: Collect) -> str:
    """Whose accuracy it is that snapshots are compared with."""
    return "trunk" if collect.trunk == "each" else collect.trunk


def describe(collect: Collect, dropped: int) -> str:
    """What became of the snapshots."""
    if collect.accuracy_filter is None:
        return "no accuracy filter (collect.accuracy_filter), no snapshot dropped"
    sentence = f"{counted(dropped, 'snapshots')} dropped by the accuracy filter"
    return f"{sentence} (validation accuracy more than {collect.accuracy_filter:g} below the {_trunk(collect)}'s)"
