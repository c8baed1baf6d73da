"""What the report says of single classes: rare ones count as much as others, and those without rows are named."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from torch import Tensor

from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.data.images import Split
from bend_ray.report import classes, figures, text
from bend_ray.report.scored import Scored, score
from conftest import changed
from test_report import metrics as whole_metrics

RARE = torch.tensor([0] * 40 + [1] * 8 + [2] * 2)
"""Labels: one class of three has two rows."""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(changed().data, 0)


def of(digits: Dataset, test_B: Tensor, val_B: Tensor, names: tuple[str, ...]) -> Dataset:
    """A data set with these labels, whatever its images are."""

    def split(label_B: Tensor) -> Split:
        return Split(digits.train.images[:1].expand(len(label_B), -1, -1, -1), label_B.to(torch.uint8))

    return replace(digits, class_names=names, train=split(test_B), val=split(val_B), test=split(test_B))


def scored(predicted_B: Tensor, label_B: Tensor, K: int, M: int = 3) -> Scored:
    """Classifiers that all say ``predicted_B``."""
    logits_MBK = 9.0 * torch.nn.functional.one_hot(predicted_B, K).expand(M, -1, -1)
    return score(logits_MBK, label_B, logits_MBK, label_B, seconds=1.0)


def guesses(label_B: Tensor, K: int, wrong: float, seed: int) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    random_B = torch.randint(K, label_B.shape, generator=stream)
    return torch.where(torch.rand(label_B.shape, generator=stream) < wrong, random_B, label_B)


def test_rare_classes_count_as_much_as_others(digits: Dataset) -> None:
    ours_B, base_B = guesses(RARE, 3, 0.3, 0), torch.zeros_like(RARE)
    sets = {"generated": scored(ours_B, RARE, 3), "base_model": scored(base_B, RARE, 3, M=1)}
    found = classes.measure(sets, of(digits, RARE, RARE, ("a", "b", "c")))
    assert found["balanced_accuracy"]["base"] == pytest.approx(1 / 3)  # right on 80 % of the rows
    wanted = balanced_accuracy_score(RARE.numpy(), ours_B.numpy())
    assert found["balanced_accuracy"]["abend"] == found["balanced_accuracy"]["sbend"] == pytest.approx(wanted)
    assert [row["base"] for row in found["per_class"]] == [1, 0, 0]
    assert [row["test_rows"] for row in found["per_class"]] == [40, 8, 2]
    count_KK = classes.confusion(ours_B, RARE, 3)
    assert count_KK.tolist() == confusion_matrix(RARE.numpy(), ours_B.numpy()).tolist()
    without_base = classes.measure({"generated": sets["generated"]}, of(digits, RARE, RARE, ("a", "b", "c")))
    assert without_base["balanced_accuracy"]["base"] is None and without_base["per_class"][0]["base"] is None


def test_classes_without_rows_are_named_and_no_part_of_a_mean(digits: Dataset) -> None:
    dataset = of(digits, RARE, RARE.clamp(max=1), ("a", "b", "c", "d"))
    found = classes.measure({"generated": scored(RARE, RARE, 4)}, dataset)
    assert found["per_class"][3]["abend"] is None and found["balanced_accuracy"]["abend"] == 1
    test, val = classes.warnings(found)
    assert test.startswith("Warning: 1 class (d) without test rows, so nothing here speaks of them")
    assert val.startswith("Warning: 2 classes (c, d) without validation rows, so the temperature and")
    assert {test, val} <= set(text.headline(whole_metrics() | found))
    many = {"per_class": [{"name": str(k), "test_rows": 0, "val_rows": 1} for k in range(9)]}
    assert "9 classes (0, 1, 2, 3, 4 and 4 more) without test rows" in classes.warnings(many)[0]
    assert classes.warnings({}) == classes.section({}) == []  # of reports that were made before


def of_many(digits: Dataset, K: int) -> tuple[dict[str, Any], Tensor]:
    label_B = torch.arange(4 * K) % K
    names = tuple(f"a class of number {k}" for k in range(K))
    predicted_B = guesses(label_B, K, 0.3, 0)
    return classes.measure({"generated": scored(predicted_B, label_B, K)}, of(digits, label_B, label_B, names)), label_B


def test_many_classes_are_those_that_go_worst(digits: Dataset) -> None:
    few, _ = of_many(digits, classes.SHOWN)
    assert classes.section(few)[0].count("| a class of number") == classes.SHOWN
    many, _ = of_many(digits, classes.SHOWN + 1)
    (section,) = classes.section(many)
    worst = sorted(many["per_class"], key=lambda row: row["abend"])[: classes.FEWER]
    assert section.count("| a class of number") == classes.FEWER and all(
        f"| {row['name']} |" in section for row in worst
    )
    assert "The 20 classes of 51 on which aBEND is least accurate" in section


@pytest.mark.parametrize("K", [2, 10, 50])
def test_the_matrix_has_names_that_do_not_meet(digits: Dataset, K: int, tmp_path: Path) -> None:
    label_B = torch.arange(4 * K) % K
    side = max(4.8, 1.5 + 0.17 * K)
    figure = Figure(figsize=(1.2 + side, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    names = [f"a class of number {k}" for k in range(K)]
    figures._confusion(axes, classes.confusion(guesses(label_B, K, 0.3, 0), label_B, K), names)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
        assert len(boxes) == K and not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
    assert bool(axes.texts) == (K <= figures.NUMBERED)
