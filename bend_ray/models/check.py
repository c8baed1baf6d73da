"""What a classifier does with images, tried on a copy before any work: in training and eval mode, twice, alone, beside
others and in another order."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.errors import ModelError
from bend_ray.models import check_eval, watch
from bend_ray.models.copies import fill, shapes, tensors
from bend_ray.models.subject import Subject, apart, ask, logits, on_blank
from bend_ray.models.subset import BATCH_NORMS

TRAINING = " in training mode"
FEW = 8
"""Images that are enough to see whether two copies are the same."""


@seeds.seeded(0, "check")
def on_rows(subject: Subject) -> None:
    """Raises ModelError, or warns, where the classifier does not give logits of each image by that image alone, in
    numbers that can be trained. The module itself is shown nothing."""
    network, x = subject.fresh(), subject.few
    _train(subject, network)
    _check_part(subject)
    network.eval()
    with torch.no_grad():
        y = ask(subject, network, x)
        _check_values(network, x, y)
        if subject.shards:
            y = _moved(subject, network, y)
        _check_constant(subject, network, y)
        check_eval.check_repeated(subject, network, y)
        check_eval.check_beside(subject, network, y)
        if subject.shards:
            _check_kept(subject, network)
        check_eval.check_bounds(subject, network, y)


def _train(subject: Subject, network: nn.Module) -> None:
    """Show ``network`` a piece of a batch of each size in training mode. Running statistics of its batch norms are then
    those of the last one, as if it had been trained for long: else most of what it says in eval mode may vanish."""
    network.train()
    norms = {child: child.momentum for child in network.modules() if isinstance(child, BATCH_NORMS)}
    for norm in norms:
        norm.momentum = 1.0
    for x in (subject.x[:size] for size in subject.shards):
        _check_finite(network, x, logits(network, x, subject.classes, TRAINING), TRAINING)
    for norm, momentum in norms.items():
        norm.momentum = momentum


def _check_part(subject: Subject) -> None:
    """Raises ModelError where `classifier.output` has nothing to choose from, in neither mode."""
    if subject.part == "auto" or not subject.shards:
        return
    network, plain = subject.fresh(), list[bool]()

    def look(_: nn.Module, args: Any, given: Any) -> None:
        plain.append(isinstance(given, Tensor) and given.ndim < 3)

    network.register_forward_hook(look, prepend=True)
    for mode in (True, False):
        network.train(mode)(subject.x[: min(subject.shards)])
    if all(plain):
        raise ModelError(
            f"classifier.output: {subject.part}: the classifier returns logits alone, and there is nothing to choose;"
            " leave the key out"
        )


def _check_finite(network: nn.Module, x: Tensor, y: Tensor, mode: str = "") -> None:
    if not y.isfinite().all():
        where = watch.words(network, watch.first_not_finite(network, x))
        raise ModelError(
            f"the classifier gives logits that are not finite for training images{mode}, first {where}; look for a"
            " division, logarithm, root or exponential there, and at the weights"
        )


def _check_values(network: nn.Module, x: Tensor, y: Tensor) -> None:
    _check_finite(network, x, y)
    if (y >= 0).all() and ((y.sum(1) - 1).abs() < 1e-3).all():
        raise ModelError(
            "the classifier gives probabilities (no number is below 0, and those of an image sum to 1), which would go"
            " through a softmax again; return what goes into its last softmax, or their logarithm"
        )


def _check_constant(subject: Subject, network: nn.Module, y: Tensor) -> None:
    x = subject.few.clone().requires_grad_()
    if not (x != x[:1]).any() or (y - y[:1]).abs().max() > 1e-6 * y.abs().max():
        return
    if subject.shards:  # it may still learn to see
        with torch.enable_grad():
            logits_BK = logits(network.train(), x, subject.classes, TRAINING)
            seen = torch.autograd.grad((logits_BK * torch.randn_like(logits_BK)).sum(), x, allow_unused=True)[0]
        network.eval()
        if seen is not None and seen.any():
            return
    raise ModelError(
        "the classifier gives the same logits whatever the image: what is made of the image is lost on the way"
        " (multiplied by zero, cut off by a ReLU, averaged over the batch); mend its forward, or its weights"
    )


def _check_kept(subject: Subject, network: nn.Module) -> None:
    """Raises ModelError where the parameters and buffers of ``network``, which has seen a batch in training mode, are
    not all that it has of it: a file holds no more."""
    x = 0.7 * subject.x[: min(*subject.shards, FEW)]  # others than it was shown: of less contrast
    other, loaded = subject.fresh(), subject.fresh()
    _, *shape = x.shape
    on_blank(loaded, shape, subject.classes)  # as `classifiers.build` does with what is then loaded
    if shapes(other) != shapes(network):
        return
    fill(other, network)
    answers = []
    for one in (network.train(), other.train()):
        with seeds.seeded(0, "check", "kept"), torch.enable_grad():
            answers.append(logits(one, x, subject.classes, TRAINING).detach())
    pairs = zip(tensors(network.eval()), tensors(other.eval()), strict=True)
    changed = [name for (name, one), (_, other) in pairs if not _alike(one, other)]
    fill(loaded.eval(), network)
    both = [tuple(answers), (ask(subject, network, x), ask(subject, loaded, x))]
    far = max(apart(one, other, subject.beside) for one, other in both)
    if changed or far:
        seen = f"seen at {changed[0]!r}" if changed else f"logits differ by up to {far:.2g}"
        raise ModelError(
            f"what a pass in training mode leaves in the classifier is not all in its parameters and buffers ({seen}),"
            " and no file holds it: register as buffers (register_buffer) what it keeps as plain attributes, also"
            " whether a layer has seen its first batch"
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    rounded = one.dtype in (torch.float32, torch.float64)
    return torch.equal(one, other) or (rounded and torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True))


def _moved(subject: Subject, network: nn.Module, y: Tensor) -> Tensor:
    """Logits once trained parameters of one value, as zeros of a head or ones of a norm, have moved as training will
    move them, so that nothing hides behind them; ``y``, and nothing has moved, where that leaves the numbers."""
    parameters = [p for p in network.parameters() if p.requires_grad and p.is_floating_point() and p.numel() > 1]
    before = [(p, p.clone()) for p in parameters if p.min() == p.max()]
    for parameter, _ in before:
        parameter.add_(0.1 * torch.randn_like(parameter).abs())
    with contextlib.suppress(ModelError):
        if (moved_y := logits(network, subject.few, subject.classes)).isfinite().all():
            return moved_y
    for parameter, value in before:
        parameter.copy_(value)
    return y
