"""Strange images: brought to the classifier's size, the same for the same seed, told from test rows in the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bend_ray.config import Data, load
from bend_ray.data import strangers as sources
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.data.preprocess import Preprocess
from bend_ray.data.strangers import GRID, SHUFFLED, digest, fitted, load_strangers, shuffled
from bend_ray.ensemble import temperature
from bend_ray.ensemble.reliability import error_auroc
from bend_ray.errors import DataError
from bend_ray.report import rivals, strangers, table
from bend_ray.report.scored import score
from bend_ray.run import Run
from bend_ray.stages import evaluate
from conftest import changed
from pipeline_helpers import copy
from test_report import metrics
from test_rivals import rows_of, scored

GREY, COLOUR = Preprocess(1, 8, (0.3,), (0.4,)), Preprocess(3, 8, (0.3,) * 3, (0.4,) * 3)


def pictures(rows: int, channels: int, size: int) -> Tensor:
    stream = torch.Generator().manual_seed(rows + channels + size)
    return torch.randint(256, (rows, channels, size, size), dtype=torch.uint8, generator=stream)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(changed().data, 0)


def saved(path: Path, rows: int = 30, channels: int = 3, size: int = 12) -> str:
    shape = (rows, size, size, channels) if channels == 3 else (rows, size, size)
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(path, x_train=x, y_train=np.arange(rows) % 2, x_test=x[::2], y_test=np.arange(rows)[::2] % 2)
    return str(path)


# --- images


@pytest.mark.parametrize("size", [2, 8, 28, 30])
def test_patches_change_places_and_keep_their_pixels(size: int) -> None:
    images = pictures(20, 3, size)
    strange = shuffled(images, 0)
    grid = min(GRID, size)
    patch = size // grid

    def patches(image: Tensor) -> list[bytes]:
        starts = [(row * patch, column * patch) for row in range(grid) for column in range(grid)]
        return sorted(image[:, y : y + patch, x : x + patch].numpy().tobytes() for y, x in starts)

    assert all(patches(a) == patches(b) for a, b in zip(images, strange, strict=True))
    assert (images != strange).flatten(1).any(1).float().mean() > 0.8
    side = grid * patch
    assert torch.equal(strange[..., side:, :], images[..., side:, :])
    assert torch.equal(strange, shuffled(images, 0)) and not torch.equal(strange, shuffled(images, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("fit", [GREY, COLOUR], ids=["grey", "colour"])
def test_images_are_brought_to_the_classifiers_size_as_files_are(
    channels: int, size: int, fit: Preprocess, tmp_path: Path
) -> None:
    images = pictures(3, channels, size)
    given = fitted(images, fit)
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(tmp_path / f"{number}.png")
        assert torch.equal(given[number : number + 1], fit.read(tmp_path / f"{number}.png"))


def test_without_a_set_test_images_are_shuffled(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = load_strangers((), dataset, 0)
    assert list(sets) == [SHUFFLED] and torch.equal(sets[SHUFFLED], shuffled(dataset.test.images, 0))
    monkeypatch.setattr(sources, "ROWS", 50)
    few = load_strangers((), dataset, 0)[SHUFFLED]
    assert len(few) == 50 and torch.equal(few, load_strangers((), dataset, 0)[SHUFFLED])
    assert not torch.equal(few, load_strangers((), dataset, 1)[SHUFFLED])


def test_named_sets_give_their_test_rows(dataset: Dataset, tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.npz")
    sets = load_strangers((Data(path=path), Data(path=path, test_limit=4), Data(name="digits")), dataset, 0)
    assert [(name, tuple(images.shape)) for name, images in sets.items()] == [
        ("odd", (15, 1, 8, 8)),
        ("odd (2)", (4, 1, 8, 8)),
        ("digits", (500, 1, 8, 8)),
    ]
    assert torch.equal(sets["odd (2)"], sets["odd"][:4])
    assert digest(sets) == digest(dict(sets)) != digest({"odd": sets["odd"]})


def test_a_set_that_cannot_be_read_is_named(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"evaluate\.strangers\[1\]: data\.path: .*none\.npz"):
        load_strangers((Data(name="digits"), Data(path=str(tmp_path / "none.npz"))), dataset, 0)


def test_sets_are_given_as_data_is_and_enter_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "data: {name: digits}\nclassifier: {name: mlp}\nevaluate: {strangers: [{path: odd.npz}, {name: digits}]}\n"
    (tmp_path / "a.yaml").write_text(text)
    config = load(tmp_path / "a.yaml")
    assert config.evaluate.strangers[0].path == str(tmp_path / "odd.npz")
    by_hand = load(tmp_path / "a.yaml", {"evaluate.strangers": "[{path: other.npz}]"})
    assert by_hand.evaluate.strangers == (Data(path=str(tmp_path / "other.npz")),)
    assert config.hashed("evaluate") == by_hand.hashed("evaluate") == changed().hashed("evaluate")


# --- numbers


def test_aurocs_are_of_doubt_about_strange_rows_against_test_rows() -> None:
    stream = torch.Generator().manual_seed(0)
    sure_MBK = torch.tensor([6.0, 0, 0]) + 0.5 * torch.randn(4, 80, 3, generator=stream)
    torn_MSK = 3 * torch.randn(4, 60, 3, generator=stream)
    alike_MSK = torch.tensor([6.0, 0, 0]) + 0.5 * torch.randn(4, 90, 3, generator=stream)
    far = [torch.rand(count, generator=stream) + more for count, more in ((80, 0.0), (60, 0.5), (90, 0.0))]
    sets = {"torn": torn_MSK, "alike": alike_MSK}
    doubts = [strangers.doubts([logits_MXK], temperature.fixed(2.0)) for logits_MXK in (sure_MBK, *sets.values())]
    strange = dict(zip(sets, doubts[1:], strict=True))
    measured = strangers.measure(doubts[0], strange, far)
    assert {name: one["rows"] for name, one in measured.items()} == {"torn": 60, "alike": 90}
    for key in ("entropy", "vote_entropy", "mutual_information"):
        torn, alike = measured["torn"][key], measured["alike"][key]
        assert torn is not None and alike is not None and torn > 0.75 and 0.4 < alike < 0.6
    wanted = error_auroc(torch.cat([far[0], far[1]]), torch.arange(140) >= 80)
    assert measured["torn"]["distance"] == wanted
    assert strangers.measure(doubts[0], strange)["torn"]["distance"] is None


def test_mutual_information_stands_beside_as_many_members_only() -> None:
    one: dict[str, Any] = {"entropy": 0.7, "vote_entropy": 0.6, "mutual_information": 0.9, "distance": 0.8, "rows": 9}
    ours = strangers.of_row({"a": one}, votes=False, equal_members=True, distance=True)
    assert ours == {"a": {"entropy": 0.7, "mutual_information": 0.9, "distance": 0.8}}
    votes = strangers.of_row({"a": one}, votes=True, equal_members=True, distance=True)
    assert votes == {"a": {"entropy": 0.6, "mutual_information": None, "distance": 0.8}}
    other = strangers.of_row({"a": one}, votes=False, equal_members=False, distance=False)
    assert other == {"a": {"entropy": 0.7, "mutual_information": None, "distance": None}}


def test_rows_and_sections_show_them() -> None:
    logits_MBK, labels = torch.randn(4, 300, 4, generator=torch.Generator().manual_seed(0)), rows_of().label_B
    strange = {"noise": 3 * logits_MBK[:, :50]}
    ours = score(logits_MBK, labels, logits_MBK, labels, 1.0, strange=strange)
    base = score(logits_MBK[:1], labels, logits_MBK[:1], labels, 1.0, strange={"noise": strange["noise"][:1]})
    measured: dict[str, Any] = metrics(swag=(0.1, 0.2)) | {"format": 2}
    measured |= rivals.measure({"generated": ours, "base_model": base}, rows_of())
    by_name = {row["name"]: row["auroc_strangers"] for row in measured["rivals"]}
    assert by_name["abend"]["noise"]["mutual_information"] is not None
    assert by_name["sbend"]["noise"]["mutual_information"] is by_name["base"]["noise"]["mutual_information"] is None
    assert by_name["base"]["noise"]["entropy"] is not None and by_name["laplace"] is None
    assert measured["strangers"] == {"noise": {"rows": 50, "built_in": True}}
    header = table.markdown(measured).splitlines()[0]
    assert "of strangers" in header
    (section,) = table.strangers(measured)
    assert section.startswith("## Strangers: noise") and section.count("\n| ") == 4
    measured |= rivals.measure({"generated": replace(scored(0.5), strangers={})}, rows_of())
    assert table.strangers(measured) == []


# --- a run


@pytest.mark.ray
def test_a_report_has_them(reference: Path, tmp_path: Path) -> None:
    plain = json.loads((reference / "report" / "metrics.json").read_text())
    by_name = {row["name"]: row["auroc_strangers"] for row in plain["rivals"]}
    assert plain["strangers"] == {SHUFFLED: {"rows": 120, "built_in": True}}
    measured = [one for one in by_name.values() if one is not None]
    assert len(measured) > 8 and all(0 <= one[SHUFFLED]["entropy"] <= 1 for one in measured)
    assert by_name["abend"][SHUFFLED]["mutual_information"] is not None
    assert "## Strangers: shuffled patches" in (reference / "report" / "README.md").read_text()
    run, path = copy(reference, tmp_path, "report"), saved(tmp_path / "odd.npz")
    config = changed(evaluate={"strangers": [{"path": path}], "baselines": ["base_model", "gaussian"]})
    evaluate.execute(Run(config, run))
    report = json.loads(run.read("report/metrics.json"))
    assert report["strangers"] == {"odd": {"rows": 15, "built_in": False}}
    assert report["rivals"][0]["nll_t"] == plain["rivals"][0]["nll_t"]
    saved(tmp_path / "moved.npz")
    moved = changed(
        evaluate={"strangers": [{"path": str(tmp_path / "moved.npz")}]} | {"baselines": ["base_model", "gaussian"]}
    )
    assert evaluate.existing(Run(moved, run)) is not None
