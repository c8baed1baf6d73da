"""Folders of image files: one folder for each class, under folders of splits where there are any."""

from functools import partial
from pathlib import PurePosixPath

import torch

from bend_ray.data.images import SPLITS, Resize, SpillBuffer, Split, Splits, decoded
from bend_ray.data.sources import Loaded, Place
from bend_ray.errors import DataError
from bend_ray.store.folders import Folder


def read_images(place: Place) -> Loaded:
    """Splits and class names of a folder of image files: CLASS/x.png, or train/CLASS/x.png, test/CLASS/x.png and so on;
    folders within a class's are opened.

    Classes are those of the training images, in the alphabet's order. Raises DataError, which names the file.
    """
    where, names = place.where, place.inside(place.files)
    full = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    if empty := [folder for folder in place.inside(place.folders) if folder not in full]:
        raise DataError(f"{where}/{empty[0]}: a folder without an image; put some there, or take it away")
    files = _by_split(names, where)
    classes = sorted({kind for kind, _ in files["train"]})
    folder, splits = Folder(place.path), Splits()
    for split, members in files.items():
        buffer = SpillBuffer(place.data.in_memory, resize=Resize.of(place.data))
        for kind, name in members:
            if kind not in classes:
                raise DataError(f"{where}/{name}: there is no training image of its class, {kind}")
        data = folder.each(partial(_read, folder), [name for _, name in members])
        for (_, name), encoded in zip(members, data, strict=True):
            buffer.add(decoded(encoded, f"{where}/{name}"), f"{where}/{name}")
        labels = torch.tensor([classes.index(kind) for kind, _ in members])
        splits[split] = Split(buffer.tensor(), labels, by_class=True)
    return splits, tuple(classes)


def _by_split(names: list[str], where: str) -> dict[str, list[tuple[str, str]]]:
    """The files of each split with their classes, sorted by class and name."""
    paths = [PurePosixPath(name).parts for name in names]
    # A class may well be called train; its images then lie one folder higher.
    divided = any(SPLITS.get(parts[0]) == "train" and len(parts) > 2 for parts in paths)
    files: dict[str, list[tuple[str, str]]] = {}
    for name, parts in zip(names, paths, strict=True):
        split, *inner = parts if divided else ("train", *parts)
        if len(inner) < 2:
            expected = f"{split}/CLASS" if divided else "CLASS"
            raise DataError(f"{where}/{name}: is in no folder of a class; expected {expected}/{parts[-1]}")
        if split not in SPLITS:
            raise DataError(
                f"{where}/{split}: stands beside training images; name it test or validation, or take it away"
            )
        files.setdefault(SPLITS[split], []).append((inner[0], name))
    return {split: sorted(members) for split, members in files.items()}


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except OSError as error:
        raise DataError(f"data.path: {folder}/{name}: cannot be read ({error})") from None
