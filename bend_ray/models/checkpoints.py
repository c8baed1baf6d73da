"""Files of trained weights as people have them, read as tensors by name; no code that a file names is run."""

import contextlib
import hashlib
import json
import pickle
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bend_ray.errors import ModelError, shown, why
from bend_ray.models import private
from bend_ray.store.folders import Folder, local_file

SHARDED = ".metadata"
"""What a folder of torch.distributed.checkpoint has."""
SINGLE = ("model.safetensors", "pytorch_model.bin")
"""What a folder of transformers' or timm's has, or else an index of several such files."""
PARTS = re.compile(r"\.(safetensors|bin|json|pth?|ckpt|tar|distcp)$|^\.metadata$")
"""Files of a folder that say what it has learnt."""
USUAL = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""Under what a training keeps a state_dict beside an optimizer's, the first of them first."""
AVERAGE = "ema"
"""A word in the names under which it keeps the moving average of weights."""
Tensors = dict[str, Tensor]


def read(path: str, where: str) -> tuple[Tensors, list[str]]:
    """The tensors of the file or folder at ``path``, by name, and what is to be said of the choice among them.

    Raises ModelError, which begins with ``where``, for what cannot be read or holds no state_dict.
    """
    kind = ".safetensors file" if shown(path).lower().endswith(".safetensors") else "file of torch's"
    try:
        with _local(path) as here:
            if not here.is_dir():
                return _read_file(here, where)
            if (here / SHARDED).is_file():
                kind = "folder of torch.distributed.checkpoint"
                return private.read_sharded(here), []
            tensors, notes = Tensors(), list[str]()
            for name in _parts(here, where):
                kind = f"folder of weights: {name}"
                more, said = _read_file(here / name, f"{where}/{name}")
                tensors, notes = tensors | more, [*notes, *said]
            return tensors, notes
    except ModelError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{where}: is no {kind} that can be read ({reason})") from None


def digest(path: str) -> str:
    """sha256 of the file at ``path``, or of those files of a folder that say what it has learnt, and their names.

    Raises ModelError where it cannot be read.
    """
    try:
        with _local(path) as here:
            if not here.is_dir():
                return _sha256(here)
            files = sorted(one.name for one in here.iterdir() if one.is_file() and PARTS.search(one.name))
            return hashlib.sha256(json.dumps({name: _sha256(here / name) for name in files}).encode()).hexdigest()
    except OSError as error:
        raise ModelError(f"classifier.weights: {shown(path)}: cannot be read ({why(error)})") from None


@contextlib.contextmanager
def _local(path: str) -> Iterator[Path]:
    """The file or folder at a path or URI as a local path; of a folder at a URI, the files directly in it. Raises
    MissingError where there is none at a URI."""
    folder = Folder(path)
    names = folder.list() if folder.remote else []
    if not names:
        with local_file(path) as here:
            yield here
        return
    with tempfile.TemporaryDirectory(prefix="bend-ray-") as scratch:
        for name in names:
            with folder.local(name) as copy:
                shutil.move(copy, scratch)
        yield Path(scratch)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parts(folder: Path, where: str) -> Iterator[str]:
    """Names of the files of a folder that hold its tensors. Raises ModelError where there is none."""
    for single in SINGLE:
        if (folder / single).is_file():
            yield single
            return
        if (index := folder / f"{single}.index.json").is_file():
            # Of a name that leads elsewhere only its end is taken.
            yield from sorted({Path(name).name for name in json.loads(index.read_text())["weight_map"].values()})
            return
    raise ModelError(
        f"{where}: is a folder without weights ({', '.join((*SINGLE, SHARDED))}, or an index of several files); name"
        " the file, or the folder that has one of these"
    )


def _read_file(file: Path, where: str) -> tuple[Tensors, list[str]]:
    if file.suffix.lower() == ".safetensors":
        return load_file(file), []
    return _state_dict(_unpickled(file, where), where)


class _Record:
    """Stands for an object that a file has beside its tensors; made from one it is an empty dict, of no use."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class _Thing:
    """The same for an object whose state is no dict."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Thing":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _unpickled(file: Path, where: str) -> Any:
    """What torch saved, read with ``weights_only``. Trainings leave settings and numbers there beside tensors, objects
    of other classes (argparse's, Lightning's, numpy's); these become empty ones of ours, for neither are their classes
    imported nor is any of their code run."""
    try:
        strange = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except (ValueError, RuntimeError, pickle.UnpicklingError):  # written before torch 1.6, or no such file at all
        strange = []
    if parts := [name for name in strange if name.rpartition(".")[2] in ("DTensor", "ShardedTensor")]:
        raise ModelError(
            f"{where}: holds one process's part of tensors ({', '.join(parts)}); gather them before you save"
            " (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True), or give the"
            " folder that torch.distributed.checkpoint wrote"
        )
    for place in (_Record, _Thing):
        stands: list[Any] = [(_Thing if name.startswith("numpy.") else place, name) for name in strange]
        try:
            with torch.serialization.safe_globals(stands):
                return torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, TypeError, ValueError) as error:
            failed = error
            if not strange:
                break
    if isinstance(failed, pickle.UnpicklingError) and not strange:
        raise failed
    raise ModelError(
        f"{where}: holds objects that cannot be passed over ({', '.join(sorted(strange)) or why(failed)}); save tensors"
        " alone: torch.save(model.state_dict(), ...)"
    )


def _state_dict(content: Any, where: str) -> tuple[Tensors, list[str]]:
    """The state_dict in what torch saved: the whole, or what lies beside an optimizer's. A moving average is taken
    before other weights, as timm takes it. Raises ModelError where there is none, or it is not clear which."""
    if isinstance(content, _Thing) or "_modules" in getattr(content, "__dict__", {}):
        raise ModelError(
            f"{where}: holds a whole pickled module, and reading it would run its code; save its tensors where you"
            " trust it: torch.save(model.state_dict(), ...)"
        )
    if _is_state(content):
        return _named(content), []
    states = dict(_inside(content)) if isinstance(content, dict) else {}
    averages = [key for key in states if AVERAGE in re.split(r"\W|_", key.lower())]
    taken = averages[:1] or [key for key in USUAL for key in (key, f"{key}.state_dict") if key in states][:1]
    if not (taken := taken or list(states)[:2]):
        raise ModelError(
            f"{where}: holds no state_dict (a dict of tensors, or one under 'state_dict', 'model' or the like); save"
            " one with torch.save(model.state_dict(), ...)"
        )
    if len(taken) > 1:
        raise ModelError(
            f"{where}: holds several dicts of tensors ({', '.join(states)}), and it is not clear which is the"
            " classifier's; save that one alone: torch.save(model.state_dict(), ...)"
        )
    others = [key for key in states if key != taken[0]]
    average = f"{taken[0]!r} taken, the moving average of weights, not {', '.join(map(repr, others))}"
    return _named(states[taken[0]]), [average] if averages and others else []


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(one, Tensor) for one in value.values())


def _inside(content: dict[Any, Any], before: str = "", depth: int = 2) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All dicts of tensors in ``content``, by their keys."""
    for key, value in content.items():
        if _is_state(value):
            yield f"{before}{key}", value
        elif isinstance(value, dict) and depth > 1 and "param_groups" not in value:
            yield from _inside(value, f"{before}{key}.", depth - 1)


def _named(state: dict[Any, Tensor]) -> Tensors:
    return {str(name): tensor for name, tensor in state.items()}
