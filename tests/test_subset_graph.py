"""Subsets by what reaches the logits: odd heads, blocks, norms, frozen and idle parameters; built-in networks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray.config import Classifier
from bend_ray.errors import ModelError
from bend_ray.models.classifiers import build
from bend_ray.models.reach import Reach
from bend_ray.models.reading import of_autograd, reach_of
from bend_ray.models.subset import NAMED, notes, settle

K, X = 5, torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """Features of the image; a subclass gives logits, from what it defines before or behind them."""

    out: Any
    early: Any
    score: Any
    rows: Any
    fc: Any
    head: Any
    maker: Any
    real: Any
    softmax: Any
    heads: Any
    experts: Any
    gate: Any

    def __init__(self, **before: nn.Module) -> None:
        super().__init__()
        for name, part in before.items():
            self.add_module(name, part)
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)

    def features(self, x: Tensor) -> Tensor:
        return self.map(x).mean((2, 3))

    def map(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class HeadFirst(Body):
    def __init__(self) -> None:
        super().__init__(out=nn.Linear(6, K))
        self.projection = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))  # of an earlier training, not used

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


class Averaged(Body):
    """Heads on features of two depths; one is defined before the features, the other after."""

    def __init__(self) -> None:
        super().__init__(early=nn.Linear(64, K))
        self.late = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.early(x.flatten(1)).log_softmax(-1), self.late(self.features(x))]).mean(0)


class ConvHead(Body):
    def __init__(self) -> None:
        super().__init__(score=nn.Conv2d(6, K, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.map(x)).amax((2, 3))


class Conv1dBesideLinear(Body):
    def __init__(self) -> None:
        super().__init__(rows=nn.Conv1d(8, K, 8))
        self.fc = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x[:, 0]).squeeze(-1) + self.fc(self.features(x))


class WeightNormed(Body):
    def __init__(self) -> None:
        super().__init__(fc=nn.utils.parametrizations.weight_norm(nn.Linear(6, K)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Cosine(Body):
    """A normalised head with a scale, of as many classes as there are features."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.exp() * F.linear(F.normalize(self.features(x)), F.normalize(self.weight))


class NormedLogits(Body):
    def __init__(self) -> None:
        super().__init__(head=nn.Sequential(nn.Dropout(), nn.Linear(6, K, bias=False), nn.BatchNorm1d(K)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Nested(Body):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.ModuleDict({"fc": nn.Linear(6, K), "pool": nn.Linear(6, 6)})

    def forward(self, x: Tensor) -> Tensor:
        return self.head["fc"](torch.tanh(self.head["pool"](self.features(x))))


class Prototypes(Body):
    """Squared distances to a plain parameter, that has as many rows as there are features where ``count`` is 6."""

    def __init__(self, count: int, how: str) -> None:
        super().__init__()
        self.prototypes, self.how = nn.Parameter(torch.randn(count, 6)), how

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        if self.how == "cdist":
            return -torch.cdist(features, self.prototypes)
        return -(features[:, None] - self.prototypes).square().sum(-1)


class Hypernetwork(Body):
    """The head's weights are made of the image itself."""

    def __init__(self) -> None:
        super().__init__(maker=nn.Linear(64, 6 * K))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(self.features(x)[:, None], self.maker(x.flatten(1)).view(-1, 6, K))[:, 0]


class Complex(Body):
    def __init__(self) -> None:
        super().__init__(real=nn.Linear(6, K))
        self.imaginary = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.features(x), self.features(-x)
        real, imaginary = self.real(a) - self.imaginary(b), self.real(b) + self.imaginary(a)
        return (real**2 + imaginary**2 + 1e-6).sqrt()


class Adaptive(Body):
    def __init__(self) -> None:
        super().__init__(softmax=nn.AdaptiveLogSoftmaxWithLoss(6, 9, [3, 6], div_value=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax.log_prob(self.features(x))


class Windows(Body):
    """A head for each quarter of the image, and a learnt mean of them."""

    def __init__(self) -> None:
        super().__init__(heads=nn.ModuleList([nn.Linear(16, K) for _ in range(4)]))
        self.mean = nn.Parameter(torch.full((4,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        windows = self.features(x)[:, :1, None] + x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 4, 16)
        each = torch.stack([head(windows[:, i]) for i, head in enumerate(self.heads)], 1)
        return torch.einsum("bwk,w->bk", each, self.mean)


class Experts(Body):
    def __init__(self) -> None:
        super().__init__(experts=nn.ModuleList([nn.Linear(6, K) for _ in range(3)]), gate=nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        return (self.gate(features).softmax(-1)[..., None] * torch.stack([e(features) for e in self.experts], 1)).sum(1)


class TiedToWords(nn.Module):
    """As language models are: pixels are words, and the head is the table of words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.body = nn.Linear(6, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.words((x.flatten(1).sigmoid() * 7).long()).mean(1)))

    def get_output_embeddings(self) -> nn.Module:
        return self.out


class Named(Body):
    """Says that its head is ``said``."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self.said, self.before = said, nn.Linear(6, 6)
        self.classifier = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, K))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.before(self.features(x)))

    def get_classifier(self) -> nn.Module:
        return self.get_submodule(self.said)


HEADS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "defined first": (HeadFirst, "out"),
    "several, averaged": (Averaged, "early late"),
    "a convolution": (ConvHead, "score"),
    "a Conv1d beside a linear layer": (Conv1dBesideLinear, "rows fc"),
    "weight norm": (WeightNormed, "fc"),
    "cosine, as many classes as features": (Cosine, "weight scale"),
    "a norm behind it": (NormedLogits, "head"),
    "nested, defined before another": (Nested, "head.fc"),
    "prototypes, cdist": (lambda: Prototypes(K, "cdist"), "prototypes"),
    "prototypes, differences": (lambda: Prototypes(K, "differences"), "prototypes"),
    "as many prototypes as features": (lambda: Prototypes(6, "differences"), "prototypes"),
    "hypernetwork": (Hypernetwork, "maker"),
    "both halves of a complex layer": (Complex, "real imaginary"),
    "adaptive softmax": (Adaptive, "softmax"),
    "several windows": (Windows, "heads mean"),
    "experts": (Experts, "experts"),
    "tied words": (TiedToWords, "words"),
    "said by the network, and right": (lambda: Named("classifier"), "classifier"),
    "said by the network, and wrong": (lambda: Named("before"), "classifier.2"),
    "said to be all": (lambda: Named(""), "classifier.2"),
}


def under(module: nn.Module, parts: str) -> set[str]:
    """First names of the parameters at and below these paths."""
    first = {id(value): name for name, value in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {
        first[id(value)]
        for name, value in every
        for part in parts.split()
        if name == part or name.startswith(f"{part}.")
    }


def chosen(module: nn.Module, spec: str, reach: Reach | None = None) -> set[str]:
    found, graph = reach_of(module, X)
    assert reach is not None or (graph is not None and not found.why) or "batch = " in found.why
    return set(settle(module, spec, reach or found).subset.names)


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_what_reaches_the_logits_last(kind: str) -> None:
    make, parts = HEADS[kind]
    module = make().train()
    assert chosen(module, "head") == under(module, parts)
    assert all(child.training for child in module.modules())


# Autograd sees no image before the table of words, and rows and classes as one axis where windows are weighed.
@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind not in ("tied words", "several windows")])
def test_autograd_finds_the_same_heads(kind: str) -> None:
    make, parts = HEADS[kind]
    module = make().eval()
    module.get_parameter("conv.weight").requires_grad_(False)
    reach = of_autograd(module, X)
    assert set(settle(module, "head", reach).subset.names) == under(module, parts)
    assert reach.places.keys() == reach_of(module, X)[0].places.keys()
    assert not module.get_parameter("conv.weight").requires_grad


class Branches(HeadFirst):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 1e9 else -x)


class InNumpy(HeadFirst):
    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x if x.sum() > 1e9 else -x).detach().numpy()
        return torch.from_numpy(self.out(torch.from_numpy(features)).detach().numpy())


def test_what_cannot_be_exported_is_read_by_other_ways_and_said() -> None:
    for make, way in ((Branches, "what gradients reach"), (InNumpy, "the order of definition")):
        module = make()
        reach, graph = reach_of(module, X)
        choice = settle(module, "head", reach)
        assert graph is None and way in choice.warnings[0] and "torch.export cannot read" in choice.warnings[0]
        assert set(choice.subset.names) == under(module, "out" if make is Branches else "projection.1")
        assert not settle(module, "out.bias", reach).warnings


def test_idle_parameters_are_left_out_and_counted() -> None:
    module = HeadFirst()
    reach, _ = reach_of(module, X)
    choice = settle(module, "regex:weight", reach)
    assert choice.subset.names == ("out.weight", "conv.weight", "norm.weight")
    assert choice.unreached == ("projection.0.weight", "projection.1.weight")
    (note,) = notes(module, choice, reach)
    assert note.startswith("left out: 4 on no way to the logits (projection.0.weight, projection.0.bias,")
    assert note.endswith(" and 1 more)")
    assert set(settle(module, "last_block", reach).subset.names) == under(module, "out conv norm")
    with pytest.raises(ModelError, match=r"'regex:projection' chooses no parameter that can vary \(.*not on any way"):
        settle(module, "regex:projection", reach)


@pytest.mark.parametrize("spec", [*NAMED, "regex:."])
def test_frozen_parameters_are_in_no_subset(spec: str) -> None:
    module = Nested()
    module.head["fc"].bias.requires_grad_(False)
    module.norm.weight.requires_grad_(False)
    reach, _ = reach_of(module, X)
    choice = settle(module, spec, reach)
    assert not {"head.fc.bias", "norm.weight"} & set(choice.subset.names)
    assert choice.frozen and next(notes(module, choice, reach)).startswith(f"left out: {len(choice.frozen)} frozen (")
    module.requires_grad_(False)  # a network ready for inference: nothing is frozen for itself
    assert {"head.fc.bias", "norm.weight"} & set(settle(module, spec, reach).subset.names)


def test_frozen_parameters_that_are_named() -> None:
    module = Nested()
    module.head["fc"].requires_grad_(False)
    with pytest.raises(ModelError, match=r"'head\.fc\.bias' is frozen \(requires_grad is False\), so it is the same"):
        settle(module, "head.fc.bias, norm.weight")
    with pytest.raises(
        ModelError, match=r"'head' chooses no parameter that can vary \(head\.fc\.weight, head\.fc\.bias: fr"
    ):
        settle(module, "head", reach_of(module, X)[0])


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).rsqrt() * self.scale


class GRN2d(RMSNorm):
    pass


class GatedRMSNorm(RMSNorm):
    """A norm with a matrix is more than a norm."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.gate = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gate(x)


class OwnLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel


def own(*norms: nn.Module) -> nn.Module:
    """A network of layers of its own alone."""
    return nn.Sequential(nn.Flatten(), OwnLayer(64, 6), *norms, OwnLayer(6, K))


def test_norms_by_the_names_of_their_classes() -> None:
    assert chosen(own(RMSNorm(6), GRN2d(6), GatedRMSNorm(6)), "norm") == {"2.scale", "3.scale"}


@pytest.mark.parametrize(
    "module",
    [
        own(),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, K, 62), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.LayerNorm(64)),
    ],
    ids=["own layers", "Conv1d", "a norm"],
)
def test_networks_without_linear_and_flat_convolutional_layers(module: nn.Module) -> None:
    names = [name for name, _ in module.named_parameters()]
    last = [name for name in names if name.partition(".")[0] == names[-1].partition(".")[0]]
    assert chosen(module, "head") == set(last) and chosen(module, "auto") == set(names) == chosen(module, "last_block")


class Residual(nn.Module):
    """A block: attention of a kind and an MLP."""

    def __init__(self, experts: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.attention = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(6, 24), nn.Linear(24, 6)) for _ in range(experts)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp(self.attention(self.norm(x)))
        return x + sum(expert(x) for expert in self.experts) if len(self.experts) else x


class Stage(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.down = nn.Linear(6, 6)
        self.blocks = nn.Sequential(*[Residual() for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.down(x))


class Network(nn.Module):
    """Features, ``body``, a norm that is defined before them, a head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.stem = nn.Linear(64, 6)
        self.body = body
        self.head = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.stem(x.flatten(1)))))


class Inner(nn.Module):
    """What other libraries wrap a network in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = network

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a list": (lambda: Network(nn.Sequential(*[Residual() for _ in range(3)])), "body.2 norm head"),
    "stages": (lambda: Network(nn.Sequential(Stage(1), Stage(2))), "body.1.blocks.1 norm head"),
    "a stage of one block": (lambda: Network(nn.Sequential(Stage(2), Stage(1))), "body.1.blocks.0 norm head"),
    "lists of lists": (
        lambda: Network(nn.Sequential(*[nn.Sequential(Residual(), Residual()) for _ in range(2)])),
        "body.1.1 norm head",
    ),
    "in wrappers": (
        lambda: Inner(Inner(Network(Inner(nn.Sequential(Residual(), Residual()))))),
        "inner.inner.body.inner.1 inner.inner.norm inner.inner.head",
    ),
    "experts side by side": (
        lambda: Network(nn.Sequential(Residual(3), Residual(3))),
        "body.1 norm head",
    ),
    "pairs of attention and MLP": (
        lambda: Network(nn.Sequential(*[nn.Sequential(Residual(), Stage(1)) for _ in range(2)])),
        "body.1 norm head",
    ),
    "layers alone": (lambda: Network(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))), "body.2 norm head"),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_last_block_stands_with_what_follows_it(kind: str) -> None:
    make, parts = BLOCKS[kind]
    module = make()
    assert chosen(module, "last_block") == under(module, parts)
    assert set(settle(module, "last_block", of_autograd(module, X)).subset.names) == under(module, parts)


def test_frozen_blocks_are_passed_over() -> None:
    module = Network(nn.Sequential(*[Residual() for _ in range(3)]))
    module.get_submodule("body.2").requires_grad_(False)
    assert chosen(module, "last_block") == under(module, "body.1 norm head")


def test_more_than_half_of_all_is_said() -> None:
    module = Network(nn.Sequential(Residual()))
    reach, _ = reach_of(module, X)
    assert not settle(module, "head", reach).warnings
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Linear(2, 90), nn.Linear(90, K))
    (said,) = settle(small, "last_block", reach_of(small, X)[0]).warnings
    assert "last_block is 85% of all parameters" in said


def test_a_classifier_in_inference_mode_or_without_a_way_to_its_logits() -> None:
    class Constant(Body):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_ones(x.shape[0], K)

    module = Constant()
    reach, _ = reach_of(module, X)
    with pytest.raises(ModelError, match="not on any way to the logits"):
        settle(module, "regex:.", reach)


def blocks(prefix: str, parts: str) -> Iterator[str]:
    yield from (f"{prefix}{part}" for part in parts.split())


SMALL: dict[str, dict[str, Any]] = {
    "convnet": {"width": 4},
    "mlp": {"hidden": 12},
    "resnet18": {"width": 4},
    "resnet34": {"width": 4},
    "vit_tiny": {"width": 12, "depth": 3, "heads": 2},
}
LAST = {
    "convnet": "block3 head",
    "mlp": "blocks.1 head",
    "resnet18": "stages.3.1 head",
    "resnet34": "stages.3.2 head",
    "vit_tiny": "blocks.2 head",
}


@pytest.mark.parametrize("name", SMALL)
def test_subsets_of_built_in_networks_are_as_ever(name: str) -> None:
    """Runs that are there go on."""
    module = build(Classifier(name=name, kwargs=SMALL[name]), K, 1, 8, seed=0)
    by_type = nn.BatchNorm2d if name in ("convnet", "resnet18", "resnet34") else nn.LayerNorm
    norms = {
        f"{path}.{kind}"
        for path, child in module.named_modules()
        if type(child) is by_type
        for kind in ("weight", "bias")
    }
    head = {"head.weight", "head.bias"}
    expected = {
        "head": head,
        "norm": norms,
        "norm+head": norms | head,
        "auto": norms | head,
        "last_block": under(module, LAST[name]),
    }
    reach, _ = reach_of(module, X)
    for spec, names in expected.items():
        for known in (reach, None):
            assert set(settle(module, spec, known).subset.names) == names, spec
    assert reach.places.keys() == {name for name, _ in module.named_parameters()}
