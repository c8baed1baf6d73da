"""A callable of the user's, by its name."""

import importlib
from collections.abc import Callable
from typing import Any

from bend_ray.errors import BendError


def imported(target: str, key: str, error_type: type[BendError]) -> Callable[..., Any]:
    """The callable "package.module:callable", which stands at ``key``. Raises ``error_type`` where there is none."""
    name, _, attribute = target.partition(":")
    if not name or not attribute:
        raise error_type(f'{key}: {target!r}; expected "package.module:callable"')
    try:
        value: Any = importlib.import_module(name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except Exception as error:  # the module runs as it is imported
        raise error_type(f"{key}: {target!r} cannot be imported ({error})") from error
    if not callable(value):
        raise error_type(f"{key}: {target!r} is a {type(value).__name__}, not a callable")
    return value
