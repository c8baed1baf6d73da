"""Processes that are the ranks of one ``torch.distributed`` group."""

from collections.abc import Callable
from typing import Any

# Before any group begins: torch imports this with the first optimiser, and its default arguments then hold on to the
# group of that time. Its threads, alive after destroy_process_group, now and then abort the process as it ends.
import torch.distributed.nn.functional
from torch.multiprocessing.spawn import spawn as spawn_processes

from bend_ray.serving.proxy import free_port


def spawn(task: Callable[..., None], world: int, *arguments: Any) -> None:
    """Run ``task(rank, *arguments)`` in ``world`` processes, ranks 0, 1, ... of a gloo group; raises where one
    fails."""
    spawn_processes(_rank, (world, free_port(), task, arguments), nprocs=world)


def _rank(rank: int, world: int, port: int, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    task(rank, *arguments)
    torch.distributed.destroy_process_group()
