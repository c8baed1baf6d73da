"""Errors of the classifier's own code, said as they are: what was done, what went wrong, and in which line of whose."""

import contextlib
import re
import traceback
import warnings
from collections.abc import Callable, Iterator

import torch

from bend_ray.errors import BendError, ModelError, place, why

PASSING = (BendError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""Not of the code but of the machine, or said already."""


@contextlib.contextmanager
def said(step: str) -> Iterator[None]:
    """Where the classifier's own code runs: what it raises becomes a ModelError that begins with ``step``."""
    try:
        yield
    except PASSING:
        raise
    except Exception as error:
        raise _failed(step, error, _place(error)) from error


@contextlib.contextmanager
def located(again: Callable[[], object]) -> Iterator[None]:
    """Where `said` has no line to name, for the error is of a backward pass that torch runs alone: that of the forward
    pass of the same operation, once ``again`` has run the block's work once more."""
    try:
        yield
    except ModelError as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and not isinstance(cause, BendError) and not _place(cause):
            raise _failed(str(error).partition(": the classifier fails")[0], cause, forward_place(again)) from cause
        raise


def _failed(step: str, error: Exception, where: str) -> ModelError:
    return ModelError(
        f"{step}: the classifier fails ({type(error).__name__}: {why(error)}{where}); mend it, and try again"
    )


def _place(error: Exception) -> str:
    return place("".join(traceback.format_exception(error)))


def forward_place(run: Callable[[], object], nan: bool = False) -> str:
    """`place` of the operation whose backward pass fails in ``run``, or (``nan``) gives a value that is not a number.
    Empty where there is none."""
    with warnings.catch_warnings(record=True) as told, contextlib.suppress(Exception):
        warnings.simplefilter("always")
        with torch.autograd.set_detect_anomaly(True, check_nan=nan):
            run()
    traces = [str(one.message) for one in told if re.search("Traceback of forward call", str(one.message))]
    return place(traces[0]) if traces else ""
