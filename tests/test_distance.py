"""Distance to the training rows: in the features that an answer has made, right, never negative, kept and served."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from bend_ray.config import Classifier
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble import distance as distances
from bend_ray.ensemble import laplace
from bend_ray.ensemble.aggregate import Strategy
from bend_ray.ensemble.distance import MEASURES, NEIGHBOURS, Distance, features, gaussians, shrunk_covariance
from bend_ray.ensemble.ensemble import Ensemble, make_trunk
from bend_ray.ensemble.reliability import error_auroc
from bend_ray.errors import ArtifactError, ModelError
from bend_ray.models import subset as subsets
from bend_ray.models.base import ModelSpec
from bend_ray.models.partition import unpartitioned
from bend_ray.models.trunk import SharedTrunk
from bend_ray.run import Run
from bend_ray.serving import oip
from bend_ray.serving.app import make_app
from bend_ray.stages import pipeline, predict
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from conftest import changed, run_of
from pipeline_helpers import copy, stamps
from serving_helpers import ask, ensemble, pictures, served
from serving_requests import INFER, tensor


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(changed().data, 0)


def network(name: str, subset: str, dataset: Dataset) -> tuple[nn.Module, SharedTrunk]:
    spec = ModelSpec.of(Classifier(name=name, kwargs={"width": 24} if name == "vit_tiny" else {}), dataset)
    module = spec.build().requires_grad_(False)
    return module, make_trunk(module, subsets.choose(module, subset), spec)


# --- features


@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_behind_a_head_features_are_what_enters_the_last_linear_layer(name: str, dataset: Dataset) -> None:
    module, trunk = network(name, "head", dataset)
    x = dataset.preprocess(dataset.test.images[:5])
    layer = laplace.last_linear(module, x)
    assert layer is not None
    wanted_BF = laplace.features(module, layer, x)[:, :-1].float()
    torch.testing.assert_close(features(trunk, trunk.trunk(x)), wanted_BF)


def test_behind_a_deeper_subset_they_are_averages_where_members_part(dataset: Dataset) -> None:
    module, trunk = network("convnet", "last_block", dataset)
    x = dataset.preprocess(dataset.test.images[:5])
    seen: list[Tensor] = []
    module.get_submodule("block3").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(x)
    torch.testing.assert_close(features(trunk, trunk.trunk(x)), seen[0].mean((2, 3)))
    _, trunk = network("vit_tiny", "last_block", dataset)
    (tokens_BTC,) = trunk.trunk(x)
    torch.testing.assert_close(features(trunk, (tokens_BTC,)), tokens_BTC.mean(1))


def test_several_values_are_joined_and_those_of_no_row_left_out(dataset: Dataset) -> None:
    _, trunk = network("mlp", "head", dataset)
    several = replace(trunk, kinds=("rows", "fixed", "rows", "size", "rows"))
    values = (torch.ones(3, 4), torch.ones(7, 7), torch.zeros(3, 2, 5, 5), 3, torch.arange(3)[:, None])
    assert features(several, values).tolist() == [[1, 1, 1, 1, 0, 0]] * 3


def test_a_classifier_that_is_run_whole_is_refused(dataset: Dataset) -> None:
    module, _ = network("mlp", "head", dataset)
    whole = unpartitioned(module, subsets.choose(module, "head"))
    with pytest.raises(ModelError, match=r"sample\.distance: members of this classifier share no features"):
        Distance.of("cosine", whole, run_of(dataset))


# --- measures


def rows(count: int, width: int, seed: int, rank: int = 20, plane: int = 99) -> tuple[Tensor, Tensor]:
    """Features of ``count`` rows of ten classes, after a ReLU, that lie near a plane of ``rank`` dimensions, as those
    of a trained network; strangers lie near another ``plane``."""
    fixed, stream = torch.Generator().manual_seed(plane), torch.Generator().manual_seed(seed)
    plane_RF, centre_KR = torch.randn(rank, width, generator=fixed), 2 * torch.randn(10, rank, generator=fixed)
    label_N = torch.arange(count) % 10
    point_NR = centre_KR[label_N] + torch.randn(count, rank, generator=stream)
    feature_NF = point_NR @ plane_RF + 0.05 * torch.randn(count, width, generator=stream)
    return feature_NF.relu(), label_N


def test_cosine_is_the_mean_distance_of_the_nearest_neighbours() -> None:
    (seen_NF, label_N), (asked_BF, _) = rows(400, 32, 0), rows(50, 32, 1)
    kept = {name: value.float() for name, value in MEASURES["cosine"].fit(seen_NF, label_N).items()}
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine", algorithm="brute").fit(seen_NF.numpy())
    wanted_B = nearest.kneighbors(asked_BF.numpy())[0].mean(1)
    assert np.allclose(MEASURES["cosine"].distance(kept, asked_BF).numpy(), wanted_B, atol=1e-4)
    few = {"unit_NF": kept["unit_NF"][:3]}
    assert MEASURES["cosine"].distance(few, asked_BF).shape == (50,)
    assert MEASURES["cosine"].distance(kept, torch.zeros(1, 32)).tolist() == [1.0]  # no direction is like none


def test_rows_that_point_nearly_the_same_way_have_distances_and_not_rounding() -> None:
    """Cosines of features with a large common part are 1 but for a few millionths; the index is float16."""
    stream = torch.Generator().manual_seed(0)
    seen_NF, asked_BF = (1 + 3e-3 * torch.randn(rows, 64, generator=stream) for rows in (200, 30))
    index = Distance("cosine", MEASURES["cosine"].fit(seen_NF, torch.zeros(200)), torch.zeros(0), 200, False).to("cpu")
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine", algorithm="brute").fit(seen_NF.double().numpy())
    wanted_B = nearest.kneighbors(asked_BF.double().numpy())[0].mean(1)
    assert np.allclose(index(asked_BF).numpy(), wanted_B, rtol=0.05, atol=0)


def test_shrinkage_is_scikit_learns() -> None:
    for count, width in ((300, 40), (60, 120)):
        feature_NF, label_N = rows(count, width, 0)
        centred_NF = feature_NF.double() - torch.stack([feature_NF[label_N == k].mean(0) for k in range(10)])[label_N]
        wanted_FF, share = ledoit_wolf(centred_NF.numpy(), assume_centered=True)
        assert 0 < share < 1 and np.allclose(shrunk_covariance(centred_NF).numpy(), wanted_FF, atol=1e-10)


def test_mahalanobis_is_the_definition() -> None:
    (seen_NF, label_N), (asked_BF, _) = rows(500, 16, 0), rows(20, 16, 1)
    kept = gaussians(seen_NF, label_N)
    mean_KF = torch.stack([seen_NF[label_N == k].double().mean(0) for k in range(10)])
    inverse_FF = torch.linalg.inv(shrunk_covariance(seen_NF.double() - mean_KF[label_N]))
    away_BKF = asked_BF.double()[:, None] - mean_KF
    wanted_B = torch.einsum("bkf,fg,bkg->bk", away_BKF, inverse_FF, away_BKF).amin(1).sqrt()
    torch.testing.assert_close(MEASURES["gaussian"].distance(kept, asked_BF), wanted_B)


def test_512_features_of_300_rows_give_distances_that_tell_strangers() -> None:
    """The covariance of 300 rows has no inverse, and float32 gives it one: with it squared distances are negative."""
    (seen_NF, label_N), (same_BF, _), (strange_BF, _) = (
        rows(300, 512, 0),
        rows(200, 512, 1),
        rows(200, 512, 2, plane=98),
    )
    mean_KF = torch.stack([seen_NF[label_N == k].mean(0) for k in range(10)])
    centred_NF = seen_NF - mean_KF[label_N]
    inverse_FF = torch.linalg.inv(centred_NF.T @ centred_NF / 300 + 1e-6 * torch.eye(512))
    away_BKF = same_BF[:, None] - mean_KF
    naive_BK = torch.einsum("bkf,fg,bkg->bk", away_BKF, inverse_FF, away_BKF)
    assert naive_BK.min() < 0
    kept = gaussians(seen_NF, label_N)
    same_B, strange_B = (MEASURES["gaussian"].distance(kept, one) for one in (same_BF, strange_BF))
    assert same_B.dtype == torch.float64 and (torch.cat([same_B, strange_B]) > 0).all()
    assert MEASURES["gaussian"].distance(kept, mean_KF).abs().max() < 1e-2
    auroc = error_auroc(torch.cat([same_B, strange_B]), torch.arange(400) >= 200)
    assert auroc is not None and auroc > 0.99


def test_features_that_are_always_zero_do_no_harm() -> None:
    feature_NF, label_N = rows(100, 8, 0)
    for dead_NF in (feature_NF * (torch.arange(8) < 5), torch.zeros(100, 8)):
        kept = gaussians(dead_NF, label_N)
        assert torch.isfinite(MEASURES["gaussian"].distance(kept, dead_NF)).all()


# --- the index


@pytest.mark.parametrize("measure", list(MEASURES))
def test_it_is_kept_and_read_again(measure: str, dataset: Dataset, tmp_path: Path) -> None:
    _, trunk = network("convnet", "head", dataset)
    made, folder = Distance.of(measure, trunk, run_of(dataset)), Folder(tmp_path)
    made.save(folder, "recipe")
    again = Distance.load(folder)
    assert again.facts() == made.facts() and torch.equal(again.quantile_Q, made.quantile_Q)
    assert all(torch.equal(again.kept[name], value) for name, value in made.kept.items())
    x = dataset.preprocess(dataset.val.images)
    val_B = again.to("cpu")(features(trunk, trunk.trunk(x)))
    assert again.facts()["median"] == pytest.approx(val_B.median().item(), rel=0.1)
    assert again.share_below(-1.0) == 0 and again.share_below(val_B.max().item() * 2) == 1
    assert 0.4 < again.share_below(val_B.quantile(0.5).item()) < 0.6
    (tmp_path / distances.FILE).write_bytes(b"something else")
    with pytest.raises(ArtifactError, match=r"distance\.safetensors"):
        Distance.load(folder)


def test_the_index_is_of_so_many_rows_and_follows_from_the_seed(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trunk = network("convnet", "head", dataset)
    monkeypatch.setitem(distances.MEASURES, "cosine", replace(MEASURES["cosine"], rows=50))
    first, second, third = (Distance.of("cosine", trunk, run_of(dataset, seed)) for seed in (0, 0, 1))
    assert first.rows == 50 and first.kept["unit_NF"].shape == (50, first.features)
    assert first.facts()["bytes"] == 50 * first.features * 2
    assert torch.equal(first.kept["unit_NF"], second.kept["unit_NF"])
    assert not torch.equal(first.kept["unit_NF"], third.kept["unit_NF"])


def test_a_run_without_it_has_the_hash_it_had() -> None:
    plain, cosine = changed(), changed(sample={"distance": "cosine"})
    assert "sample.distance" not in plain.hashed("sample") and cosine.hashed("sample")["sample.distance"] == "cosine"


# --- answers


def measured() -> Ensemble:
    """The served ensemble of the tests, with a distance to its own pictures."""
    one = ensemble()
    x = one.spec.preprocess(torch.from_numpy(pictures(40)))
    feature_NF = features(one.trunk, one.trunk.trunk(x))
    kept = MEASURES["cosine"].fit(feature_NF, torch.zeros(40).long())
    quantile_Q = torch.linspace(0, 0.01, distances.QUANTILES, dtype=torch.float64)
    return replace(one, distance=Distance("cosine", kept, quantile_Q, 40, True).to("cpu"))


def test_an_answer_has_it_without_a_second_pass_of_the_trunk() -> None:
    one, images = measured(), torch.from_numpy(pictures(6))
    trunk, passes = one.trunk, list[int]()
    assert isinstance(trunk, SharedTrunk)

    def counted(x: Tensor) -> tuple[Any, ...]:
        passes.append(len(x))
        return trunk.trunk(x)

    counting = replace(one, trunk=replace(trunk, trunk=counted))
    prediction = counting.predict(images)
    assert passes == [6] and prediction.distance_B is not None
    x, assert_same = one.spec.preprocess(images), torch.testing.assert_close
    assert one.distance is not None
    assert_same(prediction.distance_B, one.distance(features(one.trunk, one.trunk.trunk(x))))
    assert ensemble().predict(images).distance_B is None
    assert torch.equal(prediction.prob_BK, ensemble().predict(images).prob_BK)
    assert_same(prediction.rows(slice(2, 4)).distance_B, prediction.distance_B[2:4])
    early = counting.predict(images, stop_early=True)
    assert passes == [6, 6] and early.distance_B is not None
    assert_same(early.distance_B, prediction.distance_B)


def test_it_is_served_in_json_and_by_the_protocol() -> None:
    one, images = measured(), pictures(3)
    assert one.distance is not None
    wanted = one.predict(torch.from_numpy(images))
    assert wanted.distance_B is not None

    async def answer(asked: Tensor, strategy: Strategy) -> tuple[Any, Tensor]:
        tally = one.tally(asked, strategy)
        return tally.prediction(strategy), tally.label_MB

    plain = served()
    app = make_app(replace(plain, answer=answer, facts=plain.facts | {"distance": one.distance.facts()}))
    response = ask(app, "POST", "/predict", json={"images": images.tolist()})
    assert [row["distance"] for row in response.json()["predictions"]] == wanted.distance_B.tolist()
    assert ask(app, "GET", "/ensemble").json()["distance"]["rows"] == 40
    body = tensor(images)
    _, arrays = oip.tensors(ask(app, "POST", INFER, json=body).content, None)
    assert np.array_equal(arrays["distance"], wanted.distance_B.numpy())
    outputs = ask(app, "GET", "/v2/models/bend").json()["outputs"]
    assert {"name": "distance", "datatype": "FP64", "shape": [-1]} in outputs
    without = make_app(plain)
    response = ask(without, "POST", "/predict", json={"images": images.tolist()})
    assert not any("distance" in row for row in response.json()["predictions"])
    assert "distance" not in [output["name"] for output in ask(without, "GET", "/v2/models/bend").json()["outputs"]]
    refused = ask(without, "POST", INFER, json=body | {"outputs": [{"name": "distance"}]})
    assert refused.status_code == 400 and "'distance' is unknown" in refused.json()["error"]


# --- a run


@pytest.mark.ray
@pytest.mark.parametrize("measure", list(MEASURES))
def test_a_run_makes_it_and_answers_with_it(
    measure: str, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Members are those of a run without it; it stays after a stop, and nothing is made again."""
    run, config = copy(reference, tmp_path, "ensemble", "report"), changed(sample={"distance": measure})
    pipeline.execute(Run(config, run), ("sample",))
    one, manifest = Ensemble.load(run), artifacts.load(run / "ensemble", "ensemble")
    assert torch.equal(one.theta_MD, Ensemble.load(reference).theta_MD)
    assert distances.FILE in manifest.files and one.distance is not None
    rows_in_all = len(Run(config, run).dataset.train)
    facts = manifest.facts["distance"]
    assert (facts["measure"], facts["rows"]) == (measure, rows_in_all) and facts["median"] < facts["q95"] <= facts[
        "q99"
    ]
    assert "Distance to the training rows" in run.read("ensemble/README.md").decode()
    assert (run.path / "timings" / "block-distance.json").exists()
    images = Run(config, run).dataset.test.images
    noise = torch.randint(256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    near, far = (one.predict(these).distance_B for these in (images, noise))
    assert near is not None and far is not None and far.median() > near.median()
    (run.path / "ensemble" / "config.json").unlink()  # stopped before it was whole
    kept = (run.path / "ensemble" / distances.FILE).stat().st_mtime_ns
    pipeline.execute(Run(config, run), ("sample",))
    assert (run.path / "ensemble" / distances.FILE).stat().st_mtime_ns == kept
    before = stamps(run.path)
    pipeline.execute(Run(config, run), ("sample",))
    assert stamps(run.path) == before
    np.save(tmp_path / "rows.npy", images[:2].numpy())
    capsys.readouterr()
    predict.execute(str(run.path), [str(tmp_path / "rows.npy")], "abend", False, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("% of validation rows" in line for line in lines)
    predict.execute(str(run.path), [str(tmp_path / "rows.npy")], "abend", True, {})
    said = [json.loads(line)["distance"] for line in capsys.readouterr().out.splitlines()]
    assert said == pytest.approx(near[:2].tolist(), rel=1e-4)
