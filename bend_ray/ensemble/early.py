"""Early stopping: a row whose label cannot change any more runs through no further members.

Members run in chunks; rows still open go on, compacted, where the trunk's values can be told apart by rows. It
pays where the tail is dear.

* sBEND, exact: a leader with more votes over the second than members are left cannot be overtaken, nor tied.
* aBEND, exact: likewise with sums of probability, for a member adds at most 1 to another class and at least 0 to the
  leader.
* aBEND with ``error`` > 0: members run in random order, and a row is also finished when the leader's mean lead
  over each other class is above the bound of Serfling (1974, corollary 1.1) for sampling without replacement. With
  chance at least 1 - ``error`` a row's label is that of all members: the bound holds for all classes and looks at once.

Bounds are of what members give: probabilities with a temperature inside the mean, where there is one, but before one on
the mean, which keeps the order of classes and so changes no label.
"""

import math
from typing import Any

import torch
from torch import Tensor

from bend_ray import seeds
from bend_ray.config.choices import AGGREGATIONS, listed
from bend_ray.ensemble.aggregate import Prediction, Strategy, Tally, aggregation
from bend_ray.ensemble.distance import Distance, features
from bend_ray.ensemble.temperature import NONE, Temperature
from bend_ray.errors import ConfigError
from bend_ray.models.trunks import Trunk

LOOKS = 16
"""Chunks that members run in: finer ones stop sooner, coarser ones cost less each."""


@torch.no_grad()
def predict(
    trunk: Trunk,
    theta_MD: Tensor,
    x: Tensor,
    strategy: Strategy,
    error: float = 0.0,
    temperature: Temperature = NONE,
    distance: Distance | None = None,
) -> Prediction:
    """`aggregate` of all members' logits with ``temperature`` and, where it is given, ``distance``, but for rows that
    stopped: they count ``members_B``.

    Labels are those of all members (aBEND with ``error``: each with chance 1 - ``error``). Raises ConfigError for an
    ``error`` outside [0, 1) or with sbend, or a strategy that must ask all members, ModelError where shapes do not fit.
    """
    early = aggregation(strategy).early
    if early == "never":
        exact = listed(name for name, one in AGGREGATIONS.items() if one.early != "never")
        raise ConfigError(f"stop_early: {strategy} must ask all members; leave it out, or use {exact}")
    if not 0 <= error < 1 or (error and early == "exact"):
        by_chance = listed(name for name, one in AGGREGATIONS.items() if one.early == "error")
        raise ConfigError(f"error: {error} with {strategy}; give 0 (exact) or, with {by_chance}, a chance below 1")
    M = len(theta_MD)
    order_M = torch.arange(M)
    if error:
        order_M = torch.randperm(M, generator=seeds.generator_for(0, "early stop"))
    tally, finished = Tally(strategy, temperature=temperature), []
    open_b = torch.arange(len(x), device=x.device)
    with trunk.running(theta_MD, x):
        shared: Any = trunk.trunk(x)
        tally.distance_B = None if distance is None else distance(features(trunk, shared))
        for chunk_m in order_M.to(theta_MD.device).split(math.ceil(M / LOOKS)):
            for part_m in chunk_m.split(trunk.at_once(len(open_b))):
                tally.add(trunk.pick(part_m).members(theta_MD[part_m], shared))
            done_b = decided(tally.shares(strategy)[1], tally.members, M, error / LOOKS)
            # What cannot be told apart by rows goes on whole, until all of it is decided.
            rest = trunk.rows(shared, (~done_b).nonzero()[:, 0]) if not done_b.all() else ()
            if rest is None or not done_b.any():
                continue
            finished.append((open_b[done_b], tally.rows(done_b).prediction(strategy)))
            open_b, tally, shared = open_b[~done_b], tally.rows(~done_b), rest
            if not len(open_b):
                break
    return joined(finished or [(open_b, tally.prediction(strategy))])  # no rows, nothing to decide


def decided(share_BK: Tensor, members: int, M: int, error: float) -> Tensor:
    """``done_B``: rows whose label ``members`` of ``M`` decide; ``error``: the chance to be wrong at this look."""
    B, K = share_BK.shape
    if members == M or K == 1:
        return torch.ones(B, dtype=torch.bool, device=share_BK.device)
    first_B, second_B = share_BK.topk(2).values.unbind(1)
    lead_B = first_B - second_B
    # Sums of float64 are exact to about 1e-13 of them; whole votes are exact.
    done_B = lead_B * members > M - members + 1e-9 * M
    if error:
        left = 1 - (members - 1) / M
        bound = 2 * math.sqrt(left * math.log((K - 1) / error) / (2 * members))  # differences span 2: from -1 to 1
        done_B |= lead_B > bound
    return done_B


def joined(finished: list[tuple[Tensor, Prediction]]) -> Prediction:
    """One prediction from those of some rows each."""
    whole = Prediction.joined([prediction for _, prediction in finished])
    return whole.rows(torch.cat([rows for rows, _ in finished]).argsort())
