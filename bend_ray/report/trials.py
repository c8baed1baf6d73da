"""The report of a search: one line a trial, a table of all trials, figures, and a README."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bend_ray.config import Config
from bend_ray.report.figures import GENERATED, MUTED, ORIGINALS, save
from bend_ray.search import study
from bend_ray.search.study import Trial
from bend_ray.store.folders import Folder

OTHERWISE = "keys together, or chance"
"""What single keys do not explain."""
STYLES: dict[str, dict[str, Any]] = {
    "stopped": {"color": MUTED, "marker": "x", "s": 22},
    "done": {"color": GENERATED, "marker": "o", "s": 22},
}


def line(config: Config, trial: Trial) -> str:
    """A finished trial in a line."""
    values = ", ".join(f"{key.split('.')[1]} {_short(value, 3)}" for key, value in trial.values.items())
    what = "the configuration as it stands" if trial.number == 0 else values
    if trial.status == "failed":
        return f"trial {trial.number} failed: {trial.reason} ({what})"
    results = ", ".join(f"{name} {trial.metrics[name]:.4f}" for name in config.search.objective)
    stopped = f" (stopped at {len(trial.looks)}/{study.LOOKS})" if trial.status == "stopped" else ""
    return f"trial {trial.number}: {results}{stopped}, {trial.seconds:.1f} s; {what}"


def write_table(trials: list[Trial], path: Path) -> None:
    """One row a trial: number, status, reason, seconds, searched values, and what was measured last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metrics = sorted({name for trial in trials for name in trial.metrics})
    columns: dict[str, list[Any]] = {
        "number": [trial.number for trial in trials],
        "status": [trial.status for trial in trials],
        "reason": [trial.reason for trial in trials],
        "seconds": [trial.seconds for trial in trials],
        "looks": [len(trial.looks) for trial in trials],
        **{key: [_plain(trial.values.get(key)) for trial in trials] for key in trials[0].values},
        **{name: [trial.metrics.get(name) for trial in trials] for name in metrics},
    }
    for name in trials[0].values:  # a column has one type; choices may mix them
        if len({type(value) for value in columns[name]}) > 1:
            columns[name] = [str(value) for value in columns[name]]
    pq.write_table(pa.table(columns), path)


def draw(
    folder: Folder, config: Config, trials: list[Trial], front: list[int], importances: dict[str, float]
) -> list[str]:
    """The figures, into ``folder``: the objective over trials; what mattered; the trade-off. Returns their names."""
    plots: dict[str, Callable[[Axes], None]] = {"objective.png": lambda axes: _objective(axes, config, trials)}
    if importances:
        plots["importance.png"] = lambda axes: _importance(axes, config, importances)
    plots["tradeoff.png"] = lambda axes: _tradeoff(axes, config, trials, front)
    return save(folder, plots)


def _objective(axes: Axes, config: Config, trials: list[Trial]) -> None:
    name = config.search.objective[0]
    better = min if study.direction(name) == "minimize" else max
    for status, style in STYLES.items():
        some = [trial for trial in trials if trial.status == status]
        axes.scatter([trial.number for trial in some], [trial.metrics[name] for trial in some], label=status, **style)
    if failed := [trial.number for trial in trials if trial.status == "failed"]:
        low = axes.get_xaxis_transform()
        axes.scatter(failed, [0.02] * len(failed), transform=low, color="#c92a2a", marker="v", s=22, label="failed")
    best, numbers, heights = None, [], []
    for trial in trials:
        if trial.status == "done":
            best = trial.metrics[name] if best is None else better(best, trial.metrics[name])
        if best is not None:
            numbers.append(trial.number)
            heights.append(best)
    axes.step(numbers, heights, where="post", color=GENERATED, lw=1.5, label="best so far")
    if trials[0].metrics:
        axes.axhline(trials[0].metrics[name], color=ORIGINALS, ls=":", lw=1.2, label="the configuration as it stands")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel=f"{_label(name)} (validation)", title="Objective over trials")
    axes.legend(frameon=False, fontsize=8)


def _importance(axes: Axes, config: Config, importances: dict[str, float]) -> None:
    rest = {OTHERWISE: 1 - sum(importances.values())}
    shares = dict(reversed((importances | rest).items()))
    colors = [MUTED if name in rest else GENERATED for name in shares]
    axes.barh([*shares], [*shares.values()], color=colors)
    what = f"share of a forest's variance of {_label(config.search.objective[0])}"
    axes.set(xlabel=f"{what}\n{study.IMPORTANCE}", title="What mattered by itself", xlim=(0, 1))


def _tradeoff(axes: Axes, config: Config, trials: list[Trial], front: list[int]) -> None:
    objectives = config.search.objective
    y: str = objectives[0]
    x: str = objectives[1] if len(objectives) > 1 else "disagreement"
    if x == y:
        x = "member_accuracy"
    for status, style in STYLES.items():
        some = [trial.metrics for trial in trials if trial.status == status]
        axes.scatter([metrics[x] for metrics in some], [metrics[y] for metrics in some], label=status, **style)
    if len(objectives) > 1:
        best = sorted((t.metrics[x], t.metrics[y]) for t in trials if t.number in front)
        axes.plot([a for a, _ in best], [b for _, b in best], color=ORIGINALS, lw=1.2, label="Pareto front")
    if default := trials[0].metrics:
        axes.scatter([default[x]], [default[y]], color=ORIGINALS, marker="*", s=80, label="as it stands")
    axes.set(xlabel=_label(x), ylabel=_label(y), title="Trade-off (validation)")
    axes.legend(frameon=False, fontsize=8)


def readme(
    config: Config, trials: list[Trial], best: Trial, front: list[int], importances: dict[str, float], files: list[str]
) -> str:
    """What came out, first the gain over the configuration as it stands."""
    name, default = config.search.objective[0], trials[0]
    gain = "trial 0, the configuration as it stands, did not come to its end"
    if default.status == "done":
        before = default.metrics[name]
        gain = f"the configuration as it stands has {before:.4f}, a difference of {best.metrics[name] - before:+.4f}"
    counts = {status: sum(trial.status == status for trial in trials) for status in study.STATES}
    lines = [
        f"# Search: {len(trials)} trials",
        f"- Best is trial {best.number} with {_label(name)} {best.metrics[name]:.4f} on the validation split; {gain}."
        " The best of many is partly luck: what counts is the test split, in the run's report.",
        f"- {counts['done']} came to their end, {counts['stopped']} were stopped early, {counts['failed']} failed.",
        "`best.yaml` is a whole configuration with the best values; `trials.parquet` holds all trials.",
        _table(default, best, importances),
        _importances_in_words(config, counts["done"], importances),
    ]
    if len(config.search.objective) > 1:
        lines.append(f"Not beaten in all of {', '.join(map(_label, config.search.objective))} at once: trials {front}.")
    if counts["failed"]:
        lines.append("\n".join(f"- trial {t.number} failed: {t.reason}" for t in trials if t.status == "failed"))
    lines += [f"![{file.removesuffix('.png')}]({file})" for file in files if file.endswith(".png")]
    return "\n\n".join(lines) + "\n"


def _table(default: Trial, best: Trial, importances: dict[str, float]) -> str:
    rows = [[key, _short(default.values[key]), _short(value)] for key, value in best.values.items()]
    head = ["key", "as it stands", "best"]
    if importances:
        shares = importances | {OTHERWISE: 1 - sum(importances.values())}
        head = [*head, "importance"]
        rows = [[*row, f"{shares[row[0]]:.2f}"] for row in rows] + [[OTHERWISE, "", "", f"{shares[OTHERWISE]:.2f}"]]
    rule = "|---" + "|---:" * (len(head) - 1) + "|"
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def _importances_in_words(config: Config, done: int, importances: dict[str, float]) -> str:
    what = _label(config.search.objective[0])
    if importances:
        return (
            f"Importance is by {study.IMPORTANCE}: the share that a key explains alone of the variance of {what}, over"
            " the space, in a random forest fitted to the finished trials. Two keys that matter only together have"
            f" none. Where no key matters chance alone gives one up to 0.3 with {study.FEWEST} trials, and 0.2 with"
            " 100."
        )
    if done < study.FEWEST:
        return (
            f"What mattered is not said: {done} finished trials do not tell it from chance. From {study.FEWEST} on it"
            " is."
        )
    return f"What mattered is not said: the finished trials in the space do not differ in {what}, or are too few."


def _label(name: str) -> str:
    return name.replace("abend", "aBEND's").replace("sbend", "sBEND's").replace("_", " ").replace("nll", "NLL")


def _short(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
