"""Images as they were read made alike: of 8 bits, of one size, all grey or all in colour."""

from dataclasses import replace

import torch
from torch import Tensor

from bend_ray.config import Data
from bend_ray.data.images import PIECE, Splits, spilled, to_bytes
from bend_ray.data.pixels import bits_of
from bend_ray.data.resize import Resize
from bend_ray.data.sources import load_source
from bend_ray.errors import DataError

Source = tuple[str, str, Splits, tuple[str, ...], list[str]]
"""As `load_source` returns it."""


def read(data: Data, seed: int, bits_in_use: int | None = None) -> tuple[Source, Data]:
    """What `load_source` reads, and ``data``, with its bits where images of 16 are resized.

    They are resized as they are read, of 8 bits as later ones. So they are read twice where `data.bits` does not say
    how many are in use: as ``bits_in_use``, or the least that hold all training images.
    """
    source = load_source(data, seed)
    train = source[2]["train"].images
    if data.image_size is None or data.bits is not None or train.dtype != torch.uint16:
        return source, data
    data = data.model_copy(update={"bits": bits_in_use or bits_of(_most(train))})
    return load_source(data, seed), data


def of_bytes(
    splits: Splits, data: Data, where: str, notes: list[str], bits_in_use: int | None = None
) -> tuple[Splits, int | None]:
    """Splits whose images are uint8, and how many of 16 bits are in use (None: they have 8): `data.bits`, or so many
    as are ``bits_in_use``, or the least that hold all training images.

    Raises DataError for images of more, and for splits of 8 and of 16 bits.
    """
    deep = {split for split, rows in splits.items() if rows.images.dtype == torch.uint16}
    if not deep:
        if data.bits is not None:
            raise DataError(f"data.bits: is for images of 16 bits, and those of {where} have 8; leave it out")
        return splits, None
    if rest := [split for split in splits if split not in deep]:
        raise DataError(f"{where}: {rest[0]} images have 8 bits, {min(deep)} images 16; write all of them alike")
    most = _most(splits["train"].images)
    bits = data.bits or bits_in_use or bits_of(most)
    up_to = f", in training up to {most}," if data.image_size is None else ""
    notes.append(f"pixels of 16 bits{up_to} are read as {bits} bits (data.bits)")
    return {
        split: replace(rows, images=to_bytes(rows.images, bits, data.in_memory, f"{where}: {split}"))
        for split, rows in splits.items()
    }, bits


def _most(images: Tensor) -> int:
    return max(int(piece.numpy().max()) for piece in images.split(PIECE))


def alike(splits: Splits, data: Data) -> Splits:
    """All of the size that ``data`` names; where any split is in colour, or all are to be, grey ones are repeated over
    three channels."""
    channels = 3 if data.rgb else max(rows.images.shape[1] for rows in splits.values())
    resize = Resize.of(data)

    def is_alike(images: Tensor) -> bool:
        return images.shape[1] == channels and (resize is None or images.shape[-1] == resize.size)

    return {
        name: rows
        if is_alike(rows.images)
        else replace(rows, images=spilled(rows.images, data.in_memory, None, channels, resize))
        for name, rows in splits.items()
    }
