"""Tensors in .safetensors files, the same bytes for the same tensors."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bend_ray.errors import broken
from bend_ray.store.folders import Folder


def write_tensors(folder: Folder, name: str, tensors: Mapping[str, Any], note: str = "") -> None:
    """Tensors as one .safetensors file, with ``note`` in its header."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with folder.staged(name) as path:
        try:
            # One entry only: with more, the header's order, and with it the file's bytes, would vary.
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path, {"note": note})
        except SafetensorError as error:  # a full disk, most often
            raise OSError(str(error)) from None


def write_rows(folder: Folder, name: str, key: str, shape: tuple[int, int], blocks: Iterable[Any]) -> None:
    """What `write_tensors` writes for one float32 tensor of this ``shape``, from blocks of its rows, one at a time."""
    size = 4 * shape[0] * shape[1]
    entry = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"note": ""}, key: entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with folder.staged(name) as path, path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for block in blocks:
            file.write(block.contiguous().numpy().data)
        assert file.tell() == 8 + len(header) + size


def read_tensors(folder: Folder, name: str) -> tuple[dict[str, Any], str]:
    """Tensors and note of a .safetensors file. Raises ArtifactError if it is none."""
    with _opened(folder, name) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, _note(file)  # noqa: SIM118 (not a dict)
    raise AssertionError  # nothing above is suppressed


def read_note(folder: Folder, name: str) -> str:
    """The note of a .safetensors file, without its tensors. Raises ArtifactError if it is none or not all there."""
    with _opened(folder, name) as file:
        return _note(file)
    raise AssertionError  # nothing above is suppressed


@contextlib.contextmanager
def _opened(folder: Folder, name: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    with folder.local(name) as path:
        try:
            with path.open("rb"):  # safe_open says "No such file" whatever the reason
                pass
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise broken(f"{folder}/{name}", ".safetensors file", error) from None


def _note(file: Any) -> str:
    return (file.metadata() or {}).get("note", "")
