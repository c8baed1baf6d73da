"""Noise on members' heads: its shape is what training rows leave open, its size what validation rows allow."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bend_ray.config import Classifier
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble import aggregate, doubt, metrics
from bend_ray.ensemble.doubt import SCALES, TOLERANCE, Doubt, inverse_root, largest_scale
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import ArtifactError, ModelError
from bend_ray.models import subset as subsets
from bend_ray.models.base import ModelSpec
from bend_ray.run import Run
from bend_ray.stages import pipeline
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.workers.sample import Sampler
from conftest import changed, run_of
from pipeline_helpers import copy, stamps


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(changed().data, 0)


@pytest.fixture(scope="module")
def mlp(dataset: Dataset) -> nn.Module:
    return ModelSpec.of(Classifier(name="mlp", kwargs={"hidden": 12}), dataset).build()


@pytest.fixture(scope="module")
def fitted(mlp: nn.Module, dataset: Dataset) -> Doubt:
    return Doubt.of(mlp, subsets.choose(mlp, "head"), run_of(dataset))


def features(mlp: nn.Module, images: Tensor, dataset: Dataset) -> Tensor:
    """``feature_BF`` of the built-in MLP, and a 1, by its own blocks."""
    blocks = mlp.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    x = dataset.preprocess(images).flatten(1)
    with torch.no_grad():
        for block in blocks:
            x = block(x)
    return torch.cat([x, torch.ones(len(x), 1)], dim=1).double()


def test_the_shape_is_the_inverse_second_moment_of_the_heads_inputs(
    mlp: nn.Module, fitted: Doubt, dataset: Dataset
) -> None:
    feature_BF = features(mlp, dataset.train.images, dataset)
    moment_FF = feature_BF.T @ feature_BF / len(feature_BF)
    floor = doubt.FLOOR * torch.linalg.eigvalsh(moment_FF).median()
    wanted_FF = torch.linalg.inv(moment_FF + floor * torch.eye(13))
    assert fitted.names == ("head.weight", "head.bias")
    assert torch.allclose(fitted.root_FF, fitted.root_FF.T)
    assert torch.allclose(fitted.root_FF @ fitted.root_FF, wanted_FF, rtol=1e-5)


def test_directions_without_data_have_a_finite_width() -> None:
    moment_FF = torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64))
    assert torch.allclose(inverse_root(moment_FF).diagonal().square(), 1 / torch.tensor([4.05, 1.05, 0.05]).double())
    alone_FF = torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))  # more features than rows
    assert torch.isfinite(inverse_root(alone_FF)).all()


def test_noise_has_that_covariance_on_the_head_alone(mlp: nn.Module, fitted: Doubt) -> None:
    wide = subsets.choose(mlp, "norm+head")
    ids, sized = range(4000), Doubt(fitted.names, fitted.root_FF, 0.5)
    noise_MD = sized.added(torch.zeros(len(ids), wide.D), wide, ids, 0)
    parts = wide.split(noise_MD)
    assert all(not value.any() for name, value in parts.items() if not name.startswith("head."))
    noise_MKF = torch.cat([parts["head.weight"], parts["head.bias"][..., None]], dim=2).double()
    found_FF = noise_MKF.flatten(0, 1).T @ noise_MKF.flatten(0, 1) / noise_MKF.shape[:2].numel()
    wanted_FF = 0.25 * fitted.root_FF @ fitted.root_FF
    assert (found_FF - wanted_FF).norm() < 0.03 * wanted_FF.norm()


def test_a_members_noise_follows_from_seed_and_number(mlp: nn.Module, fitted: Doubt) -> None:
    subset, sized = subsets.choose(mlp, "head"), Doubt(fitted.names, fitted.root_FF, 0.1)
    theta_MD = torch.randn(6, subset.D)
    whole = sized.added(theta_MD, subset, range(6), 3)
    assert torch.equal(sized.added(theta_MD[2:4], subset, range(2, 4), 3), whole[2:4])
    assert not torch.equal(sized.added(theta_MD, subset, range(6), 4), whole)
    assert torch.equal(Doubt(fitted.names, fitted.root_FF).added(theta_MD, subset, range(6), 3), theta_MD)


def test_it_is_kept_and_read_again(fitted: Doubt, tmp_path: Path) -> None:
    sized = Doubt(fitted.names, fitted.root_FF, 0.25)
    sized.save(Folder(tmp_path), "recipe")
    again = Doubt.load(Folder(tmp_path))
    assert (again.names, again.scale) == (sized.names, 0.25) and torch.equal(again.root_FF, sized.root_FF)
    (tmp_path / doubt.FILE).write_bytes(b"something else")
    with pytest.raises(ArtifactError, match=r"doubt\.safetensors"):
        Doubt.load(Folder(tmp_path))


@pytest.mark.parametrize("subset", ["norm", "block3.conv.weight"])
def test_a_subset_without_the_layer_of_the_logits_is_refused(dataset: Dataset, subset: str) -> None:
    run = run_of(dataset)
    module = run.spec.build()
    with pytest.raises(ModelError, match=r"sample\.doubt: laplace is for a subset with the linear layer"):
        Doubt.of(module, subsets.choose(module, subset), run)


def test_the_size_is_the_largest_that_costs_nothing_on_validation_rows() -> None:
    torch.manual_seed(0)
    label_B = torch.randint(5, (300,))
    clean_MBK = 3 * nn.functional.one_hot(label_B, 5).float() + 1.5 * torch.randn(8, 300, 5)
    noise_MBK = 3 * torch.randn(8, 300, 5)

    def logits_of(scale: float) -> Tensor:
        return clean_MBK + scale * noise_MBK

    def loss(scale: float) -> float:
        log_BK = aggregate.abend(logits_of(scale)).log()
        return min(
            metrics.nll((log_BK / T).softmax(-1), label_B).mean().item() for T in torch.logspace(-0.7, 0.7, 4001)
        )

    fine = [scale for scale in SCALES if loss(scale) <= TOLERANCE * loss(0.0)]
    assert 0 < len(fine) < len(SCALES) and largest_scale(logits_of, label_B) == max(fine)
    assert largest_scale(lambda scale: clean_MBK + (scale > 0) * 100 * noise_MBK, label_B) == 0.0


@pytest.mark.ray
def test_members_doubt_what_training_rows_do_not_look_like(reference: Path, tmp_path: Path) -> None:
    """The stage on a real run: noise on the head alone, the same after a stop, and nothing done again."""
    run, config = copy(reference, tmp_path, "ensemble", "report"), changed(sample={"doubt": "laplace"})
    pipeline.execute(Run(config, run), ("sample",))
    plain, noisy = Ensemble.load(reference), Ensemble.load(run)
    manifest = artifacts.load(run / "ensemble", "ensemble")
    scale = manifest.facts["doubt_scale"]
    assert scale in SCALES and doubt.FILE in manifest.files and (run.path / "timings" / "block-doubt.json").exists()
    before, after = plain.subset.split(plain.theta_MD), noisy.subset.split(noisy.theta_MD)
    changed_names = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed_names == {"head.weight", "head.bias"}
    strange = torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    more, less = (one.predict(strange).mutual_information_B.mean() for one in (noisy, plain))
    assert more > less
    (run.path / "ensemble" / "config.json").unlink()  # stopped before it was whole
    stamp = (run.path / "ensemble" / doubt.FILE).stat().st_mtime_ns
    assert torch.equal(Sampler(Run(config, run), "").members(range(2, 4), config.sample), noisy.theta_MD[2:4])
    pipeline.execute(Run(config, run), ("sample",))
    assert (run.path / "ensemble" / doubt.FILE).stat().st_mtime_ns == stamp
    assert torch.equal(Ensemble.load(run).theta_MD, noisy.theta_MD)
    kept = stamps(run.path)
    pipeline.execute(Run(config, run), ("sample",))
    assert stamps(run.path) == kept
