"""Chains that start anew do so also where the classifier loads trained weights, or the dry run says why not."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from bend_ray import seeds
from bend_ray.config import Config
from bend_ray.errors import ModelError
from bend_ray.models.subset import choose
from bend_ray.run import Run
from bend_ray.snapshots import chains
from bend_ray.stages import pipeline
from bend_ray.store.folders import Folder
from conftest import changed
from test_training_resume import data


class Loaded(nn.Module):
    """A body with "trained" weights, the same whatever the seed; a head that is new unless ``head`` is loaded, too."""

    def __init__(self, head: bool = False, weight_normed: bool = False, table: bool = False) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 10)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        if table:
            self.table = nn.Parameter(torch.linspace(0, 1, 16))
        if weight_normed:
            self.body = weight_norm(self.body)
        stream = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, value in self.named_parameters():
                if not name.startswith("head") or head:
                    value.copy_(torch.randn(value.shape, generator=stream))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.body(x.flatten(1)))
        x = x + self.attention(x[:, None], x[:, None], x[:, None], need_weights=False)[0][:, 0]
        return self.head(x + self.table if hasattr(self, "table") else x)


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_loaded", SimpleNamespace(Loaded=Loaded))


def config(subset: str = "regex:.", **kwargs: Any) -> Config:
    own = {"name": None, "target": "own_loaded:Loaded", "kwargs": kwargs}
    return changed(classifier=own, collect={"init": "fresh", "subset": subset})


def starts(of: Config, numbers: range) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of each name what these chains start with, and what the module has."""
    run = Run(of, loaded=data())
    module = run.spec.build(0)
    subset = choose(module, of.collect.subset)
    return subset.split(chains.starts(module, subset, run, numbers)), subset.split(subset.take(module))


@pytest.mark.parametrize("head", [False, True])
def test_loaded_layers_are_initialised_anew_for_each_chain(head: bool) -> None:
    start, loaded = starts(config(head=head), range(4))
    for name in ("body.weight", "body.bias", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight"):
        assert len({tuple(value.flatten().tolist()) for value in start[name]}) == 4, name
        assert not torch.equal(start[name][0], loaded[name])
    assert (start["norm.weight"] == 1).all() and (start["norm.bias"] == 0).all()  # as norms are initialised
    assert start["body.weight"].abs().max() <= 1 / 8  # Linear's own bound, for 64 inputs
    again, _ = starts(config(head=head), range(2, 3))
    assert all(torch.equal(again[name][0], start[name][2]) for name in start)  # whoever trains it


def test_what_is_new_with_each_seed_is_left_as_it_is_made() -> None:
    start, _ = starts(config(), range(3))
    run = Run(config(), loaded=data())
    made = run.spec.build(seeds.seed_for(run.seed, "chain", 2, "init"))
    assert torch.equal(start["head.weight"][2], made.get_parameter("head.weight"))


@pytest.mark.parametrize("name", ["convnet", "mlp", "resnet18", "vit_tiny"])
def test_built_in_classifiers_are_as_they_are_built(name: str) -> None:
    small: dict[str, Any] = {"vit_tiny": {"width": 8, "depth": 1, "heads": 2}, "mlp": {}}
    kwargs = small.get(name, {"width": 4})
    of = changed(classifier={"name": name, "kwargs": kwargs}, collect={"init": "fresh", "subset": "regex:."})
    start, _ = starts(of, range(1, 2))
    made = dict(Run(of, loaded=data()).spec.build(seeds.seed_for(0, "chain", 1, "init")).named_parameters())
    assert all(torch.equal(value[0], made[key].detach()) for key, value in start.items())


@pytest.mark.parametrize(
    ("kwargs", "name"), [({"table": True}, "table"), ({"weight_normed": True}, r"body\.parametrizations\.weight\.orig")]
)
def test_what_has_no_rule_is_refused_in_the_dry_run(tmp_path: Path, kwargs: dict[str, Any], name: str) -> None:
    with pytest.raises(ModelError, match=rf"collect\.init: fresh: parameter '{name}.* same values whatever the seed"):
        pipeline.dry_run(Run(config(**kwargs), Folder(tmp_path), loaded=data()), ())
    start, _ = starts(config(r"regex:^(head|norm)", **kwargs), range(2))  # left out, it is no matter
    assert not torch.equal(*start["head.weight"])
