"""Pretrained networks of timm and transformers, from folders that these libraries wrote with random weights."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bend_ray.config import Classifier, Config, Data, parse
from bend_ray.data.datasets import load_dataset
from bend_ray.data.preprocess import Preprocess
from bend_ray.data.resize import Resize
from bend_ray.errors import ConfigError, DataError, ModelError
from bend_ray.models import hub, weights
from bend_ray.models.base import ModelSpec
from bend_ray.run import Run
from bend_ray.store.folders import Folder
from conftest import changed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the libraries warn of their own dependencies as they load
    import transformers

    try:
        import timm
    except Exception as error:
        timm, NO_TIMM = None, f"timm cannot be imported here ({error})"
    else:
        NO_TIMM = ""

FIT = Preprocess(3, 8, (0.5,) * 3, (0.5,) * 3)


def by_transformers(folder: Path, classes: int = 5) -> nn.Module:
    torch.manual_seed(7)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    describe: Any = transformers.ViTConfig
    config = describe(image_size=8, patch_size=4, num_labels=classes, **sizes)
    network: nn.Module = transformers.ViTForImageClassification(config)
    network.save_pretrained(folder)  # type: ignore[operator]  # it is a network of transformers
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.4, 0.5, 0.6], resample=3)
    processor.save_pretrained(folder)
    return network


def by_timm(folder: Path, classes: int = 5) -> nn.Module:
    from timm.models import save_for_hf

    torch.manual_seed(7)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    network: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **sizes)
    network.pretrained_cfg |= {"mean": (0.4, 0.5, 0.6)}  # type: ignore[operator]  # it is a network of timm
    save_for_hf(network, folder, model_args=sizes, safe_serialization=True)
    return network


needs_timm = pytest.mark.skipif(timm is None, reason=NO_TIMM)
LIBRARIES = [by_transformers, pytest.param(by_timm, marks=needs_timm)]
HEADS = {"by_transformers": "classifier", "by_timm": "head"}
Write = Callable[..., nn.Module]


@pytest.fixture(params=LIBRARIES)
def write(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Write:
    return request.param


def built(classifier: Classifier, classes: int = 3, fit: Preprocess = FIT) -> nn.Module:
    return ModelSpec(hub.without_folder(classifier), tuple(map(str, range(classes))), fit).build(1)


def test_the_body_is_taken_and_the_head_is_new(tmp_path: Path, write: Write) -> None:
    saved, head = write(tmp_path / "net"), HEADS[write.__name__]
    classifier = Classifier(hub=str(tmp_path / "net"))
    assert not classifier.is_trained
    module, before = built(classifier), built(classifier).state_dict()
    said = weights.bring(module, classifier, FIT)
    assert said[-1].startswith(f"the head ({head}.bias, {head}.weight) stays as initialised")
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith(f"{head}.") else saved.state_dict()[name]), name


def test_all_of_it_is_taken_where_the_classes_are_its_own(tmp_path: Path, write: Write) -> None:
    saved = write(tmp_path / "net")
    classifier = Classifier(hub=str(tmp_path / "net"), body_only=False)
    assert classifier.is_trained
    module = built(classifier, 5)
    assert weights.bring(module, classifier, FIT) == []
    assert all(torch.equal(one, saved.state_dict()[name]) for name, one in module.state_dict().items())
    with pytest.raises(ModelError, match=r"^classifier\.hub: .*\(5, 16\) instead of \(3, 16\).*body_only: true$"):
        weights.bring(built(classifier), classifier, FIT)


def test_what_it_says_of_images_holds_where_no_key_says_otherwise(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "net")
    classifier = Classifier(hub=str(tmp_path / "net"))
    data = hub.prepared(Data(name="digits"), classifier)
    assert (data.image_size, data.rgb, data.interpolation) == (8, True, "bicubic")
    assert data.mean == pytest.approx((0.4, 0.5, 0.6)) and data.std == pytest.approx((0.5, 0.5, 0.5))
    keys = {"image_size": 16, "rgb": False, "mean": (0.1,), "std": (2.0,), "interpolation": "nearest"}
    mine = Data(name="digits", **keys)
    assert hub.prepared(mine, classifier) == mine
    run = Run(changed(classifier={"name": None, "kwargs": {}, "hub": str(tmp_path / "net")}))
    fit = run.dataset.preprocess
    assert (fit.channels, fit.image_size) == (3, 8) and fit.mean == pytest.approx((0.4, 0.5, 0.6))


def test_it_is_built_again_without_its_folder(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "net")
    spec = ModelSpec(hub.without_folder(Classifier(hub=str(tmp_path / "net"))), ("a", "b"), FIT)
    module, text = spec.build(3), json.dumps(spec.to_json())
    shutil.rmtree(tmp_path / "net")
    again = ModelSpec.from_json(json.loads(text), "here").build(3)
    assert str(tmp_path) not in text
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in module.state_dict().items())


@needs_timm
def test_timm_adapts_what_it_has_learnt_to_grey_and_to_another_size(tmp_path: Path) -> None:
    saved = by_timm(tmp_path / "net")
    classifier = Classifier(hub=str(tmp_path / "net"), kwargs={"drop_path_rate": 0.1})
    module = built(classifier, fit=Preprocess(1, 16, (0.5,), (0.5,)))
    weights.bring(module, classifier, Preprocess(1, 16, (0.5,), (0.5,)))
    kernel = saved.state_dict()["patch_embed.proj.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(module.state_dict()["patch_embed.proj.weight"], kernel)
    assert module.state_dict()["pos_embed"].shape == (1, 17, 16)


@needs_timm
def test_an_architecture_for_any_size_is_not_told_of_one(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_resnet", num_classes=4), tmp_path, safe_serialization=False)
    classifier = Classifier(hub=str(tmp_path))
    module = built(classifier, fit=Preprocess(3, 32, (0.5,) * 3, (0.5,) * 3))
    assert weights.bring(module, classifier, Preprocess(3, 32, (0.5,) * 3, (0.5,) * 3))


@needs_timm
def test_what_timms_trainings_save_is_taken(tmp_path: Path) -> None:
    import argparse

    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(0)
    network, fresh = (timm.create_model("test_resnet", num_classes=4) for _ in range(2))
    average = ModelEmaV3(network, decay=0.5)
    average.update(timm.create_model("test_resnet", num_classes=4))
    saver = CheckpointSaver(
        network,
        torch.optim.AdamW(network.parameters()),
        argparse.Namespace(model="test_resnet", output=tmp_path),
        average,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, np.float64(0.5))
    said = weights.load_weights(fresh, str(tmp_path / "model_best.pth.tar"))
    assert said == ["'state_dict_ema' taken, the moving average of weights, not 'state_dict'"]
    expected = average.module.state_dict()
    assert all(torch.equal(one, expected[name]) for name, one in fresh.state_dict().items())


def test_preparation_of_transformers_in_all_its_forms(tmp_path: Path) -> None:
    by_transformers(tmp_path)
    classifier, file = Classifier(hub=str(tmp_path)), tmp_path / "preprocessor_config.json"

    def told(**content: Any) -> Data:
        file.write_text(json.dumps(content))
        return hub.prepared(Data(name="digits"), classifier)

    assert told(size={"shortest_edge": 32}).image_size == 32
    assert told(size=24).image_size == 24
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    assert told(**crop, do_center_crop=True).image_size == 28
    assert told(do_normalize=False, image_mean=[0.5] * 3).mean == (0.0,)
    raw = told(image_mean=[0.5] * 3, image_std=[0.25] * 3, rescale_factor=1 / 127.5, rescale_offset=True)
    assert raw.mean == pytest.approx((0.75,) * 3) and raw.std == pytest.approx((0.125,) * 3)  # of 2 x - 1
    with pytest.raises(ModelError, match=r"^classifier\.hub: .*what it says of images cannot be used"):
        told(image_mean=[0.5] * 3, image_std=[0.0] * 3)
    file.write_text("{")
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json that can be read"):
        hub.prepared(Data(name="digits"), classifier)
    file.unlink()
    assert hub.prepared(Data(name="digits"), classifier).image_size == 8


def test_folders_and_names_that_are_none(tmp_path: Path) -> None:
    for content, reason in (
        ("{}", "neither timm's"),
        ("[]", "no JSON object"),
        ("{", "no config.json that can be read"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelError, match=rf"^classifier\.hub: {tmp_path}: .*{reason}"):
            hub.without_folder(Classifier(hub=str(tmp_path)))
    for name in ("nothing", "./not/there", "/no/such/folder"):
        with pytest.raises(ModelError, match=rf"^classifier\.hub: {name}: is no folder here, and no name on"):
            hub.folder(name)
    with pytest.raises(ConfigError, match=r"exactly one of classifier\.name, classifier\.target and classifier\.hub"):
        changed(classifier={"hub": "a/b"})


def test_a_name_that_cannot_be_reached_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        hub.folder("no-one-at-all/no-such-network@main")
    said = str(caught.value)
    assert said.startswith(
        "classifier.hub: no-one-at-all/no-such-network@main: is no folder here, and cannot be had from"
    )
    assert said.endswith("; check the name and the connection, or give a folder that has it")


@pytest.mark.parametrize("installed", [True, False])
def test_a_library_that_is_missing_or_does_not_fit_is_a_sentence(tmp_path: Path, installed: bool) -> None:
    """A torchvision of another build fails as this one does: torch lacks the operators that it brings."""
    from bend_ray.models.zoo import library

    name, said = (
        "timm_that_is_not_there",
        r"wants timm_that_is_not_there, which is not installed; pip install 'bend-ray\[",
    )
    if installed:
        (tmp_path / "timm.py").write_text("import torchvision\n")
        (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
        about = tmp_path / "torchvision-0.1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\nRequires-Dist: torch (==1)\n"
        )
        code = "from bend_ray.models.zoo import library; library('timm')"
        path = os.pathsep.join([str(tmp_path), *sys.path])
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True)
        assert (
            b"timm cannot be imported (operator torchvision::nms does not exist); torchvision 0.1 wants" in done.stderr
        )
        assert b"install both at once, from one index" in done.stderr
    else:
        with pytest.raises(ModelError, match=said):
            library(name)


def pictures(folder: Path, count: int = 24) -> Path:
    """Photographs as people have them: of all sizes, some of them grey."""
    for number in range(count):
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        shape = (20 + number, 44 - number) + ((3,) if number % 3 else ())
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.jpg")
    return folder


def test_photographs_of_all_sizes_are_brought_to_one(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos")
    with pytest.raises(DataError, match=r"must be square and of one size; give data\.image_size"):
        load_dataset(Data(path=str(folder)), 0)
    dataset = load_dataset(Data(path=str(folder), image_size=12, interpolation="bicubic", mean=(0.5,), std=(0.25,)), 0)
    assert dataset.train.images.shape[1:] == (3, 12, 12)
    assert (dataset.preprocess.mean, dataset.preprocess.std) == ((0.5,) * 3, (0.25,) * 3)
    fit = Preprocess.from_json(json.loads(json.dumps(dataset.preprocess.to_json())))
    assert fit == dataset.preprocess
    rows = {row.numpy().tobytes() for split in (dataset.train, dataset.val, dataset.test) for row in split.images}
    sent = {fit.read(file)[0].numpy().tobytes() for file in folder.rglob("*.jpg")}
    assert sent == rows  # an image that is sent later is prepared as the same one in the data
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8))
    usual = wide.resize((20, 10), Image.Resampling.BICUBIC).crop((5, 0, 15, 10))  # shorter side, then the middle
    assert np.abs(np.asarray(Resize(10, "bicubic").image(wide)).astype(int) - np.asarray(usual)).max() <= 1


def test_arrays_are_resized_and_grey_ones_repeated(tmp_path: Path) -> None:
    plain = load_dataset(Data(name="digits", train_limit=100, test_limit=20), 0)
    data = load_dataset(Data(name="digits", train_limit=100, test_limit=20, image_size=16, rgb=True), 0)
    assert data.train.images.shape[1:] == (3, 16, 16) and torch.equal(data.train.labels, plain.train.labels)
    assert all(torch.equal(data.train.images[:, 0], data.train.images[:, channel]) for channel in (1, 2))
    assert plain.preprocess.to_json().keys() == {"channels", "image_size", "mean", "std"}  # as older runs have it


def test_classes_that_the_data_does_not_show() -> None:
    names = load_dataset(Data(name="digits"), 0, outputs=12).class_names
    assert names == (*map(str, range(10)), "10", "11")
    with pytest.raises(DataError, match=r"^classifier\.classes: 4 is fewer than the 10 of data\.name: digits; give 10"):
        load_dataset(Data(name="digits"), 0, outputs=4)


def test_who_brings_a_trained_classifier_trains_no_base() -> None:
    def config(**classifier: Any) -> Config:
        return parse(Config, {"data": {"name": "digits"}, "classifier": classifier}, "here")

    trained: list[dict[str, Any]] = [
        {"name": "mlp", "weights": "w.pt"},
        {"hub": "a/b", "body_only": False},
        {"hub": "a/b", "weights": "w.pt"},
    ]
    begun: list[dict[str, Any]] = [
        {"name": "mlp"},
        {"name": "mlp", "weights": "w.pt", "body_only": True},
        {"hub": "a/b"},
    ]
    assert [(config(**one).classifier.is_trained, config(**one).cycles) for one in trained] == [(True, 0)] * 3
    assert [(config(**one).classifier.is_trained, config(**one).cycles) for one in begun] == [(False, 4)] * 3
    with pytest.raises(ConfigError, match=r"classifier\.body_only: is about classifier\.weights or hub; give one"):
        config(name="mlp", body_only=True)
    # Runs that lack these keys are gone on with.
    older = {"data.name", "data.image_column", "data.label_column", "data.val_fraction", "data.test_fraction"}
    older |= {"data.train_limit", "data.test_limit", "classifier.name", "classifier.target", "classifier.kwargs"}
    assert config(name="mlp").hashed("data", "classifier").keys() == older


@pytest.mark.ray
@pytest.mark.slow
def test_an_ensemble_predicts_when_the_folder_is_gone(tmp_path: Path, ray_cluster: str) -> None:
    from bend_ray.stages import pipeline

    by_transformers(tmp_path / "net")
    base, collect = {"epochs": 1, "lr": 1e-3}, {"subset": "head", "trunk": "base", "chains": 3, "epochs": 1}
    classifier: dict[str, Any] = {"name": None, "kwargs": {}, "hub": str(tmp_path / "net"), "classes": 12}
    config = changed(classifier=classifier, base=base, collect=collect, sample={"members": 3})
    run = Run(config, Folder(tmp_path / "run"))
    pipeline.execute(run, ("collect", "fit", "sample"))
    shutil.rmtree(tmp_path / "net")
    code = (
        "import sys, torch; from bend_ray import Ensemble; e = Ensemble.load(sys.argv[1]);"
        "p = e.predict(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 'abend'); print(tuple(p.prob_BK.shape))"
    )
    words = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "(2, 12)", done.stderr
