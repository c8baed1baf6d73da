"""Bodies with images in them, and what tests of several kinds of bodies expect of them."""

import contextlib
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from bend_ray.data.preprocess import Preprocess
from bend_ray.errors import DataError
from bend_ray.serving import requests
from image_files import encoded
from serving_helpers import COLOUR, GREY, ROWS, arrow, npy, pictures, tensors

GREYS, COLOURS = pictures(3), pictures(2, COLOUR)
FLAT = GREYS.reshape(3, 64)
ONE = GREYS[0, 0]
PNG = encoded(ONE)
U1 = pa.uint8()
WHOLE = npy(GREYS)
STREAM = arrow({"image": tensors(GREYS)})


def read(kind: str, body: bytes, fit: Preprocess = GREY) -> torch.Tensor:
    return requests.read(kind, body, fit, ROWS)[0]


def same(kind: str, body: bytes, images: np.ndarray) -> None:
    """``body`` is read as ``images``, (B, C, H, W)."""
    found = read(kind, body, COLOUR if images.shape[1] == 3 else GREY)
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), images)


def refused(kind: str, body: bytes, sentence: str = ".", fit: Preprocess = GREY) -> None:
    with pytest.raises(DataError, match=sentence) as error:
        read(kind, body, fit)
    assert len(str(error.value)) < 1000


def as_json(images: Any, **more: Any) -> bytes:
    return json.dumps({"images": images} | more).encode()


def lists(array: np.ndarray, depth: int, value: pa.DataType = U1) -> pa.Array:
    for _ in range(depth):
        value = pa.list_(value)
    return pa.array(array.tolist(), value)


@contextlib.contextmanager
def at_most_mib(mib: int) -> Iterator[None]:
    """No more memory than this on top of what is there: what would fill the machine fails instead."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (mib << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def peak_mib(call: Callable[[], None]) -> float:
    """By how much memory grew at most while ``call`` ran, that of C libraries included."""
    own = Path("/proc/self")

    def status(key: str) -> int:
        return int(next(line for line in (own / "status").read_text().splitlines() if line.startswith(key)).split()[1])

    try:
        (own / "clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        pytest.skip("this system does not tell a process's peak of memory")
    before = status("VmRSS")
    with at_most_mib(1024):
        call()
    return (status("VmHWM") - before) / 1024
