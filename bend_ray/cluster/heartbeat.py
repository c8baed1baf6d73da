"""Where a stage's workers say how far they are and why they stopped; the driver reads it, and ends who hangs."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from bend_ray.cluster import failures, processes
from bend_ray.cluster.watchdog import watchdog
from bend_ray.errors import BendError
from bend_ray.progress import CALLED_S, Progress, ProgressCallback, throttled

READ_S = 0.2
"""How often the driver listens."""
BEATS_A_SECOND = 100.0
"""Beats of all workers together in a second, about: what hears them is one process."""


class Heartbeat:
    """The actor that hears all workers of a stage."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.total = 0
        self.failure: BendError | None = None
        self.heard: dict[processes.Process, float] = {}
        """When each worker that is at work last said something."""

    def enter(self, worker: processes.Process) -> None:
        self.heard[worker] = time.monotonic()

    def leave(self, worker: processes.Process) -> None:
        self.heard.pop(worker, None)

    def tell(self, worker: processes.Process, unit: str, done: int) -> None:
        self.enter(worker)
        if unit:
            self.total += done - self.done.get(unit, 0)
            self.done[unit] = done

    def fail(self, error: BendError) -> None:
        self.failure = self.failure or error

    def failed(self) -> BendError | None:
        return self.failure

    def read(self, stall: float) -> tuple[int, list[processes.Process]]:
        """What is done of all units, and the workers that have said nothing for ``stall`` seconds, each told once."""
        late = time.monotonic() - stall
        hung = [worker for worker, heard in self.heard.items() if heard < late]
        for worker in hung:
            del self.heard[worker]
        return self.total, hung


@contextlib.contextmanager
def heartbeat(show: Progress, stall: float, already: int = 0) -> Iterator[Any]:
    """The heartbeat of the workers of one stage. What they did is shown, ``already`` added; one that says nothing for
    ``stall`` seconds is killed, for Ray to start it again. A BendError that a worker reported is raised when the block
    ends.
    """
    here = ray.get_runtime_context().get_node_id()  # it lives as long as the driver's machine does
    actor: Any = processes.on(here, ray.remote(max_restarts=-1)(Heartbeat)).remote()

    def check() -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            done, hung = ray.get(actor.read.remote(stall), timeout=5)
            show.update(already + done)
            for worker in hung:
                if processes.end(worker):
                    show.line(f"process {worker.pid} has said nothing for {stall:g} s (cluster.stall): killed")

    try:
        with watchdog(check, READ_S):
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


def run_task(task: Any, show: Progress, stall: float, *arguments: Any) -> Any:
    """What the Ray ``task`` returns for ``arguments`` and, last, a `heartbeat` that it reports to."""
    return run_tasks(task, show, stall, [arguments])[0]


def run_tasks(task: Any, show: Progress, stall: float, each: Iterable[tuple[Any, ...]], already: int = 0) -> list[Any]:
    """The same for each of these tuples of arguments, side by side. ``already``: how much was done before."""
    with heartbeat(show, stall, already) as heart:
        try:
            return ray.get([task.remote(*arguments, heart) for arguments in each])
        except ray.exceptions.RayError as error:
            raise failures.plainly(error) from error


def _failure(actor: Any) -> BendError | None:
    with contextlib.suppress(ray.exceptions.RayError):
        failure: BendError | None = ray.get(actor.failed.remote(), timeout=10)
        return failure
    return None


@dataclass(frozen=True)
class Beat:
    """A worker's end of the heartbeat."""

    heart: Any
    worker: processes.Process
    every: float

    def progress(self, unit: str) -> ProgressCallback:
        """A function of (done, total) that tells how much of ``unit`` is done; of no unit, that this worker lives."""
        return throttled(lambda done, total: self.heart.tell.remote(self.worker, unit, done), self.every)


@contextlib.contextmanager
def beating(heart: Any, workers: int = 1) -> Iterator[Beat]:
    """In one of so many workers: it is heard while the block runs. A BendError inside the block, or what a line of the
    user's code raises, is reported, where Ray's retries cannot bury it."""
    worker = processes.this_process()
    heart.enter.remote(worker)
    try:
        yield Beat(heart, worker, max(CALLED_S, workers / BEATS_A_SECOND))
    except Exception as error:
        if (failure := error if isinstance(error, BendError) else failures.of_users_code(error)) is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(heart.fail.remote(failure))
        raise
    finally:
        heart.leave.remote(worker)
