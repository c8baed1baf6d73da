"""What `test_recipes` does with the recipes of CONTRIBUTING.md, in a process of its own, whose package has all of them.

Prints what went wrong with each kind, as JSON.
"""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import bend_ray
from bend_ray.cli import parser
from bend_ray.config import BASELINES, Config, Data, dump, loads
from bend_ray.data.datasets import load_dataset
from bend_ray.errors import ConfigError, DataError
from bend_ray.generator.baselines import baselines
from bend_ray.models.subset import choose
from bend_ray.report import text
from classifier_helpers import make
from conftest import changed
from generator_helpers import SUBSET, fitted, snapshots
from serving_helpers import app, ask, ensemble, npy, pictures
from test_report import metrics

PICTURES = pictures(6)


def read(**overrides: str) -> Config:
    """The toy configuration as a person writes it, with these keys (two underscores for a dot)."""
    return loads(dump(changed()), "toy", {key.replace("__", "."): value for key, value in overrides.items()})


def sampler() -> None:
    config, generator = read(sample__sampler="renoise", diffusion__objective="ddpm"), fitted()
    few, more = generator.sample(range(3), 0, config.sample), generator.sample(range(1, 5), 0, config.sample)
    assert few.shape == (3, SUBSET.D) and bool(torch.isfinite(few).all())
    torch.testing.assert_close(few[1:], more[:2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(few, generator.sample(range(3), 0, changed().sample))
    with pytest.raises(ConfigError, match="a flow has no noise to add; use ddim with eta 0, dpm"):
        read(sample__sampler="renoise", diffusion__objective="flow")
    with pytest.raises(ConfigError, match=r"Input should be 'ddim', 'ddpm', 'dpm\+\+', 'heun' or 'renoise'"):
        read(sample__sampler="magic")


def baseline() -> None:
    name, theta_SD, config = "bayesian_bootstrap", snapshots(), changed()
    assert name in config.evaluate.baselines and name in BASELINES
    assert read(evaluate__baselines=f"[{name}]").evaluate.baselines == (name,)
    made = baselines(config.evaluate.baselines, theta_SD, theta_SD[0], fitted(), config.evaluate)[name]
    few, more = made(range(3), 0), made(range(1, 5), 0)
    torch.testing.assert_close(few[1:], more[:2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(few[0], few[1])
    assert bool((few <= theta_SD.amax(0) + 1e-5).all()) and bool((few >= theta_SD.amin(0) - 1e-5).all())
    assert "\nrandomly weighted averages" in text.table(metrics(**{name: (0.1, 0.2)}))


def aggregation() -> None:
    name, images = "geometric", torch.from_numpy(PICTURES)
    prediction = ensemble().predict(images, name)
    prob_BK = ensemble().logits(images).double().log_softmax(-1).mean(0).softmax(-1)
    torch.testing.assert_close(prediction.prob_BK, prob_BK)
    assert torch.equal(prediction.label_B, prob_BK.argmax(-1)) and prediction.strategy == name
    assert not torch.allclose(prob_BK, ensemble().predict(images).prob_BK)
    with pytest.raises(ConfigError, match="geometric must ask all members; leave it out, or use abend or sbend"):
        ensemble().predict(images, name, stop_early=True)
    with pytest.raises(ConfigError, match="geometric was not counted"):
        ensemble().tally(images).prediction(name)
    assert parser().parse_args(["predict", "run", "a.png", "--strategy", name]).strategy == name
    answer = ask(app(), "POST", f"/predict?strategy={name}", content=npy(PICTURES)).json()
    assert [row["probabilities"] for row in answer["predictions"]] == prob_BK.tolist()
    assert name in json.dumps(ask(app(), "GET", "/openapi.json").json()["paths"]["/predict"])


def classifier() -> None:
    config = read(classifier__name="logistic", classifier__kwargs="{}")
    module = make(name=config.classifier.name)
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10) and type(module).__name__ == "Logistic"


def data_format() -> None:
    rows = np.column_stack([np.arange(40) % 2, np.arange(40 * 36).reshape(40, 36) % 256])
    np.savetxt("a.csv", rows, "%d", delimiter=",", header="label,pixels", comments="")
    dataset = load_dataset(Data(path="a.csv"), 0)
    assert dataset.class_names == ("0", "1") and dataset.image_size == 6
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 40
    assert dataset.train.images[0].flatten().tolist() in rows[:, 1:].tolist()
    Path("b.csv").write_text("label,pixels\n1,a\n")
    with pytest.raises(DataError, match=r"^data\.path: b\.csv: cannot be read as CSV \("):
        load_dataset(Data(path="b.csv"), 0)


def subset_rule() -> None:
    module, config = make(name="convnet"), read(collect__subset="biases")
    assert choose(module, config.collect.subset).names == tuple(
        name for name, _ in module.named_parameters() if name.endswith("bias")
    )


def problem(use: Callable[[], None]) -> str:
    try:
        use()
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    assert Path(bend_ray.__file__).parent == Path(sys.argv[1]), "another package"
    uses = (sampler, baseline, aggregation, classifier, data_format, subset_rule)
    print(json.dumps({use.__name__.replace("_", " "): problem(use) for use in uses}))
