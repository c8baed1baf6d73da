"""Symmetry: permutations of hidden units are found in every network, and leave every function as it is."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from align_networks import EVERYTHING, IMAGE, found, inverse, made, of, shuffled
from bend_ray.alignment.symmetry import Symmetry
from bend_ray.models.output import logits
from bend_ray.models.subset import Subset


@torch.no_grad()
def logits_of(module: nn.Module, subset: Subset, theta_D: Tensor) -> Tensor:
    before_D, x = subset.take(module), torch.randn(6, *IMAGE, generator=torch.Generator().manual_seed(3))
    subset.put(module, theta_D)
    logits_BK = logits(module(x))
    subset.put(module, before_D)
    return logits_BK


def exact(module: nn.Module, symmetry: Symmetry) -> None:
    """Each group alone and all together move parameters and leave the logits."""
    subset, theta_D = symmetry.subset, symmetry.subset.take(module)
    expected_BK = logits_of(module, subset, theta_D)
    every = shuffled(symmetry)
    still = [torch.arange(group.size) for group in symmetry.groups]
    for moves in [every, *([*still[:g], p.roll(1), *still[g + 1 :]] for g, p in enumerate(still))]:
        moved_D = symmetry.permuted(theta_D, moves)
        assert not symmetry.groups or (moved_D != theta_D).any()
        found_BK = logits_of(module, subset, moved_D)
        assert (found_BK - expected_BK).norm() < 1e-5 * expected_BK.norm()
        assert (found_BK - expected_BK.flip(1)).norm() > 1e-2 * expected_BK.norm()


BUILT_IN = [(model, spec) for model in ("mlp", "convnet") for spec in ("head", "norm", "norm+head")]
GROUPS: dict[tuple[str, str], list[int]] = {
    **dict.fromkeys(BUILT_IN, []),
    ("mlp", "last_block"): [12],
    ("mlp", EVERYTHING): [12, 12],
    ("convnet", "last_block"): [16],
    ("convnet", EVERYTHING): [4, 8, 16],
    ("resnet18", "norm+head"): [],
    ("resnet18", "last_block"): [32],
    # The residual stream of each stage, and what lies within its blocks.
    ("resnet18", EVERYTHING): [4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32],
    ("resnet18", r"regex:stages\.1|stages\.2\.0"): [8, 8, 8, 16],
    ("resnet34", "last_block"): [32],
    ("resnet34", EVERYTHING): [4] * 4 + [8] * 5 + [16] * 7 + [32] * 4,
    # The residual stream; in each block heads, what lies within all of them alike, the hidden layer.
    ("vit_tiny", EVERYTHING): [12, 3, 4, 48, 3, 4, 48],
    ("vit_tiny", "last_block"): [3, 4, 48],
    ("vit_tiny", "norm+head"): [],
    ("Flattened", EVERYTHING): [6, 10],
    ("Flattened", "last_block"): [10],
    ("ResidualMLP", EVERYTHING): [8, 12, 12],
    ("ResidualMLP", r"regex:blocks\.1\.[14]"): [12],
    ("Grouped", EVERYTHING): [4, 2, 3],  # groups, and within all of them alike
    # The residual stream; heads, what lies within all of them alike; the hidden layer.
    ("Attention", EVERYTHING): [12, 3, 4, 2, 6, 16],
    ("Attention", "regex:self_attn"): [2, 6],
    ("Gated", EVERYTHING): [6, 4],
    ("Assorted", EVERYTHING): [6, 5, 2, 3, 8],
    ("Tied", EVERYTHING): [6],
    ("NormReadElsewhere", EVERYTHING): [],
    ("Cut", EVERYTHING): [],
    ("ViT", EVERYTHING): [16, 2, 8, 8, 24, 2, 8, 8, 24],  # inner axes of queries and keys, and of values
    ("ViT", r"regex:layers\.1\.mlp"): [24],
    ("ResNet", EVERYTHING): [8, 8, 16, 16],
    ("ConvNext", EVERYTHING): [4, 16, 8, 32],
}


@pytest.mark.parametrize(("model", "spec"), GROUPS)
def test_groups_are_found_and_are_exact(model: str, spec: str) -> None:
    symmetry = found(model, spec)
    sizes = sorted(GROUPS[model, spec])
    assert sorted(group.size for group in symmetry.groups) == sizes
    exact(made(model), symmetry)


def test_every_place_of_a_group() -> None:
    (group,) = found("convnet", "last_block").groups
    places = [(a.name, a.axis, a.outer, a.inner) for a in group.axes]
    norm = [("block3.norm.weight", 0, 1, 1), ("block3.norm.bias", 0, 1, 1)]
    assert places == [("block3.conv.weight", 0, 1, 8 * 9), *norm, ("head.weight", 1, 5, 1)]
    assert [(n.weight, n.bias) for n in group.norms] == [("block3.norm.weight", "block3.norm.bias")]
    channels, _ = found("Flattened", EVERYTHING).groups
    assert [(a.name, a.outer, a.inner) for a in channels.axes][-1] == ("body.weight", 10, 16)
    heads, _ = found("Attention", "regex:self_attn").groups
    assert [(a.name, a.axis, a.outer, a.inner) for a in heads.axes] == [
        ("layer.self_attn.in_proj_weight", 0, 3, 6 * 12),
        ("layer.self_attn.in_proj_bias", 0, 3, 6),
        ("layer.self_attn.out_proj.weight", 1, 12, 6),
    ]


@pytest.mark.parametrize(
    ("model", "spec", "why"),
    [
        ("mlp", "head", r"^axis 1 of head\.weight: it meets blocks\.1\.linear\.weight, which all members share$"),
        ("vit_tiny", "norm+head", r"axis 1 of head\.weight: it meets token, which all members share$"),
        ("convnet", "norm", r"^axis 0 of block1\.norm\.weight, .*: it meets block1\.conv\.weight, which all members"),
        ("NormReadElsewhere", EVERYTHING, r"axis 0 of norm\.weight, .*: it meets norm\.running_mean, which all"),
        (
            "Cumulated",
            EVERYTHING,
            r"^axis 0 of body.weight, axis 0 of body.bias, axis 1 of head.weight:"
            r" it meets aten\.cumsum\.default, an operation without a rule$",
        ),
        ("Cut", EVERYTHING, r"^axis 0 of second\.weight.*: it is cut unevenly$"),
        ("Cut", EVERYTHING, r"axis 0 of threes\.weight.*axis 0 of twos\.weight.*: its units are counted in two ways"),
        ("Cut", EVERYTHING, r"axis 0 of both\.weight.*: it meets aten\.unflatten\.int"),
        ("Cut", EVERYTHING, r"axis 1 of head\.weight: it is joined to others$"),
        ("Branching", EVERYTHING, r"^torch\.export cannot read this classifier: .*data-dependent"),
    ],
)
def test_what_is_left_is_said(model: str, spec: str, why: str) -> None:
    symmetry = found(model, spec)
    assert [said for said in symmetry.left if re.search(why, said)], symmetry.left
    assert [group.size for group in symmetry.groups] == ([7] if model == "Cumulated" else [])
    exact(made(model), symmetry)


def test_nothing_is_left_of_a_network_that_is_all_in_the_subset() -> None:
    for model in ("mlp", "resnet18", "vit_tiny", "Attention", "ViT"):
        assert found(model, EVERYTHING).left == ()


def test_statistics_of_the_subset_move_along() -> None:
    module = made("convnet")
    names = [
        f"block3.{n}" for n in ("conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    ]
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names.append("head.weight")
    subset = Subset(tuple(names), tuple(tuple(tensors[n].shape) for n in names), ("float32",) * len(names))
    symmetry = Symmetry.of(module, subset, torch.zeros(2, *IMAGE))
    (group,) = symmetry.groups
    assert {axis.name for axis in group.axes} == set(names) and group.norms == ()
    exact(module, symmetry)


class Drawn(nn.Module):
    """Layers in any order, each adding to what came before where it says so."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.kinds = kinds
        norms: dict[str, Callable[[], nn.Module]] = {
            "norm": lambda: nn.LayerNorm(8),
            "batch norm": lambda: nn.BatchNorm1d(8),
            "group norm": lambda: nn.GroupNorm(2, 8),
            "relu": lambda: nn.ReLU(inplace=True),
        }
        self.first = nn.Linear(64, 8)
        self.layers = nn.ModuleList([norms.get(kind, lambda: nn.Linear(8, 8))() for kind in kinds])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = x = self.first(x.flatten(1))
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            if kind == "residual":
                x = x.clone()
                x += layer(start)
            elif kind == "product":
                x = x * torch.sigmoid(layer(x))
            elif kind == "heads":
                x = layer(x).unflatten(-1, (4, 2)).transpose(1, 2).mul(2).transpose(1, 2).flatten(1)
            elif kind == "transposed":
                x = layer(x).unflatten(-1, (4, 2)).transpose(1, 2).flatten(1)
            elif kind == "parts":
                a, b = layer(x).chunk(2, -1)
                x = torch.stack([a, b], -1).flatten(1)
            else:
                x = layer(x)
        return self.head(x)


KINDS = ["linear", "norm", "batch norm", "group norm", "relu", "residual", "product", "heads", "transposed", "parts"]


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_parameters_of_any_network(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Drawn(kinds).eval()
        for name, tensor in module.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                tensor.data += torch.rand_like(tensor) if "var" in name else 0.3 * torch.randn_like(tensor)
    names = [name for name, _ in module.named_parameters()]
    frozen = data.draw(st.sets(st.sampled_from(names), max_size=2))
    symmetry = of(module, ",".join(sorted(set(names) - frozen)))
    exact(module, symmetry)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), model=st.sampled_from(["mlp", "convnet", "Grouped", "Attention", "Tied"]))
def test_the_inverse_undoes(seed: int, model: str) -> None:
    symmetry = found(model, EVERYTHING)
    theta_D = torch.randn(symmetry.subset.D, generator=torch.Generator().manual_seed(seed))
    moves = shuffled(symmetry, seed)
    # Groups that share an axis commute; batch norms round.
    back_D = symmetry.permuted(symmetry.permuted(theta_D, moves), inverse(moves))
    torch.testing.assert_close(back_D, theta_D, atol=1e-5, rtol=1e-5)
    if model in ("mlp", "Grouped", "Attention"):
        assert torch.equal(back_D, theta_D)


@pytest.mark.parametrize("model", ["convnet", "resnet18", "Attention", "Flattened"])
def test_permuted_works_row_by_row_and_the_identity_keeps_bits(model: str) -> None:
    symmetry = found(model, EVERYTHING)
    theta_SD = torch.randn(3, symmetry.subset.D, generator=torch.Generator().manual_seed(0))
    moves = shuffled(symmetry)
    moved_SD = symmetry.permuted(theta_SD, moves)
    for theta_D, moved_D in zip(theta_SD, moved_SD, strict=True):
        assert torch.equal(symmetry.permuted(theta_D, moves), moved_D)
    still = [torch.arange(group.size) for group in symmetry.groups]
    assert torch.equal(symmetry.permuted(theta_SD, still), theta_SD)
    assert moved_SD.dtype == torch.float32
