"""Snapshots as Parquet: one shard a chain, one row a snapshot, one column a parameter tensor.

``pandas.read_parquet("RUN/snapshots")`` opens all of them. Facts stand in plain columns, parameters in columns named
``theta.<parameter>`` of fixed-size float32 lists, so that a reader can stream one tensor of all snapshots at a time. A
tensor of more than 262,144 values has several, ``theta.<parameter>[0:262144]`` and so on.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bend_ray.errors import ArtifactError, broken
from bend_ray.models.subset import Subset
from bend_ray.snapshots import snapshots
from bend_ray.snapshots.snapshots import Fact, InMemorySnapshots, Snapshots
from bend_ray.store import lineage
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import numbered

STEM, RAW = "chain", "raw"
"""What names of shards begin with: those of the artifact, and those that wait to be aligned."""
WHAT = "shard of snapshots"
"""In the words of an error."""
IN_MEMORY = 1 << 30
"""Bytes of snapshots that `stream` keeps; more are read anew each time."""


def shard_name(chain: int, stem: str = STEM) -> str:
    return f"{numbered(stem, chain)}.parquet"


def write_shard(
    folder: Folder,
    chain: int,
    subset: Subset,
    theta_SD: Tensor,
    facts: Sequence[Fact],
    recipe: str,
    stem: str = STEM,
) -> None:
    """Put one chain's snapshots, which may be none; the same chain gives the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(fact, name) for fact in facts], pa.int64() if field.type is int else pa.float64())
        for name, field in Fact.__dataclass_fields__.items()
    }
    for (_, column, _), (_, piece_Sd) in zip(_columns(subset), InMemorySnapshots(subset, theta_SD)(), strict=True):
        values = pa.array(piece_Sd.contiguous().numpy().reshape(-1))
        columns[column] = pa.FixedSizeListArray.from_arrays(values, piece_Sd.shape[1])
    note = json.dumps({"recipe": recipe, "subset": subset.to_json()})
    table = pa.table(columns).replace_schema_metadata({"bend_ray": note})
    with folder.staged(shard_name(chain, stem)) as path:
        pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)


def shard_is_done(folder: Folder, chain: int, recipe: str, stem: str = STEM) -> bool:
    """Whether this chain's shard is there. Raises ArtifactError if another recipe made it or it cannot be read."""
    name = shard_name(chain, stem)
    if not folder.exists(name):
        return False
    lineage.check_recipe(folder, name, _checked_shard(folder, name).recipe, recipe)
    return True


def read_shard(folder: Folder, chain: int, stem: str = STEM) -> Snapshots:
    """One chain's snapshots. Raises ArtifactError as `read` does."""
    return _opened(folder, [shard_name(chain, stem)]).whole()


def read(folder: Folder, chains: int) -> Snapshots:
    """All shards of chains 0 to ``chains`` - 1, once in memory.

    Raises ArtifactError where a shard is missing, broken, of another subset, or holds a number that is not finite.
    """
    return ShardedSnapshots.open(folder, chains).whole()


def read_facts(folder: Folder, chains: int) -> tuple[Subset, list[Fact]]:
    """What is known of all snapshots of chains 0 to ``chains`` - 1, each shard checked as `read` does."""
    names = [shard_name(chain) for chain in range(chains)]
    shards = list(folder.each(lambda name: _checked_shard(folder, name), names))
    _check_subsets(shards)
    return shards[0].subset, [fact for shard in shards for fact in shard.facts]


def stream(folder: Folder, chains: int) -> "InMemorySnapshots | ShardedSnapshots":
    """Chains 0 to ``chains`` - 1 as a stream to pass over again and again: from memory where they are few."""
    shards = ShardedSnapshots.open(folder, chains)
    if 4 * len(shards.facts) * shards.subset.D > IN_MEMORY:
        return shards
    return shards.whole().stream


@dataclass(frozen=True)
class ShardedSnapshots:
    """Shards of several chains, mapped: their columns as a stream, one piece of all snapshots in memory at a time."""

    subset: Subset
    facts: tuple[Fact, ...]
    _shards: tuple["_Shard", ...]

    @staticmethod
    def open(folder: Folder, chains: int) -> "ShardedSnapshots":
        """Those of chains 0 to ``chains`` - 1. Raises ArtifactError as `read` does."""
        return _opened(folder, [shard_name(chain) for chain in range(chains)])

    def whole(self) -> Snapshots:
        """All of it in memory, once."""
        theta_SD, start = torch.empty(len(self.facts), self.subset.D), 0
        for _, theta_Sd in self():
            theta_SD[:, start : start + theta_Sd.shape[1]] = theta_Sd
            start += theta_Sd.shape[1]
        return Snapshots(self.subset, theta_SD, self.facts)

    def __call__(self) -> Iterator[tuple[str, Tensor]]:
        """(name, theta_Sd) of one piece of a parameter tensor after another."""
        for name, column, width in _columns(self.subset):
            theta_Sd = torch.empty(len(self.facts), width)
            start = 0
            for shard in self._shards:
                rows = slice(start, start + len(shard.facts))
                theta_Sd.numpy()[rows] = shard.read(column, width)
                start = rows.stop
            if not torch.isfinite(theta_Sd.sum()):  # one pass; a sum may overflow where no value does
                for shard in self._shards:
                    shard.check(name, column, width)
            yield name, theta_Sd


@dataclass(frozen=True)
class _Shard:
    where: str
    file: Any
    subset: Subset
    facts: tuple[Fact, ...]
    recipe: str

    @staticmethod
    def open(folder: Folder, name: str) -> "_Shard":
        """Of a map, which holds no descriptor and stays when its file, or a remote one's copy, is gone."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        where = f"{folder}/{name}"
        with folder.local(name) as path:
            try:
                with pa.memory_map(str(path)) as mapped:
                    file = pq.ParquetFile(pa.BufferReader(mapped.read_buffer()), page_checksum_verification=True)
                note = json.loads(file.schema_arrow.metadata[b"bend_ray"])
                subset = Subset.from_json(note["subset"])
                missing = {column for _, column, _ in _columns(subset)} - set(file.schema_arrow.names)
                if missing:
                    raise KeyError(min(missing))
                facts = tuple(Fact(**row) for row in file.read(list(Fact.__dataclass_fields__)).to_pylist())
                return _Shard(where, file, subset, facts, str(note["recipe"]))
            except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
                raise broken(where, WHAT, error) from None
        raise AssertionError  # nothing above is suppressed

    def read(self, column: str, width: int) -> np.ndarray:
        """(snapshots, width), float32."""
        import pyarrow as pa

        try:
            values = self.file.read([column], use_threads=False).column(0).combine_chunks().flatten()
            return values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, width)
        except (pa.ArrowException, OSError, TypeError, ValueError) as error:
            raise broken(self.where, WHAT, error) from None

    def check(self, name: str, column: str, width: int) -> None:
        """Raises ArtifactError where a value is not finite."""
        for row_d, fact in zip(self.read(column, width), self.facts, strict=True):
            if not np.isfinite(row_d).all():
                raise ArtifactError(
                    f"{self.where}: {name!r} of chain {fact.chain}, step {fact.step} is not finite;"
                    " delete this file and run the same command again"
                )


def _opened(folder: Folder, names: list[str]) -> ShardedSnapshots:
    shards = tuple(folder.each(lambda name: _Shard.open(folder, name), names))
    _check_subsets(shards)
    return ShardedSnapshots(shards[0].subset, tuple(fact for shard in shards for fact in shard.facts), shards)


def _checked_shard(folder: Folder, name: str) -> _Shard:
    """A shard, every value of which was read, without its map."""
    shard = _Shard.open(folder, name)
    for parameter, column, width in _columns(shard.subset):
        shard.check(parameter, column, width)
    return replace(shard, file=None)


def _columns(subset: Subset) -> Iterator[tuple[str, str, int]]:
    """(parameter, column, width) of each piece."""
    for name, size in zip(subset.names, subset.sizes, strict=True):
        for start in range(0, max(size, 1), snapshots.PIECE):
            stop = min(start + snapshots.PIECE, size)
            yield name, f"theta.{name}" + (f"[{start}:{stop}]" if size > snapshots.PIECE else ""), stop - start


def _check_subsets(shards: Sequence[_Shard]) -> None:
    for shard in shards:
        if shard.subset != shards[0].subset:
            raise ArtifactError(f"{shard.where}: holds another subset than {shards[0].where}")
