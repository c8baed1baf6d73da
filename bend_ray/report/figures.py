"""The report's figures, as PNG files."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bend_ray.ensemble.reliability import selective_accuracy
from bend_ray.report import classes
from bend_ray.report.scored import Scored
from bend_ray.store.folders import Folder

GENERATED, ORIGINALS, MUTED = "#0b6e99", "#d9730d", "#8a8a8a"
BINS = 15
NUMBERED = 20
"""Classes up to which the cells of a confusion matrix have room for numbers."""


def draw(
    folder: Folder, metrics: dict[str, Any], scored: dict[str, Scored], label_B: Tensor, points: dict[str, Tensor]
) -> list[str]:
    """Draw all figures into ``folder``. Returns their file names."""
    plots: dict[str, Callable[[Axes], None]] = {
        "accuracy_against_size.png": lambda axes: _curves(axes, metrics, scored),
        "member_accuracy.png": lambda axes: _histograms(axes, metrics, scored),
        "risk_coverage.png": lambda axes: _risk(axes, scored, label_B),
        "reliability.png": lambda axes: _reliability(axes, scored, label_B),
        "parameter_map.png": lambda axes: _map(axes, points),
        "accuracy_against_novelty.png": lambda axes: _novelty(axes, metrics, scored),
    }
    names = [row["name"] for row in metrics["per_class"]]
    if len(names) > classes.SHOWN:  # no name, and hardly a cell, could be read
        return save(folder, plots)
    count_KK = classes.confusion(scored["generated"].mean.predicted_B, label_B, len(names))
    side = max(4.8, 1.5 + 0.17 * len(names))
    matrix = {"confusion.png": lambda axes: _confusion(axes, count_KK, names)}
    return save(folder, plots) + save(folder, matrix, (1.2 + side, side))


def save(folder: Folder, plots: dict[str, Callable[[Axes], None]], size: tuple[float, float] = (6.4, 4.2)) -> list[str]:
    """Put a PNG file for each of ``plots``, by name, of so many inches (width, height). Returns the names."""
    for name, plot in plots.items():
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        axes = figure.subplots()
        plot(axes)
        axes.spines[["top", "right"]].set_visible(False)
        with folder.staged(name) as path:
            figure.savefig(path, format="png", metadata={"Software": None})  # the same numbers, the same bytes
    return list(plots)


def _curves(axes: Axes, metrics: dict[str, Any], scored: dict[str, Scored]) -> None:
    generated, originals = scored["generated"], scored["originals"]
    axes.plot(generated.sizes, _percent(generated.abend_curve), color=GENERATED, label="aBEND", lw=2)
    axes.plot(generated.sizes, _percent(generated.sbend_curve), color=GENERATED, label="sBEND", lw=2, ls="--")
    for name, color in (("random_originals", ORIGINALS), ("gaussian", "#7a3e9d"), ("bagging", "#2b8a3e")):
        if name in scored:
            one = scored[name]
            axes.plot(one.sizes, _percent(one.abend_curve), color=color, label=name.replace("_", " "), lw=1.2)
    accuracy = metrics["originals"]["accuracy"]
    axes.axhline(100 * accuracy["mean"], color=ORIGINALS, ls=":", lw=1, label="originals, mean")
    axes.axhline(100 * accuracy["best"], color=ORIGINALS, ls="-.", lw=1, label="originals, best on validation")
    if metrics["baselines"]["base_model"] is not None:
        axes.axhline(
            100 * metrics["baselines"]["base_model"]["accuracy"], color=MUTED, ls=":", lw=1, label="base model"
        )
    largest = max(generated.members, originals.members)
    axes.set_xscale("log", base=2)
    ticks = [2**i for i in range(int(np.log2(largest)) + 1)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="members", ylabel="test accuracy (%)", title="Accuracy against ensemble size")
    axes.legend(frameon=False, fontsize=8)


def _histograms(axes: Axes, metrics: dict[str, Any], scored: dict[str, Scored]) -> None:
    sets = {"originals": ORIGINALS, "generated": GENERATED}
    values = {name: 100 * scored[name].accuracy_M.numpy() for name in sets}
    both = np.concatenate(list(values.values()))
    row = 100 / metrics["test_size"]  # accuracy moves in steps of one row: bins of whole steps
    step = row * max(1, round((both.max() - both.min()) / row / 20))
    edges = np.arange(both.min() - step / 2, both.max() + 1.5 * step, step)
    for name, color in sets.items():
        share = np.full(len(values[name]), 100 / len(values[name]))
        label = f"{name} ({len(values[name])}), mean {values[name].mean():.2f}"
        axes.hist(values[name], edges.tolist(), weights=share, color=color, alpha=0.55, label=label)
    axes.axvline(100 * metrics["abend"]["accuracy"], color=GENERATED, lw=2, label="aBEND")
    axes.axvline(100 * metrics["sbend"]["accuracy"], color=GENERATED, lw=2, ls="--", label="sBEND")
    axes.set(xlabel="test accuracy (%)", ylabel="share of members (%)", title="Accuracy of single members")
    axes.legend(frameon=False, fontsize=8)


def _risk(axes: Axes, scored: dict[str, Scored], label_B: Tensor) -> None:
    """Errors among the surest rows: what is left where the least sure are put aside."""
    sets = {"generated": ("aBEND", GENERATED), "base_model": ("base model", MUTED), "laplace": ("Laplace", "#7a3e9d")}
    shares = np.linspace(0.2, 1, 81)
    for name, (label, color) in (sets | {"deep_ensemble": ("deep ensemble", "#2b8a3e")}).items():
        if name in scored:
            answers = scored[name].tempered
            right_B = answers.predicted_B == label_B
            errors = [100 * (1 - selective_accuracy(answers.entropy_B, right_B, share)) for share in shares]
            axes.plot(100 * shares, errors, color=color, label=label, lw=1.4)
    axes.set(xlabel="coverage: surest rows by entropy (%)", ylabel="errors among them (%)", title="Risk and coverage")
    axes.legend(frameon=False, fontsize=8)


def _reliability(axes: Axes, scored: dict[str, Scored], label_B: Tensor) -> None:
    ours = scored["generated"]
    sets = {"aBEND": (ours.mean, GENERATED), "sBEND": (ours.votes, "#7a3e9d")}
    if "base_model" in scored:
        sets["base model"] = (scored["base_model"].mean, MUTED)
    axes.plot([0, 1], [0, 1], color="black", lw=0.8, ls=":", label="perfectly calibrated")
    for label, (answers, color) in sets.items():
        confidence, right = answers.confidence_B.numpy(), (answers.predicted_B == label_B).numpy()
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        filled = [b for b in range(BINS) if (bins == b).any()]
        x = [confidence[bins == b].mean() for b in filled]
        y = [right[bins == b].mean() for b in filled]
        axes.plot(x, y, color=color, lw=1, alpha=0.7)
        axes.scatter(x, y, s=[6 + 120 * (bins == b).mean() for b in filled], color=color, label=label)
    axes.set(xlabel="confidence", ylabel="accuracy", title="Reliability (dot area: share of test rows)")
    axes.legend(frameon=False, fontsize=8)


def _confusion(axes: Axes, count_KK: Tensor, names: list[str]) -> None:
    """Rows of each class by what aBEND takes them for, in per cent of the class; numbers where there is room."""
    K, rows_K = len(names), count_KK.sum(1)
    share_KK = 100 * count_KK / rows_K.clamp_min(1)[:, None]
    image = axes.imshow(share_KK.numpy(), cmap="Blues", vmin=0, vmax=100)
    for true, taken in count_KK.nonzero().tolist() if K <= NUMBERED else ():
        color = "white" if share_KK[true, taken] > 60 else "black"
        text = str(int(count_KK[true, taken]))
        axes.text(taken, true, text, ha="center", va="center", fontsize=7, color=color)
    short = [name if len(name) <= 16 else f"{name[:15]}…" for name in names]
    size = 8 if K <= NUMBERED else 6
    axes.set_xticks(range(K), short, fontsize=size, rotation=90 if max(map(len, short)) > 2 else 0)
    axes.set_yticks(
        range(K), [f"{name} ({rows})" for name, rows in zip(short, rows_K.tolist(), strict=True)], fontsize=size
    )
    axes.figure.colorbar(image, ax=axes, label="% of the class's rows", shrink=0.8)
    axes.set(xlabel="aBEND says", ylabel="class (test rows)", title="What classes are taken for")


def _map(axes: Axes, points: dict[str, Tensor]) -> None:
    styles: dict[str, dict[str, Any]] = {
        "originals": {"color": ORIGINALS, "marker": "o", "s": 16},
        "withheld": {"color": MUTED, "marker": "s", "s": 20},
        "generated": {"color": GENERATED, "marker": "x", "s": 22, "lw": 1},
    }
    for name, style in styles.items():
        x, y = points[name].numpy()[:, :2].T if points[name].shape[1] > 1 else (points[name].numpy()[:, 0], 0)
        axes.scatter(x, np.broadcast_to(y, x.shape), label=f"{name} ({len(x)})", alpha=0.8, **style)
    title = "Parameters on the span's first two directions"
    axes.set(xlabel="direction 1 (standardised)", ylabel="direction 2", title=title)
    axes.legend(frameon=False, fontsize=8)


def _novelty(axes: Axes, metrics: dict[str, Any], scored: dict[str, Scored]) -> None:
    """Members' mean accuracy against how far they are from what was seen: to do well far away takes some learning."""
    places = {
        name.replace("_", " "): (one.away, 100 * one.accuracy_M.double().mean().item())
        for name, one in scored.items()
        if one.away is not None
    }
    withheld = "withheld snapshots"
    places[withheld] = (metrics["novelty"]["held_out_to_nearest_original"], 100 * metrics["autoencoder"]["withheld"])
    colors = {"generated": GENERATED, withheld: ORIGINALS}
    for label, place in places.items():
        axes.scatter(*place, color=colors.get(label, MUTED), s=36, zorder=2)
    axes.margins(0.12)
    _label_points(axes, places, colors)
    axes.set(
        xlabel="mean distance to the nearest snapshot seen (standardised)",
        ylabel="mean test accuracy (%)",
        title="Accuracy against novelty",
    )


def _label_points(axes: Axes, places: dict[str, tuple[float, float]], colors: dict[str, str]) -> None:
    """Write names above, below or beside their points, wherever none is yet, and no point."""
    size = 7.0
    pixels = axes.figure.dpi / 72
    axes.autoscale_view()  # else the limits, and with them the places, are not known before it is drawn
    moved: list[list[float]] = (axes.transData.transform(list(places.values())) / pixels).tolist()
    points = dict(zip(places, moved, strict=True))
    taken = [(x, y, 4.0, 4.0) for x, y in points.values()]  # middles and half extents
    for label, (x, y) in points.items():
        wide, high = 0.32 * size * len(label), 0.7 * size
        ways = (("center", 0.0, 9.0), ("center", 0.0, -9.0), ("left", 7 + wide, 0.0), ("right", -7 - wide, 0.0))
        tried = [(ha, (x + dx, y + dy, wide, high)) for ha, dx, dy in ways]

        def meets(box: tuple[float, float, float, float]) -> int:
            return sum(
                abs(box[0] - other[0]) < box[2] + other[2] and abs(box[1] - other[1]) < box[3] + other[3]
                for other in taken
            )

        ha, box = min(tried, key=lambda way: meets(way[1]))
        taken.append(box)
        shift = {"center": 0.0, "left": 7.0, "right": -7.0}[ha]
        color = colors.get(label, MUTED)
        offset = (shift, box[1] - y)
        axes.annotate(
            label,
            places[label],
            offset,
            textcoords="offset points",
            fontsize=size,
            color=color,
            horizontalalignment=ha,
            verticalalignment="center",
        )


def _percent(curve: tuple[float, ...]) -> list[float]:
    return [100 * value for value in curve]
