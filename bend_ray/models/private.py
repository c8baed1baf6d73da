"""What bend_ray uses of torch that torch does not promise to keep, all of it: each part has a test of its shape.

Where a public way exists it is taken instead. Versions: see the range of torch in pyproject.toml.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.export.passes
from torch import fx, nn

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
