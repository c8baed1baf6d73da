"""Where the last repeated block of a network stands."""

from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise

from torch import nn

from bend_ray.models.reach import Reach

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
BULK, NEARLY_ALL = 0.5, 0.9


class Parts:
    """The parts of a network that parameters of the given names are in.

    A layer has one matrix (a tensor with two or more axes longer than 1), a block several, with their norms and biases.
    """

    def __init__(self, module: nn.Module, reach: Reach, names: Iterable[str]) -> None:
        wanted, self.reach = set(names), reach
        self.modules = dict(module.named_modules(remove_duplicate=False))
        first = {id(value): name for name, value in module.named_parameters()}
        self.parameters = {
            name: (first[id(value)], value)
            for name, value in module.named_parameters(remove_duplicate=False)
            if first[id(value)] in wanted
        }

    @cached_property
    def last(self) -> str:
        """Path of the last block: that which the forward pass enters last of those that repeat."""
        return self._last_in("")

    def names(self, path: str) -> set[str]:
        """First names of the parameters under ``path``."""
        return {first for name, (first, _) in self.parameters.items() if _is_under(name, path)}

    def names_outside(self, path: str) -> set[str]:
        """First names of the parameters elsewhere: a tied one is in both."""
        return {first for name, (first, _) in self.parameters.items() if not _is_under(name, path)}

    def _last_in(self, path: str) -> str:
        parts = self._parts(path)
        if not parts:
            return path
        goes_on = [part for part in parts if self._opens(part, path) or self._repeats(part, path)]
        beside = not self._is_list(path) and self._is_block(parts[0])  # then a last layer or two follow the blocks
        part = (goes_on if goes_on and beside else parts)[-1]
        return self._last_in(part) if self._opens(part, path) else part

    def _opens(self, part: str, path: str) -> bool:
        """Whether what is at ``part``, below ``path``, is no block but holds blocks."""
        inner, of_list = self._parts(part), self._is_list(path)
        if self._is_list(part):
            return bool(inner) and (self._holds_blocks(part) or not (of_list and self._repeats(part, path)))
        if not of_list and inner and self._size(part) >= NEARLY_ALL * self._size(""):
            return True
        bulk = [child for child in inner if self._size(child) >= BULK * self._size(part)]
        if any(self._holds_blocks(child) if self._is_list(child) else self._opens(child, part) for child in bulk):
            return True
        stems = {name.rstrip("0123456789") for name in inner}
        return len(inner) > 1 and len(stems) == 1 and self._holds_blocks(part)

    def _holds_blocks(self, path: str) -> bool:
        """Whether most of it are blocks of one class, or it is called so, and each reads what the one before gave."""
        parts = self._parts(path)
        classes = {type(self.modules[part]) for part in parts}
        return (
            any(map(self._is_block, parts))
            and sum(map(self._size, parts)) >= BULK * self._size(path)
            and (len(classes) == 1 or len(classes) < len(parts) or path.endswith("blocks"))
            and all(self.names(two) & self.reach.behind(self.names(one)) for one, two in pairwise(parts[-2:]))
        )

    def _parts(self, path: str) -> list[str]:
        """Children with a matrix, in the order in which the forward pass leaves them; blocks alone where there are
        some."""
        children = [f"{path}.{name}" if path else name for name, _ in self.modules[path].named_children()]
        parts = [child for child in children if self._matrices(child)]
        parts.sort(key=lambda part: max(self.reach.places[name] for name in self.names(part)))
        return [part for part in parts if self._is_block(part)] or parts

    def _repeats(self, part: str, path: str) -> bool:
        return sum(type(self.modules[other]) is type(self.modules[part]) for other in self._parts(path)) > 1

    def _is_list(self, path: str) -> bool:
        return isinstance(self.modules[path], CONTAINERS)

    def _is_block(self, path: str) -> bool:
        return self._matrices(path) > 1

    def _matrices(self, path: str) -> int:
        shapes = [value.shape for name, (_, value) in self.parameters.items() if _is_under(name, path)]
        return sum(sum(size > 1 for size in shape) > 1 for shape in shapes)

    def _size(self, path: str) -> int:
        return sum(value.numel() for name, (_, value) in self.parameters.items() if _is_under(name, path))


def _is_under(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")
