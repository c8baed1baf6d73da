"""The report as text: a table for the terminal and a README for people, both from `metrics.json` alone."""

from typing import Any

from bend_ray.progress import counted
from bend_ray.report import classes
from bend_ray.report import table as tables
from bend_ray.report.rivals import CONTENDERS
from bend_ray.report.table import LABELS

BY_SOURCE = {name: one.source for name, one in CONTENDERS.items()}
"""Under which name each rival was scored, which is that of its baseline."""
WHOLE_TRAININGS = ("bagging", "deep_ensemble")


def table(metrics: dict[str, Any]) -> str:
    """A plain table a person understands in ten seconds."""
    return "\n".join([*tables.plain(metrics), "", *headline(metrics)])


def readme(metrics: dict[str, Any], figures: list[str]) -> str:
    """`report/README.md`: the verdict first, then the table, diversity, novelty, cost, figures."""
    sections = [
        f"# {metrics['dataset']}, seed {metrics['seed']}: {counted(metrics['members'], 'generated classifiers')}",
        "\n".join(f"- {line}" for line in headline(metrics)),
        f"{metrics['test_size']} test rows, {metrics['classes']} classes, {metrics['subset_size']} generated parameters"
        " a member.",
        tables.markdown(metrics),
        tables.explained(metrics),
        _against_baselines(metrics),
        *classes.section(metrics),
        *tables.strangers(metrics),
        _diversity(metrics),
        _novelty(metrics["novelty"]),
        _autoencoder(metrics["autoencoder"]),
        _cost(metrics["cost"], metrics["members"]),
        "\n\n".join(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in figures),
    ]
    return "\n\n".join(sections) + "\n"


def headline(metrics: dict[str, Any]) -> list[str]:
    """What came out: first what to deploy, then the baselines that BEND does not beat."""
    abend = metrics["abend"]
    versus = {
        name: facts for name, facts in metrics["versus"].items() if facts is not None and name not in WHOLE_TRAININGS
    }
    worse = [name for name, facts in versus.items() if facts["high"] < 0]
    tied = [name for name, facts in versus.items() if facts["low"] <= 0 <= facts["high"]]
    beaten = [name for name, facts in versus.items() if facts["low"] > 0]
    lines = [_recommended(metrics)] if "recommended" in metrics else []
    if not versus:
        lines.append("No baseline was asked for (evaluate.baselines), so nothing speaks for the generator's own merit.")
    if worse:
        lines.append(f"BEND does not beat these baselines; their NLL is lower: {_list(worse)}.")
    if tied:
        lines.append(f"NLL indistinguishable (95 % interval) from: {_list(tied)}.")
    if beaten and not worse and not tied:
        lines.append("BEND's NLL is lower than every baseline's that was asked for (95 % intervals).")
    if beaten and (worse or tied):
        lines.append(f"BEND's NLL is lower than that of: {_list(beaten)}.")
    better = [_above(metrics[kind], metrics) for kind in ("abend", "sbend")]
    lines.append(
        f"aBEND {_percent(abend['accuracy'])} %, sBEND {_percent(metrics['sbend']['accuracy'])} %; the mean generated"
        f" member {_percent(metrics['generated']['accuracy']['mean'])} %, the mean original"
        f" {_percent(metrics['originals']['accuracy']['mean'])} %. Above mean and median of both:"
        f" aBEND {better[0]}, sBEND {better[1]}."
    )
    if chosen := metrics["chosen"]["rejected"]:
        lines.append(
            f"Members were chosen on validation rows ({metrics['chosen']['keep']}) among"
            f" {metrics['chosen']['candidates']}, and so were those of the baselines; {chosen} of ours rejected."
        )
    if metrics["dropped"]:
        dropped = counted(metrics["dropped"], "further snapshots")
        lines.append(f"Dropped for low validation accuracy (collect.accuracy_filter): {dropped}.")
    if (spread := metrics["chosen"]["spread"]) != 1:
        lines.append(
            f"Members lie {spread:g} times as far from the mean of the snapshots as they were sampled (sample.spread);"
            " the baselines do not."
        )
    if (scale := metrics.get("doubt_scale")) is not None:
        lines.append(f"Members' heads have noise of size {scale:.3g} (sample.doubt); the baselines' have none.")
    if (index := metrics.get("distance")) is not None:
        lines.append(
            f"Answers say how far an image is from the training rows (sample.distance: {index['measure']}), in"
            f" {index['features']} features of {index['rows']} rows."
        )
    return [*lines, f"Novelty: {metrics['novelty']['verdict']}.", *classes.warnings(metrics)]


def _recommended(metrics: dict[str, Any]) -> str:
    name, why = metrics["recommended"], metrics["recommendation"]
    row = next(row for row in metrics["rivals"] if row["name"] == name)
    fitted = row["temperature"]["kind"] != "none"
    what = f"{LABELS[name]} {'with a temperature' if fitted else 'as it is'}"
    passes, trainings = f"{row['answer_forwards']:.3g}", f"{row['cost_trainings']:.3g}"
    cost = (
        f"{passes} forward pass{'es' if passes != '1' else ''} an answer,"
        f" {trainings} training{'s' if trainings != '1' else ''}"
    )
    if name == why["best"]:
        return (
            f"Deploy {what} ({cost}): its NLL on {why['rows']} validation rows is the lowest of what the run could"
            " deploy, and nothing cheaper is as good (95 % interval)."
        )
    return (
        f"Deploy {what} ({cost}): on {why['rows']} validation rows its NLL cannot be told from the lowest, that of"
        f" {LABELS[why['best']]} ({why['nll_more']:+.4f}, 95 % interval {why['low']:+.4f} to {why['high']:+.4f})."
    )


def _above(ours: dict[str, float], metrics: dict[str, Any]) -> str:
    bars = [metrics[kind]["accuracy"][which] for kind in ("originals", "generated") for which in ("mean", "median")]
    return "yes" if all(ours["accuracy"] > bar for bar in bars) else "no"


def _against_baselines(metrics: dict[str, Any]) -> str:
    with_t = {BY_SOURCE[row["name"]]: row["nll_t_gain"] for row in metrics.get("rivals", ()) if row["nll_t_gain"]}
    lines = [
        "## Against the baselines",
        "",
        "NLL of each minus aBEND's on the same rows: above 0, aBEND is better. With T: each with its own temperature.",
        "",
        "| baseline | NLL gain | 95 % interval | with T | 95 % interval | seconds to make |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, facts in metrics["versus"].items():
        if facts is not None:
            seconds, gain = metrics["baselines"][name]["seconds"], with_t.get(name)
            tempered = f"{gain['mean']:+.4f} | {gain['low']:+.4f} to {gain['high']:+.4f}" if gain else " | "
            lines.append(
                f"| {LABELS[name]} | {facts['nll_gain']:+.4f} | {facts['low']:+.4f} to {facts['high']:+.4f} |"
                f" {tempered} | {seconds:.3g} |"
            )
    return "\n".join(lines)


def _diversity(metrics: dict[str, Any]) -> str:
    lines = ["## Diversity", "", "| | disagreement | overlap of errors |", "|---|---:|---:|"]
    for name, facts in metrics["diversity"].items():
        if facts is not None:
            lines.append(f"| {LABELS.get(name, name)} | {facts['disagreement']:.4f} | {facts['error_iou']:.3f} |")
    lines.append(f"| generated with originals | | {metrics['novelty']['mean_error_iou']:.3f} |")
    return "\n".join(lines)


def _novelty(facts: dict[str, Any]) -> str:
    places = {
        "generated members": "generated_to_nearest_original",
        "snapshots of withheld chains": "held_out_to_nearest_original",
        "snapshots, to another chain's": "original_to_nearest_original",
        "snapshots, to any other": "original_to_nearest_of_any_chain",
        "snapshots with noise added": "noised_to_nearest_original",
    }
    return "\n".join(
        [
            f"## Novelty: {facts['verdict']}",
            "",
            "Mean distance to the nearest snapshot that the generator saw:",
            "",
            "| from | standardised | raw |",
            "|---|---:|---:|",
            *(f"| {label} | {facts[key]:.3f} | {facts['raw'][key]:.3f} |" for label, key in places.items()),
            "",
            f"Copies (nearer to one snapshot than half the distance between neighbours): {_percent(facts['copies'])} %"
            f" of members. Nearer than the nearest 1 % of withheld snapshots: {_percent(facts['replica_rate'])} %."
            f" Variance kept: {facts['variance_ratio']:.2f} of the snapshots'. Outside their span:"
            f" {_outside(facts['outside_span'])}. Largest overlap of errors with one snapshot:"
            f" {facts['max_error_iou']:.2f}.",
        ]
    )


def _outside(share: float) -> str:
    if share < 1e-2:
        return f"{share:.1e} of a member's length (members are combinations of snapshots by construction)"
    return f"{share:.2f} of a member's length"


def _autoencoder(accuracy: dict[str, float]) -> str:
    lines = [
        "## What the autoencoder keeps",
        "",
        "Mean test accuracy of snapshots, and of what it gives back of them:",
        "",
    ]
    lines += ["| | as they are | given back |", "|---|---:|---:|"]
    for label, name in (("snapshots seen", "seen"), ("snapshots of withheld chains", "withheld")):
        again = accuracy[f"{name}_reconstructed"]
        lines.append(f"| {label} | {_percent(accuracy[name])} | {_percent(again)} |")
    return "\n".join(lines)


def _cost(cost: dict[str, Any], members: int) -> str:
    ratio, per_model = cost["member_cost_ratio"], cost["training_s_per_model"]
    timings = [
        f"{label} {cost[key]:.1f} s"
        for key, label in (
            ("base_s", "base"),
            ("cycles_s", "cycles"),
            ("collect_s", "chains"),
            ("search_s", "search"),
            ("fit_s", "fit"),
            ("sample_s", "sampling"),
            ("evaluate_s", "evaluation (wall)"),
        )
        if cost[key] is not None
    ]
    lines = ["## Cost", "", f"Seconds of work, summed over processes: {', '.join(timings)}."]
    if ratio is not None:
        cycles = ", and of cycles where members come from them" if cost["cycles_s"] else ""
        lines.append(
            f"Training one whole classifier: {per_model:.1f} s. A member's share (of {members}) of chains, search,"
            f" fit and sampling{cycles}: {ratio:.3f} of that; one more member:"
            f" {cost['sample_s_per_member'] * 1e3:.1f} ms."
        )
    return "\n".join(lines)


def _list(names: list[str]) -> str:
    return ", ".join(LABELS[name] for name in names)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
