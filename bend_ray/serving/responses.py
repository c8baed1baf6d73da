"""One row's prediction in plain Python, for HTTP and for the command line."""

from typing import Any

from torch import Tensor

from bend_ray.ensemble.aggregate import Prediction


def rows(prediction: Prediction, names: tuple[str, ...], label_MB: Tensor | None = None) -> list[dict[str, Any]]:
    """One dictionary a row; with ``label_MB`` also each member's vote."""
    votes_BK = (prediction.vote_BK * prediction.members_B[:, None]).round().long().tolist()
    columns = {
        "label": prediction.label_B.tolist(),
        "class": [names[label] for label in prediction.label_B.tolist()],
        "probability": prediction.prob_BK.gather(1, prediction.label_B[:, None])[:, 0].tolist(),
        "probabilities": prediction.prob_BK.tolist(),
        "votes": votes_BK,
        "entropy": prediction.entropy_B.tolist(),
        "mutual_information": prediction.mutual_information_B.tolist(),
        "disagreement": prediction.disagreement_B.tolist(),
    }
    if prediction.distance_B is not None:
        columns["distance"] = prediction.distance_B.tolist()
    if label_MB is not None:
        columns["member_labels"] = label_MB.T.tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
