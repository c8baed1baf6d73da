"""What of a network is trained, and what it must be for that: types and devices stay as they are."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bend_ray.config import Base
from bend_ray.errors import ModelError
from bend_ray.models.subset_rules import BATCH_NORMS

AVERAGED = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)
"""Types of buffers of which shards take the mean; of all others the first shard's stay."""
TRAINED = (torch.bfloat16, torch.float32, torch.float64, torch.complex64)
"""Types of parameters that are trained. The squares of small gradients are 0 in float16."""
KEPT = {*AVERAGED, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8}
KEPT |= {torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2}
"""Types that a file of a run can hold."""


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """Those that are trained: all that are not frozen (``requires_grad``), a tied one once."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def begin(module: nn.Module, base: Base) -> None:
    """Put ``module`` into training mode; frozen batch norms stay in eval mode where ``base`` says so."""
    module.train()
    for child in module.modules() if base.frozen_batch_norms == "stay" else ():
        of_norm = [*child.parameters()] if isinstance(child, BATCH_NORMS) else []
        if of_norm and not any(parameter.requires_grad for parameter in of_norm):
            child.eval()


def is_averaged(tensor: Tensor) -> bool:
    """Whether a buffer like ``tensor`` takes the mean of several; a counter does not."""
    return tensor.dtype in AVERAGED


def check(module: nn.Module, trains: bool = True) -> None:
    """Raises ModelError, which names the parameter or buffer, where ``module`` cannot be kept as it is, or (``trains``)
    not be trained."""
    for name, parameter in module.named_parameters():
        _check_kept(f"parameter {name!r}", parameter)
        if trains and parameter.requires_grad and parameter.dtype not in TRAINED:
            raise ModelError(
                f"the classifier's parameter {name!r} is {parameter.dtype}, which is not trained; use one of"
                f" {', '.join(map(str, TRAINED))}, or freeze it (requires_grad_(False))"
            )
    for name, buffer in module.named_buffers():
        _check_kept(f"buffer {name!r}", buffer)
    if trains and not parameters(module):
        raise ModelError(
            "the classifier has no parameter that is trained: all are frozen (requires_grad is False), or there is none"
        )


def _check_kept(what: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise ModelError(f"the classifier's {what} has no shape: no image gave it one; use it, or take it out")
    if tensor.layout != torch.strided or tensor.dtype not in KEPT or tensor.is_meta:
        kind = "on the meta device" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
        raise ModelError(
            f"the classifier's {what} is {kind}, which no file of a run can hold; use a dense tensor of another type"
            " (complex64, float32, int64, ...)"
        )
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise ModelError(f"the classifier's {what} was expanded: its values share memory; register a copy (.clone())")
