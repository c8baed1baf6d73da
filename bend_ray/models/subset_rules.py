"""The rules of `choices.SUBSETS`: from a classifier, and how its parameters reach the logits, to their names."""

from collections.abc import Iterable

from torch import nn

from bend_ray.models.blocks import Parts
from bend_ray.models.reach import Reach

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NORM_NAMES = ("Norm", "NormAct", "Affine", "GRN", "LayerScale", "FilterResponseNormTlu", "FilterResponseNormAct")
"""How names of classes end that normalise or scale and are no subclass of torch's, a number of axes (2d) left out."""
WHOLE = (nn.AdaptiveLogSoftmaxWithLoss, nn.MultiheadAttention, nn.RNNBase)
"""Layers of torch with other layers or several matrices in them, taken whole as a head."""


def head(module: nn.Module, reach: Reach) -> list[str]:
    """What reaches the logits last, or what the module itself names as its classifier, if that holds all of it."""
    last = set(reach.last)
    for child in module.modules():
        if isinstance(child, WHOLE) and last & (whole := _names(module, [child])):
            last |= whole
    for said in ("get_classifier", "get_output_embeddings"):
        named = _said(module, said) & reach.places.keys()
        if last <= named < reach.places.keys():
            return _in_order(module, named)
    return _in_order(module, last)


def norm(module: nn.Module, reach: Reach) -> list[str]:
    """Weights and biases of all normalisation layers."""
    return _in_order(module, _names(module, filter(_is_norm, module.modules())))


def norm_and_head(module: nn.Module, reach: Reach) -> list[str]:
    """Both."""
    return norm(module, reach) + head(module, reach)


def last_block(module: nn.Module, reach: Reach) -> list[str]:
    """The last of the blocks that repeat, and all that follows it: norms, pooling, head."""
    of_head = head(module, reach)
    body = [name for name, value in module.named_parameters() if name in reach.places and name not in of_head]
    trained = [name for name in body if module.get_parameter(name).requires_grad] or body
    if not trained:
        return of_head
    blocks = Parts(module, reach, trained)
    inside, outside = blocks.names(blocks.last), blocks.names_outside(blocks.last)
    return _in_order(module, inside | reach.behind(inside - outside or inside) | set(of_head))


def auto(module: nn.Module, reach: Reach) -> list[str]:
    """`norm_and_head` where there are normalisation layers with parameters, else `last_block`."""
    return norm_and_head(module, reach) if norm(module, reach) else last_block(module, reach)


def _is_norm(module: nn.Module) -> bool:
    """By type, or by the name of its class where it holds no matrix; never by the name that a network gives it."""
    if isinstance(module, NORMS):
        return True
    name = type(module).__name__.rstrip("d").rstrip("123")
    vectors = all(sum(size > 1 for size in value.shape) < 2 for value in module.parameters())
    return vectors and name.endswith(NORM_NAMES)


def _said(module: nn.Module, method: str) -> set[str]:
    """Parameters of what the module's ``method`` gives: a module, or several."""
    try:
        said = getattr(module, method)()
    except Exception:  # there is none, or it is not meant for this network
        return set()
    parts = said if isinstance(said, tuple | list | nn.ModuleList) else [said]
    return _names(module, [part for part in parts if isinstance(part, nn.Module)])


def _names(module: nn.Module, parts: Iterable[nn.Module]) -> set[str]:
    """First names of all parameters of ``parts`` that ``module`` has."""
    first = {id(value): name for name, value in module.named_parameters()}
    return {first[id(value)] for part in parts for value in part.parameters() if id(value) in first}


def _in_order(module: nn.Module, names: Iterable[str]) -> list[str]:
    names = set(names)
    return [name for name, _ in module.named_parameters() if name in names]
