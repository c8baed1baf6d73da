"""Low-rank adapters (`collect.subset: lora`): exact, linear in what varies, and peft's where peft is right."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bend_ray.config import Config
from bend_ray.ensemble import answer_cost
from bend_ray.ensemble.batch_norm import BatchNormReestimation
from bend_ray.ensemble.ensemble import Ensemble, make_trunk
from bend_ray.errors import ModelError
from bend_ray.models import base as bases
from bend_ray.models import lora_targets
from bend_ray.models.base import ModelSpec
from bend_ray.models.lora import Lora
from bend_ray.models.partition import partition, unpartitioned
from bend_ray.models.resnet import resnet18
from bend_ray.models.subset import Subset, choose
from bend_ray.models.vit import ViT
from bend_ray.run import Run
from bend_ray.snapshots import chains, parquet
from bend_ray.snapshots.features import Tails
from bend_ray.stages import export, pipeline
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import read_tensors
from conftest import bits, changed, once
from oracles import logits_of_whole_models, train_chain
from pipeline_helpers import copy as copied
from test_training_resume import data

LORA: dict[str, Any] = {"subset": "lora", "lora_rank": 2, "lr": 0.03}


def of(**collect: Any) -> Config:
    return changed(collect=LORA | collect)


class Attentive(nn.Module):
    """Self-attention, then attention to keys and values of another width: torch's own, in both of its layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.MultiheadAttention(8, 2, batch_first=True)
        self.two = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, 0]
        x = self.one(x, x, x, need_weights=False)[0]
        return self.head(self.two(x, x[..., :6], x[..., :4])[0].mean(1))


class Encoder(nn.Module):
    """Torch's own layers, which take a fast path of their own in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x[:, 0]).mean(1))


class Convolutional(nn.Module):
    """What peft 0.21 gets wrong or refuses: dilation, padding modes, groups, batch-norm statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.Conv2d(1, 8, 3, padding=2, dilation=2, padding_mode="reflect")
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2, padding_mode="circular")
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 3, groups=2)
        self.flat = nn.Conv1d(6, 6, 3, padding=1, padding_mode="replicate")
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.grouped(self.dilated(x).relu()))
        return self.head(self.flat(self.up(x).flatten(2)).mean(2))


class Tied(nn.Module):
    """Two layers of one weight, one of weight norm, and a forward pass that says len(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.normed = parametrizations.weight_norm(nn.Linear(64, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x[:, 0]).relu())
        return self.head(self.normed(x.reshape(len(x), 64)).relu())


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = parametrizations.spectral_norm(nn.Linear(64, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))


def vit() -> ViT:
    return ViT(5, 1, 8, width=12, depth=2, heads=2)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "attentive": Attentive,
    "encoder": Encoder,
    "convolutional": Convolutional,
    "tied": Tied,
}


def made(make: Callable[[], nn.Module], targets: str = "all", **keys: Any) -> tuple[nn.Module, nn.Module, Subset]:
    """A network, a copy that has adapters, and their subset."""
    torch.manual_seed(0)
    plain = make().eval().requires_grad_(False)
    for buffer in plain.buffers():
        if buffer.is_floating_point() and buffer.numel() > 1:
            buffer.uniform_(0.5, 1.5)  # statistics, as a trained network has them
    adapted = copy.deepcopy(plain)
    return plain, adapted, lora_targets.choose(adapted, "lora", of(lora_targets=targets, **keys))


def images(rows: int = 4) -> Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def of_merged(plain: nn.Module, adapted: nn.Module, subset: Subset, theta_MD: Tensor, x: Tensor) -> Tensor:
    """``logits_MBK``: each member's adapters merged into a plain copy."""
    assert subset.lora is not None
    found = []
    for theta_D in theta_MD:
        subset.put(adapted, theta_D)
        one = copy.deepcopy(plain)
        state = subset.lora.merge(adapted, one)
        again = copy.deepcopy(plain)
        again.load_state_dict(plain.state_dict() | state)
        assert torch.equal(again(x), one(x))
        found.append(one(x))
    subset.put(adapted, torch.zeros(subset.D))
    return torch.stack(found)


# --- the adapted network


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_networks_answer_as_the_trunk_and_as_whole_ones(name: str) -> None:
    plain, adapted, subset = made(NETWORKS[name])
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(adapted(x), plain(x), atol=1e-6, rtol=0)  # B is 0
    theta_MD = 0.3 * torch.randn(3, subset.D, generator=torch.Generator().manual_seed(2))
    merged_MBK = of_merged(plain, adapted, subset, theta_MD, x)
    assert (merged_MBK - plain(x)).abs().amax((1, 2)).min() > 1e-3
    close: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(logits_of_whole_models(adapted, subset, theta_MD, x), merged_MBK, **close)
    torch.testing.assert_close(unpartitioned(adapted, subset).logits(theta_MD, x), merged_MBK, **close)
    cut = partition(adapted, subset, x[:2])
    assert cut.plan != "whole model"
    for rows in (x, x[:1], images(5)):
        merged_MBK = of_merged(plain, adapted, subset, theta_MD, rows)
        torch.testing.assert_close(cut.logits(theta_MD, rows), merged_MBK, **close)


def test_the_mean_of_parameters_is_that_of_weights() -> None:
    _, adapted, subset = made(Convolutional)
    theta_MD, weights = torch.randn(4, subset.D), []
    for theta_D in (*theta_MD, theta_MD.mean(0)):
        subset.put(adapted, theta_D)
        weights.append(adapted.get_submodule("grouped").weight.detach())
    torch.testing.assert_close(torch.stack(weights[:-1]).mean(0), weights[-1])  # type: ignore[arg-type]  # tensors


def test_a_weight_norm_and_a_tied_weight_stay_what_they_are() -> None:
    plain, adapted, subset = made(Tied)
    assert subset.lora is not None and subset.lora.weights == ("one.weight", "normed.weight")
    subset.put(adapted, torch.randn(subset.D))
    state = subset.lora.merge(adapted, plain)
    stays = ["one.weight", "two.weight", *(f"normed.parametrizations.weight.original{number}" for number in (0, 1))]
    assert list(state) == stays and plain.get_submodule("two").weight is plain.get_submodule("one").weight


def test_the_first_factor_is_the_same_for_ever_and_as_a_new_layers_weight() -> None:
    lora = Lora(("a.weight",), 2, 8.0, seed=3)
    drawn_RP = lora.first_factor("a.weight", torch.zeros(5, 3, 2, 2))
    expected = [-0.8264905214309692, -0.6697449684143066, 0.8150164484977722]
    np.testing.assert_allclose(drawn_RP[0, :3], expected, rtol=1e-6)
    many_RP = lora.first_factor("a.weight", torch.zeros(1, 10_000)) * 2 / 8  # without alpha / rank
    layer = nn.Linear(10_000, 2)
    assert abs(many_RP.abs().max() - layer.weight.abs().max()) < 1e-5
    assert abs(many_RP.std() - layer.weight.std()) < 1e-4
    assert not torch.equal(lora.first_factor("b.weight", torch.zeros(5, 12)), drawn_RP)
    assert not torch.equal(Lora((), 2, 8.0, seed=4).first_factor("a.weight", torch.zeros(5, 12)), drawn_RP)


# --- which layers


@pytest.mark.parametrize(
    ("make", "targets", "weights"),
    [
        (vit, "auto", "blocks.1.attention.qkv blocks.1.attention.out"),
        (
            vit,
            "attention",
            "blocks.0.attention.qkv blocks.0.attention.out blocks.1.attention.qkv blocks.1.attention.out",
        ),
        (vit, "qkv", "blocks.0.attention.qkv blocks.1.attention.qkv"),
        (vit, "1.attention.qkv, mlp.2", "blocks.0.mlp.2 blocks.1.attention.qkv blocks.1.mlp.2"),
        (vit, r"regex:blocks\.1\..*(qkv|0)$", "blocks.1.attention.qkv blocks.1.mlp.0"),
        (vit, "head", "head"),
        (lambda: resnet18(5, 1, 4), "auto", "stages.3.1.conv1 stages.3.1.conv2"),
        (Convolutional, "all", "dilated grouped up flat"),
        (Encoder, "auto", "layers.layers.1.self_attn(in_proj) layers.layers.1.self_attn.out_proj"),
        (Attentive, "two", "two(q_proj) two(k_proj) two(v_proj)"),
        (Attentive, "out_proj", "one.out_proj two.out_proj"),
    ],
)
def test_targets(make: Callable[[], nn.Module], targets: str, weights: str) -> None:
    _, _, subset = made(make, targets)
    assert subset.lora is not None
    said = [name.replace(".weight", "").replace("_weight", "") for name in subset.lora.weights]
    expected = [name.replace("(", ".").replace(")", "") for name in weights.split()]
    assert said == expected
    assert all(name.endswith(".B") for name in subset.names) and len(subset.names) == len(expected)


def test_projections_of_a_transformers_network() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        num_channels=1,
    )  # fmt: skip
    _, adapted, subset = made(lambda: transformers.ViTForImageClassification(config), "auto")
    assert subset.lora is not None and len(subset.lora.weights) == 4
    assert all(".1.attention" in name for name in subset.lora.weights)
    theta_MD, x = torch.randn(2, subset.D), images()
    expected_MBK = logits_of_whole_models(adapted, subset, theta_MD, x)
    torch.testing.assert_close(partition(adapted, subset, x[:2]).logits(theta_MD, x), expected_MBK, atol=1e-5, rtol=0)


def test_projections_of_a_timm_network() -> None:
    timm = pytest.importorskip("timm")
    network = "vit_tiny_patch16_224"
    kwargs: dict[str, Any] = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 12, "depth": 2}
    plain, adapted, subset = made(lambda: timm.create_model(network, num_heads=2, num_classes=5, **kwargs), "auto")
    assert subset.lora is not None and subset.lora.weights == tuple(
        f"blocks.1.attn.{name}.weight" for name in ("qkv", "proj")
    )
    theta_MD, x = torch.randn(2, subset.D), images()
    merged_MBK = of_merged(plain, adapted, subset, theta_MD, x)
    torch.testing.assert_close(partition(adapted, subset, x[:2]).logits(theta_MD, x), merged_MBK, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("make", "keys", "says"),
    [
        (vit, {"lora_targets": "q_proj"}, r"lora_targets: 'q_proj' chooses no .* names among patches, blocks\.0\."),
        (vit, {"lora_targets": "regex:("}, r"lora_targets: 'regex:\(' is not a regular expression"),
        (Convolutional, {"lora_targets": "attention"}, "lora_targets: 'attention' chooses no linear"),
        (vit, {"lora_rank": 13}, r"lora_rank: 13 is more than the rank of 'blocks\.1\..*at most 12; give that or less"),
        (Spectral, {"lora_targets": "body"}, r"lora_targets: 'body\.weight' is computed from others"),
        (
            lambda: vit().double(),
            {"lora_targets": "1.attention.qkv"},
            r"lora_targets: 'blocks\.1\..*' is torch\.float64; only float32",
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), {}, "lora_targets: 'auto' chooses no linear"),
    ],
)
def test_what_cannot_be_adapted_is_refused(make: Callable[[], nn.Module], keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        lora_targets.choose(make(), "lora", of(**keys))


# --- keys


@pytest.mark.parametrize(
    ("collect", "says"),
    [
        ({"init": "fresh"}, "collect.init: fresh: adapters start at 0"),
        ({"align": True}, "collect.align: adapters have no hidden units"),
        ({"subset": "head"}, "collect.lora_rank: is for adapters, and collect.subset is head; give lora"),
    ],
)
def test_keys_that_do_not_go_with_adapters(collect: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        of(**collect)


def test_hashes_follow_the_adapters_and_those_of_other_runs_stay() -> None:
    def recipe(**collect: Any) -> str:
        return artifacts.recipe("snapshots", changed(collect=collect), {})

    assert "collect.lora_rank" not in changed().hashed("collect")
    changes: list[dict[str, Any]] = [{"lora_rank": 3}, {"lora_alpha": 4.0}, {"lora_targets": "all"}]
    recipes = {recipe(subset="lora", **keys) for keys in [{}, *changes]} | {recipe(subset="head")}
    assert len(recipes) == 5


def test_a_subset_is_read_back_with_its_adapters() -> None:
    plain, _, subset = made(vit)
    assert Subset.from_json(json.loads(json.dumps(subset.to_json()))) == subset and not subset.is_one_layer
    assert "lora" not in choose(plain, "head").to_json()
    assert Subset.from_json(choose(plain, "head").to_json()) == choose(plain, "head")


# --- beside peft


@pytest.mark.parametrize("name", ["linear", "attention", "convolution"])
def test_as_peft_does(name: str) -> None:
    peft = pytest.importorskip("peft")
    make: Callable[[], nn.Module] = {
        "linear": vit,
        "attention": lambda: nn.Sequential(nn.Flatten(1, 2), Encoder().layers, nn.Flatten(), nn.Linear(64, 5)),
        "convolution": lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 5)
        ),
    }[name]
    layers = {"linear": ["qkv", "mlp.2"], "attention": ["self_attn"], "convolution": ["0", "2"]}[name]
    targets = ", ".join([*layers, "out_proj"] if name == "attention" else layers)
    rank, alpha, names = (1, 3.0, targets) if name == "convolution" else (2, 8.0, targets)
    plain, adapted, subset = made(make, names, lora_rank=rank, lora_alpha=alpha)
    config = peft.LoraConfig(r=rank, lora_alpha=int(alpha), target_modules=layers, lora_dropout=0.0)
    theirs = peft.get_peft_model(copy.deepcopy(plain), config).eval()
    factors = {key: value for key, value in theirs.named_parameters() if "lora_" in key}
    ours = {key: value for key, value in adapted.named_parameters() if key.endswith(".B")}
    firsts = {key: value for key, value in adapted.named_buffers() if key.endswith(".A")}
    assert len(ours) == len(subset.names) == len(factors) // 2
    theta_D = torch.randn(subset.D)
    subset.put(adapted, theta_D)

    def factor(key: str, which: str) -> nn.Parameter:
        """Theirs of ours: ``blocks.0.attention.qkv.parametrizations.weight.0.B``."""
        layer = key.partition(".parametrizations.")[0]
        layer = layer.replace("self_attn.out_proj", "self_attn.base_layer.out_proj")
        return factors[f"base_model.model.{layer}.lora_{which}.default.weight"]

    with torch.no_grad():
        for key in ours:
            first = factor(key, "A")
            first.copy_(firsts[f"{key[:-1]}A"].reshape(first.shape) * rank / alpha).requires_grad_(False)
            factor(key, "B").copy_(ours[key].reshape(factor(key, "B").shape))
    x, y = images(), torch.tensor([0, 1, 2, 3])
    for module, of_module in ((theirs, [factor(key, "B") for key in ours]), (adapted, [*ours.values()])):
        optimizer = torch.optim.SGD([value.requires_grad_() for value in of_module], lr=0.1)
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    for key, value in ours.items():
        torch.testing.assert_close(factor(key, "B").reshape(value.shape), value, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(subset.take(adapted), theta_D, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(adapted(x), theirs(x), atol=1e-6, rtol=1e-5)
        assert subset.lora is not None
        state, merged = subset.lora.merge(adapted, plain), theirs.merge_and_unload().state_dict()
    for key, weight in state.items():
        torch.testing.assert_close(weight, merged[key], atol=1e-6, rtol=1e-5)


# --- chains, and what members share


def test_a_chain_trains_the_second_factor_alone() -> None:
    config = changed(classifier={"name": "vit_tiny", "kwargs": {"patch": 4, "width": 12, "depth": 4, "heads": 2}},
                     collect=LORA | {"epochs": 1, "features": "float32"})  # fmt: skip
    run = Run(config, loaded=data())
    module = run.spec.build().requires_grad_(False)
    subset = lora_targets.choose(module, "lora", config)
    tails = Tails.of(module, subset, run)
    assert tails.trunk.plan == "vmap" and tails.at_once > 1  # on kept features
    found = chains.run_chains(tails, chains.starts(module, subset, run, range(2)), run, range(2))
    for chain in range(2):
        wanted, _ = train_chain(module, subset, run.dataset, config.collect, 0, chain)
        torch.testing.assert_close(found[chain][0], wanted, atol=1e-4, rtol=1e-3)
    assert chains.with_rate(config.collect.model_copy(update={"lr": None}), subset).lr == 0.03
    cost = {
        targets: answer_cost.forward_passes(
            run,
            (one := run.spec.build()),
            lora_targets.choose(one, "lora", config.with_keys({"collect.lora_targets": targets})),
        )
        for targets in ("auto", "attention")
    }
    assert 1 < cost["auto"] < 0.5 * cost["attention"] < config.sample.members


def test_statistics_are_estimated_again_behind_adapters() -> None:
    run = Run(of(lora_targets="block2.conv"), loaded=data())
    module = run.spec.build().requires_grad_(False)
    subset = lora_targets.choose(module, "lora", run.config)
    reestimation = BatchNormReestimation.of(module, subset, run.dataset, 1, 0)
    assert reestimation.subset.lora == subset.lora and len(reestimation.subset.names) == 1 + 4
    theta_MD = reestimation(torch.randn(2, subset.D))
    x = run.dataset.preprocess(run.dataset.test.images[:3])
    wanted_MBK = logits_of_whole_models(module, reestimation.subset, theta_MD, x)
    found_MBK = make_trunk(module, reestimation.subset, run.spec).logits(theta_MD, x)
    torch.testing.assert_close(found_MBK, wanted_MBK, atol=1e-5, rtol=1e-5)


# --- a run

RUN: dict[str, Any] = {
    "collect": {"subset": "lora", "lora_rank": 2, "lora_targets": "regex:block[23]", "lr": None},
    "sample": {"reestimate_batch_norm": 1, "distance": "cosine"},
}

ALONE = """
import sys, numpy as np
from bend_ray import Ensemble
print(Ensemble.load(sys.argv[1]).predict(np.load(sys.argv[2])).prob_BK[0].tolist())
"""


@pytest.fixture(scope="module")
def lora_run(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reference's base, and chains of adapters."""

    def make(run: Path) -> None:
        shutil.copytree(reference / "base", run / "base")
        pipeline.execute(Run(changed(**RUN), Folder(run)))

    yield once(tmp_path_factory, "lora", make)


@pytest.mark.ray
def test_an_ensemble_of_adapters_answers_alone_and_is_exported_as_plain_networks(
    lora_run: Path, reference: Path, tmp_path: Path
) -> None:
    run = copied(lora_run, tmp_path)
    assert (lora_run / "base" / bases.FILE).read_bytes() == (reference / "base" / bases.FILE).read_bytes()
    snapshots = parquet.read(run / "snapshots", 5)
    assert snapshots.subset.names == tuple(f"block{n}.conv.parametrizations.weight.0.B" for n in (2, 3))
    assert snapshots.subset.D == 2 * (16 + 32) and snapshots.theta_SD.std() > 0.01
    manifest = export.execute(str(run.path), "abend", str(tmp_path / "out"))
    ensemble, images = Ensemble.load(run), data().test.images[:20]
    np.save(tmp_path / "images.npy", images.numpy())
    shutil.rmtree(run.path)
    words = [sys.executable, "-W", "error", "-c", ALONE, str(tmp_path / "out"), str(tmp_path / "images.npy")]
    said = subprocess.run(words, check=True, capture_output=True, text=True)
    wanted_BK = ensemble.predict(images).prob_BK
    torch.testing.assert_close(torch.tensor(json.loads(said.stdout), dtype=wanted_BK.dtype), wanted_BK[0])
    # Each member as a plain network.
    folder = Folder(tmp_path / "out")
    spec = ModelSpec.from_json(manifest.facts, "")
    base, weights = read_tensors(folder, bases.FILE)[0], read_tensors(folder, "merged.safetensors")[0]
    assert {"block2.conv.weight", "block3.conv.weight", "block2.norm.running_mean"} <= weights.keys()
    module, found = spec.build(), []
    for member in range(ensemble.members):
        module.load_state_dict(base | {name: value[member] for name, value in weights.items()})
        with torch.no_grad():
            found.append(module(spec.preprocess(images)))
    torch.testing.assert_close(torch.stack(found), ensemble.logits(images), atol=1e-5, rtol=1e-5)
    assert "merged.safetensors" in manifest.files
    export_again = Folder(tmp_path / "out")
    artifacts.load(export_again, "ensemble")


@pytest.mark.ray
def test_one_network_of_a_run_with_adapters_is_exported_and_the_dry_run_says_what_answers_cost(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.execute(str(lora_run), "base", str(tmp_path / "base"))
    ensemble, images = Ensemble.load(tmp_path / "base"), data().test.images[:20]
    module = bases.load(Folder(lora_run / "base"), ensemble.spec)
    torch.testing.assert_close(ensemble.logits(images)[0], module(ensemble.spec.preprocess(images)))
    capsys.readouterr()
    pipeline.dry_run(Run(changed(**RUN), Folder(lora_run)), ())
    said = capsys.readouterr().out
    run = Run(changed(**RUN), Folder(lora_run))
    one = run.spec.build()
    cost = answer_cost.forward_passes(run, one, lora_targets.choose(one, "lora", run.config))
    assert f"7 members cost {cost:.2f} forward passes" in said and cost > 5
    assert "lora: D = 96 of" in said and "block3.conv.parametrizations.weight.0.B [32, 2]" in said
    assert bits(lora_run)  # whole
