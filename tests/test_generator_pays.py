"""The benchmark of where a generator can pay: every question at toy size, its costs, and what its parts promise."""

import importlib
import json
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bend_ray.config import Config
from bend_ray.data.datasets import load_dataset
from bend_ray.generator.generator import Generator
from bend_ray.models.subset import Subset
from bend_ray.run import Run
from bend_ray.training import loop
from conftest import ROOT

Load = Callable[[str], ModuleType]
TOY = {
    "data": {"name": "digits", "train_limit": 320, "test_limit": 60},
    "classifier": {"name": "convnet", "kwargs": {"width": 2}},
    "base": {"epochs": 1},
    "collect": {"chains": 6, "held_out": 1, "lr": 0.01, "epochs": 1},
    "autoencoder": {"iterations": 5, "hidden": 8},
    "diffusion": {"iterations": 5, "hidden": 8, "blocks": 1, "batch_size": 8},
    "sample": {"steps": 3},
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Modules of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture(scope="module")
def run() -> Run:
    config = Config.model_validate(TOY)
    return Run(config, loaded=load_dataset(config.data, config.seed))


def based(run: Run) -> torch.nn.Module:
    module = run.spec.build(run.seed)
    loop.train(module, run)
    return module


def checked(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of one setting by name: numbers that can be, and nothing gained over itself."""
    for row in rows:
        assert 0 <= row["accuracy"] <= 1 and math.isfinite(row["nll"]) and row["cost"] >= 0, row
        assert row["gain"]["low"] <= row["gain"]["mean"] + 1e-9 and row["gain"]["mean"] <= row["gain"]["high"] + 1e-9
    by_name = {row["what"]: row for row in rows}
    assert len(by_name) == len(rows) and by_name["BEND"]["gain"]["mean"] == 0 and by_name["BEND"]["members"] == 64
    for row in rows:
        assert row["gain"]["mean"] == pytest.approx(row["nll_t"] - by_name["BEND"]["nll_t"], abs=1e-9)
    return by_name


def test_few_snapshots(load: Load, run: Run) -> None:
    few, common = load("pays_few"), load("pays_common")
    rows = few.measured(based(run), run, {"head": (3,), "norm+head": (3,)})
    assert {row["setting"] for row in rows} == {"head, 3 chains", "norm+head, 3 chains"}
    for setting in ("head", "norm+head"):
        by_name = checked([row for row in rows if row["setting"].startswith(setting)])
        assert by_name["all snapshots"]["members"] == 6 and by_name["average, one network"]["members"] == 1
        assert by_name["more chains"]["cost"] <= by_name["BEND"]["cost"]
        assert by_name["all snapshots"]["cost"] == by_name["SWAG"]["cost"] == 0
    assert common.table([{"seed": 0, "few": rows}], "few", "trainings").count("\n") == len(rows) + 1


def test_a_price_buys_whole_chains(load: Load) -> None:
    affordable = load("pays_few").affordable
    assert [affordable(price, 2.0, 5) for price in (0.0, 1.9, 2.0, 5.9, 100.0)] == [0, 0, 1, 2, 5]


def test_a_chain_costs_three_forward_passes_of_its_tail(load: Load, run: Run) -> None:
    """Of the head: K (F + 1) products would be too much, for a bias costs none that are counted."""
    few, module = load("pays_few"), based(run)
    from bend_ray.ensemble.ensemble import make_trunk
    from bend_ray.models.subset import choose

    of_head = run.but(config=run.config.with_keys({"collect.subset": "head"}))
    trunk = make_trunk(module, choose(module, "head"), run.spec)
    cost = few.cost_of_a_chain(trunk, trunk.subset.take(module), of_head)
    steps = round(len(run.dataset.train) / 64)
    assert cost == 3 * 2 * 10 * 8 * 64 * steps


def test_unseen_trunks(load: Load, run: Run) -> None:
    trunks = load("pays_trunks")
    run = run.but(config=run.config.with_keys({"collect.features": "float32"}))
    by_name = checked(trunks.measured(run.config, 3, 1, 10))
    assert by_name["its own head"]["cost"] == 0
    one, all_of_them = by_name["one chain from its own head"], by_name["6 chains from its own head"]
    assert all_of_them["cost"] == pytest.approx(6 * one["cost"]) and all_of_them["members"] == 6
    assert by_name["BEND"]["cost"] > by_name["Gaussian around the hypernetwork"]["cost"] > one["cost"]


def test_unseen_tasks(load: Load, run: Run) -> None:
    tasks = load("pays_tasks")
    rows = tasks.measured(based(run), run, 4, 1, 10)
    for kind in ("label shift", "class subset"):
        by_name = checked([row for row in rows if row["setting"] == kind])
        assert by_name["base as it is"]["cost"] == by_name["base, prior corrected"]["cost"] == 0
        one, four = by_name["one chain for the task"], by_name["4 chains for the task"]
        assert four["cost"] == pytest.approx(4 * one["cost"])
    # Behind the mask the correction of even shares takes nothing from a subset's classes.
    assert by_name["base as it is"]["nll"] == by_name["base, prior corrected"]["nll"]


def test_whole_networks(load: Load, run: Run) -> None:
    networks = load("pays_networks")
    config = run.config.with_keys(networks.KEYS | {"classifier.kwargs": {"hidden": 4}, "base.epochs": 1})
    rows = networks.measured(config, (3,), 4)
    by_name = checked(rows)
    assert by_name["deep ensemble of them"]["cost"] == by_name["deep ensemble of them"]["members"] == 3
    assert by_name["BEND"]["cost"] > 3 and by_name["more trainings"]["cost"] <= by_name["BEND"]["cost"]
    assert by_name["one training"]["copies"] is None and 0 <= by_name["BEND"]["copies"] <= 1


def features(K: int = 4, n: int = 6, rows: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal classes of one covariance, and labels."""
    stream = torch.Generator().manual_seed(seed)
    label_B = torch.randint(K, (rows,), generator=stream)
    mean_KF = 2 * torch.randn(K, n, generator=stream)
    mixed_FF = torch.randn(n, n, generator=stream)
    return mean_KF[label_B] + torch.randn(rows, n, generator=stream) @ mixed_FF, label_B


def probabilities(load: Load, phi_BF: Tensor, w_KP: Tensor) -> Tensor:
    probabilities_BK: Tensor = load("pays_heads").logits(phi_BF, w_KP[None])[0].softmax(-1)
    return probabilities_BK


def test_frames_give_heads_back_and_do_not_depend_on_axes(load: Load) -> None:
    heads, frames = load("pays_heads"), load("pays_frames")
    phi_BF, label_B = features()
    turn_FF = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    statistics, turned = (heads.Statistics.of(phi, label_B, 4) for phi in (phi_BF, phi_BF @ turn_FF))
    reference_BF = (phi_BF.double() - statistics.mean_F) @ statistics.root_FF
    for one, other, w_KP in (
        (frames.ClassFrame(statistics), frames.ClassFrame(turned), heads.discriminant(statistics)),
        (
            frames.Rotated.onto(phi_BF, statistics, reference_BF),
            frames.Rotated.onto(phi_BF @ turn_FF, turned, reference_BF),
            torch.randn(4, 7, generator=torch.Generator().manual_seed(2)),
        ),
    ):
        theta_1D = one.encode(w_KP[None])
        wanted_BK = probabilities(load, phi_BF, w_KP)
        torch.testing.assert_close(
            probabilities(load, phi_BF, one.decode(theta_1D)[0]), wanted_BK, atol=1e-4, rtol=1e-3
        )
        carried_KP = other.decode(theta_1D)[0]
        torch.testing.assert_close(probabilities(load, phi_BF @ turn_FF, carried_KP), wanted_BK, atol=1e-4, rtol=1e-3)


def test_closed_forms_are_those_of_scikit_learn(load: Load) -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    heads = load("pays_heads")
    phi_BF, label_B = features()
    oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(phi_BF.double().numpy(), label_B.numpy())
    wanted_BK = torch.from_numpy(oracle.predict_proba(phi_BF.double().numpy())).float()
    found_KP = heads.discriminant(heads.Statistics.of(phi_BF, label_B, 4))
    assert (probabilities(load, phi_BF, found_KP) - wanted_BK).abs().mean() < 0.01  # ours is a little shrunk


def test_logistic_regression_goes_below_the_discriminant(load: Load) -> None:
    heads = load("pays_heads")
    phi_BF, label_B = features()
    phi_BF = phi_BF + 0.3 * phi_BF.square()  # no longer normal
    statistics = heads.Statistics.of(phi_BF, label_B, 4)
    start_KP = heads.discriminant(statistics)
    fitted_KP = heads.logistic(phi_BF, label_B, start_KP, statistics, 1e-5, 50)
    loss = [F.cross_entropy(heads.logits(phi_BF, w_KP[None])[0], label_B).item() for w_KP in (start_KP, fitted_KP)]
    assert loss[1] < loss[0] - 0.01


def test_residuals_of_the_regression_are_of_rows_left_out(load: Load) -> None:
    frames = load("pays_frames")
    stream = torch.Generator().manual_seed(0)
    x_TG = torch.randn(12, 3, generator=stream).double()
    y_TD = x_TG @ torch.randn(3, 2, generator=stream).double() + 0.1 * torch.randn(12, 2, generator=stream).double()
    predict, left_TD = frames.regression(x_TG, y_TD)
    x = (x_TG - x_TG.mean(0)) / x_TG.std(0)
    y = y_TD - y_TD.mean(0)
    errors = {}
    for penalty in frames.RIDGES.tolist():
        rows = []
        for t in range(12):
            others = torch.arange(12) != t
            gram = x[others].T @ x[others] + penalty * torch.eye(3).double()
            rows.append(y[t] - x[t] @ torch.linalg.solve(gram, x[others].T @ y[others]))
        errors[penalty] = torch.stack(rows)
    best = min(errors.values(), key=lambda error: error.square().mean().item())
    torch.testing.assert_close(left_TD, best.float(), atol=1e-5, rtol=1e-4)
    assert (predict(x_TG) - y_TD).abs().mean() < 0.2


def test_the_hypernetwork_does_not_know_the_order_of_features(load: Load) -> None:
    network = load("pays_hypernetwork").Hypernetwork(3, 8)
    torch.nn.init.normal_(network.leave.weight)
    x_TKPI = torch.randn(1, 4, 6, 3)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(network(x_TKPI[:, :, order]), network(x_TKPI)[:, :, order])


def test_random_combinations(load: Load) -> None:
    common = load("pays_common")
    theta_SD = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    near_MD = common.smoothed(theta_SD, 0, 0.01, 40)
    assert torch.cdist(near_MD, theta_SD).amin(1).median() < 0.1  # nearly all weight on one
    many_MD = common.gaussian(theta_SD, 0, 20000)
    torch.testing.assert_close(many_MD.T.cov(), theta_SD.T.cov(), atol=0.1, rtol=0.1)


def test_the_generator_is_the_projects(load: Load, run: Run) -> None:
    common = load("pays_common")
    subset = Subset(("head",), ((9,),), ("float32",))
    theta_SD = torch.randn(8, 9, generator=torch.Generator().manual_seed(0))
    generator = common.generator_of(subset, theta_SD, range(8), run)
    assert isinstance(generator, Generator) and common.sampled(generator, run, 20).shape == (20, 9)
    fit, more = (common.fit_cost(generator, run, 8, count) for count in (0, 64))
    assert 0 < fit < more


def test_log_has_the_tables_as_they_were_measured(load: Load) -> None:
    pays, log = load("generator_pays"), (ROOT / "docs" / "log.md").read_text()
    for lines in pays.tables(json.loads((ROOT / pays.RESULT).read_text())).values():
        for line in lines.splitlines():
            assert line in log, line
