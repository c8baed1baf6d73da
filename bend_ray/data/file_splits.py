"""Which split each of several files is of: as `data.files` says, as the README.md of a data set of the Hub says, or as
their names and folders say."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import yaml

from bend_ray.data.listing import Listing, matching
from bend_ray.data.split_names import LONG, UNCLEAR, choose, missing_shard, shard_of, split_of
from bend_ray.errors import DataError

NEUTRAL = {"", "data"}
"""Folders that are no configuration: the Hub puts files into `data`."""
YEAR = re.compile(r"(?:19|20)\d\d")


def divided(listing: Listing, names: Iterable[str], config: str | None) -> dict[str, list[str]]:
    """The files of each split, sorted. Raises DataError, which names a file and a key, where that is not certain."""
    names = sorted(names)
    readme = next((name for name in listing.files if name.lower() == "readme.md"), None)
    configs, default = hub_configs(listing.read(readme)) if readme else ({}, None)
    if configs and (config is None or config in configs):
        by_split = _by_readme(listing, names, configs, default if config is None else config)
    else:
        by_split = _by_name(listing, _of_config(listing, names, config))
    if wrong := missing_shard(name for members in by_split.values() for name in members):
        raise DataError(f"{listing.where}/{wrong}")
    return by_split


def _by_name(listing: Listing, names: list[str]) -> dict[str, list[str]]:
    splits = {name: _split_in(name) for name in names}
    if set(splits.values()) == {None}:
        return {"train": names}
    by_split: dict[str, list[str]] = {}
    called: dict[str, tuple[str, str]] = {}
    for name, said in splits.items():
        split, stem = said or (None, "")
        here = f"{listing.where}/{name}"
        if split is None:
            raise DataError(f"{here}: names no split, and others do; {choose()}")
        if split == UNCLEAR:
            raise DataError(f"{here}: is not certainly training, validation or test rows; {choose()}")
        first, its_stem = called.setdefault(split, (name, stem))
        if stem != its_stem:
            raise DataError(f"{here}: may be the {LONG[split]} split as {first} may be; {choose()}")
        by_split.setdefault(split, []).append(name)
    if "train" not in by_split:
        raise DataError(
            f"{listing.where}: has files of {', '.join(sorted(by_split))} and none of a training split; {choose()}"
        )
    return by_split


def _split_in(name: str) -> tuple[str, str] | None:
    """The split that the names of a file and its folders say, `UNCLEAR` where they say two, and the name as far as the
    last of them without what numbers files."""
    parts = PurePosixPath(name).parts
    said = {depth: split for depth, part in enumerate(parts) if (split := split_of(part))}
    if not said:
        return None
    last = max(said)
    outer = [part for part in parts[:last] if part not in NEUTRAL]
    return (UNCLEAR if len(set(said.values())) > 1 else said[last]), "/".join([*outer, _stem(parts[last])])


def _stem(part: str) -> str:
    """Without suffix and numbers, but for years: `train-0.parquet` and `train-1.parquet` are parts of one."""
    part = shard_of(part).stem.lower().removesuffix(".parquet")
    return re.sub(r"\d+", lambda match: match[0] if YEAR.fullmatch(match[0]) else "", part).strip("-_. ")


def _of_config(listing: Listing, names: list[str], config: str | None) -> list[str]:
    """The files of one configuration, where folders are several."""
    of: dict[str, list[str]] = {}
    for name in names:
        of.setdefault(_config_of(name), []).append(name)
    if config is not None:
        files = [name for key, members in of.items() if config in (key, *key.split("/")) for name in members]
        if not files:
            raise DataError(f"data.config: {config!r} is none of {listing.where}; it has {', '.join(sorted(of))}")
        listing.notes.append(f"data.config: {config}, of {', '.join(sorted(of))}")
        return files
    several = sorted(set(of) - NEUTRAL)
    if len(several) > 1:
        raise DataError(
            f"{listing.where}: holds several data sets, {', '.join(several)}; choose one with data.config, or"
            f" {choose()}"
        )
    return names


def _config_of(name: str) -> str:
    """Folders that name no split, no number, and no value of a column (`year=2020`)."""
    folders = PurePosixPath(name).parts[:-1]
    return "/".join(part for part in folders if not split_of(part) and "=" not in part and not part.isdigit())


def _by_readme(
    listing: Listing, names: list[str], configs: dict[str, dict[str, list[str]]], config: str | None
) -> dict[str, list[str]]:
    if config is None:
        raise DataError(
            f"{listing.where}/README.md: names several configurations, {', '.join(configs)}; choose one with"
            " data.config"
        )
    by_split: dict[str, list[str]] = {}
    for split_name, patterns in configs[config].items():
        split = split_of(split_name)
        files = sorted({name for pattern in patterns for name in matching(pattern, names)})
        if split is None or split == UNCLEAR:
            listing.notes.append(f"README.md: its split {split_name} is left out; data.files may name it")
            continue
        if not files:
            raise DataError(
                f"{listing.where}/README.md: names {', '.join(patterns)} for {split_name}, and there is none; fetch"
                f" it, or {choose()}"
            )
        by_split.setdefault(split, []).extend(files)
    if "train" not in by_split:
        raise DataError(f"{listing.where}/README.md: names no training split of {config}; {choose()}")
    more = f", of {', '.join(configs)}" if len(configs) > 1 else ""
    listing.notes.append(f"splits as README.md names them (configuration {config}{more})")
    return by_split


def hub_configs(text: bytes) -> tuple[dict[str, dict[str, list[str]]], str | None]:
    """Configurations of a Hub data set by their names, as the YAML of its README.md gives them: patterns by split; and
    which one is read by default. Empty where it gives none."""
    match = re.match(rb"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        given = yaml.safe_load(match[1]).get("configs") if match else None
    except (yaml.YAMLError, AttributeError):
        return {}, None
    configs: dict[str, dict[str, list[str]]] = {}
    default = None
    for one in given if isinstance(given, list) else []:
        if not isinstance(one, dict) or not one.get("data_files"):
            continue
        name, base = str(one.get("config_name", "default")), one.get("data_dir")
        configs[name] = {
            split: [f"{base}/{pattern}" if base else pattern for pattern in patterns]
            for split, patterns in _patterns(one["data_files"])
        }
        if one.get("default") is True or name == "default":
            default = name
    return configs, default or (next(iter(configs)) if len(configs) == 1 else None)


def _patterns(files: Any) -> list[tuple[str, list[str]]]:
    def many(value: Any) -> list[str]:
        return [str(one) for one in value] if isinstance(value, list) else [str(value)]

    if isinstance(files, dict):
        return [(str(split), many(value)) for split, value in files.items()]
    if isinstance(files, list) and all(isinstance(one, dict) for one in files):
        return [(str(one.get("split")), many(one.get("path"))) for one in files]
    return [("train", many(files))]
