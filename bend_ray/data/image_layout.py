"""Folders of image files: which of them are splits, which are classes, and which only lie around both."""

from collections.abc import Collection
from pathlib import PurePosixPath

from bend_ray.data.listing import base_of, matching
from bend_ray.data.sources import Place
from bend_ray.data.split_names import LONG, UNCLEAR, choose, only_split, split_of
from bend_ray.errors import DataError
from bend_ray.progress import counted

Parts = dict[str, tuple[str, ...]]
"""Names of files, and what they are from some folder on."""
Members = dict[str, list[tuple[str, str]]]
"""Of each split the files with their classes, sorted by class and name."""
ARE_CLASSES = "give data.files: {train: .} where these are classes"


def by_folder(place: Place) -> Members:
    """Members of CLASS/x.png, SPLIT/CLASS/x.png or CLASS/SPLIT/x.png, below folders that hold all the others.

    Raises DataError, which names a file or a folder, where it is not certain what it is.
    """
    if place.data.files:
        by_split = _as_named(place)
    else:
        prefix, parts = looked_through({name: PurePosixPath(name).parts for name in place.files})
        by_split = _by_split(place, parts)
        _none_is_empty(place, prefix, by_split)
        if prefix:
            place.note(f"looked through {'/'.join(prefix)}/")
    if "train" not in by_split:
        raise DataError(f"{place.where}: has folders of {', '.join(by_split)} and none of training images; {choose()}")
    members: Members = {}
    for split in sorted(by_split, key=lambda split: split != "train"):
        classes = {kind for kind, _ in members.get("train", [])}
        through, parts = looked_through(by_split[split], classes)
        if through:
            place.note(f"looked through {'/'.join(through)}/ of the {LONG[split]} images")
        _are_classes(place, parts)
        if split == "test" and all(len(inner) == 1 for inner in parts.values()):
            place.note(f"{counted(len(parts), 'test images')} left out: they lie in no folder of a class")
            continue
        members[split] = sorted((_class_of(place, split, name, inner), name) for name, inner in parts.items())
    return members


def looked_through(parts: Parts, classes: Collection[str] | None = None) -> tuple[tuple[str, ...], Parts]:
    """The folders that all names lie in and that hold folders alone, and what is left of the names; folders that are
    named as splits are not passed by, or within a split (``classes``) those of a class."""
    prefix: tuple[str, ...] = ()
    while len(tops := {inner[0] for inner in parts.values()}) == 1 and min(map(len, parts.values())) > 2:
        (top,) = tops
        if split_of(top) not in (None, UNCLEAR) if classes is None else top in classes:
            break
        prefix, parts = (*prefix, *tops), {name: inner[1:] for name, inner in parts.items()}
    return prefix, parts


def _as_named(place: Place) -> dict[str, Parts]:
    """As `data.files` names folders (with classes in them), globs (what stands before the first star is left out), or
    files (each in the folder of its class)."""
    by_split: dict[str, Parts] = {}
    for key, patterns in place.data.files.items():
        parts = by_split.setdefault(split_of(key) or "", {})
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            for name in matching(pattern, place.files):
                base = base_of(pattern)
                base = str(PurePosixPath(name).parent.parent) if base == name else base
                parts[name] = PurePosixPath(name).relative_to(base).parts
    return by_split


def _by_split(place: Place, parts: Parts) -> dict[str, Parts]:
    tops: dict[str, Parts] = {}
    for name, inner in parts.items():
        tops.setdefault(inner[0] if len(inner) > 1 else "", {})[name] = inner[1:]
    said = {top: split_of(top) for top in tops if top}
    if any(split and any(len(inner) > 1 for inner in tops[top].values()) for top, split in said.items()):
        return _divided(place, tops, said)
    if said and all(said.values()):
        raise DataError(
            f"{place.where}/{next(iter(said))}: is named as a split, and has images in no folder of a class; put them"
            f" into folders of classes, list their labels in a metadata.csv, or {ARE_CLASSES}"
        )
    if inner_splits := _by_inner_split(place, tops):
        return inner_splits
    for top in said:
        if only_split(top):
            place.note(f"{top} is a class: its images lie where those of {next(iter(set(said) - {top}))} do")
    return {"train": parts}


def _divided(place: Place, tops: dict[str, Parts], said: dict[str, str | None]) -> dict[str, Parts]:
    by_split: dict[str, tuple[str, Parts]] = {}
    for name in tops.get("", {}):
        raise DataError(f"{place.where}/{name}: is in no folder of a class; expected train/CLASS/{name}")
    for top, split in said.items():
        here = f"{place.where}/{top}"
        if split is None or split == UNCLEAR:
            raise DataError(
                f"{here}: stands beside training images, and is not certainly a split; {choose()}, or {ARE_CLASSES}"
            )
        if split in by_split:
            raise DataError(f"{here}: may be the {LONG[split]} split as {by_split[split][0]} may be; {choose()}")
        by_split[split] = (top, tops[top])
    return {split: inner for split, (_, inner) in by_split.items()}


def _by_inner_split(place: Place, tops: dict[str, Parts]) -> dict[str, Parts] | None:
    """Of CLASS/SPLIT/x.png; None where no folder in a class's names a split."""
    by_split: dict[str, Parts] = {}
    called: dict[str, str] = {}
    inner_names = {inner[0] for parts in tops.values() for inner in parts.values() if len(inner) > 1}
    if not any(map(only_split, inner_names)):
        return None
    for top, parts in tops.items():
        for name, inner in parts.items():
            split = only_split(inner[0]) if len(inner) == 2 else None
            if split in (None, UNCLEAR) or called.setdefault(split or "", inner[0]) != inner[0]:
                raise DataError(
                    f"{place.where}/{name}: lies beside folders that are named as splits; {choose()}, or {ARE_CLASSES}"
                )
            by_split.setdefault(split or "", {})[name] = (top, inner[-1])
    place.note("folders of splits lie in those of classes")
    return by_split


def _are_classes(place: Place, parts: Parts) -> None:
    """Several folders with the same folders in them are splits or parts of data, not classes."""
    inner: dict[str, set[str]] = {}
    for names in parts.values():
        if len(names) > 1:
            inner.setdefault(names[0], set()).add(names[1] if len(names) > 2 else "")
    first, *others = list(inner) or [""]
    if others and len(inner[first]) > 1 and "" not in inner[first] and all(inner[k] == inner[first] for k in others):
        raise DataError(
            f"{place.where}: {first} and {others[0]} hold the same folders, {', '.join(sorted(inner[first])[:3])}; are"
            f" they splits? {choose()}, or {ARE_CLASSES}"
        )


def _class_of(place: Place, split: str, name: str, inner: tuple[str, ...]) -> str:
    if len(inner) < 2:
        divided = place.data.files or split_of(PurePosixPath(name).parts[0])
        expected = f"{split}/CLASS" if divided else "CLASS"
        raise DataError(f"{place.where}/{name}: is in no folder of a class; expected {expected}/{inner[-1]}")
    return inner[0]


def _none_is_empty(place: Place, prefix: tuple[str, ...], by_split: dict[str, Parts]) -> None:
    """Raises DataError where a folder that could be a class or a split has no image."""
    full = {str(parent) for name in place.files for parent in PurePosixPath(name).parents}
    divided = len(by_split) > 1
    for folder in place.listing.folders:
        parts = PurePosixPath(folder).parts
        inside, rest = parts[: len(prefix)] == prefix, parts[len(prefix) :]
        if folder in full or not inside or not rest:
            continue
        if divided and not split_of(rest[0]):
            continue
        raise DataError(f"{place.where}/{folder}: a folder without an image; put some there, or take it away")
