"""Folders of image files, their classes given by folders or by a metadata file beside them."""

from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath

import torch
from PIL import Image

from bend_ray.data.image_layout import by_folder
from bend_ray.data.images import SpillBuffer, Splits
from bend_ray.data.listing import Listing
from bend_ray.data.metadata import by_metadata
from bend_ray.data.resize import Resize
from bend_ray.data.sources import Loaded, Place
from bend_ray.errors import DataError
from bend_ray.store.folders import Folder

NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats of which Pillow knows the name alone, or which it hands to another program."""
BY_CONTENT = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that a file without a suffix is tried for, by its first bytes."""


def takes(listing: Listing, names: Sequence[str]) -> list[str]:
    """Those that Pillow opens, by their endings, or by their first bytes where they have none."""
    extensions = Image.registered_extensions()
    endings = {ending for ending, form in extensions.items() if form in {*Image.OPEN, "MPO"} - NO_PICTURES}

    def is_one(name: str) -> bool:
        ending = PurePosixPath(name).suffix.lower()
        return ending in endings if ending else _looks_like_one(listing, name)

    return [name for name in names if is_one(name)]


def _looks_like_one(listing: Listing, name: str) -> bool:
    beginning = listing.read(name, 16)
    accepts = [accept for form in BY_CONTENT if form in Image.OPEN and (accept := Image.OPEN[form][1])]
    return len(beginning) == 16 and any(accept(beginning) for accept in accepts)


def read_images(place: Place) -> Loaded:
    """Splits and class names of a folder of image files, which lie in a folder for each class, under folders of splits
    where there are any (`by_folder`), or are listed with their labels (`by_metadata`).

    Classes are those of the training images, in the alphabet's order. Raises DataError, which names the file.
    """
    if place.beside:
        members, labels_by_split, classes = by_metadata(place)
        by_class = False
    else:
        by_kind = by_folder(place)
        classes, by_class = tuple(sorted({kind for kind, _ in by_kind["train"]})), True
        for kind, name in (one for rows in by_kind.values() for one in rows):
            if kind not in classes:
                raise DataError(f"{place.where}/{name}: there is no training image of its class, {kind}")
        members = {split: [name for _, name in rows] for split, rows in by_kind.items()}
        labels_by_split = {split: [classes.index(kind) for kind, _ in rows] for split, rows in by_kind.items()}
    splits: Splits = {}
    for split, names in members.items():
        labels = torch.tensor(labels_by_split[split])
        sorted_by_class = by_class or bool((labels.diff() >= 0).all())
        splits[split] = _images(place, names).split(labels, by_class=sorted_by_class)
    return splits, classes


def _images(place: Place, names: list[str]) -> SpillBuffer:
    folder, buffer = Folder(place.path), SpillBuffer(place.data.in_memory, resize=Resize.of(place.data))
    for name, encoded in zip(names, folder.each(partial(_read, folder), names), strict=True):
        buffer.decode(encoded, f"{place.where}/{name}")
    return buffer


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except OSError as error:
        raise DataError(f"data.path: {folder}/{name}: cannot be read ({error})") from None
