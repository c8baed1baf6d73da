"""predict: an ensemble and images in, one line a row out. Nothing is written, and Ray is not needed."""

import json
from typing import Any

from bend_ray.config import Inference
from bend_ray.data.preprocess import Preprocess
from bend_ray.ensemble.aggregate import Strategy
from bend_ray.ensemble.distance import Distance
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.serving import responses
from bend_ray.store import lineage
from bend_ray.store.folders import Folder

CHUNK = 256


def execute(where: str, inputs: list[str], strategy: Strategy, as_json: bool, overrides: dict[str, str]) -> None:
    """Print what the ensemble at ``where`` (a run or an ensemble) says of the images in ``inputs``."""
    ensemble = Ensemble.load(where, settings=lineage.inference(Inference, Folder(where), overrides).ensemble)
    names, distance = ensemble.spec.class_names, ensemble.distance
    preprocess: Preprocess = ensemble.spec.preprocess
    for path in inputs:
        images = preprocess.read(path)
        for start in range(0, len(images), CHUNK):
            prediction = ensemble.predict(images[start : start + CHUNK], strategy)
            for row, facts in enumerate(responses.rows(prediction, names), start):
                entry = _facts(facts, names, strategy)
                where_row = path if len(images) == 1 else f"{path}[{row}]"
                print(
                    json.dumps({"input": where_row, **entry}) if as_json else f"{where_row}: {_words(entry, distance)}"
                )


def _facts(facts: dict[str, Any], names: tuple[str, ...], strategy: Strategy) -> dict[str, Any]:
    """A row's answer for a person: only classes with votes, by name, and the winner's probability alone."""
    votes = {name: count for name, count in zip(names, facts["votes"], strict=True) if count}
    kept = {key: value for key, value in facts.items() if key != "probabilities"}
    return {**kept, "votes": votes, "strategy": strategy}


def _words(facts: dict[str, Any], distance: Distance | None) -> str:
    votes = ", ".join(f"{name}: {count}" for name, count in sorted(facts["votes"].items(), key=lambda item: -item[1]))
    far = ""
    if distance is not None:
        nearer = distance.share_below(facts["distance"])
        far = f"  distance {facts['distance']:.3g}, above that of {nearer:.0%} of validation rows"
    return (
        f"{facts['class']}  probability {facts['probability']:.3f}  votes {{{votes}}}"
        f"  entropy {facts['entropy']:.3f} nats, of it by disagreement {facts['mutual_information']:.3f}{far}"
    )
