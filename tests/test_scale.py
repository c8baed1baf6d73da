"""Many small actors on several nodes: each block once, and the driver's time for a block is the same at the end."""

import itertools
import sys
import time
from pathlib import Path

import pytest
import ray

from bend_ray.cluster import connection
from bend_ray.cluster.pool import pool
from nodes import nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the cluster's processes have no such module

ACTORS, BLOCKS = 64, 2000


class Tiny:
    """Leaves a file a block, as samplers do."""

    def __init__(self, where: str) -> None:
        self.where = Path(where)

    def sample(self, block: int) -> tuple[int, str]:
        with (self.where / f"block-{block}").open("a") as file:
            file.write("x")
        return block, ray.get_runtime_context().get_node_id()


def test_64_actors_and_2000_blocks_on_three_nodes(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.shutdown()
    share = -(-ACTORS // 3)
    with nodes(share, 0) as made:
        for _ in range(2):
            made.add(num_cpus=share)
        monkeypatch.setenv("RAY_ADDRESS", made.address)
        connection.connect(verbose=False)
        cpu: list[float] = []
        found: list[tuple[int, str]] = []
        with pool(Tiny, ACTORS, 1.0, 0.0, str(tmp_path), stall=120.0) as actors:
            list(actors.map("sample", range(-ACTORS * 4, 0)))  # all have started
            for path in tmp_path.iterdir():
                path.unlink()
            cpu.append(time.process_time())
            for one in actors.map("sample", range(BLOCKS)):
                found.append(one)
                if len(found) % (BLOCKS // 4) == 0:
                    cpu.append(time.process_time())
            assert len(actors.actors) == ACTORS
        ray.shutdown()
    assert sorted(block for block, _ in found) == list(range(BLOCKS))
    assert all((tmp_path / f"block-{block}").read_text() == "x" for block in range(BLOCKS))
    assert len({node for _, node in found}) == 3
    quarters = [after - before for before, after in itertools.pairwise(cpu)]
    # CPU time, which other processes do not add to; were it to grow with the blocks done or left, it would be 7 times.
    assert max(quarters) < 2.5 * min(quarters), quarters
