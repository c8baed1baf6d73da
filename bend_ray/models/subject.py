"""A classifier that is tried, and how it is asked: on copies, so that it is itself shown nothing."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bend_ray.errors import BendError, ModelError
from bend_ray.models import output
from bend_ray.models.copies import Make, copied

ROWS = 15
"""Images that are shown at once in eval mode: few networks have axes of such a length, which would look like rows."""
MOST = 64
"""Images that are shown at once in training mode, at most."""
REPEATED, BESIDE = 1e-5, 1e-3
"""How far logits may lie apart, in parts of the largest: of the same batch, and of the same image in another batch,
which is rounded in another order."""


@dataclass(frozen=True)
class Subject:
    """A classifier, and what it is tried with."""

    module: nn.Module
    again: Make
    """Makes the module again, where it refuses to be copied."""
    x: Tensor
    """Real images, as it gets them."""
    classes: int
    shards: Sequence[int] = ()
    """Sizes of the pieces of a batch that it is trained on; none where it is not trained."""
    part: int | str = "auto"
    """`classifier.output`."""

    def fresh(self) -> nn.Module:
        """A copy that was shown nothing."""
        return copied(self.module, self.again)

    @cached_property
    def few(self) -> Tensor:
        """Those that are shown at once in eval mode."""
        return self.x[:ROWS]

    @cached_property
    def beside(self) -> float:
        """`BESIDE`, or what parameters of half precision make of it."""
        steps = [torch.finfo(p.dtype).eps for p in self.module.parameters() if p.is_floating_point()]
        return max([BESIDE, *(8 * step for step in steps)])


@torch.no_grad()
def on_blank(module: nn.Module, shape: Sequence[int], classes: int) -> None:
    """Run ``module`` in eval mode on two blank images of this shape; its modes are left as they were. Raises ModelError
    unless it gives logits."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with in_eval_mode(module):
        logits(module, torch.zeros(2, *shape, device=device), classes)


@contextlib.contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Modes are then as they were."""
    modes = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for child, training in modes:
            child.training = training


def logits(network: nn.Module, x: Tensor, classes: int, mode: str = "") -> Tensor:
    """Raises ModelError where there are none for each image of x; ``mode``: when that is, in words."""
    try:
        return output.of(network(x.clone()), len(x), classes)  # a copy: it may write into what it is given
    except BendError as error:
        raise ModelError(f"{error}{mode and f' (seen{mode})'}") from error
    except Exception as error:
        raise ModelError(f"the classifier fails on images of shape {tuple(x.shape)}{mode}: {error}") from error


def ask(subject: Subject, network: nn.Module, x: Tensor) -> Tensor:
    """Logits in eval mode. Raises ModelError as `logits`, and where they fail for what came before."""
    try:
        return logits(network, x, subject.classes)
    except ModelError as error:
        logits(subject.fresh().eval(), x, subject.classes)  # fails likewise, unless it is for what came before
        raise ModelError(
            f"the classifier keeps something of the batch before, for which another batch fails ({error}); begin each"
            " forward anew"
        ) from None


def apart(one: Tensor, other: Tensor, share: float) -> float:
    """By how much logits differ, where it is more than this share of the largest; else 0."""
    most = float((one.double() - other.double()).abs().max())
    return most if most > share * float(one.abs().max()) or math.isnan(most) else 0.0
