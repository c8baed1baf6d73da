"""Where a run is kept: a folder, local or at a URI, whose files appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bend_ray.errors import ArtifactError


class Folder:
    """A folder, local or at a URI (s3://, gs://, any file system of pyarrow): names in it are relative, with /."""

    def __init__(self, where: str | Path) -> None:
        self.where = str(where).rstrip("/")
        self.remote = "://" in self.where and not self.where.startswith("file://")
        self.path = Path(self.where.removeprefix("file://")).absolute()

    @property
    def address(self) -> str:
        """This folder for other processes, whose working directory is not ours."""
        return self.where if self.remote else str(self.path)

    def __str__(self) -> str:
        return self.where

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.where}/{name}")

    def _fs(self) -> tuple[Any, str]:
        from pyarrow import fs  # a fifth of a second that local runs need not pay

        try:
            return fs.FileSystem.from_uri(self.where)
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())
            raise ArtifactError(f"{self.where}: cannot be reached ({why}); check the URI and its credentials") from None

    def list(self) -> list[str]:
        """Names of the files directly in this folder, sorted; empty where there is no folder."""
        if not self.remote:
            found = [entry.name for entry in os.scandir(self.path) if entry.is_file()] if self.path.is_dir() else []
            return sorted(name for name in found if not name.startswith(".tmp-"))
        from pyarrow import fs

        system, root = self._fs()
        infos = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == fs.FileType.File)

    def exists(self, name: str) -> bool:
        if not self.remote:
            return (self.path / name).is_file()
        from pyarrow import fs

        system, root = self._fs()
        return bool(system.get_file_info(f"{root}/{name}").type == fs.FileType.File)

    def read(self, name: str) -> bytes:
        with self.local(name) as path:
            return path.read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Put the file ``name``: readers see all of it or what was there before."""
        with self.staged(name) as path:
            path.write_bytes(data)

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A local path to read ``name`` from: the file itself, or a copy of the remote one."""
        if not self.remote:
            if not (self.path / name).is_file():
                raise ArtifactError(f"{self.path / name}: no such file")
            yield self.path / name
            return
        if not self.exists(name):
            raise ArtifactError(f"{self.where}/{name}: no such file")
        system, root = self._fs()
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / Path(name).name
            with system.open_input_stream(f"{root}/{name}") as stream, path.open("wb") as file:
                while chunk := stream.read(1 << 24):
                    file.write(chunk)
            yield path

    @contextlib.contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """A local path to write to; when the block ends well, the file appears under ``name`` at once."""
        if self.remote:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / Path(name).name
                yield path
                system, root = self._fs()
                with system.open_output_stream(f"{root}/{name}") as stream, path.open("rb") as file:
                    while chunk := file.read(1 << 24):
                        stream.write(chunk)
            return
        final = self.path / name
        path = final.parent / f".tmp-{uuid.uuid4().hex}-{final.name}"
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            yield path
            with path.open("rb") as file:
                os.fsync(file.fileno())  # a rename must not outrun the data it names
            path.replace(final)
        except OSError as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(
                f"{final}: cannot be written ({error.strerror or error}); check path and disk"
            ) from None
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove one file; nothing happens where there is none."""
        if not self.remote:
            (self.path / name).unlink(missing_ok=True)
        elif self.exists(name):
            system, root = self._fs()
            system.delete_file(f"{root}/{name}")

    def delete_folder(self, name: str) -> None:
        """Remove a folder and all in it; nothing happens where there is none."""
        if not self.remote:
            shutil.rmtree(self.path / name, ignore_errors=True)
            return
        from pyarrow import fs

        system, root = self._fs()
        if system.get_file_info(f"{root}/{name}").type == fs.FileType.Directory:
            system.delete_dir(f"{root}/{name}")

    def sweep(self) -> None:
        """Remove what killed writers left behind here and below."""
        if not self.remote:
            for left in self.path.glob("**/.tmp-*"):
                left.unlink(missing_ok=True)
        self.delete_folder(".ray")
