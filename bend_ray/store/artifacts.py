"""What stages leave behind: folders of plain files under a manifest, whole or not there.

A run is one `Folder`. An artifact is a sub-folder that appears when its manifest does, and the manifest is written
last: it names the format, the configuration and the inputs that made the artifact, and the checksum of every file. No
pickle anywhere.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bend_ray.config import Config
from bend_ray.errors import ArtifactError
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS, Kind
from bend_ray.version import __version__

FORMAT = 1


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


def recipe(kind: Kind, config: Config, inputs: Mapping[str, str]) -> str:
    """The hash of all that determines an artifact."""
    return _sha256_json({"format": FORMAT, "kind": kind, "config": ARTIFACTS[kind].settings(config), "inputs": inputs})


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
    return publish_at(run / kind, kind, config, inputs, facts, files, readme)


def publish_at(
    folder: Folder,
    kind: Kind,
    config: Config,
    inputs: Mapping[str, str],
    facts: dict[str, Any],
    files: list[str],
    readme: str,
) -> Manifest:
    """`publish` in a ``folder`` of any name."""
    folder.write(ARTIFACTS[kind].readme, readme.encode())
    manifest = Manifest(
        format=1,
        kind=kind,
        made_by=f"bend_ray {__version__}",
        hash=recipe(kind, config, inputs),
        config=ARTIFACTS[kind].settings(config),
        inputs=dict(inputs),
        files={name: file_facts(folder, name) for name in sorted(files)},
        facts=facts,
    )
    write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """The last file of an artifact."""
    folder.write(ARTIFACTS[manifest.kind].manifest, (manifest.model_dump_json(indent=2) + "\n").encode())


def read_manifest(folder: Folder, kind: Kind) -> Manifest | None:
    """The manifest in ``folder``; None where there is none. Raises ArtifactError if it is not one of this ``kind``."""
    name = ARTIFACTS[kind].manifest
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
    for name in manifest.files:
        if "/" in name or "\\" in name or name.startswith("."):
            raise ArtifactError(
                f"{folder}/{ARTIFACTS[manifest.kind].manifest}: names a file outside the folder ({name!r})"
            )
    present = set(folder.list())
    for name in manifest.files:
        if name not in present:
            raise ArtifactError(f"{folder}/{name}: is missing; delete {folder} and run the same command again")
    seen = folder.each(lambda name: file_facts(folder, name), manifest.files)
    for (name, expected), actual in zip(manifest.files.items(), seen, strict=True):
        if actual != expected:
            what = "truncated or grown" if actual.bytes != expected.bytes else "altered"
            raise ArtifactError(
                f"{folder}/{name}: is {what} ({actual.bytes} bytes where the manifest says {expected.bytes}, checksum"
                f" {actual.sha256[:12]} for {expected.sha256[:12]}); delete {folder} and run the same command again"
            )


def described(folder: Folder, kind: Kind) -> Manifest:
    """The manifest alone of an artifact that was verified before. Raises ArtifactError if it is not there."""
    manifest = read_manifest(folder, kind)
    if manifest is None:
        is_no = "are no" if ARTIFACTS[kind].plural else "is no"
        raise ArtifactError(f"{folder}: there {is_no} {kind} here; run the stage before (bend-ray show says which)")
    return manifest


def load(folder: Folder, kind: Kind) -> Manifest:
    """The whole, verified artifact's manifest. Raises ArtifactError if it is not there or not as it was made."""
    manifest = described(folder, kind)
    verify(folder, manifest)
    return manifest


def inputs_of(run: Folder, kind: Kind, config: Config) -> dict[str, str]:
    """Content digests of the artifacts that ``kind`` is made from. Raises ArtifactError as `load`."""
    return {name: load(run / name, name).digest for name in ARTIFACTS[kind].made_from(config)}


def file_facts(folder: Folder, name: str) -> FileFacts:
    """Size and checksum of a file."""
    digest, size = hashlib.sha256(), 0
    with folder.local(name) as path, path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
            size += len(chunk)
    return FileFacts(bytes=size, sha256=digest.hexdigest())


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
