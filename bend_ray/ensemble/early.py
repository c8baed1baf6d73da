"""Early stopping: a row that cannot change its label any more asks no further members.

Members are asked in chunks; rows still open go on, compacted, where the trunk's values can be told apart by rows. It
pays where the tail is dear.

* sBEND, exact: a leader with more votes over the second than members are left cannot be overtaken, nor tied.
* aBEND, exact: likewise with sums of probability, for a member adds at most 1 to another class and at least 0 to the
  leader.
* aBEND with ``error`` > 0: members are asked in random order, and a row is also finished when the leader's mean lead
  over each other class is above the bound of Serfling (1974, corollary 1.1) for sampling without replacement. With
  chance at least 1 - ``error`` a row's label is that of all members: the bound holds for all classes and looks at once.
"""

import math

import torch
from torch import Tensor

from bend_ray import seeds
from bend_ray.ensemble.aggregate import Prediction, Strategy, Tally
from bend_ray.ensemble.trunk import SharedTrunk
from bend_ray.errors import ConfigError

LOOKS = 16
"""Chunks that members are asked in: finer ones stop sooner, coarser ones cost less each."""


@torch.no_grad()
def predict(
    trunk: SharedTrunk,
    theta_MD: Tensor,
    x: Tensor,
    strategy: Strategy,
    error: float = 0.0,
    temperature: float = 1.0,
) -> Prediction:
    """`aggregate` of all members' logits over ``temperature``, but for rows that stopped: they count ``members_B``.

    Labels are those of all members (aBEND with ``error``: each with chance 1 - ``error``). Raises ConfigError for an
    ``error`` outside [0, 1) or with sbend, ModelError where shapes do not fit.
    """
    if not 0 <= error < 1 or (error and strategy == "sbend"):
        raise ConfigError(f"error: {error} with {strategy}; give 0 (exact) or, with abend, a chance below 1")
    M = len(theta_MD)
    order_M = torch.arange(M)
    if error:
        order_M = torch.randperm(M, generator=seeds.generator_for(0, "early stop"))
    tally, found = Tally(), []
    open_b = torch.arange(len(x), device=x.device)
    with trunk.running(theta_MD, x):
        shared = trunk.trunk(x)
        for chunk_m in order_M.to(theta_MD.device).split(math.ceil(M / LOOKS)):
            for part_m in chunk_m.split(trunk.at_once(len(open_b))):
                tally.add(trunk.members(theta_MD[part_m], shared) / temperature)
            done_b = decided(tally.prediction(strategy), tally.members, M, error / LOOKS)
            # What cannot be told apart by rows goes on whole, until all of it is decided.
            rest = trunk.rows(shared, (~done_b).nonzero()[:, 0]) if not done_b.all() else ()
            if rest is None or not done_b.any():
                continue
            found.append((open_b[done_b], tally.rows(done_b).prediction(strategy)))
            open_b, tally, shared = open_b[~done_b], tally.rows(~done_b), rest
            if not len(open_b):
                break
    return joined(found or [(open_b, tally.prediction(strategy))])  # no rows, nothing to decide


def decided(so_far: Prediction, members: int, M: int, error: float) -> Tensor:
    """``done_B``: rows whose label ``members`` of ``M`` decide; ``error``: the chance to be wrong at this look."""
    if members == M:
        return torch.ones_like(so_far.label_B, dtype=torch.bool)
    K = so_far.prob_BK.shape[1]
    if K == 1:
        return torch.ones_like(so_far.label_B, dtype=torch.bool)
    first_B, second_B = so_far.prob_BK.topk(2).values.unbind(1)
    lead_B = first_B - second_B
    # Sums of float64 are exact to about 1e-13 of them; whole votes are exact.
    done_B = lead_B * members > M - members + 1e-9 * M
    if error:
        left = 1 - (members - 1) / M
        bound = 2 * math.sqrt(left * math.log((K - 1) / error) / (2 * members))  # differences span 2: from -1 to 1
        done_B |= lead_B > bound
    return done_B


def joined(found: list[tuple[Tensor, Prediction]]) -> Prediction:
    """One prediction from those of some rows each."""
    whole = Prediction.joined([prediction for _, prediction in found])
    return whole.rows(torch.cat([rows for rows, _ in found]).argsort())
