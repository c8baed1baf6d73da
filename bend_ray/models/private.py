"""What bend_ray uses of torch that torch does not promise to keep, all of it: each part has a test of its shape.

Where a public way exists it is taken instead. Versions: see the range of torch in pyproject.toml.
"""

import contextlib
import itertools
import logging
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.export.passes
from torch import Tensor, fx, nn
from torch.serialization import _get_layout

BATCH_NORM_WITH_STATISTICS = torch.ops.aten._native_batch_norm_legit_no_training.default
"""A batch norm in eval mode after decomposition: it gives three values, of which the first is the output."""
CHECKS = (torch.ops.aten._assert_tensor_metadata.default,)
"""Operations of a graph that only check that it runs as it was exported: with reduced precision it does not."""


def fixed_rows(error: Exception) -> str:
    """Of an error of torch.export where the dimension "batch" is traced for some sizes alone: what fixes it, and, where
    torch says it, in which line of whose code. Empty of any other error."""
    text, fixed = str(error), "Constraints violated (batch)"
    if fixed not in text:
        return ""
    said = next((line.strip() for line in text.splitlines() if line.strip().startswith("- ")), fixed)
    places = re.findall(r'File "(.+)", line (\d+), in ', text)
    at = f", at {places[-1][0]}, line {places[-1][1]}" if places else ""
    return said.removeprefix("- ").partition(". If you're using")[0] + at


@contextlib.contextmanager
def silent_guards() -> Iterator[None]:
    """Without the log of that error, which is raised as well."""
    log = logging.getLogger("torch._guards")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def silence_vmap_fallback() -> None:
    """Where vmap has no rule for an operation it loops over it; from now on it does so without a word on stderr."""
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]  # no stub has it


def schema(node: fx.Node) -> Any | None:
    """What torch declares of the operation that ``node`` calls: ``name``, ``arguments`` and ``is_mutable``. None where
    it calls something else."""
    return getattr(node.target, "_schema", None)


def expression(size: torch.SymInt) -> Any:
    """A size of an exported graph as a SymPy expression in the graph's symbols."""
    return size.node.expr


def moved(program: torch.export.ExportedProgram, device: torch.device) -> torch.export.ExportedProgram:
    """``program`` with its tensors, and the devices named in its operations, on ``device``."""
    return torch.export.passes.move_to_device_pass(program, device)


def shape_of(node: torch.autograd.graph.Node) -> tuple[int, ...]:
    """Shape of what the operation behind a ``grad_fn`` gave, of its first result."""
    return tuple(node._input_metadata[0].shape)


def initialiser(module: nn.Module) -> Callable[[], Any] | None:
    """What gives the parameters of ``module`` new initial values: its ``reset_parameters``, which attention has under a
    private name. None where it has no such rule."""
    rule = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return rule if callable(rule) else None


def read_sharded(folder: Path) -> dict[str, Tensor]:
    """The tensors that torch.distributed.checkpoint left in ``folder``, but for an optimizer's.

    Its own reader unpickles whatever stands in `.metadata`, and in what is no tensor. Here the first makes objects of a
    few classes alone, which only hold shapes, types and places; and of the second nothing is read.
    """
    from torch.distributed.checkpoint import filesystem, metadata
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    class Reader(filesystem.FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
            with (folder / ".metadata").open("rb") as file:
                return _Describing(file, (metadata, filesystem)).load()

    reader = Reader(folder)
    tensors = {
        name: torch.empty(one.size, dtype=one.properties.dtype)
        for name, one in reader.read_metadata().state_dict_metadata.items()
        if isinstance(one, metadata.TensorStorageMetadata) and not name.startswith("optim")
    }
    try:
        _load_state_dict(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:  # no Exception, but a BaseException
        raise ValueError(str(next(iter(error.failures.values()))[0])) from None
    return tensors


_DESCRIBING = (
    "Metadata",
    "MetadataIndex",
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "TensorStorageMetadata",
    "TensorProperties",
    "StorageMeta",
    "_MEM_FORMAT_ENCODING",
    "_StorageInfo",
)
"""Classes that the `.metadata` of a sharded checkpoint names."""


class _Describing(pickle.Unpickler):
    """Reads such a file, and refuses all that does not belong there."""

    def __init__(self, file: Any, modules: tuple[Any, ...]) -> None:
        super().__init__(file)
        self.known = {
            (module.__name__, name): getattr(module, name, None) for module in modules for name in _DESCRIBING
        }
        self.known |= {("torch", "Size"): torch.Size, ("torch.serialization", "_get_layout"): _get_layout}
        of_paths = itertools.product(("pathlib", "pathlib._local"), ("PosixPath", "WindowsPath"))
        self.known |= dict.fromkeys(of_paths, PurePath)  # where it was written

    def find_class(self, module: str, name: str) -> Any:
        value = getattr(torch, name, None) if module == "torch" else None
        value = value if isinstance(value, torch.dtype) else self.known.get((module, name))
        if value is None:
            raise pickle.UnpicklingError(f"its .metadata names {module}.{name}, which is not called")
        return value
