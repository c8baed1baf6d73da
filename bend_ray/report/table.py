"""The report's table: a row for each rival and a column for each number; reports of format 1 have fewer columns."""

from collections.abc import Callable
from typing import Any

from bend_ray.config import BASELINES
from bend_ray.report.rivals import CONTENDERS, COVERAGES
from bend_ray.report.strangers import MEASURES as DOUBTS

LABELS = {name: one.label for name, one in BASELINES.items()} | {name: one.label for name, one in CONTENDERS.items()}
LEGEND = """\
cost: trainings of the base; answer: forward passes of one network (FLOPs); T: a temperature
fitted on validation rows; ECE: with it; noise: an ECE below it may be chance (95 %)\
"""
EXPLAINED = (
    "Cost is all that was trained, in trainings of the base; an answer's is in forward passes of one network; both"
    " count floating-point operations. Accuracy in per cent; NLL in nats, lower is better. T is one temperature, fitted"
    " on validation rows, or 1 where these do not determine one; votes have none. ECE is the calibration error, and in"
    " brackets its noise floor: the mean and the 95 % point of a perfectly calibrated classifier that is as sure on as"
    " many rows. AUROC: how well entropy tells errors from right answers, and strange images from test rows (mean over"
    " their sets). Surest: accuracy on that share of the rows."
)
NO_LAPLACE = (
    "There is no last-layer Laplace: what the classifier's last layer gives is not the logits, or it is not linear."
)
Cell = Callable[[dict[str, Any]], str]


def plain(metrics: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    rows = _rows(metrics, TERMINAL if metrics.get("format", 1) > 1 else FIRST_FORMAT)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    legend = ["", *LEGEND.splitlines()] if metrics.get("format", 1) > 1 else []
    return [lines[0], "-" * len(lines[0]), *lines[1:], *legend]


def markdown(metrics: dict[str, Any]) -> str:
    """The same for a README, with more columns."""
    first, *rows = _rows(metrics, COLUMNS if metrics.get("format", 1) > 1 else FIRST_FORMAT)
    rule = "|---" + "|---:" * (len(first) - 1) + "|"
    return "\n".join([_line(first), rule, *(_line(row) for row in rows)])


def explained(metrics: dict[str, Any]) -> str:
    """What the columns of `markdown` hold, and what was chosen for single rows."""
    if metrics.get("format", 1) == 1:
        return "Accuracy in per cent; NLL in nats, lower is better; ECE is the calibration error, lower is better."
    notes = [f"{_capital(LABELS[row['name']])}: {row['note']}." for row in metrics["rivals"] if row["note"]]
    measured = {row["name"] for row in metrics["rivals"] if row["members"]}
    left_out: dict[str, list[str]] = {}
    for row in metrics["rivals"]:
        if why := (row["temperature"] or {}).get("why"):
            left_out.setdefault(why, []).append(LABELS[row["name"]])
    notes += [f"No temperature, for {why}: {', '.join(labels)}." for why, labels in left_out.items()]
    return "\n\n".join([EXPLAINED, *notes, *([NO_LAPLACE] if "laplace" not in measured else [])])


def strangers(metrics: dict[str, Any]) -> list[str]:
    """A section of the report for each set of strangers."""
    return [_section(name, facts, metrics) for name, facts in (metrics.get("strangers") or {}).items()]


def _section(name: str, facts: dict[str, Any], metrics: dict[str, Any]) -> str:
    what = (
        f"{facts['rows']} test images cut into patches that changed places"
        if facts["built_in"]
        else (f"{facts['rows']} images of a data set that is not the classifier's")
    )
    lines = [
        f"## Strangers: {name}",
        "",
        f"{what[0].upper()}{what[1:]}: chance that doubt about one of them is larger than about a test row (AUROC)."
        f" Mutual information stands only beside that of {metrics['members']} members, for it grows with their number.",
        "",
        f"| | {' | '.join(DOUBTS.values())} |",
        "|---" + "|---:" * len(DOUBTS) + "|",
    ]
    for row in metrics["rivals"]:
        if row["members"]:
            values = [row["auroc_strangers"][name][key] for key in DOUBTS]
            cells = " | ".join("" if value is None else f"{value:.3f}" for value in values)
            lines.append(f"| {LABELS[row['name']]} | {cells} |")
    return "\n".join(lines)


def _capital(label: str) -> str:
    return label[0].upper() + label[1:]


def _line(row: list[str]) -> str:
    return "| " + " | ".join(row) + " |"


def _rows(metrics: dict[str, Any], columns: dict[str, Cell]) -> list[list[str]]:
    """The header, then a row for each that was measured: ensembles, what a member is alone, and the others."""
    if metrics.get("format", 1) > 1:
        named = {row["name"]: row for row in metrics["rivals"] if row["members"]}
    else:
        named = {name: metrics[name] | {"members": metrics["members"]} for name in ("abend", "sbend")}
        named |= {name: one for name, one in metrics["baselines"].items() if one is not None}
    labelled = {LABELS[name]: row for name, row in named.items() if name in ("abend", "sbend")}
    for kind in ("generated", "originals"):
        one = {"members": 1, "accuracy": metrics[kind]["accuracy"]["mean"], "nll": metrics[kind]["nll"]["mean"]}
        labelled[f"one {kind.removesuffix('s')} member (mean)"] = one
    labelled |= {LABELS[name]: row for name, row in named.items()}
    return [["", *columns], *([label, *(cell(row) for cell in columns.values())] for label, row in labelled.items())]


def _number(key: str, digits: int, scale: float = 1, otherwise: str = "") -> Cell:
    """The number under ``key``, or, where there is none, ``otherwise``."""

    def cell(row: dict[str, Any]) -> str:
        value = row.get(key) if row.get(key) is not None else row.get(otherwise)
        return "" if value is None else f"{scale * value:.{digits}f}"

    return cell


def _with_floor(key: str) -> Cell:
    cells = [_number(name, 3) for name in (key, f"{key}_floor", f"{key}_floor_95")]
    return lambda row: "{} ({}, {})".format(*(cell(row) for cell in cells)) if row.get(key) is not None else ""


def _temperature(row: dict[str, Any]) -> str:
    fitted = row.get("temperature")
    return "" if fitted is None or row["nll_t"] is None else f"{fitted['value']:.2f}"


def _strangers(row: dict[str, Any]) -> str:
    aurocs = [one["entropy"] for one in (row.get("auroc_strangers") or {}).values() if one["entropy"] is not None]
    return f"{sum(aurocs) / len(aurocs):.3f}" if aurocs else ""


MEMBERS, ACCURACY, NLL = _number("members", 0), _number("accuracy", 2, 100), _number("nll", 4)
COST, ANSWER, NLL_T = _number("cost_trainings", 2), _number("answer_forwards", 1), _number("nll_t", 4)
FIRST_FORMAT: dict[str, Cell] = {"members": MEMBERS, "accuracy": ACCURACY, "NLL": NLL, "ECE": _number("ece", 3)}
TERMINAL: dict[str, Cell] = {
    "cost": COST,
    "answer": ANSWER,
    "acc %": ACCURACY,
    "NLL": NLL,
    "with T": NLL_T,
    "ECE": _number("ece_t", 3, otherwise="ece"),
    "noise": _number("ece_t_floor_95", 3, otherwise="ece_floor_95"),
}
COLUMNS: dict[str, Cell] = {
    "members": MEMBERS,
    "cost": COST,
    "answer": ANSWER,
    "accuracy": ACCURACY,
    "NLL": NLL,
    "ECE (floor)": _with_floor("ece"),
    "T": _temperature,
    "NLL with T": NLL_T,
    "ECE with T (floor)": _with_floor("ece_t"),
    "Brier with T": _number("brier_t", 4),
    "AUROC of errors": _number("auroc_errors", 3),
    "of strangers": _strangers,
    **{f"surest {share} %": _number(f"accuracy_at_{share}", 2, 100) for share in COVERAGES},
}
