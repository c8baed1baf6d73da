"""Several trunks: members on networks of their own, each of which runs once, say what whole models say."""

import dataclasses
import functools

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bend_ray.config import Ensemble as Settings
from bend_ray.ensemble import early, plan, select
from bend_ray.ensemble.aggregate import aggregate
from bend_ray.ensemble.ensemble import Ensemble, trunks_of_members
from bend_ray.errors import ArtifactError, ConfigError, ModelError
from bend_ray.generator.baselines import on_trunks
from bend_ray.generator.centres import Centres, off, put_back
from bend_ray.models.partition import partition
from bend_ray.models.subset import choose
from bend_ray.models.trunks import SharedTrunks
from conftest import changed
from oracles import logits_of_whole_models
from serving_helpers import ensemble
from trunk_networks import MAKE, PLANS, images, lively, same

TRUNK_M = torch.tensor([2, 0, 1, 1, 0, 2, 2, 2, 0])
"""Of nine members, in no order."""


@functools.cache
def several(model: str, spec: str) -> tuple[SharedTrunks, Tensor, Tensor]:
    """Three networks cut at ``spec``, nine members on them, and what whole models say of seven rows."""
    modules = []
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = lively(MAKE[model]())
            for value in module.parameters():
                value.data += 0.2 * torch.randn(value.shape)
            modules.append(module)
    subset, x = choose(modules[0], spec), images(7)
    noise_MD = 0.3 * torch.randn(len(TRUNK_M), subset.D, generator=torch.Generator().manual_seed(2))
    theta_MD = torch.stack([subset.take(modules[t]) for t in TRUNK_M]) + noise_MD
    expected = [logits_of_whole_models(modules[t], subset, theta_MD[[m]], x) for m, t in enumerate(TRUNK_M)]
    cut = tuple(partition(module, subset, images(2)) for module in modules)
    return SharedTrunks(cut, TRUNK_M), theta_MD, torch.cat(expected)


@pytest.mark.parametrize(("model", "spec"), [("convnet", "head"), ("convnet", "norm+head"), ("vit", "last_block")])
@pytest.mark.parametrize("chunk", [1, 2, 16])
def test_logits_are_those_of_each_members_own_network(model: str, spec: str, chunk: int) -> None:
    trunks, theta_MD, expected_MBK = several(model, spec)
    for way in PLANS:
        planned = trunks.changed(functools.partial(dataclasses.replace, plan=way, chunk=chunk))
        same(planned.logits(theta_MD, images(7)), expected_MBK)
        parts = list(planned.chunks(theta_MD, images(7)))
        assert [len(part) for part in parts[:-1]] == [3 * chunk] * (len(parts) - 1)
    assert (expected_MBK[0] - expected_MBK[5]).abs().max() > 1e-2  # members differ, and so do networks
    same(trunks.pick([6, 2]).logits(theta_MD[[6, 2]], images(7)), expected_MBK[[6, 2]])


def test_each_trunk_in_use_runs_once() -> None:
    trunks, theta_MD, _ = several("convnet", "head")
    one, tail = trunks.flops(theta_MD[0], images(7))

    def counted(trunks: SharedTrunks, theta_MD: Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            trunks.logits(theta_MD, images(7))
        return int(counter.get_total_flops())

    assert counted(trunks, theta_MD) == 3 * one + 9 * tail and one > 100 * tail
    few = [2, 3, 4]  # none of trunk 2
    assert trunks.pick(few).used == [0, 1] and counted(trunks.pick(few), theta_MD[few]) == 2 * one + 3 * tail


@pytest.mark.parametrize(("strategy", "error"), [("sbend", 0.0), ("abend", 0.0), ("abend", 0.2)])
def test_rows_that_stop_early_get_the_labels_of_all_members(strategy: str, error: float) -> None:
    trunks, theta_MD, expected_MBK = several("convnet", "norm+head")
    stopped = early.predict(trunks, theta_MD, images(7), strategy, error)
    assert torch.equal(stopped.label_B, aggregate(expected_MBK, strategy).label_B)
    assert stopped.members_B.max() <= 9
    sure_MD = torch.stack([theta_MD[m] * (5 if t == 0 else 0.01) for m, t in enumerate(TRUNK_M)])
    early.predict(trunks, sure_MD, images(7), strategy, error)  # rows go on apart, and no error


def test_a_measured_plan_says_the_same() -> None:
    trunks, theta_MD, expected_MBK = several("convnet", "head")
    measured = plan.chosen(trunks, Settings(plan="measured"), theta_MD, images(7))
    assert isinstance(measured, SharedTrunks) and len({one.plan for one in measured.trunks}) == 1
    same(measured.logits(theta_MD, images(7)), expected_MBK)


def test_as_many_trunks_as_members_must_be_named() -> None:
    trunks, theta_MD, _ = several("convnet", "head")
    with pytest.raises(ModelError, match="8 members given where trunks are named for 9"):
        trunks.logits(theta_MD[:8], images(7))
    with pytest.raises(ModelError, match="expected"):
        trunks.logits(theta_MD[0], images(7))


def test_an_ensemble_on_several_trunks_votes_and_selects_by_member() -> None:
    trunks, theta_MD, _ = several("convnet", "head")
    spec = dataclasses.replace(ensemble().spec, class_names=("a", "b", "c", "d", "e"))
    made = Ensemble(spec, trunks.subset, theta_MD, trunks, ensemble().manifest, Settings())
    rows = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits_MBK = made.logits(rows)
    assert torch.equal(made.tally(rows).label_MB, logits_MBK.argmax(-1).int())  # in the members' order
    found, expected = made.predict(rows), aggregate(logits_MBK, "abend")
    assert torch.equal(found.vote_BK, expected.vote_BK)
    torch.testing.assert_close(found.prob_BK, expected.prob_BK)
    label_B = logits_MBK[5].argmax(-1)  # the truth is what one member says
    best = made.select(rows, label_B, 2, "best")
    assert best.members == 2 and made.trunks == 3
    same(best.logits(rows), logits_MBK[select.best(logits_MBK, label_B, 2)])
    greedy = made.select(rows, label_B, 4)
    same(greedy.logits(rows), torch.cat([logits_MBK[(made.theta_MD == one).all(1)][:1] for one in greedy.theta_MD]))


@pytest.mark.parametrize("given", ["0", [0, 1], [0, -1, 1], [0, 1.0, 1], [0, True, 1], {}])
def test_what_names_no_trunks_is_refused(given: object) -> None:
    with pytest.raises(ArtifactError, match=r"here: trunk_of_member is no list of 3 numbers of trunks"):
        trunks_of_members({"trunk_of_member": given}, 3, "here")
    assert trunks_of_members({}, 3, "here") is None


# --- what belongs to a trunk


def test_centres_are_those_of_the_snapshots_that_were_seen() -> None:
    from bend_ray.models.subset import Subset
    from bend_ray.snapshots.snapshots import InMemorySnapshots

    subset = Subset(("a", "b"), ((3,), (2, 2)), ("float32", "float32"))
    theta_XD, trunk_X = torch.randn(7, 7), torch.tensor([0, 1, 0, 1, 1, 0, 1])
    stream = InMemorySnapshots(subset, theta_XD)
    centres = Centres.of(stream, trunk_X[:5], 2)
    torch.testing.assert_close(centres.centre_TD, torch.stack([theta_XD[[0, 2]].mean(0), theta_XD[[1, 3, 4]].mean(0)]))
    less_XD = off(centres, theta_XD, trunk_X)
    torch.testing.assert_close(put_back(centres, less_XD, trunk_X), theta_XD)
    for streamed in (stream, lambda: stream()):  # in memory, and from a file
        assert torch.equal(torch.cat([part for _, part in centres.off_stream(streamed, trunk_X)()], dim=1), less_XD)
    again = Centres.read(centres.state(), 2, 5, 7)
    assert again is not None and torch.equal(again.centre_TD, centres.centre_TD)
    assert Centres.read({}, 1, 5, 7) is None and off(None, theta_XD, trunk_X) is theta_XD
    for wrong in ({"centre_TD": theta_XD[:1]}, {"trunk_S": torch.tensor([0, 1, 2, 0, 0])}):
        with pytest.raises(ValueError, match=r"centre_TD is|trunk_S holds"):
            Centres.read(centres.state() | wrong, 2, 5, 7)


def test_baselines_of_several_trunks_are_each_trunks_own() -> None:
    def numbered(trunk: int, ids: list[int], seed: int) -> Tensor:
        return torch.tensor([[trunk, i, seed % 1000] for i in ids])

    samplers = [{"one": functools.partial(numbered, trunk)} for trunk in range(3)]
    found = on_trunks(samplers)["one"]([0, 1, 2, 3, 7, 5], 0)  # type: ignore[arg-type]  # a sampler with one more argument
    assert found[:, :2].tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 2], [2, 1]]
    assert len(set(found[:, 2].tolist())) == 3  # no two trunks draw the same noise


# --- the configuration

EACH: dict[str, dict[str, object]] = {"base": {"cycles": 2}, "collect": {"trunk": "each", "chains": 8, "held_out": 2}}


def test_each_counts_its_trunks() -> None:
    config = changed(**EACH)
    assert config.trunks == 3
    assert changed(base={"cycles": 2}).trunks == changed(base={"cycles": 2}, collect={"trunk": "average"}).trunks == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": {"cycles": 0}}, r"collect\.trunk: each is .* base\.cycles is 0; give 1 or more"),
        (
            {"collect": {"chains": 7}},
            r"collect\.chains: 5 chains .* fewer than 2 for each of 3 trunks .* give 8 or more",
        ),
        ({"sample": {"members": 2}}, r"sample\.members: 2 is fewer than one for each of 3 trunks"),
        (
            {"collect": {"init": "fresh"}},
            r"collect\.align: .* give false, or do without several trunks \(collect\.trunk: each\)",
        ),
        ({"search": {"trials": 2}}, r"search\.trials: a search knows one trunk alone"),
        ({"sample": {"reestimate_batch_norm": 1}}, r"sample\.reestimate_batch_norm: is for members of one trunk"),
        ({"diffusion": {"condition": ["chain"]}}, r"diffusion\.condition: a chain is of one trunk"),
    ],
)
def test_what_does_not_go_with_several_trunks_is_said(changes: dict[str, dict[str, object]], said: str) -> None:
    keys = {name: EACH.get(name, {}) | changes.get(name, {}) for name in EACH.keys() | changes.keys()}
    with pytest.raises(ConfigError, match=said) as refused:
        changed(**keys)
    assert "\n" not in str(refused.value)
