"""What a finished run holds: metrics, a report, an ensemble that answers as the whole; and what `show` says of it."""

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from bend_ray import cli, lineage
from bend_ray.config import BASELINES, Inference
from bend_ray.config import Ensemble as Settings
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble import metrics
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import ConfigError
from bend_ray.report.numbers import SNAPSHOTS
from conftest import changed
from pipeline_helpers import copy

pytestmark = pytest.mark.ray

NUMBER = {"type": "number"}
BASELINE = dict.fromkeys(("members", "accuracy", "sbend_accuracy", "nll", "ece", "brier", "seconds"), NUMBER)
SCORES = dict.fromkeys(("accuracy", "nll", "ece", "brier"), NUMBER)
COST = ("base_s", "collect_s", "fit_s", "sample_s", "evaluate_s", "sample_s_per_member", "training_s_per_model")


def whole(properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


MEMBERS = whole(
    {
        "count": NUMBER,
        "accuracy": whole(dict.fromkeys(("mean", "median", "best", "worst"), NUMBER)),
        "nll": whole({"mean": NUMBER}),
    }
)
DISTANCES = ("generated", "held_out", "original", "noised")
OF_ANY_CHAIN = {"original_to_nearest_of_any_chain": NUMBER}
SCHEMA = whole(
    {
        **dict.fromkeys(
            ("format", "seed", "classes", "test_size", "members", "subset_size", "dropped"), {"type": "integer"}
        ),
        "dataset": {"type": "string"},
        "originals": MEMBERS,
        "generated": MEMBERS,
        "sbend": whole(SCORES),
        "abend": whole(SCORES),
        "baselines": whole(
            {name: whole(BASELINE) for name in BASELINES}
            | dict.fromkeys(("bagging", "deep_ensemble"), {"type": "null"})
        ),
        "versus": whole(
            {name: whole(dict.fromkeys(("nll_gain", "low", "high"), NUMBER)) for name in BASELINES}
            | dict.fromkeys(("bagging", "deep_ensemble"), {"type": "null"})
        ),
        "diversity": whole(
            {name: whole({"disagreement": NUMBER, "error_iou": NUMBER}) for name in ("originals", "generated")}
            | dict.fromkeys(("bagging", "deep_ensemble"), {"type": "null"})
        ),
        "novelty": whole(
            {f"{name}_to_nearest_original": NUMBER for name in DISTANCES}
            | dict.fromkeys(("original_to_nearest_of_any_chain", "copies", "replica_rate", "variance_ratio"), NUMBER)
            | dict.fromkeys(("outside_span", "mean_error_iou", "max_error_iou"), NUMBER)
            | {"raw": whole({f"{name}_to_nearest_original": NUMBER for name in DISTANCES} | OF_ANY_CHAIN)}
            | {"verdict": {"enum": ["copying", "averaging", "interpolating", "new"]}}
        ),
        "chosen": whole({"keep": {"enum": ["all"]}, "candidates": NUMBER, "rejected": {"enum": [0]}, "spread": NUMBER}),
        "autoencoder": whole(
            {f"{name}{suffix}": NUMBER for name in ("seen", "withheld") for suffix in ("", "_reconstructed")}
        ),
        "away": whole(dict.fromkeys(("generated", *BASELINES), NUMBER) | dict.fromkeys(SNAPSHOTS, {"type": "null"})),
        "cost": whole({**dict.fromkeys(COST, NUMBER), "search_s": {"type": "null"}, "member_cost_ratio": NUMBER}),
    }
)


def test_metrics_have_every_key_and_only_those(reference: Path) -> None:
    metrics = json.loads((reference / "report" / "metrics.json").read_text())
    jsonschema.validate(metrics, SCHEMA)
    fractions = [metrics[kind]["accuracy"][which] for kind in ("originals", "generated") for which in ("best", "worst")]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert metrics["members"] == metrics["generated"]["count"] == 7 and metrics["originals"]["count"] == 10


def test_report_has_figures_and_words(reference: Path) -> None:
    report = reference / "report"
    text = (report / "README.md").read_text()
    figures = sorted(path.name for path in report.glob("*.png"))
    assert len(figures) == 5 and all(f"]({name})" in text for name in figures)
    for name in figures:
        with Image.open(report / name) as image:
            pixels = np.asarray(image.convert("L"))
        assert pixels.std() > 5  # something is drawn
    assert "aBEND" in text and "Gaussian" in text


def test_ensemble_is_loadable_alone_and_answers_as_the_whole(reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference / "ensemble", tmp_path / "alone")
    alone = Ensemble.load(tmp_path / "alone")
    test = load_dataset(changed().data, 0).test
    prediction = alone.predict(test.images, "abend")
    metrics = json.loads((reference / "report" / "metrics.json").read_text())
    accuracy = (prediction.label_B == test.labels).double().mean().item()
    assert accuracy == pytest.approx(metrics["abend"]["accuracy"], abs=1e-9)
    assert set(alone.predict(test.images[:3], "sbend").label_B.tolist()) <= set(range(10))


def test_ensemble_is_selected_and_calibrated_on_validation_rows(reference: Path) -> None:
    ensemble, val = Ensemble.load(reference), load_dataset(changed().data, 0).val

    def nll(one: Ensemble) -> float:
        return metrics.nll(one.predict(val.images).prob_BK, val.labels).mean().item()

    single = ensemble.select(val.images, val.labels, 1, "best")
    smaller = ensemble.select(val.images, val.labels, 3)
    assert (single.members, smaller.members, ensemble.members) == (1, 3, 7)
    assert nll(smaller) <= nll(single) + 1e-9
    calibrated = ensemble.calibrate(val.images, val.labels)
    assert nll(calibrated) <= nll(ensemble) and calibrated.temperature != 1
    stopped = calibrated.predict(val.images, stop_early=True)
    assert torch.equal(stopped.label_B, calibrated.predict(val.images).label_B)
    measured = Ensemble.load(reference, settings=Settings(plan="measured"))
    torch.testing.assert_close(measured.logits(val.images), ensemble.logits(val.images), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="how: 'worst'"):
        ensemble.select(val.images, val.labels, 1, "worst")  # type: ignore[arg-type]


def test_predict_answers_for_images_and_arrays(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = load_dataset(changed().data, 0).test.images[:3]
    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "digit.png")
    np.save(tmp_path / "digits.npy", images.numpy())
    cli.main(["predict", str(reference), str(tmp_path / "digit.png"), str(tmp_path / "digits.npy"), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 4 and rows[0]["label"] == rows[1]["label"]
    assert all(sum(row["votes"].values()) == 7 for row in rows)
    cli.main(["predict", str(reference / "ensemble"), str(tmp_path / "digit.png"), "--strategy", "sbend"])
    assert "votes {" in capsys.readouterr().out
    cli.main(["predict", str(reference), str(tmp_path / "digit.png"), "--json", "--ensemble.precision", "bfloat16"])
    low = json.loads(capsys.readouterr().out)
    assert low["label"] == rows[0]["label"] and low["probability"] != rows[0]["probability"]


def test_a_run_says_how_its_ensemble_is_used(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path)
    text = (run.path / "config.yaml").read_text()
    assert "ensemble:\n  plan: graph\n" in text
    (run.path / "config.yaml").write_text(
        text.replace("plan: graph", "plan: measured").replace("chunk: 16", "chunk: 8")
    )
    found = lineage.inference(Inference, run, {"ensemble.chunk": "4"}).ensemble
    assert (found.plan, found.chunk) == ("measured", 4)
    assert lineage.inference(Inference, run / "ensemble", {}).ensemble == Settings()


def test_show_explains_a_run(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["show", str(reference)])
    said = capsys.readouterr().out
    assert all(word in said for word in ("base", "snapshots", "generator", "ensemble", "aBEND", "bend-ray predict"))
    assert "batch 256: loop; the fastest here and now: " in said
    cli.main(["show", str(reference), "--ensemble.plan", "vmap", "--ensemble.chunk", "5"])
    assert "batch 1: vmap, 5 members at once; the fastest" in capsys.readouterr().out
    run = copy(reference, tmp_path, "ensemble", "report")
    cli.main(["show", str(run)])
    assert "not there yet: ensemble, report" in capsys.readouterr().out
