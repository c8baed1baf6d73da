"""Members with adapters as plain networks: the weights that each one has when its adapters are merged."""

import torch
from torch import Tensor

from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import Subset
from bend_ray.store.folders import Folder

FILE = "merged.safetensors"


def merged(folder: Folder, spec: ModelSpec, subset: Subset, theta_MD: Tensor, files: list[str]) -> dict[str, Tensor]:
    """What of the plain classifier's state differs in the members ``theta_MD``, by name, each with an axis of members
    in front. ``files``: where in ``folder`` the network of each member lies.

    Raises ModelError as `Lora.merge`.
    """
    assert subset.lora is not None
    states: list[dict[str, Tensor]] = [{} for _ in files]
    for file in dict.fromkeys(files):
        adapted, plain = bases.load(folder, spec, file=file, subset=subset), bases.load(folder, spec, file=file)
        buffers = [(name, value) for name, value in adapted.named_buffers() if name in subset.names]
        for member in (number for number, of_member in enumerate(files) if of_member == file):
            subset.put(adapted, theta_MD[member])
            states[member] = subset.lora.merge(adapted, plain) | {name: value.clone() for name, value in buffers}
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
