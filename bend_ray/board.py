"""Where a stage's workers say how far they are and why they stopped; the driver reads it, and ends who hangs."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from bend_ray import cluster
from bend_ray.errors import BendError
from bend_ray.progress import TOLD_S, Progress, throttled
from bend_ray.watch import watching

READ_S = 0.2
"""How often the driver reads the board."""
TOLD_A_SECOND = 100.0
"""Words that all workers together say in a second, about: the board is one process."""


class _Board:
    """The actor."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.total = 0
        self.failure: BendError | None = None
        self.heard: dict[cluster.Process, float] = {}
        """When each worker that is at work last said something."""

    def enter(self, worker: cluster.Process) -> None:
        self.heard[worker] = time.monotonic()

    def leave(self, worker: cluster.Process) -> None:
        self.heard.pop(worker, None)

    def tell(self, worker: cluster.Process, unit: str, done: int) -> None:
        self.enter(worker)
        if unit:
            self.total += done - self.done.get(unit, 0)
            self.done[unit] = done

    def fail(self, error: BendError) -> None:
        self.failure = self.failure or error

    def failed(self) -> BendError | None:
        return self.failure

    def read(self, stall: float) -> tuple[int, list[cluster.Process]]:
        """What is done of all units, and the workers that have said nothing for ``stall`` seconds, each told once."""
        late = time.monotonic() - stall
        hung = [worker for worker, heard in self.heard.items() if heard < late]
        for worker in hung:
            del self.heard[worker]
        return self.total, hung


@contextlib.contextmanager
def board(show: Progress, stall: float, already: int = 0) -> Iterator[Any]:
    """A board for the workers of one stage. What they did is shown, ``already`` added; one that says nothing for
    ``stall`` seconds is killed, for Ray to start it again. A BendError that a worker put there is raised when the block
    ends.
    """
    here = ray.get_runtime_context().get_node_id()  # it lives as long as the driver's machine does
    actor: Any = cluster.on(here, ray.remote(max_restarts=-1)(_Board)).remote()

    def look() -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            done, hung = ray.get(actor.read.remote(stall), timeout=5)
            show.update(already + done)
            for worker in hung:
                if cluster.end(worker):
                    show.line(f"process {worker.pid} has said nothing for {stall:g} s (cluster.stall): killed")

    try:
        with watching(look, READ_S):
            yield actor
    except Exception:
        if (failure := _failure(actor)) is not None:
            raise failure from None
        raise
    else:
        if (failure := _failure(actor)) is not None:
            raise failure
    finally:
        ray.kill(actor)


def watched(task: Any, show: Progress, stall: float, *arguments: Any) -> Any:
    """What the Ray ``task`` returns for ``arguments`` and, last, a board that it reports to; see `board`."""
    with board(show, stall) as said:
        try:
            return ray.get(task.remote(*arguments, said))
        except ray.exceptions.RayError as error:
            raise cluster.plainly(error) from error


def _failure(actor: Any) -> BendError | None:
    with contextlib.suppress(ray.exceptions.RayError):
        failure: BendError | None = ray.get(actor.failed.remote(), timeout=10)
        return failure
    return None


@dataclass(frozen=True)
class Desk:
    """A worker's end of the board."""

    board: Any
    worker: cluster.Process
    every: float

    def progress(self, unit: str) -> Callable[[int, int], None]:
        """A function of (done, total) that tells how much of ``unit`` is done; of no unit, that this worker lives."""
        return throttled(lambda done, total: self.board.tell.remote(self.worker, unit, done), self.every)


@contextlib.contextmanager
def reporting(board: Any, workers: int = 1) -> Iterator[Desk]:
    """In one of so many workers: it is known to the board while the block runs, and a BendError inside the block is put
    on the board, where Ray's retries cannot bury it."""
    worker = cluster.this_process()
    board.enter.remote(worker)
    try:
        yield Desk(board, worker, max(TOLD_S, workers / TOLD_A_SECOND))
    except BendError as error:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(board.fail.remote(error))
        raise
    finally:
        board.leave.remote(worker)
