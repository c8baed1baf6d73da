"""What a classifier has learnt elsewhere: read from a file of the user's, and put into the module that it fits."""

import pickle
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray.errors import ModelError, shown
from bend_ray.store.folders import local_file


def load_weights(module: nn.Module, path: str) -> None:
    """Put the user's trained parameters, a state_dict as .safetensors or saved by torch (.pt, .pth), into ``module``.

    Raises ModelError where names or shapes do not fit (all are listed) or a value is not finite.
    """
    tensors = _read_weights(path)
    state = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    given = {id(state[name]) for name in tensors if name in state}
    missing = [name for name in state if id(state[name]) not in given]  # any one name of a tied parameter will do
    unexpected = [name for name in tensors if name not in state]
    wrong = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(state[name].shape)}"
        for name, tensor in tensors.items()
        if name in state and tensor.shape != state[name].shape
    ]
    if missing or unexpected or wrong:
        problems = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
        listed = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in problems.items() if names)
        raise ModelError(f"classifier.weights: {shown(path)} does not fit the classifier: {listed}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"classifier.weights: {shown(path)}: {name!r} is not finite")
    module.load_state_dict(tensors, strict=False)


def _read_weights(path: str) -> dict[str, Tensor]:
    """The tensors by name; those of a file of torch's also from under "state_dict", or with "module." before each name,
    which DataParallel leaves there."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    pickled = shown(path).lower().endswith((".pt", ".pth"))
    try:
        with local_file(path) as here:
            if not pickled:
                return load_file(here)
            # What a pickle may run is not run: tensors and plain containers alone.
            content: Any = torch.load(here, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        kind = "file of torch's that holds tensors alone" if pickled else ".safetensors file"
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"classifier.weights: {shown(path)}: is no {kind} that can be read ({reason})") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(
            f"classifier.weights: {shown(path)}: holds no state_dict (a dict of tensors, or one under 'state_dict');"
            " save one with torch.save(model.state_dict(), ...)"
        )
    wrapped = all(str(name).startswith("module.") for name in content)
    return {str(name).removeprefix("module.") if wrapped else str(name): value for name, value in content.items()}
