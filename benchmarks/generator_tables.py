"""What `generator.py` found, as lines of text."""

import statistics
from collections.abc import Iterator
from typing import Any


def table(result: dict[str, Any]) -> str:
    return "\n".join(lines(result))


def lines(result: dict[str, Any]) -> Iterator[str]:
    for one in result.get("literature", ()):
        ours, theirs = one["ours"], one["reference"]
        yield (
            f"seed {one['seed']}: fit {statistics.fmean(one['ours_fit_s']):.2f} s against"
            f" {one['reference_fit_s']:.0f} s (ratio {one['fit_ratio']:.0f}, limit 50); unexplained"
            f" {ours['lost']['seen']:.4f} against {theirs['lost']['seen']:.4f} of those seen,"
            f" {ours['lost']['held_out']:.2f} against {theirs['lost']['held_out']:.2f} of those withheld"
        )
        sets = {
            "originals": one["originals"],
            "reference": theirs,
            "ours, spread 1": ours["curve"][-1],
            "ours, as different as the reference": ours["at_the_same_overlap"],
        }
        for name, values in sets.items():
            if values is not None:
                yield (
                    f"  {name:<36} members {100 * values['member_accuracy']:.2f} %, NLL {values['member_nll']:.3f},"
                    f" overlap of errors {values['error_iou']:.3f}; aBEND's NLL {values['abend_nll']:.4f}"
                )
    if values := result.get("sampling"):
        yield (
            f"a member of D = {values['D']}: {1e3 * values['ours_s']:.3f} ms of {values['members']} at once against"
            f" {values['reference_s']:.2f} s: ratio {values['ratio']:.0f} (limit 3,000)"
        )
    if values := result.get("scale"):
        yield f"{'D':>12} {'files':>8} {'reading':>8} {'the pass':>9} {'the rest':>9}   pass / reading"
        for row in values["rows"]:
            ratio = row["pass_s"] / row["read_s"]
            yield (
                f"{row['D']:>12,} {row['files_s']:>7.2f}s {row['read_s']:>7.2f}s {row['pass_s']:>8.2f}s"
                f" {row['rest_s']:>8.2f}s   {ratio:.2f}"
            )
        memory = values["memory"]
        yield (
            f"growth after the pass {values['growth_after_the_pass']:.2f} (limit 1.3); S = {memory['S']},"
            f" D = {memory['D']:,}: at most {memory['peak_gib']:.2f} GiB for {memory['snapshots_gib']:.1f} GiB of"
            " snapshots (limit 12)"
        )
