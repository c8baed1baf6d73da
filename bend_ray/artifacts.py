"""What stages leave behind: folders of plain files under a manifest, whole or not there.

A run is one `Folder`, local or a URI. Every file in it appears by one rename (locally) or one put (object stores). An
artifact is a sub-folder that appears when its manifest does, and the manifest is written last: it names the format, the
configuration and the inputs that made the artifact, and the checksum of every file. No pickle anywhere.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bend_ray import __version__
from bend_ray.config import Config, loads
from bend_ray.errors import ArtifactError

FORMAT = 1
Kind = Literal["base", "snapshots", "generator", "ensemble", "report"]

# The sections of the configuration that an artifact depends on, apart from those of its inputs.
DEPENDS: dict[Kind, tuple[str, ...]] = {
    "base": ("seed", "data", "classifier", "base"),
    "snapshots": ("seed", "collect"),
    "generator": ("seed", "autoencoder", "diffusion"),
    "ensemble": ("seed", "sample"),
    "report": ("seed", "evaluate"),
}

# Files of finished units of work, there before the artifact is.
UNITS: dict[Kind, str] = {"snapshots": "chain-", "ensemble": "block-"}


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


class FileFacts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact is, from what it was made, and what its files must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1]
    kind: Kind
    made_by: str
    hash: str
    """Of `config` and `inputs`: the same hash is the same recipe."""
    config: dict[str, Any]
    inputs: dict[str, str]
    """Content digest of each input."""
    files: dict[str, FileFacts]
    facts: dict[str, Any]
    """What else the artifact needs to be used, and what was measured when it was made."""

    @property
    def digest(self) -> str:
        """Of the files' content: what the next artifact names as its input."""
        return _sha256_json({name: facts.sha256 for name, facts in self.files.items()})


def manifest_name(kind: Kind) -> str:
    """`_config.json` beside Parquet parts, for readers of a dataset pass over names with an underscore."""
    return "_config.json" if kind == "snapshots" else "config.json"


def recipe(kind: Kind, config: Config, inputs: Mapping[str, str]) -> str:
    """The hash of all that determines an artifact."""
    return _sha256_json({"format": FORMAT, "kind": kind, "config": config.hashed(*DEPENDS[kind]), "inputs": inputs})


def publish(
    run: Folder,
    kind: Kind,
    config: Config,
    inputs: Mapping[str, str],
    facts: dict[str, Any],
    files: list[str],
    readme: str,
) -> Manifest:
    """Make the artifact appear: its ``files`` are already there; the manifest, written last, vouches for them."""
    folder = run / kind
    prefix = "_" if kind == "snapshots" else ""
    folder.write(f"{prefix}README.md", readme.encode())
    manifest = Manifest(
        format=1,
        kind=kind,
        made_by=f"bend_ray {__version__}",
        hash=recipe(kind, config, inputs),
        config=config.hashed(*DEPENDS[kind]),
        inputs=dict(inputs),
        files={name: _facts(folder, name) for name in sorted(files)},
        facts=facts,
    )
    folder.write(manifest_name(kind), (manifest.model_dump_json(indent=2) + "\n").encode())
    return manifest


def find(run: Folder, kind: Kind, config: Config, inputs: Mapping[str, str]) -> Manifest | None:
    """The artifact if it is there and was made from this configuration and these inputs; None if it is not there.

    Raises ArtifactError, and touches nothing, where another configuration or other inputs made it.
    """
    manifest = read_manifest(run / kind, kind)
    if manifest is None:
        return None
    check_config(run, manifest, config)
    for name, digest in inputs.items():
        if manifest.inputs.get(name) != digest:
            raise ArtifactError(
                f"{run / kind}: was made from another {name} than the one here now; use another --run-dir,"
                f" or delete {run / kind} to make it anew"
            )
    return manifest


def check_config(run: Folder, manifest: Manifest, config: Config) -> None:
    """Raises ArtifactError where ``manifest`` was made by another configuration, naming the first key that differs."""
    _check_keys(run / manifest.kind, manifest.config, config.hashed(*DEPENDS[manifest.kind]))


def _check_keys(folder: Folder, made: dict[str, Any], asked: dict[str, Any]) -> None:
    here = json.loads(json.dumps(asked))
    for key in sorted(here.keys() | made.keys()):
        there, now = made.get(key), here.get(key)
        if there != now:
            raise ArtifactError(
                f"{folder}: was made by another configuration ({key}: {there!r} there, {now!r} here);"
                f" use another --run-dir, or delete {folder} and what follows from it"
            )


def check_run(run: Folder, config: Config) -> None:
    """Raises ArtifactError if anything in ``run`` was made by another configuration, whole or begun."""
    for kind in DEPENDS:
        manifest = read_manifest(run / kind, kind)
        if manifest is not None:
            check_config(run, manifest, config)
        elif finished_units(run, kind) and run.exists("config.yaml"):
            begun = loads(run.read("config.yaml").decode(errors="replace"), f"{run}/config.yaml").hashed(*DEPENDS[kind])
            _check_keys(run / kind, json.loads(json.dumps(begun)), config.hashed(*DEPENDS[kind]))


def finished_units(run: Folder, kind: Kind) -> list[str]:
    """Files of the chains or blocks that are done while the artifact is not there yet."""
    return [name for name in (run / kind).list() if kind in UNITS and name.startswith(UNITS[kind])]


def read_manifest(folder: Folder, kind: Kind) -> Manifest | None:
    """The manifest in ``folder``; None where there is none. Raises ArtifactError if it is not one of this ``kind``."""
    name = manifest_name(kind)
    if not folder.exists(name):
        return None
    try:
        manifest = Manifest.model_validate_json(folder.read(name))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{folder}/{name}: is not a manifest of format {FORMAT} ({where + ': ' if where else ''}{first['msg']});"
            f" delete {folder} and run the same command again"
        ) from None
    if manifest.kind != kind:
        raise ArtifactError(f"{folder}/{name}: describes a {manifest.kind}, not a {kind}")
    return manifest


def verify(folder: Folder, manifest: Manifest) -> None:
    """Raises ArtifactError if a file of the artifact is missing, truncated, or altered."""
    for name, expected in manifest.files.items():
        if "/" in name or "\\" in name or name.startswith("."):
            raise ArtifactError(f"{folder}/{manifest_name(manifest.kind)}: names a file outside the folder ({name!r})")
        if not folder.exists(name):
            raise ArtifactError(f"{folder}/{name}: is missing; delete {folder} and run the same command again")
        found = _facts(folder, name)
        if found != expected:
            what = "truncated or grown" if found.bytes != expected.bytes else "altered"
            raise ArtifactError(
                f"{folder}/{name}: is {what} ({found.bytes} bytes where the manifest says {expected.bytes}, checksum"
                f" {found.sha256[:12]} for {expected.sha256[:12]}); delete {folder} and run the same command again"
            )


def load(folder: Folder, kind: Kind) -> Manifest:
    """The whole, verified artifact's manifest. Raises ArtifactError if it is not there or not as it was made."""
    manifest = read_manifest(folder, kind)
    if manifest is None:
        is_no = "are no" if kind == "snapshots" else "is no"
        raise ArtifactError(f"{folder}: there {is_no} {kind} here; run the stage before (bend-ray show says which)")
    verify(folder, manifest)
    return manifest


def write_tensors(folder: Folder, name: str, tensors: Mapping[str, Any], note: str = "") -> None:
    """Tensors as one .safetensors file, with ``note`` in its header."""
    from safetensors.torch import save_file

    # One entry only: with more, the header's order, and with it the file's bytes, would vary.
    with folder.staged(name) as path:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path, {"note": note})


def read_tensors(folder: Folder, name: str) -> tuple[dict[str, Any], str]:
    """Tensors and note of a .safetensors file. Raises ArtifactError if it is none."""
    from safetensors import SafetensorError, safe_open

    with folder.local(name) as path:
        try:
            with safe_open(path, framework="pt") as file:
                note = (file.metadata() or {}).get("note", "")
                return {key: file.get_tensor(key) for key in file.keys()}, note  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{folder}/{name}: is not a whole .safetensors file ({error}); delete it and run the same command again"
            ) from None


def note_seconds(run: Folder, unit: str, seconds: float) -> None:
    """Keep how long a unit of work took, apart from the artifacts, whose bits must not depend on it."""
    (run / "timings").write(f"{unit}.json", json.dumps({"seconds": seconds}).encode())


def noted_seconds(run: Folder, prefix: str) -> float:
    """The sum over all units whose name starts with ``prefix``."""
    folder = run / "timings"
    return sum(json.loads(folder.read(name))["seconds"] for name in folder.list() if name.startswith(prefix))


def _facts(folder: Folder, name: str) -> FileFacts:
    digest, size = hashlib.sha256(), 0
    with folder.local(name) as path, path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
            size += len(chunk)
    return FileFacts(bytes=size, sha256=digest.hexdigest())


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
