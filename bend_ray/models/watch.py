"""Where in a network something goes wrong: its parts are watched as they are called, and what they got and gave is
compared."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4
"""Of what a part got and gave, against its size: above rounding, below what another input changes."""


@dataclass(frozen=True)
class Call:
    """One call of a part of a network: its name, and of each tensor that it got and gave a number for each row."""

    part: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def calls(network: nn.Module, x: Tensor) -> list[Call]:
    """The calls of the parts of ``network`` on rows x, in the order in which they end: a part before what it is in.
    One that fails ends them."""
    seen: list[Call] = []
    inputs: list[list[Tensor]] = []
    handles = []

    def began(part: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.append([_digest(value, len(x)) for value in _tensors((args, kwargs))])  # before it is written to

    for name, part in network.named_modules():
        if not isinstance(part, torch.jit.ScriptModule):

            def ended(part: nn.Module, args: Any, output: Any, name: str = name) -> None:
                seen.append(Call(name, inputs.pop(), [_digest(value, len(x)) for value in _tensors(output)]))

            handles.append(part.register_forward_pre_hook(began, with_kwargs=True))
            handles.append(part.register_forward_hook(ended))
    try:
        with contextlib.suppress(Exception), torch.no_grad():
            network(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    return seen


def first_not_finite(network: nn.Module, x: Tensor) -> str:
    """The part that gives something not finite first, on rows x."""
    broken = (call.part for call in calls(network, x) if not all(value.isfinite().all() for value in call.outputs))
    return next(broken, "")


def first_other(network: nn.Module, x: Tensor, other_x: Tensor, row_b: Tensor) -> str:
    """The part that gives others for the rows ``row_b`` of x first where they come as ``other_x``, though it
    got the same."""
    for one, other in zip(calls(network, x), calls(network, other_x), strict=False):
        if one.part != other.part:
            break
        differ = [_differ(one.inputs, other.inputs, len(x), row_b), _differ(one.outputs, other.outputs, len(x), row_b)]
        if differ == [False, True]:
            return one.part
    return ""


def words(network: nn.Module, part: str) -> str:
    """A part in words."""
    kind = type(network.get_submodule(part))
    return f"in {part!r} ({kind.__name__})" if part else f"in the forward of {kind.__name__} itself"


def last_layer(network: nn.Module, x: Tensor) -> nn.Module:
    """The part with parameters of its own that is called last, on rows x."""
    parts = [network.get_submodule(call.part) for call in calls(network, x)]
    return next((part for part in reversed(parts) if next(part.parameters(recurse=False), None) is not None), network)


def _differ(one: list[Tensor], other: list[Tensor], rows: int, row_b: Tensor) -> bool | None:
    """Whether two calls with so many rows, and with ``row_b`` of them, got or gave something else for a row; None where
    nothing is by rows."""
    differ = None
    for all_RV, some_RV in zip(one, other, strict=False):
        if len(all_RV) == rows and len(some_RV) == len(row_b):
            sum_b, size_b = all_RV[row_b].unbind(1)
            differ = differ or bool(((sum_b - some_RV[:, 0]).abs() > TOLERANCE * size_b).any())
    return differ


def _digest(value: Tensor, rows: int) -> Tensor:
    """For each row of ``value`` (one, where its first axis is not that of the rows) a weighted sum, and the size that
    it would have if all were independent."""
    flat = value.detach()
    flat = (torch.view_as_real(flat) if flat.is_complex() else flat).double()
    by_row = flat.ndim > 0 and len(flat) > 0 and len(flat) % rows == 0
    flat = flat.reshape(rows if by_row else 1, -1)
    weights = torch.arange(flat.shape[1], dtype=torch.float64, device=flat.device).cos()
    return torch.stack([flat @ weights, (flat * weights).norm(dim=1)], 1).cpu()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those in what a part got or gave."""
    if isinstance(value, Tensor):
        yield value
        return
    inside = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | tuple | list):
        inside = vars(value).values() if hasattr(value, "__dict__") and not isinstance(value, nn.Module) else ()
    for part in inside:
        yield from _tensors(part)
