"""Head and last block of networks of timm and transformers are what a practitioner calls so (`outside_lists`)."""

import importlib
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from bend_ray.models.reading import of_autograd
from bend_ray.models.subset import settle
from conftest import ROOT
from outside_lists import DIFFERENT, TIMM, TRANSFORMERS


@pytest.fixture(scope="module")
def outside() -> Any:
    """The benchmark that builds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("subsets")


def is_as_written(module: nn.Module, x: torch.Tensor, name: str, head: str, last_block: str) -> None:
    """By what autograd sees: an export of each takes seconds, and docs/subsets.md was made with it."""
    reach = of_autograd(module, x)
    for rule, parts in (("head", head), ("last_block", last_block)):
        expected = {
            parameter
            for parameter, _ in module.named_parameters()
            if parameter in reach.places
            and any(parameter == part or parameter.startswith(f"{part}.") for part in parts.split())
        }
        chosen = set(settle(module, rule, reach).subset.names)
        assert (chosen == expected) == ((name, rule) not in DIFFERENT), (rule, sorted(chosen ^ expected))


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.filterwarnings("ignore")  # the library warns of its own dependencies
def test_networks_of_transformers(outside: Any, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, x = outside.of_transformers(name)
    is_as_written(module, x, name, *TRANSFORMERS[name])


@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(outside: Any, name: str) -> None:
    pytest.importorskip("timm", reason="timm imports torchvision, and a pair that fits this torch is not installed")
    module, x = outside.of_timm(name)
    is_as_written(module, x, name, *TIMM[name])
