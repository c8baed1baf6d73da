"""Copies of a network, so that what is tried on them leaves it as it was made; and its first images, which some
networks want before they are whole."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Make = Callable[[], nn.Module]
"""Makes the same network again, in the same state."""


def copied(module: nn.Module, again: Make) -> nn.Module:
    """A copy of ``module``; made ``again`` where a deep copy is refused."""
    results = [  # of pruning and old weight norms: plain attributes with a history, which alone are refused
        value
        for child in module.modules()
        for value in vars(child).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    try:
        return copy.deepcopy(module, {id(value): value.detach().clone() for value in results})
    except Exception:  # of any kind: the code is the user's
        twin = again()
        fill(twin, module)
        return twin


def fill(module: nn.Module, source: nn.Module) -> None:
    """Give ``module`` the parameters and buffers of ``source``, by name and where the shape is the same."""
    values = dict(tensors(source))
    with torch.no_grad():
        for name, value in tensors(module):
            if name in values and not is_lazy(value) and value.shape == values[name].shape:
                value.copy_(values[name])


def tensors(module: nn.Module, recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with their names, a tied one once."""
    yield from module.named_parameters(recurse=recurse)
    yield from module.named_buffers(recurse=recurse)


def shapes(module: nn.Module) -> dict[str, torch.Size | None]:
    """Of parameters and buffers; None: it has none yet."""
    return {name: None if is_lazy(value) else value.shape for name, value in tensors(module)}


@torch.no_grad()
def first_images(module: nn.Module, see: Callable[[nn.Module], object]) -> None:
    """Have ``module`` ``see`` images, which give shapes or parts to layers that lacked them. Others are then as they
    were: a layer that sets itself from its first batch has had none."""
    before = [(child, _form(child), _state(child), vars(child).copy()) for child in module.modules()]
    see(module)
    for child, form, values, attributes in before:
        if _form(child) != form:
            continue
        for value, copied_value in values:
            value.copy_(copied_value)
        for name, plain in attributes.items():
            if isinstance(plain, bool | int | float | str | None):
                setattr(child, name, plain)


def _form(module: nn.Module) -> tuple[object, ...]:
    """What changes where a layer gets its shape or its parts."""
    sizes = [(name, is_lazy(value) or value.shape) for name, value in tensors(module, recurse=False)]
    return type(module), [name for name, _ in module.named_children()], sizes


def _state(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Parameters and buffers of its own, each with a copy."""
    return [(value, value.clone()) for _, value in tensors(module, recurse=False) if not is_lazy(value)]
