"""What a classifier returns, and its logits in that: `classifier.output` says which part, where it is not plain."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray.errors import ModelError
from bend_ray.progress import counted

VALUES = "first, mean (of all of them), a number (from 0), or a name"
"""Of `classifier.output`, beside auto."""


def logits(output: Any) -> Tensor:
    """The logits in what a classifier returns: a tensor, an object with ``.logits``, or a dict with "logits"; of half
    precision as float32. Raises ModelError else."""
    logits_BK = output
    if not isinstance(output, Tensor):
        logits_BK = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(logits_BK, Tensor):
        raise ModelError(
            f"the classifier returns {_described(output)}; expected a tensor or an object with .logits, or a dict with"
            f" 'logits': say by classifier.output which part is meant: {VALUES}"
        )
    return logits_BK.float() if logits_BK.dtype in (torch.float16, torch.bfloat16) else logits_BK


def of(output: Any, rows: int, classes: int) -> Tensor:
    """`logits`, which must be numbers of ``classes`` for each of so many ``rows``. Raises ModelError else."""
    logits_BK = logits(output)
    if logits_BK.shape != (rows, classes):
        raise ModelError(
            f"the classifier gives logits of shape {tuple(logits_BK.shape)} for {counted(rows, 'images')}; expected"
            f" {(rows, classes)}{_hint(tuple(logits_BK.shape), rows, classes)}"
        )
    if not logits_BK.is_floating_point():
        raise ModelError(
            f"the classifier gives logits of {logits_BK.dtype}, which cannot be trained; return floating-point numbers,"
            " from before they are rounded or compared"
        )
    return logits_BK


def _hint(shape: tuple[int, ...], rows: int, classes: int) -> str:
    """What may have gone wrong, and what to do."""
    if shape[:2] == (rows, classes) and len(shape) > 2:
        if set(shape[2:]) == {1}:
            return "; add .flatten(1) to its end"
        axes = tuple(range(2, len(shape)))
        return f"; it says a class for each place of an image: take the mean over places (.mean({axes}))"
    if len(shape) == 3 and shape[::2] == (rows, classes):
        return f"; say by classifier.output which of the {shape[1]} along axis 1 is meant: {VALUES}"
    if classes == 2 and shape in ((rows,), (rows, 1)):
        return "; of one logit z, (B, 1), make two: torch.cat([torch.zeros_like(z), z], 1)"
    if shape == (classes,) and rows == 1:
        return "; squeeze() without an axis takes that of a single image away as well"
    return ""


@dataclass(frozen=True)
class Part:
    """A forward hook: the logits in place of what the classifier returns, as `classifier.output` says."""

    which: int | str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        return logits(self._part(output))

    def _part(self, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output if output.ndim < 3 else self._along_axis(output)
        if isinstance(self.which, str) and self.which not in ("first", "mean"):
            part = output.get(self.which) if isinstance(output, Mapping) else getattr(output, self.which, None)
            if part is None:
                raise self._missing(output)
            return part
        parts = [*output.values()] if isinstance(output, Mapping) else output
        if not isinstance(parts, tuple | list) or not parts:
            raise self._missing(output)
        if self.which != "mean":
            return self._picked(parts, output)
        if any(not isinstance(part, Tensor) or part.shape != parts[0].shape for part in parts):
            raise ModelError(f"classifier.output: mean: the classifier returns {_described(output)}, not all alike")
        return torch.stack([*parts]).mean(0)

    def _along_axis(self, output: Tensor) -> Tensor:
        """Of several logits for each image, (B, k, K)."""
        if output.ndim > 3 or (isinstance(self.which, str) and self.which not in ("first", "mean")):
            return output
        return output.mean(1) if self.which == "mean" else self._picked(output.unbind(1), output)

    def _picked(self, parts: Any, output: Any) -> Any:
        number = 0 if self.which == "first" else int(self.which)
        if not -len(parts) <= number < len(parts):
            raise self._missing(output)
        return parts[number]

    def _missing(self, output: Any) -> ModelError:
        return ModelError(f"classifier.output: {self.which}: there is no such part in {_described(output)}")


def choose(module: nn.Module, which: int | str) -> None:
    """Have ``module`` return the part of its output that `classifier.output` says; ``auto``: what `logits` takes."""
    if which != "auto":
        module.register_forward_hook(Part(which))


def _described(output: Any) -> str:
    """Its type, and what is in it."""
    kind = type(output).__name__
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {kind} of {', '.join(map(repr, output)) or 'nothing'}"
    if isinstance(output, tuple | list):
        shapes = [str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in output]
        return f"a {kind} of {', '.join(shapes) or 'nothing'}"
    return f"a {kind}"
