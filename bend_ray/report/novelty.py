"""Are the members copies? How far they lie from what the generator saw, and a verdict in one word."""

from typing import Any

import torch
from torch import Tensor

from bend_ray.generator.span import COLUMNS, Span
from bend_ray.snapshots.snapshots import Snapshots


def novelty(
    span: Span, generated_MD: Tensor, noised_MD: Tensor, seen: Snapshots, held_out: Snapshots
) -> dict[str, Any]:
    """Are the members copies? Mean Euclidean distances to the nearest snapshot the generator saw, standardised.

    ``span`` is that of all snapshots seen. Withheld snapshots are of other chains than all seen ones, so an original's
    honest distance is to other chains too.
    """
    same_chain_SS = seen.chains_S[:, None] == seen.chains_S[None, :]
    thetas = (seen.theta_SD, held_out.theta_SD, generated_MD, noised_MD)
    facts, generated_M, neighbours_S = _distances(same_chain_SS, *map(span.standardise, thetas))
    raw, _, _ = _distances(same_chain_SS, *thetas)
    originals, generated = span.standardise(seen.theta_SD), span.standardise(generated_MD)
    withheld_S = distances(span.standardise(held_out.theta_SD), originals).amin(1)
    variance = generated.var(0, correction=0).sum() / originals.var(0, correction=0).sum()
    outside = span.residual(generated_MD).mean() / generated.norm(dim=1).mean().clamp_min(1e-12)
    facts |= {
        "copies": (generated_M < 0.5 * neighbours_S.mean()).float().mean().item(),
        "replica_rate": (generated_M < withheld_S.quantile(0.01)).float().mean().item(),
        "variance_ratio": variance.item(),
        "outside_span": outside.item(),
        "raw": raw,
    }
    return facts | {"verdict": verdict(facts)}


def distances(theta_XD: Tensor, other_YD: Tensor) -> Tensor:
    """``distance_XY``, float64: Euclidean, of every row of one to every row of the other.

    Products of a pass over the columns, in float64 and less the mean of the others: torch.cdist takes float32 products
    of the rows as they are from 26 rows on, and between rows that are near each other only rounding is then left.
    """
    squared_XY = torch.zeros(len(theta_XD), len(other_YD), dtype=torch.float64, device=theta_XD.device)
    for theta_Xc, other_Yc in zip(theta_XD.split(COLUMNS, dim=1), other_YD.split(COLUMNS, dim=1), strict=True):
        mean_c = other_Yc.double().mean(0)
        x_Xc, y_Yc = theta_Xc.double() - mean_c, other_Yc.double() - mean_c
        squared_XY += x_Xc.square().sum(1)[:, None] + y_Yc.square().sum(1) - 2 * x_Xc @ y_Yc.T
    return squared_XY.clamp_min(0).sqrt()


def _distances(
    same_chain_SS: Tensor, original_SD: Tensor, held_out_HD: Tensor, generated_MD: Tensor, noised_MD: Tensor
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Means, and for each member and each original the distance to the nearest original (of any chain)."""
    between_SS = distances(original_SD, original_SD)
    self_SS = torch.eye(len(original_SD), dtype=torch.bool)
    generated_M = distances(generated_MD, original_SD).amin(1)
    neighbours_S = between_SS.masked_fill(self_SS, torch.inf).amin(1)
    facts = {
        "generated_to_nearest_original": generated_M,
        "held_out_to_nearest_original": distances(held_out_HD, original_SD).amin(1),
        "original_to_nearest_original": between_SS.masked_fill(same_chain_SS, torch.inf).amin(1),
        "original_to_nearest_of_any_chain": neighbours_S,
        "noised_to_nearest_original": distances(noised_MD, original_SD).amin(1),
    }
    return {name: each.mean().item() for name, each in facts.items()}, generated_M, neighbours_S


def verdict(facts: dict[str, Any]) -> str:
    """copying: most members lie by one seen snapshot, at less than half the distance between seen neighbours (an
    average of several lies far from each); averaging: less than half of the snapshots' variance is left;
    interpolating: nearer than withheld snapshots are; new: as far from what was seen as a snapshot the generator never
    saw."""
    if facts["copies"] > 0.5:
        return "copying"
    if facts["variance_ratio"] < 0.5:
        return "averaging"
    if facts["generated_to_nearest_original"] < 0.9 * facts["held_out_to_nearest_original"]:
        return "interpolating"
    return "new"
