"""The tables and the figure of `paper.py`: mean and standard deviation over seeds, in Markdown."""

from pathlib import Path
from typing import Any

import torch
from common import spread

from bend_ray.report.table import LABELS
from bend_ray.training.rivals import RIVALS

Result = dict[str, list[dict[str, Any]]]
"""What was measured of each setting, seed by seed."""


def row(name: str, *cells: object) -> str:
    return f"| {' | '.join(map(str, (name, *cells)))} |"


def header(*names: str) -> list[str]:
    return [row(*names), f"|---|{'---:|' * (len(names) - 1)}"]


def named(result: Result) -> list[tuple[str, list[dict[str, Any]]]]:
    """Settings with their number of seeds."""
    return [(f"{name} ({len(runs)})", runs) for name, runs in result.items()]


def claims(result: Result) -> str:
    """In how many seeds each part of the paper's claim holds, and whether the base and all baselines are beaten."""
    lines = header(
        "setting (seeds)",
        "aBEND above mean and median of both",
        "sBEND too",
        "aBEND above the best single one",
        "members more diverse than snapshots",
        "than the deep ensemble",
        "cheaper than training",
        "aBEND above the base",
        "NLL below all baselines",
    )
    for name, runs in named(result):
        counts = [sum(held) for held in zip(*map(holds, runs), strict=True)]
        lines.append(row(name, *(f"{count}/{len(runs)}" for count in counts)))
    return "\n".join(lines)


def holds(run: dict[str, Any]) -> tuple[bool, ...]:
    single = [run[kind]["accuracy"] for kind in ("originals", "generated")]
    both = [scores[key] for scores in single for key in ("mean", "median")]
    diverse = {kind: run["diversity"][kind]["disagreement"] for kind in ("originals", "generated", "deep_ensemble")}
    baselines = [one for name, one in run["baselines"].items() if one and name not in RIVALS]
    return (
        run["abend"]["accuracy"] > max(both),
        run["sbend"]["accuracy"] > max(both),
        run["abend"]["accuracy"] > max(scores["best"] for scores in single),
        diverse["generated"] > diverse["originals"],
        diverse["generated"] > diverse["deep_ensemble"],
        run["cost"]["member_cost_ratio"] < 1,
        run["abend"]["accuracy"] > run["baselines"]["base_model"]["accuracy"],
        run["abend"]["nll"] < min(one["nll"] for one in baselines),
    )


SHOWN = ("base_model", "random_originals", "weight_average", "gaussian", "swag", "bagging", "deep_ensemble")


def accuracies(result: Result) -> str:
    """Accuracy in percent."""
    lines = header("accuracy %", "snapshots", "members", "sBEND", "aBEND", *(LABELS[name] for name in SHOWN))
    for name, runs in named(result):
        cells = [spread([run[kind]["accuracy"]["mean"] for run in runs], 100) for kind in ("originals", "generated")]
        cells += [spread([run[kind]["accuracy"] for run in runs], 100) for kind in ("sbend", "abend")]
        cells += [spread([run["baselines"][baseline]["accuracy"] for run in runs], 100) for baseline in SHOWN]
        lines.append(row(name, *cells))
    return "\n".join(lines)


def likelihoods(result: Result) -> str:
    """NLL, ECE and Brier score."""
    tables = []
    for key in ("nll", "ece", "brier"):
        lines = header(key.upper() if key != "brier" else "Brier", "sBEND", "aBEND", *(LABELS[name] for name in SHOWN))
        for name, runs in named(result):
            cells = [spread([run[kind][key] for run in runs], digits=3) for kind in ("sbend", "abend")]
            cells += [spread([run["baselines"][baseline][key] for run in runs], digits=3) for baseline in SHOWN]
            lines.append(row(name, *cells))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def doubts(result: Result) -> str:
    """Diversity, what strange images give away, and accuracy on changed ones."""
    lines = header(
        "diversity",
        *(
            f"{what}: {of}"
            for what in ("disagreement", "overlap of errors")
            for of in ("snapshots", "members", "bagging", "deep ensemble")
        ),
    )
    for name, runs in named(result):
        kinds = ("originals", "generated", *RIVALS)
        keys = ("disagreement", "error_iou")
        lines.append(
            row(name, *(spread([run["diversity"][k][key] for run in runs], digits=3) for key in keys for k in kinds))
        )
    sides = ("abend", "base_model", "random_originals", *RIVALS)
    labels = ["aBEND", *(LABELS[side] for side in sides[1:])]
    strange = header("AUROC of doubt", "strangers", *labels)
    pale = header("accuracy % on changed images", *labels)
    for name, runs in named(result):
        for other in runs[0]["beyond"]["abend"]["auroc"]:
            strange.append(
                row(name, other, *(spread([run["beyond"][s]["auroc"][other] for run in runs], digits=3) for s in sides))
            )
        means = {s: [sum(run["beyond"][s]["corrupted_accuracy"]) / 3 for run in runs] for s in sides}
        pale.append(row(name, *(spread(means[s], 100) for s in sides)))
    return "\n\n".join("\n".join(each) for each in (lines, strange, pale))


def costs(result: Result) -> str:
    """Of a member beside a training, and of everything beside ten trainings; seconds without GPUs only."""
    lines = header(
        "cost", "seconds of a training", "of a member", "member / training", "GFLOPs of a training", "of a member",
        "member / training", "all chains / training", "fit / training", "base, chains and fit / ten trainings (FLOPs)",
    )  # fmt: skip
    for name, runs in named(result):
        M = runs[0]["generated"]["count"]
        work = [(run["flops"]["training"], run["flops"]["chains"] + run["flops"]["fit"]) for run in runs]
        timed = [run["cost"] for run in runs if not run["gpus"]]
        seconds, ratio = ([cost[key] for cost in timed] for key in ("training_s_per_model", "member_cost_ratio"))
        lines.append(
            row(
                name,
                spread(seconds),
                spread([s * r for s, r in zip(seconds, ratio, strict=True)], digits=3),
                spread(ratio, digits=4),
                spread([training for training, _ in work], 1e-9, 0),
                spread([made / M for _, made in work], 1e-9, 1),
                spread([made / M / training for training, made in work], digits=4),
                *(
                    spread([run["flops"][part] / run["flops"]["training"] for run in runs])
                    for part in ("chains", "fit")
                ),
                spread([(training + made) / (10 * training) for training, made in work], digits=2),
            )
        )
    return "\n".join(lines)


def draw(result: Result, file: Path) -> None:
    """Accuracy and NLL, one below the other, against the number of members: three settings a row."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    rows = -(-len(result) // 3)
    figure, axes = plt.subplots(2 * rows, 3, figsize=(9.6, 5.6 * rows), squeeze=False, layout="constrained")
    for place, (name, runs) in enumerate(named(result)):
        pair, column = slice(2 * (place // 3), 2 * (place // 3) + 2), place % 3
        sizes = runs[0]["curve"]["sizes"]
        for axis, kinds, key in zip(
            axes[pair, column], (("abend", "sbend"), ("nll",)), ("accuracy", "nll"), strict=True
        ):
            scale = 100 if key == "accuracy" else 1
            for kind in kinds:
                curve_RM = scale * torch.tensor([run["curve"][kind] for run in runs])
                mean_M, sd_M = curve_RM.mean(0), curve_RM.std(0, correction=min(1, len(runs) - 1))
                label = {"abend": "aBEND", "sbend": "sBEND", "nll": "aBEND"}[kind]
                (line,) = axis.plot(sizes, mean_M, marker="o", markersize=3, label=label)
                axis.fill_between(sizes, mean_M - sd_M, mean_M + sd_M, alpha=0.2, color=line.get_color(), linewidth=0)
            for baseline, style in (("base_model", ":"), ("random_originals", "-."), ("deep_ensemble", "--")):
                level = scale * sum(run["baselines"][baseline][key] for run in runs) / len(runs)
                axis.axhline(level, linestyle=style, color="0.4", linewidth=1, label=LABELS[baseline].split(" (")[0])
            axis.set_xscale("log")
            axis.set_xticks(sizes, [str(size) if size in (1, 5, 20, 200) else "" for size in sizes])
            axis.minorticks_off()
            axis.set_xlabel("members")
            axis.set_ylabel("accuracy %" if key == "accuracy" else "NLL")
        axes[pair, column][0].set_title(name)
    for axis in axes.flat:
        if not axis.has_data():
            axis.set_axis_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=5)
    figure.savefig(file, dpi=110)
