"""Artifacts are whole or not there, say what made them, and are refused when altered."""

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from bend_ray.config import Config
from bend_ray.errors import ArtifactError, MissingError, broken
from bend_ray.run import Run
from bend_ray.store import artifacts, lineage
from bend_ray.store.artifacts import Manifest
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import read_note, read_tensors, write_rows, write_tensors
from bend_ray.store.timings import note_seconds, noted_seconds
from conftest import changed


def make(run: Folder, config: Config) -> Manifest:
    write_tensors(run / "base", "model.safetensors", {"w": torch.arange(4.0)})
    return artifacts.publish(run, "base", config, {"data": "d"}, {"n": 1}, ["model.safetensors"], "# Base\n")


def test_published_is_found_and_whole(tmp_path: Path, toy: Config) -> None:
    run = Folder(tmp_path)
    assert lineage.find(run, "base", toy, {"data": "d"}) is None
    made = make(run, toy)
    assert lineage.find(run, "base", toy, {"data": "d"}) == made == artifacts.load(run / "base", "base")
    assert run.path.joinpath("base/README.md").read_text() == "# Base\n"


def test_same_content_same_bytes_and_digest(tmp_path: Path, toy: Config) -> None:
    assert make(Folder(tmp_path / "a"), toy).digest == make(Folder(tmp_path / "b"), toy).digest
    one, two = (tmp_path / name / "base" / "model.safetensors" for name in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_other_configuration_is_named_and_nothing_touched(tmp_path: Path, toy: Config) -> None:
    run = Folder(tmp_path)
    make(run, toy)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError, match=rf"base\.epochs: 2 there, 3 here\); .*, or delete base in {tmp_path}$"):
        lineage.check_run(run, changed(base={"epochs": 3}))
    with pytest.raises(ArtifactError, match="another data"):
        lineage.find(run, "base", toy, {"data": "other"})
    with pytest.raises(ArtifactError, match="another data"):  # made with an input that is asked for no more
        lineage.find(run, "base", toy, {})
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_what_follows_is_named_as_far_as_it_is_there(tmp_path: Path, toy: Config) -> None:
    run = Folder(tmp_path)
    make(run, toy)
    for name in ("rivals/bagging-000.safetensors", "snapshots/chain-00000.parquet", "report/config.json"):
        run.write(name, b"{}")
    (tmp_path / "generator").mkdir()  # empty: nothing to delete
    with pytest.raises(ArtifactError, match=rf"or delete base, snapshots, report and rivals in {tmp_path}$"):
        lineage.check_run(run, changed(base={"epochs": 3}))
    with pytest.raises(ArtifactError, match=r"or delete base, snapshots, report and rivals in \S+ to make it anew"):
        lineage.find(run, "base", toy, {"data": "other"})
    assert lineage._following(run, "ensemble") == f"ensemble and report in {tmp_path}"


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove"])
def test_damage_is_found(tmp_path: Path, toy: Config, damage: str) -> None:
    run = Folder(tmp_path)
    make(run, toy)
    path = tmp_path / "base" / "model.safetensors"
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[:-3])
    elif damage == "alter":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors: is (truncated|altered|missing)"):
        artifacts.load(run / "base", "base")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"kind": "generator"},
        {"surprise": 1},
        {"files": {"../../etc/passwd": {"bytes": 1, "sha256": "0"}}},
        {"files": 3},
    ],
)
def test_forged_manifest_is_refused(tmp_path: Path, toy: Config, change: dict[str, Any]) -> None:
    run = Folder(tmp_path)
    make(run, toy)
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=r"config\.json"):
        artifacts.load(run / "base", "base")


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_manifest_that_is_no_json_object_is_refused(tmp_path: Path, toy: Config, text: str) -> None:
    run = Folder(tmp_path)
    make(run, toy)
    (tmp_path / "base" / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match="is not a manifest"):
        artifacts.read_manifest(run / "base", "base")


def test_file_appears_only_when_written_whole(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    with pytest.raises(RuntimeError), run.staged("a/b") as path:
        path.write_text("half")
        assert run.list() == [] and (run / "a").list() == []
        raise RuntimeError
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / ".tmp-0-chain").write_text("half")
    run.write("config.yaml", b"seed: 0")
    run.sweep()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["config.yaml"]


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        Folder(tmp_path / "run").write("config.yaml", b"")


def test_safetensors_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ArtifactError, match=r"x\.safetensors"):
        read_tensors(Folder(tmp_path), "x.safetensors")
    with pytest.raises(ArtifactError, match="no such file"):
        read_tensors(Folder(tmp_path), "y.safetensors")


def test_a_note_is_read_and_a_file_that_is_not_whole_noticed(tmp_path: Path) -> None:
    folder, path = Folder(tmp_path), tmp_path / "x.safetensors"
    write_tensors(folder, "x.safetensors", {"w": torch.arange(4.0)}, "recipe")
    assert read_note(folder, "x.safetensors") == read_tensors(folder, "x.safetensors")[1] == "recipe"
    data = path.read_bytes()
    for damaged in (b"", data[:5], data[:-1], data + b"0", b"\xff" * len(data)):
        path.write_bytes(damaged)
        said = []
        for read in (read_note, read_tensors):
            with pytest.raises(ArtifactError, match=r"x\.safetensors: is not a whole .*; delete it") as raised:
                read(folder, "x.safetensors")
            said.append(str(raised.value))
        assert said[0] == said[1]


def test_blocks_that_are_there_are_of_this_recipe_and_whole(tmp_path: Path) -> None:
    from bend_ray.stages import sample

    folder = Folder(tmp_path)
    for block in (0, 2):
        write_tensors(folder, f"block-{block:05d}.safetensors", {"theta_MD": torch.zeros(2, 3)}, "recipe")
    assert sample._done(folder, "recipe") == [0, 2]
    with pytest.raises(ArtifactError, match=r"block-00000\.safetensors: was made by another configuration"):
        sample._done(folder, "other")
    path = tmp_path / "block-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"block-00002\.safetensors: is not a whole"):
        sample._done(folder, "recipe")


@pytest.mark.parametrize(
    ("code", "mend"),
    [(errno.EMFILE, "ulimit -n"), (errno.ENFILE, "sysctl"), (errno.ENOMEM, "memory"), (errno.EIO, "disk")],
)
def test_what_is_no_fault_of_a_file_is_no_reason_to_delete_it(code: int, mend: str) -> None:
    said = str(broken("x", "shard of snapshots", OSError(code, "why")))
    assert said.startswith("x: cannot be read") and mend in said and "delete" not in said


def test_a_missing_file_is_an_error_of_both_kinds_in_any_process(tmp_path: Path) -> None:
    for kind in (FileNotFoundError, ArtifactError):
        with pytest.raises(kind, match="x: no such file") as raised:
            Folder(tmp_path).read("x")
        again = pickle.loads(pickle.dumps(raised.value))
        assert type(again) is MissingError and str(again) == str(raised.value)


def test_seconds_add_up(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    for unit, seconds in (("chain-0", 1.0), ("chain-1", 2.0), ("chain-2", 8.0), ("fit", 4.0)):
        note_seconds(run, unit, seconds)
    assert noted_seconds(run, ["chain-0", "chain-1", "chain-7"]) == 3.0  # not of a chain that is no longer asked for


def test_uri_of_a_local_folder_is_that_folder(tmp_path: Path) -> None:
    Folder(f"file://{tmp_path}").write("x", b"1")
    assert Folder(tmp_path).read("x") == b"1"


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (12, 1), (3, 12345)])
def test_rows_written_block_by_block_are_the_same_bytes(tmp_path: Path, shape: tuple[int, int]) -> None:
    folder, theta_MD = Folder(tmp_path), torch.randn(shape)
    write_tensors(folder, "whole.safetensors", {"theta_MD": theta_MD})
    write_rows(folder, "rows.safetensors", "theta_MD", shape, theta_MD.split(2))
    assert folder.read("rows.safetensors") == folder.read("whole.safetensors")


def test_each_keeps_the_order_and_passes_errors_on(tmp_path: Path) -> None:
    for folder in (Folder(tmp_path), Folder("s3://bucket/run")):  # one by one, and several at once
        assert list(folder.each(lambda n: n * n, range(40))) == [n * n for n in range(40)]
        with pytest.raises(ZeroDivisionError):
            list(folder.each(lambda n: 1 / (n - 20), range(40)))


def test_what_a_run_still_needs_on_disk(tmp_path: Path, toy: Config) -> None:
    from bend_ray.stages import pipeline

    folder, run = Folder(tmp_path), Run(toy, Folder(tmp_path))
    model = pipeline._classifier(run)
    base = sum(tensor.nbytes for tensor in model.module.state_dict().values())
    D, snapshots = model.cut.subset.D, toy.collect.chains * toy.collect.snapshots_per_chain
    assert pipeline._size(run, ("collect",), model) == base + 4 * D * snapshots
    assert pipeline._size(run, ("collect", "sample"), model) == 2 * base + 4 * D * snapshots + 8 * D * 7
    (folder / "snapshots").write("chain-00000.parquet", bytes(1000))
    assert pipeline._size(run, ("collect",), model) == base + 4 * D * snapshots - 1000
    assert pipeline._size(run, ("evaluate",), None) == 0
