"""Which axes of a graph's values move together: every axis is a product of factors.

Hidden units may change places where nothing can tell. Factors that must move as one are united, those that must stay
are pinned; what is left free in the end is a symmetry.
"""

import math
from collections.abc import Iterable

BATCH = 1_000_003
"""Stands for every size that is not known: a prime, so that it divides no other."""


class Factor:
    """``size`` places that one permutation moves. With ``parts`` it has turned out to be their product, row-major."""

    def __init__(self, size: int, why: str | None = None) -> None:
        self.size, self.parts = size, Places()
        self.why = why
        """Why it stays in place; None: it is free; "": it is no hidden axis, so that nobody will ask."""


Places = tuple[Factor, ...]  # an axis: the product of its factors, row-major; () has one place
Value = list[Places]
Shape = tuple[int, ...]


def leaves(places: Places) -> Places:
    return tuple(leaf for factor in places for leaf in (leaves(factor.parts) if factor.parts else (factor,)))


def count(places: Places) -> int:
    return math.prod(factor.size for factor in places)


def divide(factor: Factor, size: int) -> None:
    factor.parts = (Factor(size, factor.why), Factor(factor.size // size, factor.why))


def pin(places: Places, why: str = "") -> str:
    """They stay; gives the reason that stands, for what is made of them."""
    for leaf in leaves(places):
        leaf.why = _either(leaf.why, why)
    return "" if any(leaf.why == "" for leaf in leaves(places)) else why


def _either(one: str | None, other: str | None) -> str | None:
    return "" if "" in (one, other) else one or other


def unite(a: Places, b: Places) -> None:
    """One permutation moves both, divided until their factors agree; nothing where one has a single place."""
    a, b = leaves(a), leaves(b)
    if not a or not b or a == b:
        return
    small, large = sorted((a[0], b[0]), key=lambda factor: factor.size)
    if large.size % small.size:
        pin((*a, *b), "its units are counted in two ways that do not fit")
    elif large.size > small.size:
        divide(large, small.size)
        unite(a, b)
    else:
        if small is not large:
            large.why, small.parts = _either(small.why, large.why), (large,)
        unite(a[1:], b[1:])


def broadcast(values: Iterable[Value]) -> Value:
    """Axes united from the last one on."""
    united: Value = []
    for value in values:
        width = max(len(united), len(value))
        united, value = ([()] * (width - len(axes)) + axes for axes in (united, value))
        for a, b in zip(united, value, strict=True):
            unite(a, b)
        united = [a or b for a, b in zip(united, value, strict=True)]
    return united


def regroup(places: Places, shape: Shape) -> Value | None:
    """The same places as axes of ``shape``; None where they do not fit."""
    regrouped: Value = []
    if count(places) != math.prod(shape):
        return None
    for size in shape:
        axis: Places = ()
        while size > 1:
            first, *rest = leaves(places)
            if size % first.size == 0:
                axis, places, size = (*axis, first), tuple(rest), size // first.size
            elif first.size % size == 0:
                divide(first, size)
            else:
                return None
        regrouped.append(axis)
    return regrouped


def fresh(shape: Iterable[int], why: str | None = None) -> Value:
    return [(Factor(size, why),) if size != 1 else () for size in shape]
