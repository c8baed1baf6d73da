"""Snapshots of the subset as Parquet: one part a chain, one row a snapshot, one column a parameter tensor.

``pandas.read_parquet("RUN/snapshots")`` opens all of them. Facts stand in plain columns, parameters in columns named
``theta.<parameter>`` of fixed-size float32 lists, so that a reader can stream one tensor of all snapshots at a time.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bend_ray import artifacts
from bend_ray.errors import ArtifactError
from bend_ray.folders import Folder
from bend_ray.weights.subset import Subset


@dataclass(frozen=True)
class Fact:
    """What is known of one snapshot."""

    chain: int
    step: int
    seed: int
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Snapshots:
    """``theta_SD`` with a row of facts each, ordered by chain and step."""

    subset: Subset
    theta_SD: Tensor
    facts: tuple[Fact, ...]

    @property
    def chains_S(self) -> Tensor:
        """Chain of each snapshot."""
        return torch.tensor([fact.chain for fact in self.facts])

    def of(self, keep_S: Tensor) -> "Snapshots":
        """The snapshots where ``keep_S`` is true."""
        kept = tuple(fact for fact, keep in zip(self.facts, keep_S.tolist(), strict=True) if keep)
        return Snapshots(self.subset, self.theta_SD[keep_S], kept)

    def divide(self, chains: int, held_out: int) -> tuple["Snapshots", "Snapshots"]:
        """Those the generator may see, and those of the last ``held_out`` of ``chains`` chains, withheld from it."""
        seen_S = self.chains_S < chains - held_out
        return self.of(seen_S), self.of(~seen_S)

    def blocks(self) -> Iterator[tuple[str, Tensor]]:
        """(name, theta_Sd) of one parameter tensor after another."""
        yield from zip(self.subset.names, self.theta_SD.split(self.subset.sizes, dim=1), strict=True)


def part_name(chain: int) -> str:
    return f"chain-{chain:05d}.parquet"


def write_part(folder: Folder, chain: int, subset: Subset, theta_SD: Tensor, facts: list[Fact], recipe: str) -> None:
    """Put one chain's snapshots; the same chain gives the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(fact, name) for fact in facts]) for name in Fact.__dataclass_fields__
    }
    for name, block_Sd in zip(subset.names, theta_SD.split(subset.sizes, dim=1), strict=True):
        values = pa.array(block_Sd.contiguous().numpy().reshape(-1))
        columns[f"theta.{name}"] = pa.FixedSizeListArray.from_arrays(values, block_Sd.shape[1])
    note = json.dumps({"recipe": recipe, "subset": subset.to_json()})
    table = pa.table(columns).replace_schema_metadata({"bend_ray": note})
    with folder.staged(part_name(chain)) as path:
        pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)


def part_is_done(folder: Folder, chain: int, recipe: str) -> bool:
    """Whether this chain's part is there. Raises ArtifactError if another recipe made it or it cannot be read."""
    if not folder.exists(part_name(chain)):
        return False
    artifacts.check_recipe(folder, part_name(chain), _read_part(folder, chain)[1], recipe)
    return True


def read(folder: Folder, chains: int) -> Snapshots:
    """All parts of chains 0 to ``chains`` - 1.

    Raises ArtifactError where a part is missing, broken, of another subset, or holds a number that is not finite.
    """
    parts = list(folder.each(lambda chain: _read_part(folder, chain), range(chains)))
    subset = parts[0][0].subset
    for chain, (part, _) in enumerate(parts):
        _check_subset(folder, chain, part.subset, subset)
    return Snapshots(
        subset,
        torch.cat([part.theta_SD for part, _ in parts]),
        tuple(fact for part, _ in parts for fact in part.facts),
    )


def read_facts(folder: Folder, chains: int) -> tuple[Subset, list[Fact]]:
    """What is known of all snapshots of chains 0 to ``chains`` - 1: `read` without keeping their parameters."""
    subset, facts = None, list[Fact]()
    for chain, (part, _) in enumerate(folder.each(lambda chain: _read_part(folder, chain), range(chains))):
        subset = subset or part.subset
        _check_subset(folder, chain, part.subset, subset)
        facts += part.facts
    assert subset is not None
    return subset, facts


def _check_subset(folder: Folder, chain: int, own: Subset, first: Subset) -> None:
    if own != first:
        raise ArtifactError(f"{folder}/{part_name(chain)}: holds another subset than {part_name(0)}")


def _read_part(folder: Folder, chain: int) -> tuple[Snapshots, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = f"{folder}/{part_name(chain)}"
    with folder.local(part_name(chain)) as path:
        try:
            table = pq.read_table(path, page_checksum_verification=True, memory_map=True)
            note = json.loads(table.schema.metadata[b"bend_ray"])
            subset = Subset.from_json(note["subset"])
            columns = [table.column(f"theta.{name}").combine_chunks() for name in subset.names]
            flat = [np.array(column.flatten(), dtype=np.float32).reshape(len(table), -1) for column in columns]
            facts = tuple(Fact(**row) for row in table.select(list(Fact.__dataclass_fields__)).to_pylist())
            theta_SD = torch.from_numpy(np.concatenate(flat, axis=1))
            recipe = str(note["recipe"])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{where}: is not a whole part of snapshots ({' '.join(str(error).split())});"
                " delete this file and run the same command again"
            ) from None
    for name, block in subset.split(theta_SD).items():
        for row, fact in enumerate(facts):
            if not torch.isfinite(block[row]).all():
                raise ArtifactError(
                    f"{where}: {name!r} of chain {fact.chain}, step {fact.step} is not finite;"
                    " delete this file and run the same command again"
                )
    return Snapshots(subset, theta_SD, facts), recipe
