"""Alignment: permutations of hidden units leave every function as it is, and bring networks back into one mode."""

import functools
import itertools
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray.config import Classifier
from bend_ray.data.classifiers import build, logits
from bend_ray.ensemble.graph import Graph, export
from bend_ray.errors import ModelError
from bend_ray.weights.align import align, match
from bend_ray.weights.subset import Subset, choose
from bend_ray.weights.symmetry import Symmetry

IMAGE = (1, 8, 8)
EVERYTHING = "regex:."


def built_in(name: str, **kwargs: Any) -> nn.Module:
    return build(Classifier(name=name, kwargs=kwargs), 5, 1, 8, seed=0)


class Flattened(nn.Module):
    """Channels times pixels become the inputs of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.body = nn.Linear(6 * 16, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.body(self.pool(F.silu(self.conv(x))).flatten(1))))


class ResidualMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 12), nn.Hardtanh(), nn.Dropout(0.1), nn.Linear(12, 8))
            for _ in range(2)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Grouped(nn.Module):
    """A depthwise convolution, a grouped one with two inputs and three outputs a group, group norm, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.act = nn.PReLU(8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.norm = nn.GroupNorm(4, 12)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.grouped(self.act(self.depthwise(self.stem(x)))))).amax((2, 3))


class Attention(nn.Module):
    """Both ways of torch's own attention, rows of the image as tokens, a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 12)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x[:, 0])], 1)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.layer(x)[:, 0])


class Gated(nn.Module):
    """A hidden layer in two halves, one the gate of the other; each half of the next is read apart and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 12)
        self.halves = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.body(x.flatten(1)).chunk(2, dim=-1)
        hidden = torch.sigmoid(gate) * value
        return self.head(torch.cat([half(hidden).relu() for half in self.halves], -1))


class Assorted(nn.Module):
    """Operations that the others lack: tokens with positions from a table, products of matrices, halves, pieces."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 6, 3, padding=1, padding_mode="reflect")
        self.position = nn.Embedding(16, 6)
        self.bias = nn.Parameter(torch.randn(9, 6))
        self.register_buffer("places", torch.arange(16))
        self.mix, self.shift = nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.randn(10))
        self.qkv = nn.Linear(5, 18)
        self.out = nn.Linear(6, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.interpolate(self.patch(x), scale_factor=0.25, mode="nearest"), (1, 1, 1, 1))
        x = x.flatten(2).transpose(1, 2) + self.position(self.places) + self.bias[self.places % 9]
        x = F.glu(torch.addmm(self.shift, x.reshape(-1, 6), self.mix).unflatten(0, (-1, 16)))
        q, k, v = self.qkv(x).view(-1, 16, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.baddbmm(torch.zeros(16, 16), q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=0.5)
        mixed = torch.matmul(scores.softmax(-1).unflatten(0, (-1, 2)), v).transpose(1, 2).flatten(2)
        first, second = torch.stack([self.out(mixed), self.out(-mixed)]).relu().sum(2).split(1)
        return self.head((first * second.sigmoid())[0])


class Tied(nn.Module):
    """One matrix and one norm, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 6)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x.flatten(1)))
        return self.head(self.norm(self.second(torch.tanh(self.first(x)))))


class NormReadElsewhere(Tied):
    """A batch norm whose weight is not its own alone cannot take up a move."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x.flatten(1))) * self.norm.weight)


class Cumulated(nn.Module):
    """An operation that units' order matters to, after one layer of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 7)
        self.body = nn.Linear(7, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x.flatten(1)).tanh()).cumsum(-1))


class Branching(Cumulated):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else self.head(self.body(self.stem(x.flatten(1))))


class Cut(nn.Module):
    """Hidden units read by place, in unequal parts, joined to others, counted by threes and by twos."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(64, 6), nn.Linear(64, 8), nn.Linear(64, 3)
        self.threes, self.twos, self.both = nn.Linear(64, 12), nn.Linear(64, 12), nn.Linear(64, 12)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        parts = self.second(x).split([3, 5], -1)
        logits_BK = self.head(torch.cat([self.third(x) * parts[0], parts[1]], -1)) * self.first(x)[:, :1]
        threes, twos = self.threes(x).unflatten(1, (4, 3)), self.twos(x).unflatten(1, (6, 2))
        mixed = threes.transpose(1, 2).flatten(1) * twos.transpose(1, 2).flatten(1)
        both = self.both(x).unflatten(1, (4, 3)).amax(2).sum(1) + self.both(x).unflatten(1, (6, 2)).amax(2).sum(1)
        return logits_BK + mixed.sum(1, keepdim=True) * both[:, None]


MAKE: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: built_in("mlp", hidden=12),
    "convnet": lambda: built_in("convnet", width=4),
    "resnet18": lambda: built_in("resnet18", width=4),
    "resnet34": lambda: built_in("resnet34", width=4),
    "vit_tiny": lambda: built_in("vit_tiny", width=12, depth=2, heads=3),
    **{
        cls.__name__: cls
        for cls in (Flattened, ResidualMLP, Grouped, Attention, Gated, Assorted, Tied, NormReadElsewhere, Cut)
    },
    "Cumulated": Cumulated,
    "Branching": Branching,
}


def transformed(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns of its own dependencies as it loads
        hf = pytest.importorskip("transformers")
        common = {"num_channels": 1, "num_labels": 5}
        configs: dict[str, Callable[[], Any]] = {
            "ViT": lambda: hf.ViTConfig(
                **common, image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=24,
            ),
            "ResNet": lambda: hf.ResNetConfig(
                **common, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
            ),
            "ConvNext": lambda: hf.ConvNextConfig(
                **common, patch_size=2, num_stages=2, depths=[1, 1], hidden_sizes=[4, 8]
            ),
        }  # fmt: skip
        return getattr(hf, f"{name}ForImageClassification")(configs[name]())


@functools.cache
def made(model: str) -> nn.Module:
    """In eval mode, no parameter or statistic at a value that hides a mistake (0 or 1)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MAKE[model]() if model in MAKE else transformed(model)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if "running_var" in name:
            tensor.data.uniform_(0.5, 2, generator=generator)
        elif tensor.is_floating_point():
            tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)
    return module.eval()


def of(module: nn.Module, spec: str) -> Symmetry:
    return Symmetry.of(module, choose(module, spec), torch.zeros(2, *IMAGE))


@functools.cache
def exported(model: str) -> Graph:
    return export(made(model), torch.zeros(2, *IMAGE))


@functools.cache
def found(model: str, spec: str) -> Symmetry:
    with pytest.MonkeyPatch.context() as patch:  # exporting takes most of the time, and knows nothing of subsets
        patch.setattr("bend_ray.weights.symmetry.export", lambda module, example_x: exported(model))
        return of(made(model), spec)


def shuffled(symmetry: Symmetry, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(group.size, generator=generator) for group in symmetry.groups]


def inverse(permutations: list[Tensor]) -> list[Tensor]:
    return [p.argsort() for p in permutations]


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


def distance(symmetry: Symmetry, a_D: Tensor, b_D: Tensor) -> float:
    """What `match` lowers, for a network without batch norms."""
    pairs = zip(symmetry.subset.split(a_D).values(), symmetry.subset.split(b_D).values(), strict=True)
    return sum(float((a - b).square().sum() / b.square().mean()) for a, b in pairs)


RECOVERED = [
    ("mlp", EVERYTHING), ("mlp", "last_block"), ("convnet", EVERYTHING), ("convnet", "last_block"),
    ("resnet18", EVERYTHING), ("Flattened", EVERYTHING), ("ResidualMLP", EVERYTHING), ("Attention", EVERYTHING),
    ("Tied", EVERYTHING), ("Grouped", EVERYTHING), ("ViT", EVERYTHING), ("resnet34", EVERYTHING),
]  # fmt: skip


def copies(symmetry: Symmetry, theta_D: Tensor, C: int, noise: float) -> tuple[Tensor, list[list[Tensor]]]:
    """The network with every tensor noised in proportion, its units then permuted; the first row's are not."""
    generator = torch.Generator().manual_seed(5)
    rms = [value.square().mean().sqrt().expand(value.numel()) for value in symmetry.subset.split(theta_D).values()]
    scale_D = noise * torch.cat(rms)
    noisy_CD = theta_D + scale_D * torch.randn(C, len(theta_D), generator=generator)
    moves = [shuffled(symmetry, seed) for seed in range(C)]
    moves[0] = [torch.arange(group.size) for group in symmetry.groups]
    return noisy_CD, moves


@pytest.mark.parametrize(("model", "spec"), RECOVERED)
def test_a_match_recovers_what_was_permuted(model: str, spec: str) -> None:
    symmetry = found(model, spec)
    theta_D = symmetry.subset.take(made(model))
    noisy_CD, moves = copies(symmetry, theta_D, 3, 0.05)
    for c in (1, 2):
        moved_D = symmetry.permuted(noisy_CD[c], moves[c])
        # Heads, and what lies within all of them alike, may hold each other at a lesser optimum: not from every start.
        starts = range(4 if model in ("Attention", "ViT") else 1)
        matches = [match(symmetry, moved_D, theta_D, seed=seed) for seed in starts]
        best = min(matches, key=lambda match: distance(symmetry, symmetry.permuted(moved_D, match), theta_D))
        assert all(map(torch.equal, best, inverse(moves[c])))


@pytest.mark.parametrize(("model", "spec"), [("mlp", EVERYTHING), ("convnet", "last_block")])
def test_aligned_rows_differ_by_their_noise(model: str, spec: str) -> None:
    symmetry = found(model, spec)
    theta_D = symmetry.subset.take(made(model))
    noisy_CD, moves = copies(symmetry, theta_D, 5, 0.1)
    given_CD = torch.stack([symmetry.permuted(*row) for row in zip(noisy_CD, moves, strict=True)])
    aligned_CD, permutations = align(symmetry, given_CD)
    torch.testing.assert_close(aligned_CD, noisy_CD, atol=1e-5, rtol=1e-5)
    assert given_CD.var(0).mean() > 5 * aligned_CD.var(0).mean()
    for c in range(5):
        assert torch.equal(symmetry.permuted(given_CD[c], permutations[c]), aligned_CD[c])
    again_CD, _ = align(symmetry, given_CD)
    assert torch.equal(again_CD, aligned_CD)
    # Another reference: all rows come to it, the first as well.
    moved_D = symmetry.permuted(theta_D, moves[1])
    to_it_CD, _ = align(symmetry, given_CD, moved_D)
    expected_CD = torch.stack([symmetry.permuted(row, moves[1]) for row in noisy_CD])
    torch.testing.assert_close(to_it_CD, expected_CD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", ["mlp", "ResidualMLP", "Attention", "Tied"])
def test_every_round_brings_unrelated_networks_closer(model: str) -> None:
    symmetry = found(model, EVERYTHING)
    theta_SD = torch.randn(2, symmetry.subset.D, generator=torch.Generator().manual_seed(0))
    if model == "Tied":  # its batch norm's coordinates are not the plain ones
        symmetry = found(model, "regex:stem|first")
    theta_SD = theta_SD[:, : symmetry.subset.D]
    reached = [
        distance(
            symmetry, symmetry.permuted(theta_SD[0], match(symmetry, theta_SD[0], theta_SD[1], rounds)), theta_SD[1]
        )
        for rounds in (0, 1, 2, 50)
    ]
    assert reached == sorted(reached, reverse=True) and (reached[1] < reached[0] or not symmetry.groups)
    assert distance(symmetry, theta_SD[0], theta_SD[1]) == reached[0]


def test_one_group_is_matched_as_well_as_can_be() -> None:
    symmetry = of(built_in("mlp", hidden=4, depth=1), EVERYTHING)
    theta_SD = torch.randn(2, symmetry.subset.D, generator=torch.Generator().manual_seed(1))
    every = [[torch.tensor(p)] for p in itertools.permutations(range(4))]
    best = min(every, key=lambda p: distance(symmetry, symmetry.permuted(theta_SD[0], p), theta_SD[1]))
    assert torch.equal(match(symmetry, theta_SD[0], theta_SD[1])[0], best[0])


def test_tensors_of_any_magnitude_count_alike() -> None:
    symmetry = found("mlp", EVERYTHING)
    theta_SD = torch.randn(2, symmetry.subset.D, generator=torch.Generator().manual_seed(2))
    scales = torch.logspace(-4, 4, len(symmetry.subset.sizes)).repeat_interleave(torch.tensor(symmetry.subset.sizes))
    plain = match(symmetry, theta_SD[0], theta_SD[1])
    scaled = match(symmetry, theta_SD[0] * scales, theta_SD[1] * scales)
    assert all(map(torch.equal, plain, scaled))


def test_networks_without_groups_and_layers_of_one_unit() -> None:
    for symmetry in (found("mlp", "head"), found("Branching", EVERYTHING), of(built_in("mlp", hidden=1), EVERYTHING)):
        assert symmetry.groups == ()
        theta_CD = torch.randn(3, symmetry.subset.D, generator=torch.Generator().manual_seed(0))
        aligned_CD, permutations = align(symmetry, theta_CD)
        assert torch.equal(aligned_CD, theta_CD) and permutations == [[], [], []]


def test_parameters_that_do_not_fit_or_are_not_finite() -> None:
    symmetry = found("mlp", EVERYTHING)
    theta_D = torch.zeros(symmetry.subset.D)
    with pytest.raises(ModelError, match=r"^parameters of length 3 given where this subset has D = "):
        symmetry.permuted(torch.zeros(3), shuffled(symmetry))
    theta_D[5] = torch.nan
    with pytest.raises(ModelError, match=r"^parameters that are not finite cannot be aligned$"):
        match(symmetry, theta_D, torch.zeros_like(theta_D))
