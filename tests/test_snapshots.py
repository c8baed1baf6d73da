"""Snapshots as Parquet: read is written, anyone can open them, and broken ones are refused by name."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from bend_ray.errors import ArtifactError
from bend_ray.generator.span import SnapshotStream
from bend_ray.models.subset import Subset
from bend_ray.snapshots import parquet, snapshots
from bend_ray.snapshots.snapshots import Fact, InMemorySnapshots
from bend_ray.store.folders import Folder

SUBSET = Subset(("head.weight", "norm.bias"), ((3, 2), (4,)), ("float32", "float32"))


def put(folder: Folder, chain: int, recipe: str = "r", theta_SD: Tensor | None = None) -> Tensor:
    if theta_SD is None:
        theta_SD = torch.randn(2, SUBSET.D, generator=torch.Generator().manual_seed(chain))
    facts = [Fact(chain, step, 2**62 + chain, 0.5, 0.25) for step in (10, 20)]
    parquet.write_shard(folder, chain, SUBSET, theta_SD, facts, recipe)
    return theta_SD


def test_read_is_written(tmp_path: Path) -> None:
    written = torch.cat([put(Folder(tmp_path), chain) for chain in range(3)])
    read = parquet.read(Folder(tmp_path), 3)
    assert read.subset == SUBSET and torch.equal(read.theta_SD, written)
    assert [(fact.chain, fact.step) for fact in read.facts] == [(c, s) for c in range(3) for s in (10, 20)]
    assert torch.equal(torch.cat([block for _, block in read.stream()], dim=1), written)


def test_same_chain_same_bytes(tmp_path: Path) -> None:
    put(Folder(tmp_path / "a"), 1)
    put(Folder(tmp_path / "b"), 1)
    assert (tmp_path / "a" / parquet.shard_name(1)).read_bytes() == (
        tmp_path / "b" / parquet.shard_name(1)
    ).read_bytes()


def test_pandas_opens_the_folder_beside_our_files(tmp_path: Path) -> None:
    theta = put(Folder(tmp_path), 0)
    Folder(tmp_path).write("_config.json", b"{}")
    frame = pd.read_parquet(tmp_path)
    assert list(frame.columns) == [
        "chain",
        "step",
        "seed",
        "val_loss",
        "val_accuracy",
        "theta.head.weight",
        "theta.norm.bias",
    ]
    assert np.array_equal(np.stack(frame["theta.head.weight"].tolist()), theta[:, :6].numpy())


def test_whole_chains_are_withheld(tmp_path: Path) -> None:
    for chain in range(4):
        put(Folder(tmp_path), chain)
    seen, held_out = parquet.read(Folder(tmp_path), 4).divide(3)
    assert set(seen.chains_S.tolist()) == {0, 1, 2} and set(held_out.chains_S.tolist()) == {3}


def test_a_chain_may_have_no_snapshots(tmp_path: Path) -> None:
    folder, written = Folder(tmp_path), put(Folder(tmp_path), 0)
    parquet.write_shard(folder, 1, SUBSET, torch.empty(0, SUBSET.D), [], "r")
    assert parquet.shard_is_done(folder, 1, "r") and len(parquet.read_shard(folder, 1).theta_SD) == 0
    parquet.write_shard(folder, 2, SUBSET, written[:1] + 1, [Fact(2, 20, 0, 0.5, 0.25)], "r")
    read = parquet.read(folder, 3)
    assert torch.equal(read.theta_SD, torch.cat([written, written[:1] + 1]))
    seen, held_out = read.divide(2)
    assert (len(seen.facts), len(held_out.facts)) == (2, 1)
    assert pd.read_parquet(tmp_path)["chain"].tolist() == [0, 0, 2]


def test_done_means_by_the_same_recipe(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert not parquet.shard_is_done(folder, 0, "r")
    put(folder, 0)
    assert parquet.shard_is_done(folder, 0, "r")
    with pytest.raises(ArtifactError, match="another configuration"):
        parquet.shard_is_done(folder, 0, "other")


def test_missing_shard_is_named(tmp_path: Path) -> None:
    put(Folder(tmp_path), 0)
    with pytest.raises(ArtifactError, match=r"chain-00001\.parquet: no such file"):
        parquet.read(Folder(tmp_path), 2)


@pytest.mark.parametrize("damage", ["truncate", "alter", "empty", "foreign"])
def test_broken_shard_is_named(tmp_path: Path, damage: str) -> None:
    theta = put(Folder(tmp_path), 0)
    path = tmp_path / parquet.shard_name(0)
    data = path.read_bytes()
    where = data.index(theta[:, :6].contiguous().numpy().tobytes()[:16])
    if damage == "foreign":
        pq.write_table(pa.table({"x": [1]}), path)
    else:
        altered = data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]
        path.write_bytes({"truncate": data[: len(data) // 2], "alter": altered, "empty": b""}[damage])
    with pytest.raises(ArtifactError, match=r"chain-00000\.parquet: is not a whole shard"):
        parquet.read(Folder(tmp_path), 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_number_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    theta = torch.zeros(2, SUBSET.D)
    theta[1, 7] = bad
    put(Folder(tmp_path), 0, theta_SD=theta)
    with pytest.raises(ArtifactError, match=r"'norm\.bias' of chain 0, step 20 is not finite"):
        parquet.read(Folder(tmp_path), 1)


# --- streams


def flat(blocks: SnapshotStream) -> list[tuple[str, list[list[float]]]]:
    return [(name, theta_Sd.tolist()) for name, theta_Sd in blocks()]


@pytest.mark.parametrize("piece", [2, 5, 1 << 18])
def test_streamed_is_what_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Again and again, whatever the size of a column; and a plain reader finds the pieces by their names."""
    monkeypatch.setattr(snapshots, "PIECE", piece)
    theta = [put(Folder(tmp_path), chain) for chain in range(3)]
    stream = parquet.ShardedSnapshots.open(Folder(tmp_path), 3)
    first, again = flat(stream), flat(stream)
    assert stream.facts == parquet.read(Folder(tmp_path), 3).facts
    assert first == again == flat(InMemorySnapshots(SUBSET, torch.cat(theta)))
    assert torch.equal(parquet.read(Folder(tmp_path), 3).theta_SD, torch.cat(theta))
    columns = [name for name in pq.read_schema(tmp_path / parquet.shard_name(0)).names if name.startswith("theta.")]
    whole = pq.read_table(tmp_path, columns=columns).to_pydict()
    values = [[value for name in columns for value in whole[name][row]] for row in range(6)]
    assert torch.equal(torch.tensor(values), torch.cat(theta))
    if piece == 5:
        assert "theta.head.weight[0:5]" in columns


def test_few_are_held_and_many_are_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for chain in range(3):
        put(Folder(tmp_path), chain)
    few = parquet.stream(Folder(tmp_path), 2)
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    many = parquet.stream(Folder(tmp_path), 2)
    assert isinstance(few, InMemorySnapshots) and isinstance(many, parquet.ShardedSnapshots) and flat(few) == flat(many)


def test_parts_are_read_when_their_files_are_gone(tmp_path: Path) -> None:
    """As the copies of remote ones are at once."""
    written = torch.cat([put(Folder(tmp_path), chain) for chain in range(3)])
    stream = parquet.ShardedSnapshots.open(Folder(tmp_path), 3)
    for path in tmp_path.iterdir():
        path.unlink()
    assert torch.equal(stream.whole().theta_SD, written)


def test_more_parts_than_files_may_be_open(tmp_path: Path) -> None:
    """And where none may be opened at all, no shard is taken for a broken one."""
    written = put(Folder(tmp_path), 0)
    for chain in range(1, 100):
        (tmp_path / parquet.shard_name(chain)).write_bytes((tmp_path / parquet.shard_name(0)).read_bytes())
    code = (
        "import os, resource, sys; from bend_ray.store.folders import Folder; from bend_ray.snapshots import parquet\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); folder = Folder(sys.argv[1])\n"
        "print(parquet.read(folder, 100).theta_SD.sum(dtype=parquet.torch.float64).item())\n"
        "try:\n    while True: os.dup(0)\n"
        "except OSError: pass\n"
        "try: parquet.read(folder, 100)\n"
        "except OSError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, stdout=subprocess.PIPE, text=True)
    total, said = ran.stdout.splitlines()
    assert float(total) == pytest.approx(100 * written.double().sum().item(), rel=1e-9)
    assert said.startswith(f"{tmp_path / parquet.shard_name(0)}: cannot be read (") and said.endswith(
        "; raise the limit on open files (ulimit -n) and run the same command again"
    )


def test_raw_shards_are_no_shards(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    theta_SD = torch.randn(2, SUBSET.D)
    facts = [Fact(0, step, 0, 0.0, 0.0) for step in range(2)]
    parquet.write_shard(folder, 0, SUBSET, theta_SD, facts, "r", parquet.RAW)
    assert parquet.shard_is_done(folder, 0, "r", parquet.RAW) and not parquet.shard_is_done(folder, 0, "r")
    assert torch.equal(parquet.read_shard(folder, 0, parquet.RAW).theta_SD, theta_SD)
