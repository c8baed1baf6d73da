"""The plan: how members are run, as the settings say or chosen by measuring the ways there are once.

The fastest plan depends on the machine and what else it does, and with it the last bits of the logits. What must be
the same bits everywhere (the report) keeps the plan that follows from the graph; what must be fast asks for a measured
one.
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
from bend_ray.models.trunk import SharedTrunk
from bend_ray.models.trunks import SharedTrunks, Trunk

CHUNKS = (4, 16, 64, 256)
"""Members at once that are tried under vmap."""
TIMED = 2
"""Times each way is timed; the first of all is warming up."""


def bucket(rows: int) -> int:
    """Batches of so many rows share a plan: the next power of two."""
    return 1 << max(0, rows - 1).bit_length()


def pinned(trunk: SharedTrunk, settings: Settings) -> SharedTrunk:
    """``trunk`` with what the settings say outright: plan, chunk and memory."""
    plan = trunk.plan
    if plan != "whole model" and (settings.plan == "vmap" or settings.plan == "loop"):
        plan = settings.plan
    return replace(trunk, plan=plan, chunk=settings.chunk, max_memory=int(settings.max_memory * 2**30))


def precision(settings: Settings, device: torch.device) -> torch.dtype:
    """The type in which members run on ``device``; see `config.Ensemble`."""
    if settings.precision != "auto":
        dtype: torch.dtype = getattr(torch, settings.precision)
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def chosen(trunk: Trunk, settings: Settings, theta_MD: Tensor, x: Tensor) -> Trunk:
    """``trunk`` with what ``settings`` ask to be measured on inputs ``x``."""
    if settings.plan == "measured":
        trunk = measured(trunk, theta_MD, x)
    if not settings.compile:
        return trunk
    if isinstance(trunk, SharedTrunks):
        theta_of = {number: _of_one(trunk, theta_MD, number) for number in trunk.used}
        tried = [
            compiled(one, theta_of[number], x) if number in theta_of else one for number, one in enumerate(trunk.trunks)
        ]
        return replace(trunk, trunks=tuple(tried))
    return compiled(trunk, theta_MD, x)


def _of_one(trunk: SharedTrunks, theta_MD: Tensor, number: int) -> Tensor:
    """``theta_mD`` of the members on one trunk."""
    return theta_MD[(trunk.trunk_M == number).nonzero()[:, 0].to(theta_MD.device)]


@torch.no_grad()
def measured(trunk: Trunk, theta_MD: Tensor, x: Tensor) -> Trunk:
    """``trunk`` with the plan that is fastest a member on inputs ``x``: a loop, or vmap over as many as memory allows;
    of several, which are alike, the one that is so for the first.

    Raises ModelError where shapes do not fit.
    """
    if isinstance(trunk, SharedTrunks):
        first = trunk.used[0]
        fastest_plan = measured(trunk.trunks[first], _of_one(trunk, theta_MD, first), x)
        return trunk.changed(lambda one: replace(one, plan=fastest_plan.plan, chunk=fastest_plan.chunk))
    if trunk.plan == "whole model":
        return trunk
    best = replace(trunk, plan="loop")
    with trunk.running(theta_MD, x):
        shared = trunk.trunk(x)
        fastest = _seconds(best, theta_MD[:2], shared)
        for chunk in CHUNKS:
            tried = replace(trunk, plan="vmap", chunk=min(chunk, len(theta_MD)))
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
def compiled(trunk: SharedTrunk, theta_MD: Tensor, x: Tensor) -> SharedTrunk:
    """``trunk`` with trunk and tail compiled (torch.compile), where that is faster on inputs ``x``.

    Where torch cannot compile them (on a CPU it needs a C++ compiler) there is one warning that says why.
    """
    many = trunk.chunk_of_tails if trunk.plan == "vmap" else trunk.tail
    some_MD = theta_MD[: trunk.at_once(len(x))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of parts of its compiler
            tried = replace(trunk, trunk=torch.compile(trunk.trunk), compiled=torch.compile(many))
            # In turn: what else the machine does then slows both.
            turns = [[_timed(partial(way.logits, some_MD, x)) for way in (trunk, tried)] for _ in range(1 + TIMED)]
    except Exception as error:
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(
            f"ensemble.compile: torch cannot compile this classifier, which runs as it is: {why}", stacklevel=2
        )
        return trunk
    plain_s, compiled_s = (min(seconds) for seconds in zip(*turns[1:], strict=True))
    return tried if compiled_s < plain_s else trunk


def _seconds(trunk: SharedTrunk, theta_MD: Tensor, shared: tuple[Any, ...]) -> float:
    """Seconds a member, the best of a few."""
    return min([_timed(partial(trunk.members, theta_MD, shared)) for _ in range(1 + TIMED)][1:]) / len(theta_MD)


def _timed(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    result = run()
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return time.perf_counter() - start
