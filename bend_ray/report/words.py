"""The report in words: a table for the terminal and a README for people, both from `metrics.json` alone."""

from typing import Any

from bend_ray.progress import counted

LABELS = {
    "base_model": "the base classifier alone",
    "weight_average": "one model: average of all snapshots",
    "random_originals": "random snapshots",
    "noised_originals": "snapshots with noise added",
    "averaged_originals": "averages of snapshots",
    "gaussian": "Gaussian over parameters (diagonal)",
    "swag": "SWAG (low-rank Gaussian)",
    "autoencoder_only": "autoencoder, no diffusion",
    "bagging": "true bagging (whole trainings)",
    "deep_ensemble": "deep ensemble (whole trainings)",
}
WHOLE = ("bagging", "deep_ensemble")


def table(metrics: dict[str, Any]) -> str:
    """A plain table a person understands in ten seconds."""
    rows = _rows(metrics)
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:<{width}}  {members:>7}  {acc:>8}  {nll:>7}  {ece:>6}" for name, members, acc, nll, ece in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *headline(metrics)])


def readme(metrics: dict[str, Any], figures: list[str]) -> str:
    """`report/README.md`: the verdict first, then the table, diversity, novelty, cost, figures."""
    rows = _rows(metrics)
    body = ["| " + " | ".join(row) + " |" for row in rows]
    body.insert(1, "|---|---:|---:|---:|---:|")
    sections = [
        f"# {metrics['dataset']}, seed {metrics['seed']}: {counted(metrics['members'], 'generated classifiers')}",
        "\n".join(f"- {line}" for line in headline(metrics)),
        f"{metrics['test_size']} test rows, {metrics['classes']} classes, {metrics['subset_size']} generated parameters"
        " a member. Accuracy in per cent; NLL in nats, lower is better; ECE is the calibration error, lower is better.",
        "\n".join(body),
        _against_nulls(metrics),
        _diversity(metrics),
        _novelty(metrics["novelty"]),
        _autoencoder(metrics["autoencoder"]),
        _cost(metrics["cost"], metrics["members"]),
        "\n\n".join(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in figures),
    ]
    return "\n\n".join(sections) + "\n"


def headline(metrics: dict[str, Any]) -> list[str]:
    """What came out, the null models that BEND does not beat first among it."""
    abend = metrics["abend"]
    versus = {name: facts for name, facts in metrics["versus"].items() if facts is not None and name not in WHOLE}
    worse = [name for name, facts in versus.items() if facts["high"] < 0]
    tied = [name for name, facts in versus.items() if facts["low"] <= 0 <= facts["high"]]
    beaten = [name for name, facts in versus.items() if facts["low"] > 0]
    lines = []
    if not versus:
        lines.append(
            "No null model was asked for (evaluate.baselines), so nothing speaks for the generator's own merit."
        )
    if worse:
        lines.append(f"BEND does not beat these null models; their NLL is lower: {_list(worse)}.")
    if tied:
        lines.append(f"NLL indistinguishable (95 % interval) from: {_list(tied)}.")
    if beaten and not worse and not tied:
        lines.append("BEND's NLL is lower than every null model's that was asked for (95 % intervals).")
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
            f" {metrics['chosen']['candidates']}, and so were those of null models; {chosen} of ours rejected."
        )
    if metrics["dropped"]:
        dropped = counted(metrics["dropped"], "further snapshots")
        lines.append(f"Dropped for low validation accuracy (collect.gate): {dropped}.")
    if (spread := metrics["chosen"]["spread"]) != 1:
        lines.append(
            f"Members lie {spread:g} times as far from the mean of the snapshots as they were sampled (sample.spread);"
            " null models do not."
        )
    lines.append(f"Novelty: {metrics['novelty']['verdict']}.")
    return lines


def _above(ours: dict[str, float], metrics: dict[str, Any]) -> str:
    bars = [metrics[kind]["accuracy"][which] for kind in ("originals", "generated") for which in ("mean", "median")]
    return "yes" if all(ours["accuracy"] > bar for bar in bars) else "no"


def _rows(metrics: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    rows = [("", "members", "accuracy", "NLL", "ECE")]
    for name, label in (("abend", "aBEND (mean of probabilities)"), ("sbend", "sBEND (votes)")):
        one = metrics[name]
        rows.append(
            (label, str(metrics["members"]), _percent(one["accuracy"]), f"{one['nll']:.4f}", f"{one['ece']:.3f}")
        )
    for kind in ("generated", "originals"):
        one = metrics[kind]
        accuracy, nll = _percent(one["accuracy"]["mean"]), f"{one['nll']['mean']:.4f}"
        rows.append((f"one {kind.removesuffix('s')} member (mean)", "1", accuracy, nll, ""))
    for name, one in metrics["baselines"].items():
        if one is not None:
            accuracy, nll = _percent(one["accuracy"]), f"{one['nll']:.4f}"
            rows.append((LABELS[name], str(one["members"]), accuracy, nll, f"{one['ece']:.3f}"))
    return rows


def _against_nulls(metrics: dict[str, Any]) -> str:
    lines = [
        "## Against the null models",
        "",
        "NLL of each minus aBEND's on the same rows: above 0, aBEND is better.",
        "",
    ]
    lines += ["| null model | NLL gain | 95 % interval | seconds to make |", "|---|---:|---:|---:|"]
    for name, facts in metrics["versus"].items():
        if facts is not None:
            seconds = metrics["baselines"][name]["seconds"]
            lines.append(
                f"| {LABELS[name]} | {facts['nll_gain']:+.4f} | {facts['low']:+.4f} to {facts['high']:+.4f} |"
                f" {seconds:.3g} |"
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
    known = [
        f"{label} {cost[key]:.1f} s"
        for key, label in (
            ("base_s", "base"),
            ("collect_s", "chains"),
            ("search_s", "search"),
            ("fit_s", "fit"),
            ("sample_s", "sampling"),
            ("evaluate_s", "evaluation (wall)"),
        )
        if cost[key] is not None
    ]
    lines = ["## Cost", "", f"Seconds of work, summed over processes: {', '.join(known)}."]
    if ratio is not None:
        lines.append(
            f"Training one whole classifier: {per_model:.1f} s. A member's share (of {members}) of chains, search,"
            f" fit and sampling: {ratio:.3f} of that; one more member: {cost['sample_s_per_member'] * 1e3:.1f} ms."
        )
    return "\n".join(lines)


def _list(names: list[str]) -> str:
    return ", ".join(LABELS[name] for name in names)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
