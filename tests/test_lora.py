"""Low-rank adapters (`collect.subset: lora`): exact, and linear in what varies."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bend_ray.errors import ModelError
from bend_ray.models import lora_targets
from bend_ray.models.lora import Lora, weight_of
from bend_ray.models.partition import partition, unpartitioned
from bend_ray.models.resnet import resnet18
from bend_ray.models.subset import Subset, choose
from bend_ray.store import artifacts
from conftest import changed
from lora_networks import NETWORKS, Attentive, Convolutional, Encoder, Spectral, Tied, images, made, of, of_merged, vit
from oracles import logits_of_whole_models


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
        weights.append(weight_of(adapted, "grouped.weight").detach())
    torch.testing.assert_close(torch.stack(weights[:-1]).mean(0), weights[-1])


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
