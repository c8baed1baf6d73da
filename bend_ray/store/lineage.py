"""Whether what a run holds was made from this configuration: asked before anything is used, gone on from or made."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bend_ray import config as configs
from bend_ray.config import Config, Settings, complaint, current, loads, off_value
from bend_ray.errors import ArtifactError
from bend_ray.store import kinds
from bend_ray.store.artifacts import Manifest, read_manifest, verify
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS, RIVALS_FOLDER, Kind, after


def find(run: Folder, kind: Kind, config: Config, inputs: Mapping[str, str]) -> Manifest | None:
    """The artifact if it is there and was made from this configuration and these inputs; None if it is not there.

    Raises ArtifactError, and touches nothing, where another configuration or other inputs made it.
    """
    manifest = read_manifest(run / kind, kind)
    if manifest is None:
        return None
    check_config(run, manifest, config)
    for name in sorted(inputs.keys() | manifest.inputs.keys()):
        if manifest.inputs.get(name) != inputs.get(name):
            raise ArtifactError(
                f"{run / kind}: was made from another {name} than the one here now; use another --run-dir,"
                f" or delete {_following(run, kind)} to make it anew"
            )
    return manifest


def verified(run: Folder, kind: Kind, config: Config, inputs: Mapping[str, str]) -> Manifest | None:
    """`find`, and every file of it is whole. Raises ArtifactError where one is not."""
    manifest = find(run, kind, config, inputs)
    if manifest is not None:
        verify(run / kind, manifest)
    return manifest


def check_config(run: Folder, manifest: Manifest, config: Config) -> None:
    """Raises ArtifactError where ``manifest`` was made by another configuration, naming the first key that differs."""
    _check_keys(run, manifest.kind, manifest.config, ARTIFACTS[manifest.kind].settings(config))


def _check_keys(run: Folder, kind: Kind, made: dict[str, Any], wanted: dict[str, Any]) -> None:
    made = {current(key): value for key, value in made.items()}
    made, wanted = (json.loads(json.dumps(keys)) for keys in (made, wanted))  # as a manifest holds them
    for key in sorted(wanted.keys() | made.keys()):
        absent = off_value(key)
        stored, configured = made.get(key, absent), wanted.get(key, absent)
        if stored != configured:
            raise ArtifactError(
                f"{run / kind}: was made by another configuration ({key}: {stored!r} there, {configured!r} here);"
                f" use another --run-dir, or delete {_following(run, kind)}"
            )


def _following(run: Folder, kind: Kind) -> str:
    """The folder of ``kind`` and of what follows from it, as far as they are there, in words."""
    later = [*after(kind), *([RIVALS_FOLDER] if kind == "base" else [])]
    *names, last = [kind, *(name for name in later if (run / name).list())]
    return f"{', '.join(names) + ' and ' if names else ''}{last} in {run}"


def check_run(run: Folder, config: Config) -> None:
    """Raises ArtifactError if anything in ``run`` was made by another configuration, whole or begun."""
    for kind in kinds.wanted(config):
        wanted = _config_for(run, kind, config)
        manifest = read_manifest(run / kind, kind)
        if manifest is not None:
            check_config(run, manifest, wanted)
        elif finished_units(run, kind) and run.exists("config.yaml"):
            begun = loads(run.read("config.yaml").decode(errors="replace"), f"{run}/config.yaml")
            begun = _config_for(run, kind, begun)
            _check_keys(run, kind, *(ARTIFACTS[kind].settings(one) for one in (begun, wanted)))


def _config_for(run: Folder, kind: Kind, config: Config) -> Config:
    """By what ``kind`` is made: what follows a search, once that is checked itself, by what it found."""
    return tuned(run, config) if kind in after("search") else config


def tuned(run: Folder, config: Config) -> Config:
    """``config`` with the best values that its search found in ``run``; as it is before there are any.

    Raises ArtifactError where they do not go with it.
    """
    manifest = read_manifest(run / "search", "search") if config.search.trials else None
    if manifest is None:
        return config
    values = manifest.facts["values"]
    try:
        return config.with_keys(values)
    except ValidationError as error:
        listed = ", ".join(f"{key} {value}" for key, value in values.items())
        raise ArtifactError(
            f"{run / 'search'}: found values ({listed}) that do not go with this configuration ({complaint(error)});"
            f" use another --run-dir, or delete {_following(run, 'search')} to search anew"
        ) from None


def inference(model: type[Settings], folder: Folder, overrides: dict[str, str]) -> Settings:
    """How to use the ensemble at ``folder``: as its run's configuration says, with dotted ``overrides`` laid over."""
    text = folder.read("config.yaml").decode(errors="replace") if folder.exists("config.yaml") else ""
    return configs.inference(model, overrides, text, f"{folder}/config.yaml")


def finished_units(run: Folder, kind: Kind) -> list[str]:
    """Files of the chains or blocks that are done while the artifact is not there yet."""
    return [name for name in (run / kind).list() if name.startswith(ARTIFACTS[kind].unit_files)]


def check_recipe(folder: Folder, name: str, made_by: str, recipe: str) -> None:
    """Raises ArtifactError if the file ``name`` of a finished unit is not of this ``recipe``."""
    if made_by != recipe:
        raise ArtifactError(
            f"{folder}/{name}: was made by another configuration or from other inputs;"
            f" use another --run-dir, or delete {folder} to make it anew"
        )
