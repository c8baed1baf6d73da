"""Adapters beside those of peft, where peft is right: linear layers and plain convolutions."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lora_networks import images, made, vit


@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_as_peft_does(name: str) -> None:
    peft = pytest.importorskip("peft")
    make: Callable[[], nn.Module] = {
        "linear": vit,
        "convolution": lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 5)
        ),
    }[name]
    layers = {"linear": ["qkv", "mlp.2"], "convolution": ["0", "2"]}[name]
    targets = ", ".join(layers)
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
