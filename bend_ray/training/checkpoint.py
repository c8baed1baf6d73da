"""Where a training stands after its last whole epoch: one file of plain tensors. A kill costs an epoch at most."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bend_ray.errors import ArtifactError
from bend_ray.store import lineage
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import numbered
from bend_ray.store.tensors import read_tensors, write_tensors


@dataclass(frozen=True)
class Checkpoint:
    """Files ``epoch-00003.safetensors`` in ``folder``: the last one counts, earlier ones are on their way out.
    ``epoch`` is what their names begin with, where ``folder`` has those of several trainings.

    They bear the ``recipe`` of the training; one of another recipe is refused, as other finished units are.
    """

    folder: Folder
    recipe: str
    epoch: str = "epoch"

    def epochs(self) -> int:
        """Whole epochs that are behind, 0 where there is no file; reads names only."""
        return max(map(self._epochs, self._names()), default=0)

    def load(self, tensors: Mapping[str, Tensor]) -> int:
        """Write what stands in the last file into ``tensors``, in place, and return its epochs; 0: there is none.

        Raises ArtifactError where another recipe made it, or names or shapes are not those of ``tensors``.
        """
        if not (epochs := self.epochs()):
            return 0
        name = self._name(epochs)
        saved, made_by = read_tensors(self.folder, name)
        lineage.check_recipe(self.folder, name, made_by, self.recipe)
        wrong = sorted(saved.keys() ^ tensors.keys()) or [k for k in saved if saved[k].shape != tensors[k].shape]
        if wrong:
            raise ArtifactError(
                f"{self.folder}/{name}: {wrong[0]!r} does not fit the classifier as it is now; delete this file and run"
                " the same command again"
            )
        for key, tensor in tensors.items():
            tensor.copy_(saved[key])
        return epochs

    def save(self, epochs: int, tensors: Mapping[str, Tensor]) -> None:
        """Put ``tensors`` as they are after so many epochs; what was there before goes."""
        write_tensors(self.folder, self._name(epochs), tensors, self.recipe)
        for name in self._names():
            if self._epochs(name) < epochs:  # and none that is further on
                self.folder.delete(name)

    def clear(self) -> None:
        """Remove all of it: the training has ended."""
        for name in self._names():
            self.folder.delete(name)

    def _names(self) -> list[str]:
        return [name for name in self.folder.list() if name.startswith(f"{self.epoch}-")]

    def _name(self, epochs: int) -> str:
        return f"{numbered(self.epoch, epochs)}.safetensors"

    def _epochs(self, name: str) -> int:
        digits = name.removeprefix(f"{self.epoch}-").removesuffix(".safetensors")
        return int(digits) if digits.isdecimal() else 0
