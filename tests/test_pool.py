"""Units of work over actors: each is done, whoever dies or hangs; what is hopeless is said."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import ray

from bend_ray.cluster import connection, failures
from bend_ray.cluster.pool import pool
from bend_ray.errors import DataError, ResourceError

pytestmark = pytest.mark.ray
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the cluster's processes have no such module

Faults = dict[int, tuple[str, int]]
"""{unit: (how it comes to grief, how often)}."""


class Worker:
    """Notes each unit it does in a file, and comes to grief as ``faults`` say."""

    def __init__(self, where: str, faults: Faults) -> None:
        self.where, self.faults = Path(where), faults
        if -1 in faults:
            self._suffer(-1)

    def square(self, unit: int) -> int:
        self._suffer(unit)
        with (self.where / f"done-{unit}").open("a") as file:
            file.write("x")
        return unit * unit

    def _suffer(self, unit: int) -> None:
        how, often = self.faults.get(unit, ("", 0))
        before = len(list(self.where.glob(f"fault-{unit}-*")))
        if before >= often:
            return
        (self.where / f"fault-{unit}-{before}").touch()
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "user":
            raise DataError(f"unit {unit}: is bad")
        if how == "bug":
            raise KeyError(unit)


def squares(where: Path, faults: Faults, units: int = 12, actors: int = 2, stall: float = 60.0) -> list[int]:
    connection.connect(verbose=False)
    with pool(Worker, actors, 0.1, 0.0, str(where), faults, stall=stall) as made:
        return list(made.map("square", range(units)))


def done(where: Path) -> dict[int, int]:
    """How often each unit was done."""
    return {int(path.name.split("-")[1]): len(path.read_text()) for path in where.glob("done-*")}


def test_each_unit_is_done_once(ray_cluster: str, tmp_path: Path) -> None:
    assert Counter(squares(tmp_path, {}, units=40, actors=3)) == Counter(i * i for i in range(40))
    assert done(tmp_path) == dict.fromkeys(range(40), 1)


def test_more_actors_than_units(ray_cluster: str, tmp_path: Path) -> None:
    assert squares(tmp_path, {}, units=1, actors=3) == [0] and squares(tmp_path, {}, units=0) == []


def test_killed_and_stopped_actors_are_made_again(ray_cluster: str, tmp_path: Path) -> None:
    faults = {-1: ("kill", 1), 2: ("kill", 1), 5: ("kill", 2), 7: ("stop", 1)}
    assert sorted(squares(tmp_path, faults, stall=3.0)) == [i * i for i in range(12)]
    assert set(done(tmp_path)) == set(range(12))
    assert len(list(tmp_path.glob("fault-*"))) == 5


def test_a_unit_that_costs_a_process_each_time_is_an_error(ray_cluster: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"Ray gave up after 3 tries \(ActorDiedError"):
        squares(tmp_path, {0: ("kill", 99)}, units=1)
    assert len(list(tmp_path.glob("fault-0-*"))) == failures.RETRIES + 1


def test_a_unit_that_never_ends_is_an_error(ray_cluster: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"cluster\.stall: 1 has not ended within 1 s, 4 times over"):
        squares(tmp_path, {1: ("stop", 99)}, units=2, actors=1, stall=1.0)


@pytest.mark.parametrize("unit", [-1, 4])
def test_errors_come_out_as_themselves_and_are_not_tried_again(ray_cluster: str, tmp_path: Path, unit: int) -> None:
    with pytest.raises(DataError, match=f"unit {unit}: is bad"):
        squares(tmp_path, {unit: ("user", 99)}, actors=1)
    assert len(list(tmp_path.glob("fault-*"))) == 1
    with pytest.raises(ResourceError, match=r"^a Ray process failed \(KeyError.*, at .*test_pool\.py, line"):
        squares(tmp_path, {unit: ("bug", 99)}, actors=1)


def test_actors_end_with_the_block(ray_cluster: str, tmp_path: Path) -> None:
    connection.connect(verbose=False)
    with pool(Worker, 1, 0.1, 0.0, str(tmp_path), {}, stall=60.0) as made:
        assert list(made.map("square", [3])) == [9]
        handle = made.actors[0].handle
    with pytest.raises(ray.exceptions.RayActorError):
        for _ in range(1000):  # the order to die is not waited for
            ray.get(handle.square.remote(1), timeout=30)
