"""What a classifier says in eval mode: the same of the same images, of each by itself, and not too little."""

import contextlib
import math
import warnings

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.errors import ModelError
from bend_ray.models import watch
from bend_ray.models.copies import tensors
from bend_ray.models.subject import REPEATED, Subject, apart, ask, logits
from bend_ray.models.subset import BATCH_NORMS


def check_repeated(subject: Subject, network: nn.Module, y: Tensor) -> None:
    x = subject.few
    if not (far := apart(y, ask(subject, network, x), REPEATED)):
        return
    answers = []
    for _ in range(2):
        with seeds.seeded(0, "check", "repeated"):
            answers.append(ask(subject, network, x))
    if apart(answers[0], answers[1], REPEATED):
        raise _remembers(subject, network, far)
    part = watch.first_other(network, x, x, torch.arange(len(x)))
    raise ModelError(
        f"the classifier draws at random in eval mode, {watch.words(network, part)}: logits of the same images differ"
        f" by up to {far:.2g}; {_stays(network, part) or 'draw in training mode alone: F.dropout(x, p, self.training)'}"
    )


def _stays(network: nn.Module, part: str) -> str:
    """What to do where a part of a network in eval mode is in training mode; nothing where none is."""
    stays = next((name for name, child in network.get_submodule(part).named_modules() if child.training), None)
    if stays is None:
        return ""
    return f"{'.'.join(filter(None, (part, stays)))!r} stays in training mode there: let eval() reach it"


def _remembers(subject: Subject, network: nn.Module, far: float) -> ModelError:
    before = {name: value.clone() for name, value in tensors(network)}
    ask(subject, network, subject.few.flip(0))
    changed = [f"{name!r} changes" for name, value in tensors(network) if not torch.equal(value, before[name])]
    part = watch.first_other(network, subject.few, subject.few, torch.arange(len(subject.few)))
    return ModelError(
        f"the classifier learns in eval mode, {', '.join(changed[:1]) or watch.words(network, part)}: logits of the"
        f" same images differ by up to {far:.2g} from one call to a later one; where self.training is false keep"
        " nothing of a call, and draw from no generator of its own (quantisation observers:"
        " torch.ao.quantization.disable_observer)"
    )


def check_beside(subject: Subject, network: nn.Module, y: Tensor) -> None:
    """Raises ModelError where logits of an image depend on the others of its batch."""
    x, rows = subject.few, torch.arange(len(subject.few))
    others = {
        "without the images before it": rows[len(x) // 2 :],
        "in another order": rows.flip(0),
        "alone": rows[:1],
    }
    for how, row_b in others.items():
        if far := apart(y[row_b], ask(subject, network, x[row_b]), subject.beside):
            if later := apart(y, ask(subject, network, x), subject.beside):
                raise _remembers(subject, network, later)
            part = watch.first_other(network, x, x[row_b], row_b)
            raise ModelError(
                f"the classifier's logits of an image depend on the others of its batch, {watch.words(network, part)}:"
                f" {how} they differ by up to {far:.2g}; {_told_apart(network, part)}"
            )
    if later := apart(y, ask(subject, network, x), subject.beside):
        raise _remembers(subject, network, later)


def _told_apart(network: nn.Module, part: str) -> str:
    """What to do that it tells images apart."""
    child = network.get_submodule(part)
    if isinstance(child, BATCH_NORMS) and child.running_mean is None:
        return "give it running statistics (track_running_stats=True)"
    return _stays(network, part) or "in eval mode normalise, attend, sort and limit within one image"


def check_bounds(subject: Subject, network: nn.Module, y: Tensor) -> None:
    """Warns where logits stay within -1 and 1 however large the weights of the last layer are. ``network`` is then no
    longer what it was."""
    most = float(y.abs().max())
    if not 0 < most <= 1:
        return
    x = subject.few[:4]
    layer = watch.last_layer(network, x)
    scales = [p for p in network.parameters() if p.numel() == 1]
    for parameter in {id(p): p for p in (*layer.parameters(), *network.parameters(recurse=False), *scales)}.values():
        parameter.mul_(1e3 / most)
    with contextlib.suppress(ModelError):
        if logits(network, x, subject.classes).abs().max() <= 1 + 1e-3:
            surest = math.exp(2) / (math.exp(2) + subject.classes - 1)
            warnings.warn(
                "the classifier's logits stay within -1 and 1, so that it can give no class a probability above"
                f" {surest:.2f}: leave out a tanh or sigmoid at its end, or multiply cosines by a scale (10 to 30)",
                stacklevel=3,
            )
