"""Rivals: each is what its definition says, costs what plain arithmetic says, and the cheapest that is as good is
recommended."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bend_ray.ensemble import laplace, vector_scaling
from bend_ray.ensemble.temperature import HOLDS_1
from bend_ray.report import rivals, table, text
from bend_ray.report.flops import Flops
from bend_ray.report.rivals import CONTENDERS, Rows
from bend_ray.report.scored import Scored, score
from conftest import changed
from test_report import metrics

FLOPS = Flops(trunk=90.0, tail=10.0, head=2.0, kept=True, generator=5e6)


def labels(logits_BK: Tensor, seed: int = 0) -> Tensor:
    return torch.multinomial(logits_BK.softmax(-1), 1, generator=torch.Generator().manual_seed(seed))[:, 0]


# --- fitted to the base


def test_vector_scaling_undoes_scales_and_biases_of_classes() -> None:
    logits_BK = 2 * torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    label_B, scale_K, bias_K = labels(logits_BK), torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 0.0, -1.0])
    found_K, offset_K = vector_scaling.fit(((logits_BK - bias_K) / scale_K)[None], label_B)
    torch.testing.assert_close(found_K.float(), scale_K, atol=0.1, rtol=0.1)
    torch.testing.assert_close((offset_K - offset_K[1]).float(), bias_K, atol=0.1, rtol=0.1)


def test_vector_scaling_of_few_rows_stays_near_the_base() -> None:
    logits_BK = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    scale_K, bias_K = vector_scaling.fit(logits_BK[None], torch.tensor([0, 1, 1]))
    assert torch.isfinite(scale_K).all() and bias_K.abs().max() < 20


class Headed(nn.Module):
    """Two layers; the last one gives the logits unless ``after`` changes them."""

    def __init__(self, after: Callable[[Tensor], Tensor] = lambda logits_BK: logits_BK) -> None:
        super().__init__()
        self.trunk, self.head, self.after = nn.Linear(4, 5), nn.Linear(5, 3), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.head(self.trunk(x).relu()))


def test_the_last_layer_is_the_one_that_gives_the_logits() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    module = Headed()
    assert laplace.last_linear(module, x) is module.head
    assert laplace.last_linear(Headed(torch.tanh), x) is None and laplace.last_linear(nn.Flatten(), x) is None
    phi_BP = laplace.features(module, module.head, x)
    torch.testing.assert_close(phi_BP[:, :-1].float(), module.trunk(x).relu())
    assert (phi_BP[:, -1] == 1).all()


def test_heads_have_the_posteriors_mean_and_covariance() -> None:
    """Moments of many heads against the inverse of the whole matrix, built entry by entry."""
    layer, generator = nn.Linear(2, 3), torch.Generator().manual_seed(0)
    phi_BP = torch.cat([torch.randn(50, 2, generator=generator), torch.ones(50, 1)], dim=1).double()
    posterior, prior = laplace.fit(layer, [phi_BP[:20], phi_BP[20:]]), 2.0
    p_BK = (phi_BP @ posterior.w_KP.T).softmax(-1)
    A_PP = sum(torch.outer(phi_P, phi_P) for phi_P in phi_BP)
    G_KK = sum(p_K.diag() - torch.outer(p_K, p_K) for p_K in p_BK)
    assert isinstance(A_PP, Tensor) and isinstance(G_KK, Tensor)
    covariance = torch.linalg.inv(torch.kron(G_KK / 50, A_PP) + prior * torch.eye(9))
    w_SD = torch.cat([posterior.heads(prior, seed) for seed in range(200)]).flatten(1)
    torch.testing.assert_close(w_SD.mean(0), posterior.w_KP.flatten(), atol=0.03, rtol=0)
    torch.testing.assert_close(w_SD.T.cov(), covariance, atol=0.02, rtol=0)


def test_a_prior_that_hurts_is_not_chosen() -> None:
    """The true head, and a posterior of five rows, which leaves it open unless the prior does not."""
    generator = torch.Generator().manual_seed(0)
    phi_BP = torch.cat([torch.randn(400, 6, generator=generator), torch.ones(400, 1)], dim=1).double()
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(2 * torch.randn(3, 6, generator=generator))
    posterior = laplace.fit(layer, [phi_BP[:5]])
    label_B = labels(phi_BP @ posterior.w_KP.T)
    assert laplace.chosen_prior(posterior, phi_BP[None], label_B, 0) >= 10


# --- rows


def scored(spread: float, members: int = 4, sharp: float = 1.0, rows: int = 300) -> Scored:
    """Members around one calibrated classifier on 300 test and 300 validation rows."""
    generator = torch.Generator().manual_seed(0)
    logits_1XK = 2 * torch.randn(1, 2 * rows, 4, generator=generator)
    logits_MXK = sharp * (logits_1XK + spread * torch.randn(members, 2 * rows, 4, generator=generator))
    label_X = labels(logits_1XK[0])
    return score(logits_MXK[:, :rows], label_X[:rows], logits_MXK[:, rows:], label_X[rows:], seconds=1.0)


def rows_of(flops: Flops = FLOPS) -> Rows:
    generator = torch.Generator().manual_seed(0)
    label_X = labels(2 * torch.randn(1, 600, 4, generator=generator)[0])
    return Rows(changed(), label_X[:300], label_X[300:], (400, 400), flops)


def test_gains_with_a_temperature_are_paired_with_abends() -> None:
    measured = rivals.measure({"generated": scored(0.5), "base_model": scored(2.0, 1)}, rows_of())["rivals"]
    by_name = {row["name"]: row for row in measured}
    gain, base = by_name["abend"]["nll_t_gain"], by_name["base"]
    assert gain == {"mean": 0.0, "low": 0.0, "high": 0.0} and by_name["sbend"]["nll_t_gain"] is None
    assert base["nll_t_gain"]["mean"] == pytest.approx(base["nll_t"] - by_name["abend"]["nll_t"])
    assert 0 < base["nll_t_gain"]["low"] < base["nll_t_gain"]["mean"] < base["nll_t_gain"]["high"]


def test_rows_are_named_and_missing_ones_are_empty() -> None:
    measured = rivals.measure({"generated": scored(0.5), "base_model": scored(0.0, 1)}, rows_of())
    assert [row["name"] for row in measured["rivals"]] == list(CONTENDERS)
    by_name = {row["name"]: row for row in measured["rivals"]}
    assert all(row.keys() == by_name["abend"].keys() for row in measured["rivals"])
    assert {value for key, value in by_name["laplace"].items() if key != "name"} == {None}


def test_the_report_says_why_a_row_has_no_temperature() -> None:
    measured = rivals.measure({"generated": scored(0.5, sharp=3.0), "base_model": scored(0.0, 1)}, rows_of())
    said = table.explained({"format": 2, **measured})
    assert (
        f"No temperature, for {HOLDS_1}: the base classifier alone." in said and CONTENDERS["abend"].label not in said
    )


def test_a_row_with_t_is_scored_as_its_temperature_says() -> None:
    one, rows = scored(0.5, sharp=3.0), rows_of()
    abend, sbend = rivals.measure({"generated": one}, rows)["rivals"][:2]
    assert abend["temperature"]["kind"] != "none" and abend["temperature"]["value"] > 1.5
    with_t = one.tempered.scores(rows.label_B)
    assert [abend[f"{key}_t"] for key in ("accuracy", "nll", "ece", "brier")] == list(with_t.values())
    assert abend["nll"] == one.mean.nll_B.mean().item() > abend["nll_t"]
    assert abend["ece"] > abend["ece_floor_95"] and abend["ece_t"] < abend["ece"]
    assert 0.5 < abend["auroc_errors"] < 1 and abend["accuracy_at_80"] > abend["accuracy_at_90"] > abend["accuracy"]
    assert sbend["nll_t"] is sbend["ece_t"] is sbend["brier_t"] is None and sbend["temperature"]["kind"] == "none"
    assert sbend["accuracy"] == (one.votes.predicted_B == rows.label_B).double().mean().item()


def test_costs_are_plain_arithmetic() -> None:
    """400 rows: the base takes 2 epochs of 12 batches of 32; 5 chains one epoch, 3 passes of the tail a step."""
    everything = {contender.source: scored(0.5, 7) for contender in CONTENDERS.values()} | {
        name: scored(0.5, 1) for name in ("base_model", "vector_scaling", "weight_average")
    }
    by_name = {row["name"]: row for row in rivals.measure(everything, rows_of())["rivals"]}
    collect = changed().collect
    steps = round(collect.epochs * 400 / collect.batch_size)
    base, chains = 2 * 12 * 32 * 3 * 100, 5 * steps * collect.batch_size * 3 * 10 + (400 + 300) * 90
    expected = {
        "base": (1, 1),
        "vector_scaling": (1, 1),
        "laplace": (1 + 400 * 100 / base, (100 + 6 * 2) / 100),
        "weight_average": (1 + chains / base, 1),
        "random_originals": (1 + chains / base, (90 + 7 * 10) / 100),
        "abend": (1 + (chains + 5e6) / base, (90 + 7 * 10) / 100),
        "deep_ensemble": (7, 7),
    }
    for name, cost in expected.items():
        assert (by_name[name]["cost_trainings"], by_name[name]["answer_forwards"]) == pytest.approx(cost)
    unkept = Flops(90.0, 10.0, 2.0, False, 0.0)
    assert unkept.chains(changed(), 400, 300) == 5 * steps * collect.batch_size * (3 * 10 + 90)


def test_the_cheapest_that_is_as_good_is_recommended() -> None:
    better, worse = scored(0.0, 4), scored(2.0, 1)
    for base, name in ((scored(0.3, 1), "base"), (worse, "abend")):
        measured: dict[str, Any] = metrics(swag=(0.1, 0.2)) | {"format": 2, "seed": 0}
        measured |= rivals.measure({"generated": better, "base_model": base}, rows_of())
        assert measured["recommended"] == name
        first = text.headline(measured)[0]
        assert first.startswith(f"Deploy {CONTENDERS[name].label} as it is (") and "300 validation rows" in first
        assert ("cannot be told from the lowest" in first) == (name == "base")
        assert first in text.table(measured)


# --- what the table shows


def test_a_report_of_format_2_shows_costs_and_floors_and_of_format_1_what_it_has() -> None:
    measured: dict[str, Any] = metrics(swag=(0.1, 0.2)) | {"format": 2}
    measured |= rivals.measure({"generated": scored(0.5), "base_model": scored(0.0, 1)}, rows_of())
    lines = table.plain(measured)
    assert lines[0].split() == ["cost", "answer", "acc", "%", "NLL", "with", "T", "ECE", "noise"]
    assert max(map(len, lines)) <= 120 and len(lines[0]) <= 90
    assert [line.split("  ")[0] for line in lines[2:7]] == [
        "aBEND (mean of probabilities)",
        "sBEND (votes)",
        "one generated member (mean)",
        "one original member (mean)",
        "the base classifier alone",
    ]
    shown = table.markdown(measured).splitlines()
    assert len({line.count("|") for line in shown}) == 1 and "ECE with T (floor)" in shown[0] and len(shown) == 7
    assert table.plain(metrics(swag=(0.1, 0.2)))[0].split() == ["members", "accuracy", "NLL", "ECE"]


def test_operations_of_a_classifier_are_those_of_its_layers() -> None:
    from bend_ray.models.partition import partition
    from bend_ray.models.subset import choose

    module = Headed().eval().requires_grad_(False)
    subset = choose(module, "head")
    x = torch.zeros(2, 4)
    assert partition(module, subset, x).flops(subset.take(module), x) == (2 * 2 * 4 * 5, 2 * 2 * 5 * 3)  # two rows
