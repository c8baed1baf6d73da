"""Where a run is kept: a folder, local or at a URI, whose files appear whole or not at all."""

import contextlib
import logging
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from bend_ray.errors import ArtifactError, MissingError, shown, why

PATIENCE_S = 60.0
"""How long an object store that does not answer is asked again."""
BACK_OFF_S = 0.5
"""Before the first time it is asked again; then twice as long each time."""
HOPELESS = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|NO_SUCH|TOKEN|UNAUTHORIZED|FORBIDDEN|HTTP status 40[134]"
)
"""What asking again does not mend."""

AT_ONCE = 16
"""Files asked of a store at once."""

Found = TypeVar("Found")
Item = TypeVar("Item")


class Folder:
    """A folder, local or at a URI (s3://, gs://, any file system of pyarrow): names in it are relative, with /.

    A URI may end in options of pyarrow's (`?region=...&endpoint_override=...`), which hold for all that is in it.
    """

    def __init__(self, where: str | Path) -> None:
        text = str(where)
        self.remote = "://" in text and not text.startswith("file://")
        place, question, options = text.partition("?") if self.remote else (text, "", "")
        self.place, self.options = place.rstrip("/"), question + options
        self.path = Path(self.place.removeprefix("file://")).absolute()

    @property
    def address(self) -> str:
        """This folder for other processes, whose working directory is not ours."""
        return self.place + self.options if self.remote else str(self.path)

    def __str__(self) -> str:
        """For people, without passwords."""
        return shown(self.place)

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.place}/{name}{self.options}")

    def opened(self) -> tuple[Any, str]:
        """pyarrow's file system and this folder's path in it. Raises ArtifactError where there is none such."""
        try:
            return _opened(self.address)
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{self}: cannot be reached ({why(error)}); check the URI and its credentials"
            ) from None

    def list(self) -> list[str]:
        """Names of the files directly in this folder, sorted; empty where there is no folder."""
        if not self.remote:
            names = [entry.name for entry in os.scandir(self.path) if entry.is_file()] if self.path.is_dir() else []
            return sorted(name for name in names if not name.startswith(".tmp-"))
        from pyarrow import fs  # a fifth of a second that local runs need not pay

        infos = self._ask("", lambda system, root: system.get_file_info(fs.FileSelector(root, allow_not_found=True)))
        return sorted(info.base_name for info in infos if info.type == fs.FileType.File)

    def exists(self, name: str) -> bool:
        if not self.remote:
            return (self.path / name).is_file()
        from pyarrow import fs

        info = self._ask(name, lambda system, path: system.get_file_info(path))
        return bool(info.type == fs.FileType.File)

    def each(self, work: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """``work``, which reads or writes a file here, on each of ``items``, in order; several at once where they would
        wait for a store, and no more results are kept than that."""
        if not self.remote:
            yield from map(work, items)
            return
        todo = list(items)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for start in range(0, len(todo), AT_ONCE):
                yield from threads.map(work, todo[start : start + AT_ONCE])

    def read(self, name: str) -> bytes:
        with self.local(name) as path:
            return path.read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Put the file ``name``: readers see all of it or what was there before."""
        with self.staged(name) as path:
            path.write_bytes(data)

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A local path to read ``name`` from: the file itself, or a copy of the remote one. Raises MissingError."""
        if not self.remote:
            if not (self.path / name).is_file():
                raise MissingError(f"{self.path / name}: no such file")
            yield self.path / name
            return
        from pyarrow import fs

        here = fs.LocalFileSystem()
        with tempfile.TemporaryDirectory(prefix="bend-ray-") as scratch:
            path = Path(scratch) / Path(name).name
            try:
                self._ask(name, lambda system, source: _copy(source, system, str(path), here))
            except FileNotFoundError:
                raise MissingError(f"{self}/{name}: no such file") from None
            yield path

    @contextlib.contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """A local path to write to; when the block ends well, the file appears under ``name`` at once."""
        if self.remote:
            from pyarrow import fs

            here = fs.LocalFileSystem()
            with tempfile.TemporaryDirectory(prefix="bend-ray-") as scratch:
                path = Path(scratch) / Path(name).name
                with _writing(path):
                    yield path
                # A store shows an object when its upload is complete; one that is broken off never appears.
                self._ask(name, lambda system, target: _copy(str(path), here, target, system))
            return
        final = self.path / name
        path = final.parent / f".tmp-{uuid.uuid4().hex}-{final.name}"
        try:
            with _writing(final):
                final.parent.mkdir(parents=True, exist_ok=True)
                yield path
                with path.open("rb") as file:
                    os.fsync(file.fileno())  # a rename must not outrun the data it names
                path.replace(final)
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove one file; nothing happens where there is none."""
        if not self.remote:
            (self.path / name).unlink(missing_ok=True)
        elif self.exists(name):
            with contextlib.suppress(FileNotFoundError):
                self._ask(name, lambda system, path: system.delete_file(path))

    def sweep(self) -> None:
        """Remove what killed writers left behind here and below; a store shows nothing of theirs."""
        if not self.remote:
            for left in self.path.glob("**/.tmp-*"):
                left.unlink(missing_ok=True)

    def _ask(self, name: str, question: Callable[[Any, str], Found]) -> Found:
        """``question`` of the store about the file ``name``. Raises as `patiently` does."""
        system, root = self.opened()
        return patiently(str(self), lambda: question(system, f"{root}/{name}" if name else root))


def patiently(where: str, question: Callable[[], Found]) -> Found:
    """``question`` of the store at ``where``, again while it does not answer.

    Raises FileNotFoundError, and ArtifactError for everything else that goes wrong.
    """
    until, pause = time.monotonic() + PATIENCE_S, BACK_OFF_S
    while True:
        try:
            return question()
        except FileNotFoundError:
            raise
        except OSError as error:
            if isinstance(error, PermissionError) or HOPELESS.search(str(error)):
                raise ArtifactError(
                    f"{where}: cannot be used ({why(error)}); check the bucket's name, its region, and the"
                    " credentials (AWS_ACCESS_KEY_ID and the like) that this process has"
                ) from None
            if time.monotonic() + pause > until:
                raise ArtifactError(
                    f"{where}: does not answer ({why(error)}), asked again for {PATIENCE_S:g} s; what is finished is"
                    " kept: check the connection and run the same command again"
                ) from None
            logging.getLogger(__name__).warning("%s: no answer, asking again in %g s", where, pause)
        time.sleep(pause)
        pause *= 2


@contextlib.contextmanager
def local_file(path: str) -> Iterator[Path]:
    """The file at a path or URI as a local path. Raises MissingError where there is none at a URI."""
    if "://" not in path:
        yield Path(path)
        return
    place, question, options = path.partition("?")
    parent, _, name = place.rpartition("/")
    with Folder(parent + question + options).local(name) as local:
        yield local


@lru_cache(maxsize=64)
def _opened(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    system, path = fs.FileSystem.from_uri(uri)
    if not path:
        raise ValueError("it names no bucket")
    return system, path


def _copy(source: str, of: Any, target: str, to: Any) -> None:
    from pyarrow import fs

    fs.copy_files(source, target, source_filesystem=of, destination_filesystem=to, use_threads=False)


@contextlib.contextmanager
def _writing(final: Path) -> Iterator[None]:
    """What the operating system says of a write, as a sentence."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{final}: cannot be written ({error.strerror or error}); check path and disk") from None
