"""predict: an ensemble and images in, one line a row out. Nothing is written, and Ray is not needed."""

import json
from typing import Any

from bend_ray import artifacts
from bend_ray.config import Inference
from bend_ray.data.datasets import Preprocess
from bend_ray.ensemble.aggregate import Prediction, Strategy
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.folders import Folder

CHUNK = 256


def run(where: str, inputs: list[str], strategy: Strategy, as_json: bool, overrides: dict[str, str]) -> None:
    """Print what the ensemble at ``where`` (a run or an ensemble) says of the images in ``inputs``."""
    ensemble = Ensemble.load(where, settings=artifacts.inference(Inference, Folder(where), overrides).ensemble)
    names = ensemble.description.class_names
    preprocess: Preprocess = ensemble.description.preprocess
    for path in inputs:
        images = preprocess.read(path)
        for start in range(0, len(images), CHUNK):
            prediction = ensemble.predict(images[start : start + CHUNK], strategy)
            for row in range(len(prediction.label_B)):
                where_row = path if len(images) == 1 else f"{path}[{start + row}]"
                facts = _facts(prediction, row, names, ensemble.members)
                print(json.dumps({"input": where_row, **facts}) if as_json else f"{where_row}: {_words(facts)}")


def _facts(prediction: Prediction, row: int, names: tuple[str, ...], members: int) -> dict[str, Any]:
    label = int(prediction.label_B[row])
    votes = (prediction.vote_BK[row] * members).round().int().tolist()
    return {
        "label": label,
        "class": names[label],
        "probability": float(prediction.prob_BK[row, label]),
        "votes": {name: count for name, count in zip(names, votes, strict=True) if count},
        "entropy": float(prediction.entropy_B[row]),
        "mutual_information": float(prediction.mutual_information_B[row]),
        "disagreement": float(prediction.disagreement_B[row]),
        "strategy": prediction.strategy,
    }


def _words(facts: dict[str, Any]) -> str:
    votes = ", ".join(f"{name}: {count}" for name, count in sorted(facts["votes"].items(), key=lambda item: -item[1]))
    return (
        f"{facts['class']}  probability {facts['probability']:.3f}  votes {{{votes}}}"
        f"  entropy {facts['entropy']:.3f} nats, of it by disagreement {facts['mutual_information']:.3f}"
    )
