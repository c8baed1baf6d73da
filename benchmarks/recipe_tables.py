"""What `recipe.py` found, as a table and a figure."""

import statistics
from pathlib import Path
from typing import Any

from common import spread
from paper_tables import header, row

Result = dict[str, list[dict[str, Any]]]
MARKERS = (("o", 7), ("s", 6.5), ("^", 7.5), ("v", 7.5), ("D", 6), ("P", 8), ("X", 8), ("*", 13))
"""Of the groups, for who cannot tell their colours; with sizes that look alike, but for the last, which is plain."""
NAMED = {
    "base: twice as long, label smoothing 0.05": ("jobs/fashion_mnist_base.yaml", "left"),
    "base long and smoothed, chains: head": ("head", "right"),
    "bases: 2, long and smoothed, chains: head": ("2 bases, head", "right"),
    "bases: 4, long and smoothed, chains: head": ("4 bases, head", "right"),
}
"""What stands beside a recipe's point, and which end of it is there."""


def table(results: Result) -> str:
    """In Markdown."""
    lines = header(
        "", "members %", "their NLL", "disagreement", "aBEND %", "NLL", "calibrated", "snapshots %", "their NLL",
        "validation NLL", "cost",
    )  # fmt: skip
    for name, runs in results.items():
        ours, theirs = [run["ensemble"] for run in runs], [run["snapshots"] for run in runs if "snapshots" in run]
        lines.append(
            row(
                f"{name} ({len(runs)})",
                spread([one["member_accuracy"] for one in ours], 100),
                *(spread([one[key] for one in ours], digits=3) for key in ("member_nll", "disagreement")),
                spread([one["accuracy"] for one in ours], 100),
                *(spread([one[key] for one in ours], digits=3) for key in ("nll", "calibrated_nll")),
                spread([one["accuracy"] for one in theirs], 100) if theirs else "",
                spread([one["nll"] for one in theirs], digits=3) if theirs else "",
                spread([one["val_nll"] for one in ours], digits=3),
                spread([run["cost"] for run in runs]).split(" ")[0],
            )
        )
    return "\n".join(lines)


def draw(results: Result, file: Path) -> None:
    """NLL and accuracy against cost: deep ensembles of one classifier to all as lines, recipes as points."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    groups = sorted({_group(name) for name, runs in results.items() if "sizes" not in runs[0]})
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axis, key, scale in zip(axes, ("nll", "accuracy"), (1, 100), strict=True):
        for name, runs in results.items():
            cost = statistics.fmean(run["cost"] for run in runs)
            if "sizes" in runs[0]:
                curves = zip(*(run["sizes"] for run in runs), strict=True)
                level = [scale * statistics.fmean(one[key] for one in of_size) for of_size in curves]
                sizes = range(1, len(level) + 1)
                axis.plot([cost * m / len(level) for m in sizes], level, marker=".", label=name)
            else:
                level = [scale * statistics.fmean(run["ensemble"][key] for run in runs)]
                group, which = _group(name), groups.index(_group(name))
                (marker, size), edge = MARKERS[which], {"markeredgecolor": "white", "markeredgewidth": 0.6}
                color, order = f"C{2 + which}", 3 + which
                axis.plot([cost], level, marker, color=color, markersize=size, zorder=order, label=group, **edge)
                if name in NAMED:
                    text, end = NAMED[name]
                    place = (8 if end == "left" else -8, 0)
                    at = {"textcoords": "offset points", "ha": end, "va": "center"}
                    axis.annotate(text, (cost, level[0]), place, fontsize=8, **at)
        axis.set_xscale("log")
        ticks = (0.1, 0.2, 0.5, 1, 2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("all it cost, in deep ensembles of ten (FLOPs)")
        axis.set_ylabel("NLL, test rows" if key == "nll" else "accuracy %, test rows")
    handles, labels = axes[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), fontsize=8, loc="outside lower center", ncols=5)
    figure.savefig(file, dpi=110)


def _group(name: str) -> str:
    """What an idea is about."""
    return name.split(":")[0].split(",")[0]
