"""The plan: how members are run, as the settings say or chosen by measuring the ways there are once.

The fastest plan depends on the machine and its mood, and with it the last bits of the logits. What must be the same
bits everywhere (the report) keeps the plan that follows from the graph; what must be fast asks for a measured one.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bend_ray.config import Ensemble as Settings
from bend_ray.ensemble.trunk import SharedTrunk

CHUNKS = (4, 16, 64, 256)
"""Members at once that are tried under vmap."""
TIMED = 2
"""Times each way is timed; the first of all is warming up."""


def bucket(rows: int) -> int:
    """Batches of so many rows share a plan: the next power of two."""
    return 1 << max(0, rows - 1).bit_length()


def pinned(cut: SharedTrunk, settings: Settings) -> SharedTrunk:
    """``cut`` with what the settings say outright: plan, chunk and memory."""
    plan = cut.plan
    if plan != "whole model" and (settings.plan == "vmap" or settings.plan == "loop"):
        plan = settings.plan
    return replace(cut, plan=plan, chunk=settings.chunk, max_memory=int(settings.max_memory * 2**30))


def precision(settings: Settings, device: torch.device) -> torch.dtype:
    """The type in which members run on ``device``; see `config.Ensemble`."""
    if settings.precision != "auto":
        found: torch.dtype = getattr(torch, settings.precision)
        return found
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def chosen(cut: SharedTrunk, settings: Settings, theta_MD: Tensor, x: Tensor) -> SharedTrunk:
    """``cut`` with what ``settings`` ask to be measured on inputs ``x``."""
    if settings.plan == "measured":
        cut = measured(cut, theta_MD, x)
    return compiled(cut, theta_MD, x) if settings.compile else cut


@torch.no_grad()
def measured(cut: SharedTrunk, theta_MD: Tensor, x: Tensor) -> SharedTrunk:
    """``cut`` with the plan that is fastest a member on inputs ``x``: a loop, or vmap over as many as memory allows.

    Raises ModelError where shapes do not fit.
    """
    if cut.plan == "whole model":
        return cut
    best = replace(cut, plan="loop")
    with cut.running(theta_MD, x):
        shared = cut.trunk(x)
        fastest = _seconds(best, theta_MD[:2], shared)
        for chunk in CHUNKS:
            tried = replace(cut, plan="vmap", chunk=min(chunk, len(theta_MD)))
            if tried.at_once(len(x)) < tried.chunk:
                break
            try:
                seconds = _seconds(tried, theta_MD[: tried.chunk], shared)
            except RuntimeError:  # vmap has no rule for one of the operations
                break
            if seconds < fastest:
                best, fastest = tried, seconds
            if seconds > 2 * fastest or tried.chunk < chunk:
                break
    return best


@torch.no_grad()
def compiled(cut: SharedTrunk, theta_MD: Tensor, x: Tensor) -> SharedTrunk:
    """``cut`` with trunk and tail compiled (torch.compile), where that is faster on inputs ``x``.

    Where torch cannot compile them (on a CPU it needs a C++ compiler) there is one warning that says why.
    """
    many = cut.chunk_of_tails if cut.plan == "vmap" else cut.tail
    some_MD = theta_MD[: cut.at_once(len(x))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of parts of its compiler
            tried = replace(cut, trunk=torch.compile(cut.trunk), compiled=torch.compile(many))
            # In turn: what else the machine does then slows both.
            turns = [[_timed(partial(way.logits, some_MD, x)) for way in (cut, tried)] for _ in range(1 + TIMED)]
    except Exception as error:
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(
            f"ensemble.compile: torch cannot compile this classifier, which runs as it is: {why}", stacklevel=2
        )
        return cut
    as_it_is, compiled_s = (min(seconds) for seconds in zip(*turns[1:], strict=True))
    return tried if compiled_s < as_it_is else cut


def _seconds(cut: SharedTrunk, theta_MD: Tensor, shared: tuple[Any, ...]) -> float:
    """Seconds a member, the best of a few."""
    return min([_timed(partial(cut.members, theta_MD, shared)) for _ in range(1 + TIMED)][1:]) / len(theta_MD)


def _timed(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    found = run()
    if found.is_cuda:
        torch.cuda.synchronize(found.device)
    return time.perf_counter() - start
