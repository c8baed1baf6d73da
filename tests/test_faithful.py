"""Members follow the parameters that are put into them, or the classifier is refused by name before any work."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import odd_networks as odd
from bend_ray import seeds
from bend_ray.data.datasets import load_dataset
from bend_ray.errors import ModelError
from bend_ray.models import base as bases
from bend_ray.models import faithful
from bend_ray.models.partition import partition, unpartitioned
from bend_ray.models.subset import Subset, choose
from bend_ray.models.trunk import SharedTrunk
from bend_ray.run import Run
from bend_ray.store.folders import Folder
from conftest import changed

Make = Callable[[], nn.Module]

FOLLOWED: dict[str, Make] = {
    "weight norm": odd.WeightNorm,
    "weight norm of before": partial(odd.WeightNorm, old=True),
    "spectral norm": odd.SpectralNorm,
    "pruned": odd.Pruned,
    "hypernetwork": odd.Hypernetwork,
    "spiking": odd.Spiking,
    "neural ODE": odd.NeuralODE,
    "experts by rows": odd.Experts,
    "experts by values": partial(odd.Experts, by_index=False),
    "flow": partial(odd.Flow, in_buffers=True),
    "complex": odd.Complex,
    "recurrent": odd.Recurrent,
    "quantised, observers off": partial(odd.Quantised, observes=False),
    "cache that train() drops": odd.CacheAtFirstUse,
    "bfloat16 inside": odd.HalfInside,
}
LEFT_BEHIND: tuple[Make, ...] = (odd.InList, odd.InClosure, odd.SharedMemory, odd.FilterAtEval)

X = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def made(kind: Make, seed: int = 0) -> nn.Module:
    with seeds.seeded(seed, "made"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of the weight norm of before
        return kind().eval()


def cut_of(module: nn.Module, spec: str) -> SharedTrunk:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what cannot be exported, and of tensors that it assigns
        return partition(module, choose(module, spec), torch.zeros(2, 1, 8, 8))


def looped(kind: Make, subset: Subset, theta_MD: Tensor) -> Tensor:
    """Each member as a network of its own."""
    logits = []
    for theta_D in theta_MD:
        module = made(kind)
        subset.put(module, theta_D)
        module.train()
        logits.append(module.eval()(X))
    return torch.stack(logits)


@pytest.mark.parametrize("name", FOLLOWED)
@torch.no_grad()
def test_networks_of_other_fields_are_followed(name: str) -> None:
    kind = FOLLOWED[name]
    module = made(kind)
    cut = cut_of(module, r"regex:^(?!body|low|mix)")
    faithful.check(module, cut, partial(made, kind), X)
    draws = torch.Generator().manual_seed(1)
    theta_MD = cut.subset.take(module) * (0.5 + torch.rand(3, cut.subset.D, generator=draws))
    members, loop = cut.logits(theta_MD, X), looped(kind, cut.subset, theta_MD)
    assert (members - loop).abs().max() <= faithful.tolerance(module) * loop.abs().max()


@pytest.mark.parametrize("kind", LEFT_BEHIND)
def test_a_tensor_that_is_read_somewhere_else_is_refused_by_name(kind: Make) -> None:
    module = made(kind)
    with pytest.raises(
        ModelError, match=r"collect\.subset: the classifier does not follow 'weight': it reads"
    ) as error:
        faithful.check(module, cut_of(module, "regex:."), partial(made, kind), X)
    assert "body" not in str(error.value) and "leave it out" in str(error.value)
    module = made(kind)
    faithful.check(module, cut_of(module, "head"), partial(made, kind), X)


def test_a_cache_is_dropped_before_a_cut_and_refused_where_members_run_the_whole() -> None:
    module = made(odd.CacheAtFirstUse)
    module(X)  # what is cached now must not get into the cut
    faithful.check(module, cut_of(module, "regex:."), partial(made, odd.CacheAtFirstUse), X)
    with pytest.raises(ModelError, match=r"does not follow 'weight': it reads"):
        whole = unpartitioned(module, choose(module, "regex:."))
        faithful.check(module, whole, partial(made, odd.CacheAtFirstUse), X)


def test_every_such_tensor_is_named() -> None:
    def kind() -> nn.Module:
        return nn.Sequential(odd.InList(), odd.Square(), odd.InList(odd.CLASSES))

    module = made(kind)
    with pytest.raises(ModelError, match=r"does not follow '0\.weight', '2\.weight':"):
        faithful.check(module, cut_of(module, "regex:."), partial(made, kind), X)


def test_one_that_hides_behind_zeros_is_not_let_through() -> None:
    def kind() -> nn.Module:
        return odd.Gated(odd.InList())

    module = made(kind)
    with pytest.raises(ModelError, match=r"does not follow .*inner\.weight'"):
        faithful.check(module, cut_of(module, "regex:."), partial(made, kind), X)


def test_what_a_cut_gives_unmoved_is_compared_too() -> None:
    """A state that is kept between calls: the second pass answers by the first."""
    kind = partial(odd.Spiking, keeps=True)
    module = made(kind)
    with pytest.raises(ModelError, match=r"the classifier, taken apart for its members \(whole model\), gives other"):
        faithful.check(module, cut_of(module, "head"), partial(made, kind), X)


def test_a_check_leaves_parameters_and_buffers_as_they_are() -> None:
    module = made(odd.WeightNorm)
    before = faithful.values_of(module)
    faithful.check(module, cut_of(module, "regex:."), partial(made, odd.WeightNorm), X)
    assert faithful.changes(before, module) == []


def test_a_buffer_that_learns_in_eval_mode_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"'fake\.\w+' changes as it answers in eval mode.*disable_observer"):
        faithful.check_still(made(odd.Quantised), X)
    for kind in (partial(odd.Quantised, observes=False), odd.SpectralNorm, odd.FilterAtEval):
        faithful.check_still(made(kind), X)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(odd.PlainStatistics, "mean"), (odd.PlainProjection, "projection"), (odd.CacheForEver, "cache")],
)
def test_what_no_file_holds_is_refused_by_name(kind: Make, name: str) -> None:
    module, other = made(kind), made(kind, seed=1)
    for one in (module, other):
        one(X)  # a cache is then worked out
    module.train()(X + 1)
    module.eval()
    with pytest.raises(ModelError, match=rf"read back from its parameters and buffers.*holds \({name}\)"):
        faithful.check_read_back(module, other, X)


@pytest.mark.parametrize("kind", [odd.FilterAtEval, odd.CacheAtFirstUse, odd.WeightNorm, odd.SpectralNorm])
def test_what_is_worked_out_of_parameters_is_read_back(kind: Make) -> None:
    faithful.check_read_back(made(kind), made(kind, seed=1), X)


def test_a_saved_network_with_a_filter_of_eval_mode_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = changed(classifier={"name": None, "kwargs": {}, "target": "odd_networks:FilterAtEval"})
    run, folder = Run(config, loaded=load_dataset(config.data, 0)), Folder(tmp_path)
    module = run.spec.build(seed=3)
    bases.save(folder, module)
    with torch.no_grad():
        assert torch.equal(bases.load(folder, run.spec)(X), module(X))


def test_moves_keep_signs_and_move_all() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    subset = choose(module, "regex:.")
    theta_D = subset.take(module)
    moved_D = faithful._moved(subset, theta_D)
    assert (moved_D != theta_D).all() and (moved_D * theta_D >= 0).all()


def test_differences_are_relative_and_nothing_finite_is_passed_over() -> None:
    one, inf = torch.tensor([[10.0, 1.0]]), torch.inf
    assert faithful.difference(one, one) == 0
    assert faithful.difference(one + 1, one) == pytest.approx(0.1)
    assert faithful.difference(torch.tensor([[inf, 1.0]]), one) == inf
    assert faithful.difference(torch.full((1, 2), torch.nan), torch.full((1, 2), torch.nan)) == 0
