"""How parameters reach the logits: which of them do, in which order, and which come last.

A forward pass is a list of steps, whether `torch.export` or autograd has read it (`models/reading.py`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

Shape = tuple[int | None, ...]
"""None: an axis of any length, as that of rows is."""

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "matmul", "linear", "bilinear", "trilinear"}
PRODUCTS |= {"groupedmm", "scaledmm", "einsum", "tensordot", "dot", "inner", "outer", "embedding", "embeddingbag"}
OTHER_PRODUCTS = ("conv", "lstm", "gru", "rnn", "dist", "cond", "wrap")
"""How names of further operations begin, or what they hold, that make new features of parameters and values."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of a forward pass, a parameter or the input."""

    kind: str
    """Name of the operation, in small letters without underscores; `x` is the input."""
    parents: tuple["Step", ...] = ()
    shape: Shape = ()
    parameter: str = ""
    """First name of the parameter, where it is one."""

    @property
    def is_product(self) -> bool:
        return self.kind in PRODUCTS or any(part in self.kind for part in OTHER_PRODUCTS)


@dataclass(frozen=True)
class Reach:
    """What is known of the way from a classifier's parameters to its logits."""

    last: tuple[str, ...] = ()
    """First names of the parameters that reach the logits last: those of the head."""
    places: dict[str, int] = field(default_factory=dict)
    """Each parameter that reaches the logits, and when the forward pass meets it on values of the input."""
    steps: tuple[Step, ...] = ()
    """In the order of the forward pass; none where only the order of definition is known."""
    why: str = ""
    """Why there was no graph, where another way was gone; empty: the graph tells."""

    def behind(self, names: Iterable[str]) -> set[str]:
        """These parameters, and those that the forward pass first meets on values that depend on them."""
        names = set(names)
        if not self.steps:
            begin = min((self.places[name] for name in names), default=len(self.places))
            return {name for name, place in self.places.items() if place >= begin}
        dependent: set[Step] = set()
        for step in self.steps:
            if step.parameter in names or any(parent in dependent for parent in step.parents):
                dependent.add(step)
        return names | {name for name, place in self.places.items() if self.steps[place] in dependent}


def by_definition(module: nn.Module, why: str = "") -> Reach:
    """What can be said without a forward pass: all parameters reach the logits, in the order of their definition, and
    the last layer with a matrix is the head."""
    first = {id(value): name for name, value in module.named_parameters()}
    of_each = [[first[id(value)] for value in child.parameters(recurse=False)] for child in module.modules()]
    values = dict(module.named_parameters())
    layers = [names for names in of_each if any(values[name].ndim > 1 for name in names)] or [list(values)]
    return Reach(tuple(layers[-1]), {name: place for place, name in enumerate(values)}, (), why)


def reach(steps: Sequence[Step], result: Step, why: str = "") -> Reach:
    """Of a forward pass whose logits ``result`` gives."""
    reaching = set(_ancestors([result]))
    steps = tuple(step for step in steps if step in reaching)
    of_x: set[Step] = set()
    for step in steps:
        if step.kind == "x" or any(parent in of_x for parent in step.parents):
            of_x.add(step)
    places: dict[str, int] = {}
    for place, step in enumerate(steps):
        if step in of_x or not of_x:
            for name in _parameters([step] if step.parameter else _given(step, of_x)):
                places.setdefault(name, place)
    return Reach(tuple(sorted(_last(result, of_x), key=lambda name: places[name])), places, steps, why)


def _last(result: Step, of_x: set[Step]) -> set[str]:
    """The parameters that come last: from the logits back, on every way, to where the axis of classes is made.

    What scales, shifts or normalises logits on that way is of the head as well.
    """
    if result not in of_x:
        return _parameters([result])
    classes = result.shape[-1] if result.shape else None
    names: set[str] = set()
    seen: set[Step] = set()
    waiting = [result]
    while waiting:
        if (step := waiting.pop()) in seen:
            continue
        seen.add(step)
        given, values = _given(step, of_x), [parent for parent in step.parents if parent in of_x]
        here = _parameters(given)
        names |= here
        if not here or not _makes_classes(step, given, values, classes):
            with_classes = [value for value in values if classes is not None and classes in value.shape]
            weighs = step.is_product or step.kind in ("mul", "div")  # what scales logits is no part of a head
            waiting += with_classes if weighs and with_classes else values
    return names


def _makes_classes(step: Step, given: list[Step], values: list[Step], classes: int | None) -> bool:
    """Whether the axis of classes comes from what is ``given`` to ``step``, not from ``values`` of the input."""
    if step.is_product:
        has = [any(classes in each.shape for each in side) for side in (given, values)]
        return classes is None or has[0] or not has[1]  # else as a mean over windows with learnt weights does
    return classes is not None and any(
        _has(given, axis, classes) and not _has(values, axis, classes) for axis in range(1, len(step.shape) + 1)
    )


def _has(sides: list[Step], axis: int, size: int) -> bool:
    """Whether one of them has this ``size`` at the axis that is so many from the last."""
    return any(len(side.shape) >= axis and side.shape[-axis] == size for side in sides)


def _given(step: Step, of_x: set[Step]) -> list[Step]:
    """What ``step`` takes that does not depend on the input."""
    return [parent for parent in step.parents if parent not in of_x]


def _parameters(steps: Iterable[Step]) -> set[str]:
    return {step.parameter for step in _ancestors(steps) if step.parameter}


def _ancestors(steps: Iterable[Step]) -> Iterator[Step]:
    """``steps`` and all that they are made from."""
    waiting = list(steps)
    seen = set(waiting)
    while waiting:
        step = waiting.pop()
        yield step
        new = [parent for parent in step.parents if parent not in seen]
        seen.update(new)
        waiting += new
