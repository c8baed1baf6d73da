"""Classifiers of timm and transformers. Both are loaded late, and only where one is used."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bend_ray import seeds
from bend_ray.models.checkpoints import Tensors


def current_names(module: nn.Module, tensors: Tensors) -> Tensors | None:
    """``tensors`` of a network of transformers, by the names that ``module``, or the one such network in it, has for
    them: `from_pretrained` knows what they were called when they were saved. None where there is no such network."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return None
    networks = [(name, one) for name, one in module.named_modules() if isinstance(one, transformers.PreTrainedModel)]
    outer = [
        (name, one) for name, one in networks if not any(name.startswith(f"{other}.") for other, _ in networks if other)
    ]
    outer = outer[:1] if outer and not outer[0][0] else outer
    if len(outer) != 1:
        return None
    name, network = outer[0]
    with _quiet(transformers), seeds.seeded(0, "from_pretrained"):  # it initialises what is missing
        loaded, told = type(network).from_pretrained(
            None,
            config=network.config,
            state_dict=dict(tensors),
            dtype=network.dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    before, missing, wrong = f"{name}." if name else "", set(told["missing_keys"]), told["mismatched_keys"]
    state = {key: value for key, value in loaded.state_dict().items() if key not in missing}
    state |= {key: torch.empty(shape, device="meta") for key, shape, _ in wrong}
    state |= {key: tensors[key] for key in told["unexpected_keys"] if key in tensors}
    return {before + key: value for key, value in state.items()}


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its bar of progress, and without its warnings of what we say ourselves."""
    logs = transformers.utils.logging
    level, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    try:
        logs.set_verbosity_error()
        logs.disable_progress_bar()
        yield
    finally:
        logs.set_verbosity(level)
        if bar:
            logs.enable_progress_bar()
