"""How well doubt tells strange images from test rows: AUROC by entropy, by mutual information and by distance."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from bend_ray.ensemble import aggregate
from bend_ray.ensemble.reliability import error_auroc
from bend_ray.ensemble.spill import split
from bend_ray.ensemble.temperature import Temperature

MEASURES = {"entropy": "entropy", "mutual_information": "mutual information", "distance": "distance"}
"""Keys of ``auroc_strangers``, and what they are called."""
Doubts = dict[str, Tensor]
"""Doubt about each row, by its measure."""
Aurocs = dict[str, dict[str, float | None]]
"""By set: ``rows``, and AUROCs by ``entropy``, ``vote_entropy``, ``mutual_information`` and ``distance``."""


def measure(test: Doubts, strange: Mapping[str, Doubts], distance: Sequence[Tensor] = ()) -> Aurocs:
    """AUROCs of doubt about the sets ``strange`` against that about test rows; ``distance``: those of test rows and of
    each set, where there are any."""
    aurocs: Aurocs = {}
    for number, (name, of_set) in enumerate(strange.items(), 1):
        aurocs[name] = {key: _auroc(test[key], of_set[key]) for key in test} | {"rows": len(of_set["entropy"])}
        aurocs[name]["distance"] = _auroc(distance[0], distance[number]) if distance else None
    return aurocs


def of_row(aurocs: Aurocs, votes: bool, equal_members: bool, distance: bool) -> Aurocs:
    """What a row of the report says of each set. Mutual information grows with the number of members, so it stands only
    beside that of as many; votes have none."""
    return {
        name: {
            "entropy": one["vote_entropy" if votes else "entropy"],
            "mutual_information": one["mutual_information"] if equal_members and not votes else None,
            "distance": one["distance"] if distance else None,
        }
        for name, one in aurocs.items()
    }


def doubts(parts: Iterable[Tensor], temperature: Temperature) -> Doubts:
    """Doubt about each row, by its name, from ``logits_MbK`` of some rows after others."""
    each = [_of_part(part_MbK, temperature) for part_MbK in split(parts)]
    return {key: torch.cat([part[key] for part in each]) for key in each[0]}


def _of_part(logits_MBK: Tensor, temperature: Temperature) -> Doubts:
    tally = aggregate.Tally(temperature=temperature)
    tally.add(logits_MBK)
    prediction = tally.prediction("abend")
    return {
        "entropy": prediction.entropy_B,
        "vote_entropy": torch.special.entr(prediction.vote_BK).sum(-1),
        "mutual_information": prediction.mutual_information_B,
    }


def _auroc(known_B: Tensor, strange_S: Tensor) -> float | None:
    doubt_X = torch.cat([known_B, strange_S]).cpu()
    return error_auroc(doubt_X, torch.arange(len(doubt_X)) >= len(known_B))
