"""Dotted keys: what is said of them, which was meant, and a value put where one says."""

import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from bend_ray.config.section import current


def meaning(field: Any) -> str:
    """What a pydantic field is for, in one line, with the names it takes where its docstring does not say them."""
    text = " ".join((field.description or "").split())
    names = _names(field.annotation)
    return text if all(name in text for name in names) else f"{text} Values: {', '.join(names)}."


def _names(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [name for part in get_args(kind) for name in _names(part)]


def nearest(key: str, candidates: Iterable[str]) -> str:
    """What was meant by ``key``: a candidate of the same name in another section, else the one spelt most alike; empty
    where none is."""
    names = list(candidates)
    same = [other for other in names if _name(other) == _name(key)]
    return next(iter(difflib.get_close_matches(key, same or names, n=1, cutoff=0.0 if same else 0.5)), "")


def _name(key: str) -> str:
    return key.lstrip("-").rpartition(".")[2]


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted ``key``, the sections on the way to it made where they are not there."""
    *path, last = current(key).split(".")
    for part in path:
        inner = raw.get(part)
        raw[part] = inner = inner if isinstance(inner, dict) else {}
        raw = inner
    raw[last] = value
