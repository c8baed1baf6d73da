"""What an ensemble takes in a process of its own: memory at the peak, seconds to load. For `ensemble.py`."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import SHAPE, classifier, colours, make, seconds, status_mib

from bend_ray.config import Classifier, Config, Data
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble.ensemble import MEMBERS, Ensemble
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.models.partition import partition
from bend_ray.models.subset import Subset
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import write_tensors

SCRIPT = str(Path(__file__).with_name("ensemble.py"))
"""Takes `--peak` and `--load` for processes that are started here."""


@torch.no_grad()
def peak_mib(spec: str, M: int, batch: int) -> float:
    """Peak resident memory of this process after one batch, MiB."""
    _, _, trunk, theta_MD, _ = make(spec, M, trained=False)  # training would be the peak
    trunk.logits(theta_MD, classifier(trained=False)[1][:batch])
    return status_mib("VmHWM")


def peak_apart(M: int, batch: int) -> float:
    """`peak_mib` of the head subset in a fresh process."""
    words = [sys.executable, SCRIPT, "--peak", "head", str(M), "--batch", str(batch)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def load(side: str, where: str) -> dict[str, float]:
    """Seconds, in a process that did nothing before: to load an ensemble and answer for one image (``ours``), or only
    what it cannot do without, the base and its split (``base``)."""
    run = Folder(where)
    if side == "base":
        start = time.perf_counter()
        facts = artifacts.load(run / "base", "base").facts  # checksums and all, as for an ensemble
        module = bases.load(run / "base", ModelSpec.from_json(facts, where))
        base_s = time.perf_counter() - start
        subset = Subset.from_json(facts["subset"])
        return {"base_s": base_s, "split_s": seconds(lambda: partition(module, subset, torch.zeros(2, *SHAPE)))}
    images, start = torch.zeros(1, *SHAPE, dtype=torch.uint8), time.perf_counter()
    ensemble = Ensemble.load(run)
    load_s = time.perf_counter() - start
    first_s, later_s = (seconds(lambda: ensemble.predict(images)) for _ in range(2))
    return {"load_s": load_s, "first_answer_s": first_s, "later_answer_s": later_s, "own_mib": status_mib("RssAnon")}


def load_apart(spec: str, M: int) -> dict[str, float]:
    """`load` of an ensemble of M members, in fresh processes; medians."""
    module, subset, _, theta_MD, _ = make(spec, M, trained=False)
    digits, resnet = load_dataset(Data(name="digits"), 0), Classifier(name="resnet18")
    with tempfile.TemporaryDirectory() as where:
        run = Folder(where)
        for kind in ("base", "ensemble"):
            bases.save(run / kind, module)
        write_tensors(run / "ensemble", MEMBERS, {"theta_MD": theta_MD})
        facts = ModelSpec(resnet, digits.class_names, colours(digits)).to_json() | {"subset": subset.to_json()}
        config = Config(data=Data(name="digits"), classifier=resnet)
        artifacts.publish(run, "base", config, {}, facts, [bases.FILE], "")
        artifacts.publish(run, "ensemble", config, {}, facts, [MEMBERS, bases.FILE], "")
        words = [sys.executable, SCRIPT, "--load"]
        runs = []
        for _ in range(5):
            sides = [
                subprocess.run([*words, side, where], check=True, capture_output=True) for side in ("ours", "base")
            ]
            runs.append(json.loads(sides[0].stdout) | json.loads(sides[1].stdout))
    medians = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
    ratio = [(one["load_s"] + one["first_answer_s"]) / (2 * one["base_s"] + one["split_s"]) for one in runs]
    return medians | {"over_twice_base_and_split": statistics.median(ratio), "members_mib": theta_MD.nbytes / 2**20}
