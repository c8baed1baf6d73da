"""What a finished run holds: metrics, a report, an ensemble that answers as the whole; and what `show` says of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from bend_ray import cli
from bend_ray.config import BASELINES, Inference
from bend_ray.config import Ensemble as Settings
from bend_ray.data.datasets import load_dataset
from bend_ray.data.strangers import SHUFFLED
from bend_ray.ensemble import metrics
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.ensemble.temperature import fixed
from bend_ray.errors import ConfigError
from bend_ray.report.metrics import SNAPSHOTS
from bend_ray.report.rivals import CONTENDERS
from bend_ray.store import lineage
from bend_ray.training.rivals import RIVALS, TRUNKS
from conftest import changed
from pipeline_helpers import copy

pytestmark = pytest.mark.ray

NUMBER = {"type": "number"}
BASELINE = dict.fromkeys(("members", "accuracy", "sbend_accuracy", "nll", "ece", "brier", "seconds"), NUMBER)
SCORES = dict.fromkeys(("accuracy", "nll", "ece", "brier"), NUMBER)
COST = ("base_s", "collect_s", "fit_s", "sample_s", "evaluate_s", "sample_s_per_member", "training_s_per_model")


def whole(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


MEMBERS = whole(
    {
        "count": NUMBER,
        "accuracy": whole(dict.fromkeys(("mean", "median", "best", "worst"), NUMBER)),
        "nll": whole({"mean": NUMBER}),
    }
)
TEMPERATURE = whole(
    {
        "kind": {"enum": ["none", "pool", "members"]},
        **dict.fromkeys(("value", "low", "high"), NUMBER),
        "why": {"type": "string"},
    }
)
WITH_T = ("nll_t", "ece_t", "ece_t_floor", "ece_t_floor_95", "brier_t", "accuracy_t")
MEASURED = ("cost_trainings", "answer_forwards", "accuracy", "nll", "ece", "ece_floor", "ece_floor_95", "members")
OR_NOTHING = {"type": ["number", "null"]}
DOUBTS = whole(dict.fromkeys(("entropy", "mutual_information", "distance"), OR_NOTHING))
RIVAL = whole(
    {
        "name": {"enum": list(CONTENDERS)},
        **dict.fromkeys((*MEASURED, *WITH_T, "auroc_errors", "accuracy_at_80", "accuracy_at_90"), OR_NOTHING),
        "auroc_strangers": {"anyOf": [whole({SHUFFLED: DOUBTS}), {"type": "null"}]},
        "nll_t_gain": {"anyOf": [whole(dict.fromkeys(("mean", "low", "high"), NUMBER)), {"type": "null"}]},
        "temperature": {"anyOf": [TEMPERATURE, {"type": "null"}]},
        "note": {"type": ["string", "null"]},
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
            {name: whole(BASELINE) for name in BASELINES} | dict.fromkeys((*TRUNKS, *RIVALS), {"type": "null"})
        ),
        "versus": whole(
            {name: whole(dict.fromkeys(("nll_gain", "low", "high"), NUMBER)) for name in BASELINES}
            | dict.fromkeys((*TRUNKS, *RIVALS), {"type": "null"})
        ),
        "diversity": whole(
            {name: whole({"disagreement": NUMBER, "error_iou": NUMBER}) for name in ("originals", "generated")}
            | dict.fromkeys(RIVALS, {"type": "null"})
        ),
        "novelty": whole(
            {f"{name}_to_nearest_original": NUMBER for name in DISTANCES}
            | dict.fromkeys(("original_to_nearest_of_any_chain", "copies", "replica_rate", "variance_ratio"), NUMBER)
            | dict.fromkeys(("outside_span", "mean_error_iou", "max_error_iou"), NUMBER)
            | {"raw": whole({f"{name}_to_nearest_original": NUMBER for name in DISTANCES} | OF_ANY_CHAIN)}
            | {"verdict": {"enum": ["copying", "averaging", "interpolating", "new"]}}
        ),
        "chosen": whole({"keep": {"enum": ["all"]}, "candidates": NUMBER, "rejected": {"enum": [0]}, "spread": NUMBER}),
        "rivals": {"type": "array", "items": RIVAL, "minItems": len(CONTENDERS), "maxItems": len(CONTENDERS)},
        "strangers": whole({SHUFFLED: whole({"rows": NUMBER, "built_in": {"enum": [True]}})}),
        "temperature": TEMPERATURE,
        **dict.fromkeys(("doubt_scale", "distance"), {"type": "null"}),
        "per_class": {
            "type": "array",
            "minItems": 10,
            "maxItems": 10,
            "items": whole(
                {
                    "name": {"type": "string"},
                    **dict.fromkeys(("train_rows", "val_rows", "test_rows"), {"type": "integer"}),
                    **dict.fromkeys(("base", "abend"), NUMBER),
                }
            ),
        },
        "balanced_accuracy": whole(dict.fromkeys(("abend", "sbend", "base"), NUMBER)),
        "recommended": {"enum": ["base", "abend", "sbend"]},
        "recommendation": whole(
            {"best": {"type": "string"}, **dict.fromkeys(("nll_more", "low", "high", "rows"), NUMBER)}
        ),
        "autoencoder": whole(
            {f"{name}{suffix}": NUMBER for name in ("seen", "withheld") for suffix in ("", "_reconstructed")}
        ),
        "away": whole(dict.fromkeys(("generated", *BASELINES), NUMBER) | dict.fromkeys(SNAPSHOTS, {"type": "null"})),
        "cost": whole(
            {
                **dict.fromkeys(COST, NUMBER),
                **dict.fromkeys(("cycles_s", "search_s"), {"type": "null"}),
                "member_cost_ratio": NUMBER,
            }
        ),
    }
)


def test_metrics_have_every_key_and_only_those(reference: Path) -> None:
    metrics = json.loads((reference / "report" / "metrics.json").read_text())
    jsonschema.validate(metrics, SCHEMA)
    fractions = [metrics[kind]["accuracy"][which] for kind in ("originals", "generated") for which in ("best", "worst")]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert metrics["members"] == metrics["generated"]["count"] == 7 and metrics["originals"]["count"] == 10


def test_rivals_are_the_rows_of_the_report(reference: Path) -> None:
    report = json.loads((reference / "report" / "metrics.json").read_text())
    by_name = {row["name"]: row for row in report["rivals"]}
    assert report["format"] == 2 and list(by_name) == list(CONTENDERS)
    missing = {*TRUNKS, *RIVALS}
    assert {name for name, row in by_name.items() if row["members"] is None} == missing
    for name, old in (("abend", "abend"), ("sbend", "sbend"), *((name, name) for name in BASELINES)):
        ours = by_name["base" if name == "base_model" else name]
        theirs = report[old] if old in report else report["baselines"][old]
        assert {key: ours[key] for key in ("accuracy", "nll", "ece")} == {
            key: theirs[key] for key in ("accuracy", "nll", "ece")
        }
    assert by_name["laplace"]["members"] == 64 and "prior precision" in by_name["laplace"]["note"]
    assert by_name["base"]["cost_trainings"] == by_name["base"]["answer_forwards"] == 1
    assert 1 < by_name["random_originals"]["cost_trainings"] < by_name["abend"]["cost_trainings"]
    assert 1 < by_name["abend"]["answer_forwards"] == by_name["sbend"]["answer_forwards"] <= 7
    text = (reference / "report" / "README.md").read_text()
    assert "- Deploy " in text and "prior precision" in text and "NLL with T" in text
    assert "No temperature, for fewer than 100 validation rows determine none: aBEND" in text


def test_report_has_figures_and_words(reference: Path) -> None:
    report = reference / "report"
    text = (report / "README.md").read_text()
    figures = sorted(path.name for path in report.glob("*.png"))
    assert len(figures) == 7 and all(f"]({name})" in text for name in figures)
    for name in figures:
        with Image.open(report / name) as image:
            pixels = np.asarray(image.convert("L"))
        assert pixels.std() > 5  # something is drawn
    assert "aBEND" in text and "Gaussian" in text and "## Classes" in text and "Warning" not in text


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
    calibrated = ensemble.temperature_scale(val.images, val.labels)
    assert (
        nll(calibrated) <= nll(ensemble)
        and calibrated.temperature == ensemble.calibrate(val.images, val.labels).temperature
    )
    flat = replace(ensemble, temperature=fixed(3.0))
    assert flat.predict(val.images).entropy_B.mean() > ensemble.predict(val.images).entropy_B.mean()
    assert torch.equal(flat.predict(val.images, stop_early=True).label_B, ensemble.predict(val.images).label_B)
    measured = Ensemble.load(reference, settings=Settings(plan="measured"))
    torch.testing.assert_close(measured.logits(val.images), ensemble.logits(val.images), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="how: 'worst'"):
        ensemble.select(val.images, val.labels, 1, "worst")  # type: ignore[arg-type]  # the mistake that is refused


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
