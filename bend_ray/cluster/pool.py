"""Units of work spread over actors: whoever dies, each unit is done, and the driver's time for each is the same."""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray

from bend_ray.cluster import failures, private, processes
from bend_ray.errors import ResourceError

AHEAD = 2
"""Units handed to an actor at once: it need not wait for the driver."""
LOOK_S = 0.5
"""How long the driver waits at most before it looks for actors that hang or can be started."""


@dataclass(eq=False)
class _Actor:
    handle: Any
    process: processes.Process | None = None
    """None: it is still starting."""
    units: list[Any] = field(default_factory=list)
    """Handed to it and not yet done, in order."""
    heard: float = field(default_factory=time.monotonic)


class Pool:
    """Actors of class ``kind``, each made from ``arguments`` (paths, not tensors)."""

    def __init__(
        self, kind: type, actors: int, cpus: float, gpus: float, arguments: tuple[Any, ...], stall: float
    ) -> None:
        self.kind: Any = ray.remote(kind).options(num_cpus=cpus, num_gpus=gpus)
        self.most, self.arguments, self.stall = actors, arguments, stall
        self.actors: list[_Actor] = []
        self.waited: dict[Any, tuple[_Actor, Any]] = {}
        """By reference: the result of a unit, or of None, that the actor has started."""
        self.deaths: Counter[Any] = Counter()
        """How often a process has died at a unit, or (None) while it started."""

    def map(self, method: str, units: Iterable[Any]) -> Iterator[Any]:
        """Results of ``method`` for each of ``units``, as they come.

        An actor that dies is made again where there is room, and its units are done by whoever is there. Raises the
        BendError that a unit ends with, and ResourceError where the same unit costs a process too often.
        """
        todo = deque(units)
        left = len(todo)
        self.deaths.clear()
        while left:
            while len(self.actors) < min(self.most, left):
                self._start()
            self._hand_out(method, todo)
            # An eighth of the units at once, for a wait costs in proportion to what is waited for.
            units_out = sum(len(actor.units) for actor in self.actors)
            done, _ = ray.wait(list(self.waited), num_returns=max(1, units_out // 8), timeout=LOOK_S)
            for reference in done:
                if reference not in self.waited:  # its actor has died since
                    continue
                actor, unit = self.waited.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    results, again = self._lost(actor, unit, error)
                    todo.extendleft(reversed(again))
                    left -= len(results)
                    yield from results
                    continue
                actor.heard = time.monotonic()
                if unit is None:
                    actor.process, self.deaths[None] = result, 0
                    continue
                actor.units.remove(unit)
                left -= 1
                yield result
            self._end_the_hung()

    def _start(self) -> None:
        actor = _Actor(self.kind.remote(*self.arguments))
        self.actors.append(actor)
        self.waited[private.call_in(actor.handle, _process)] = actor, None

    def _hand_out(self, method: str, todo: deque[Any]) -> None:
        """One unit to each that has none; more only while all are sure to get some."""
        for depth in range(AHEAD):
            for actor in self.actors:
                if len(todo) <= (len(self.actors) if depth else 0):
                    return
                if actor.process and len(actor.units) == depth:
                    if not depth:
                        actor.heard = time.monotonic()
                    unit = todo.popleft()
                    actor.units.append(unit)
                    self.waited[getattr(actor.handle, method).remote(unit)] = actor, unit

    def _lost(self, actor: _Actor, unit: Any, error: ray.exceptions.RayError) -> tuple[list[Any], list[Any]]:
        """Results that came before the actor died, and the units that have to be done again. Raises what is not mended
        by doing them again."""
        theirs = {reference: at for reference, (other, at) in self.waited.items() if other is actor}
        results = []
        for reference in ray.wait(list(theirs), num_returns=len(theirs), timeout=0)[0] if theirs else []:
            with contextlib.suppress(ray.exceptions.RayError):
                results.append(ray.get(reference))
                actor.units.remove(theirs[reference])
        blamed = actor.units[0] if actor.units else None  # the one that was worked on
        if isinstance(error, ray.exceptions.ObjectLostError):  # done, but the node that had the result has died
            blamed = unit
        self.deaths[blamed] += 1
        hopeless = isinstance(error, ray.exceptions.RayTaskError) or failures.bend_error(error) is not None
        # Starts are counted together: a node may take many with it.
        if hopeless or self.deaths[blamed] > failures.RETRIES * (self.most if blamed is None else 1):
            raise failures.plainly(error) from error
        self.actors.remove(actor)
        for reference in theirs:
            del self.waited[reference]
        ray.kill(actor.handle)
        return results, actor.units

    def _end_the_hung(self) -> None:
        """Kill who has not ended a unit for too long; what follows is as for any other death."""
        late = time.monotonic() - self.stall
        for actor in self.actors:
            if actor.process and actor.units and actor.heard < late:
                if self.deaths[actor.units[0]] == failures.RETRIES:
                    raise ResourceError(
                        f"cluster.stall: {actor.units[0]!r} has not ended within {self.stall:g} s,"
                        f" {failures.RETRIES + 1} times over; raise it if so much time is needed"
                    )
                processes.end(actor.process)
                ray.kill(actor.handle)  # where even that has no effect, it is given up
                actor.heard = time.monotonic()

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor.handle)
        self.actors.clear()
        self.waited.clear()


def _process(actor: Any) -> processes.Process:
    return processes.this_process()


@contextlib.contextmanager
def pool(kind: type, actors: int, cpus: float, gpus: float, *arguments: Any, stall: float) -> Iterator[Pool]:
    """A `Pool`, whose actors end with the block."""
    made = Pool(kind, actors, cpus, gpus, arguments, stall)
    try:
        yield made
    finally:
        made.close()
