"""One driver a run: a lease in the run's folder, which its holder renews and which runs out by itself.

Two drivers would do no harm to what is finished (a file is whole or not there, and the same bits whoever writes it),
but all work would be done twice, and each would sweep away what the other is writing.
"""

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bend_ray.cluster.watchdog import watchdog
from bend_ray.errors import ArtifactError
from bend_ray.store.folders import Folder

FILE = "driver.json"
LASTS_S = 30.0
"""How long a lease holds without being renewed: machines' clocks must agree within much less."""
RENEWED_S = 5.0


class Driver(BaseModel):
    """Who holds a run, and until when (seconds of the Unix clock)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    machine: str
    pid: int
    until: float

    def gone(self) -> bool:
        """Whether the lease has run out, or its holder was a process of this machine that is no more."""
        if self.until < time.time():
            return True
        if self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


@contextlib.contextmanager
def held(run: Folder) -> Iterator[None]:
    """Hold ``run`` while the block runs. Raises ArtifactError where another driver holds it, and ends the block with
    one if another has taken it over in the meantime. A folder that the lease alone was in goes with it."""
    absent = [] if run.remote else [path for path in (run.path, *run.path.parents) if not path.exists()]
    driver = Driver(id=uuid.uuid4().hex, machine=_machine(), pid=os.getpid(), until=0.0)
    other = _read(run)
    if other is not None and not other.gone():
        raise ArtifactError(_refusal(run, other))
    _write(run, driver)

    def renew() -> None:
        try:
            other = _read(run)
            if other is None or other.id == driver.id:
                _write(run, driver)
                return
        except ArtifactError:  # a full disk, a store that does not answer: the work itself says so, if it matters
            return
        raise ArtifactError(_refusal(run, other))

    try:
        # Of two that come at once the last to write has it; this is how long a writer may take after it has looked.
        time.sleep(1.0 if run.remote else 0.3)
        other = _read(run)
        if other is not None and other.id != driver.id:
            raise ArtifactError(_refusal(run, other))
        with watchdog(renew, RENEWED_S):
            yield
    finally:
        with contextlib.suppress(ArtifactError):
            if _mine(run, driver):
                run.delete(FILE)
        with contextlib.suppress(OSError):  # something is in it
            for path in absent:  # inner ones first
                path.rmdir()


def _mine(run: Folder, driver: Driver) -> bool:
    holder = _read(run)
    return holder is not None and holder.id == driver.id


def _read(run: Folder) -> Driver | None:
    """The holder; None where there is none, or none that can be understood."""
    try:
        return Driver.model_validate_json(run.read(FILE))
    except (ValidationError, FileNotFoundError):
        return None


def _write(run: Folder, driver: Driver) -> None:
    run.write(FILE, driver.model_copy(update={"until": time.time() + LASTS_S}).model_dump_json().encode())


def _refusal(run: Folder, other: Driver) -> str:
    host = other.machine.split(" ")[0]
    return (
        f"{run}: another bend-ray (process {other.pid} on {host}) is at work on it; wait for it or stop it (if it is no"
        f" more, the run is free in {max(0.0, other.until - time.time()):.0f} s), or use another --run-dir"
    )


def _machine() -> str:
    """Where a process number means the same process: this host, and on Linux this container of it."""
    names = [socket.gethostname()]
    with contextlib.suppress(OSError):
        names.append(str(Path("/proc/self/ns/pid").readlink()))
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    return " ".join(names)
