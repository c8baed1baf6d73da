"""What benchmarks/serve.py has served: ensembles in folders, and what they say of test rows."""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import BEND_RAY, SHAPE, colours, rows
from torch import Tensor, nn

from bend_ray.config import Base, Classifier, Config, Data
from bend_ray.config import Ensemble as Settings
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble.ensemble import MEMBERS, Ensemble
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.models.classifiers import build
from bend_ray.models.subset import Subset, choose
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import write_tensors

MARGIN = 0.01
"""Between the two largest probabilities of a row, at least: nearer ones may change places by rounding."""


@dataclass(frozen=True)
class Model:
    """An ensemble in a folder, and what it says of test rows, none of them undecided."""

    folder: Path
    images: Tensor
    label_N: list[int]
    prob_NK: Tensor
    one_N: list[int]
    """Labels of its first member alone."""
    version: str


def digits_models(scratch: Path, run: str | None, M: int) -> tuple[Model, Model]:
    """The first and the next M members of a run."""
    if run is None:
        run = str(scratch / "run")
        words = [str(BEND_RAY), "run", "jobs/digits_base.yaml", "--sample.members", str(2 * M), "--run-dir", run]
        subprocess.run(words, check=True)
    whole = Ensemble.load(run)
    if whole.members < 2 * M:
        sys.exit(f"--run: {run} has {whole.members} members; {2 * M} are needed, for two ensembles of {M}")
    module = bases.load(Folder(run) / "ensemble", whole.spec)
    images = load_dataset(Data(name="digits"), 0).test.images
    folders = []
    for name, theta_MD in (("digits", whole.theta_MD[:M]), ("digits-other", whole.theta_MD[M : 2 * M])):
        publish(scratch / name, whole.spec, module, whole.subset, theta_MD)
        folders.append(scratch / name)
    sure_N = sure(folders[0], images) & sure(folders[1], images)
    return model(folders[0], images[sure_N]), model(folders[1], images[sure_N])


def colour_model(scratch: Path, name: str, module: nn.Module, subset: Subset, theta_MD: Tensor) -> Model:
    """These members of a classifier of digits as colour images."""
    digits = load_dataset(Data(name="digits"), 0)
    description = ModelSpec(Classifier.model_validate({"name": name}), digits.class_names, colours(digits))
    publish(scratch / name, description, module, subset, theta_MD)
    images = rows(digits.test).images
    return model(scratch / name, images[sure(scratch / name, images)])


def light_model(scratch: Path) -> Model:
    """One untrained perceptron on the same images: next to no computing, so that the wire shows."""
    module = build(Classifier(name="mlp"), 10, SHAPE[0], SHAPE[1], 0).eval()
    subset = choose(module, "head")
    return colour_model(scratch, "mlp", module, subset, 30 * subset.take(module)[None])  # decided, too


def publish(where: Path, description: ModelSpec, module: nn.Module, subset: Subset, theta_MD: Tensor) -> None:
    """An ensemble of these members as a folder."""
    run, facts = Folder(where), description.to_json() | {"subset": subset.to_json()}
    bases.save(run / "ensemble", module)
    write_tensors(run / "ensemble", MEMBERS, {"theta_MD": theta_MD})
    config = Config(data=Data(name="digits"), classifier=description.classifier, base=Base())
    artifacts.publish(run, "ensemble", config, {}, facts, [MEMBERS, bases.FILE], "")


def sure(folder: Path, images: Tensor) -> Tensor:
    """Which rows the ensemble and its first member are both decided about."""
    ensemble = Ensemble.load(folder)
    top = [side.predict(images).prob_BK.topk(2).values for side in (ensemble, first(ensemble))]
    return torch.stack([top_N2[:, 0] - top_N2[:, 1] > MARGIN for top_N2 in top]).all(0)


def first(ensemble: Ensemble) -> Ensemble:
    return replace(ensemble, theta_MD=ensemble.theta_MD[:1], _plans={})


def model(folder: Path, images: Tensor) -> Model:
    ensemble = Ensemble.load(folder)
    prediction, one = ensemble.predict(images), first(ensemble).predict(images)
    version = ensemble.manifest.digest[:12]
    return Model(folder, images, prediction.label_B.tolist(), prediction.prob_BK, one.label_B.tolist(), version)


def row_s(folder: str, count: int) -> float:
    """Seconds for a row, ``count`` at once on one thread, in a process that does nothing else."""
    torch.set_num_threads(1)
    ensemble = Ensemble.load(folder, settings=Settings(plan="measured"))  # as replicas do
    fit = ensemble.spec.preprocess
    images = torch.zeros(count, fit.channels, fit.image_size, fit.image_size, dtype=torch.uint8)
    with torch.inference_mode():
        ensemble.predict(images)
        times: list[float] = []
        until = time.perf_counter() + 2.0
        while time.perf_counter() < until or not times:
            start = time.perf_counter()
            ensemble.predict(images)
            times.append(time.perf_counter() - start)
    return statistics.median(times) / count


def row_s_apart(folder: Path, count: int) -> float:
    words = [sys.executable, __file__, str(folder), str(count)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":  # FOLDER ROWS
    print(row_s(sys.argv[1], int(sys.argv[2])))
