"""Single classes: how many rows each has, and how accurate answers are on them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bend_ray.data.datasets import Dataset
from bend_ray.report.scored import Scored

SHOWN = 50
"""Classes up to which all are in the report's table and in its confusion matrix."""
FEWER = 20
"""Of more the least accurate ones are in the table."""
NAMED = 5
"""Classes that a warning names."""
SPLITS = {
    "test": "so nothing here speaks of them",
    "val": "so the temperature and whatever else is chosen there know nothing of them",
}
"""What it means where a class has no rows in a split."""


def measure(scored: Mapping[str, Scored], dataset: Dataset) -> dict[str, Any]:
    """The keys ``per_class`` and ``balanced_accuracy`` of `metrics.json`; accuracies are None where there are no test
    rows, and of the base where it was not scored."""
    ours, base, K = scored["generated"], scored.get("base_model"), dataset.classes
    label_B = dataset.test.labels
    answers = {
        "abend": ours.mean.predicted_B,
        "sbend": ours.votes.predicted_B,
        "base": None if base is None else base.mean.predicted_B,
    }
    rows = {name: getattr(dataset, name).labels.long().bincount(minlength=K).tolist() for name in ("train", *SPLITS)}
    accuracy = {name: _of_classes(predicted_B, label_B, K) for name, predicted_B in answers.items()}
    return {
        "per_class": [
            {
                "name": name,
                **{f"{split}_rows": counts[k] for split, counts in rows.items()},
                **{answer: accuracy[answer][k] for answer in ("base", "abend")},
            }
            for k, name in enumerate(dataset.class_names)
        ],
        "balanced_accuracy": {name: _mean(of_classes) for name, of_classes in accuracy.items()},
    }


def confusion(predicted_B: Tensor, label_B: Tensor, K: int) -> Tensor:
    """``count_KK``: rows of each class (first axis) by the class that they were taken for."""
    return (label_B.long() * K + predicted_B.long()).bincount(minlength=K * K).reshape(K, K)


def _of_classes(predicted_B: Tensor | None, label_B: Tensor, K: int) -> list[float | None]:
    if predicted_B is None:
        return [None] * K
    count_KK = confusion(predicted_B, label_B, K)
    pairs = zip(count_KK.diag().tolist(), count_KK.sum(1).tolist(), strict=True)
    return [right / rows if rows else None for right, rows in pairs]


def _mean(of_classes: list[float | None]) -> float | None:
    measured = [one for one in of_classes if one is not None]
    return sum(measured) / len(measured) if measured else None


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """A sentence for each split that lacks rows of some class."""
    lines = []
    for split, meaning in SPLITS.items():
        missing = [row["name"] for row in metrics.get("per_class", ()) if not row[f"{split}_rows"]]
        if missing:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            of = f"{len(missing)} class{'es' if len(missing) > 1 else ''} ({', '.join(missing[:NAMED])}{more})"
            kind = "validation" if split == "val" else split
            lines.append(f"Warning: {of} without {kind} rows, {meaning}.")
    return lines


def section(metrics: Mapping[str, Any]) -> list[str]:
    """The report's section; none in reports that were made before there was one."""
    if "per_class" not in metrics:
        return []
    rows, balanced = metrics["per_class"], metrics["balanced_accuracy"]
    shown, what = rows, ""
    if len(rows) > SHOWN:
        measured = [row for row in rows if row["abend"] is not None]
        shown = sorted(measured, key=lambda row: row["abend"])[:FEWER]
        what = f" The {len(shown)} classes of {len(rows)} on which aBEND is least accurate; metrics.json has all."
    labels = {"abend": "aBEND", "sbend": "sBEND", "base": "the base"}
    means = ", ".join(
        f"{label} {_percent(balanced[name])} %" for name, label in labels.items() if balanced[name] is not None
    )
    lines = [
        "## Classes",
        "",
        f"Accuracy averaged over classes (balanced accuracy), each counting alike: {means}.{what}",
        "",
        "| class | training rows | validation rows | test rows | base % | aBEND % |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {row['name'].replace('|', '/')} | {row['train_rows']} | {row['val_rows']} | {row['test_rows']} |"
            f" {_percent(row['base'])} | {_percent(row['abend'])} |"
            for row in shown
        ),
    ]
    return ["\n".join(lines)]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
