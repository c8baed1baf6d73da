"""Seconds of each unit of work, kept in a run's `timings/`."""

import json
from collections.abc import Iterable

from bend_ray.errors import ArtifactError
from bend_ray.store.folders import Folder


def note_seconds(run: Folder, unit: str, seconds: float) -> None:
    """Keep how long a unit of work took, apart from the artifacts, whose bits must not depend on it."""
    (run / "timings").write(f"{unit}.json", json.dumps({"seconds": seconds}).encode())


def noted_seconds(run: Folder, units: Iterable[str]) -> float:
    """The sum over those of ``units`` that were noted. Raises ArtifactError for a broken note."""
    folder, total = run / "timings", 0.0
    present = set(folder.list())
    for name in [name for unit in units if (name := f"{unit}.json") in present]:
        try:
            total += float(json.loads(folder.read(name))["seconds"])
        except (KeyError, TypeError, ValueError):
            raise ArtifactError(
                f"{folder}/{name}: holds no seconds; delete it and run the same command again"
            ) from None
    return total
