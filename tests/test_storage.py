"""Runs on an object store (a real S3 endpoint on this machine): whole or not there, resumed, errors in a sentence."""

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bend_ray import cli, errors
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import ArtifactError, DataError, ModelError
from bend_ray.models.weights import load_weights
from bend_ray.run import Run
from bend_ray.stages import pipeline
from bend_ray.store import folders
from bend_ray.store.artifacts import read_manifest
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS
from conftest import changed
from s3 import BUCKET, Store, store

__all__ = ["store"]


def test_a_folder_at_a_uri(store: Store) -> None:
    folder = Folder(store.uri("plain"))
    inner = folder / "inner"
    assert not folder.exists("x") and folder.list() == [] and inner.list() == []
    folder.write("x", b"one")
    folder.write("x", b"two")
    inner.write("y", b"")
    assert folder.read("x") == b"two" and folder.list() == ["x"] and inner.exists("y")
    assert store.names("plain/") == ["plain/inner/y", "plain/x"]
    folder.delete("x")
    folder.delete("x")
    assert not folder.exists("x")
    with pytest.raises(ArtifactError, match=rf"^s3://{BUCKET}/plain/x: no such file$"):
        folder.read("x")


def test_passwords_and_options_are_not_shown(store: Store) -> None:
    folder = Folder(store.uri("a")) / "b"
    assert str(folder) == f"s3://{BUCKET}/a/b"
    assert Folder(folder.address).address == folder.address == store.uri("a/b")


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ("s3://key:wo/rd@bucket/x@y?region=z", "s3://bucket/x@y"),
        ("s3://bucket/run@v1", "s3://bucket/run@v1"),
        ("s3://key@bucket/x", "s3://bucket/x"),
        ("/a?b@c", "/a?b@c"),
    ],
)
def test_what_is_shown_of_a_place(where: str, shown: str) -> None:
    assert errors.shown(where) == shown


@pytest.mark.parametrize("uri", ["s3://key:wo rd@bucket/x", "s3://key:wo%zrd@bucket/x", "s3://key:word@bucket/x?a=b"])
def test_a_uri_that_is_none_keeps_its_secret(uri: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be reached") as error:
        Folder(uri).exists("x")
    assert "rd" not in str(error.value) and "key" not in str(error.value).replace("keys", "")


def test_an_object_appears_when_it_is_whole(store: Store) -> None:
    folder = Folder(store.uri("whole"))
    with pytest.raises(RuntimeError), folder.staged("x") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert store.names("whole/") == []


def test_missing_bucket(store: Store) -> None:
    folder = Folder(store.uri("run", bucket="no-such-bucket"))
    with pytest.raises(ArtifactError, match=r"s3://no-such-bucket/run: cannot be used .*NO_SUCH_BUCKET.*bucket's name"):
        folder.write("x", b"1")


def test_wrong_credentials(store: Store) -> None:
    folder = Folder(store.uri("run"))
    start = time.monotonic()
    with store.asking_who():
        for attempt in (lambda: folder.write("x", b"1"), lambda: folder.exists("x"), lambda: folder.list()):
            with pytest.raises(ArtifactError, match=r"cannot be used .*check .*credentials"):
                attempt()
    assert time.monotonic() - start < folders.PATIENCE_S / 2  # hopeless is not asked again


def test_a_lost_connection_is_waited_for(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    folder = Folder(store.uri("lost"))
    folder.write("x", b"1")
    store.stop()
    back = threading.Timer(7.0, store.start)  # the client itself tries for six seconds
    back.start()
    try:
        assert folder.read("x") == b"1"
    finally:
        back.join()
    assert "no answer, asking again in 0.5 s" in caplog.text


def test_a_store_that_never_answers_is_a_sentence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "PATIENCE_S", 0.0)
    folder = Folder(store.uri("lost").replace(f":{store.port}", ":9"))
    with pytest.raises(ArtifactError, match=rf"^s3://{BUCKET}/lost: does not answer .*run the same command again$"):
        folder.exists("x")


@pytest.mark.parametrize("uri", ["s3://", "nonsense://x/y", "s3://bucket/x?nonsense=1"])
def test_a_uri_that_is_none(uri: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be reached"):
        Folder(uri).exists("x")


def test_data_and_weights_at_a_uri(store: Store, tmp_path: Path) -> None:
    rows = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "x_train": rows.integers(0, 255, (40, 8, 8), dtype=np.uint8),
        "y_train": np.arange(40) % 4,
    }
    np.savez(tmp_path / "data.npz", **arrays)
    store.client.upload_file(str(tmp_path / "data.npz"), BUCKET, "data/small.npz")
    here, there = (
        load_dataset(changed(data={"name": None, "path": path, "train_limit": 30}).data, 0)
        for path in (str(tmp_path / "data.npz"), store.uri("data/small.npz"))
    )
    assert there.name == "small" and torch.equal(here.train.images, there.train.images)
    with pytest.raises(ArtifactError, match=r"no such file"):
        load_dataset(changed(data={"name": None, "path": store.uri("data/other.npz")}).data, 0)
    with pytest.raises(DataError, match=r"data\.path: s3://[^@?]*/nowhere: no such file"):
        load_dataset(changed(data={"name": None, "path": store.uri("nowhere")}).data, 0)

    net = torch.nn.Linear(2, 2)
    save_file({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, tmp_path / "net.safetensors")
    store.client.upload_file(str(tmp_path / "net.safetensors"), BUCKET, "net.safetensors")
    load_weights(net, store.uri("net.safetensors"))
    assert torch.equal(net.weight, torch.ones(2, 2))
    with pytest.raises(ModelError, match=r"s3://[^@?]*/none\.safetensors: is no \.safetensors file"):
        load_weights(net, store.uri("none.safetensors"))


def test_parquet_at_a_uri(store: Store, tmp_path: Path) -> None:
    def png(value: int) -> dict[str, Any]:
        stream = io.BytesIO()
        Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    table = pa.table({"image": [png(5 * i) for i in range(40)], "label": [i % 2 for i in range(40)]})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}-0.parquet")
        store.client.upload_file(str(tmp_path / f"{split}-0.parquet"), BUCKET, f"hub/{split}-0.parquet")
    columns = {"image_column": "image", "label_column": "label"}
    here, there = (
        load_dataset(changed(data={"name": None, "path": path, **columns}).data, 0)
        for path in (str(tmp_path), store.uri("hub"))
    )
    assert torch.equal(here.train.images, there.train.images) and len(there.test) == 40


@pytest.mark.ray
@pytest.mark.slow
def test_the_whole_pipeline_on_a_store(
    store: Store, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun, killed in the middle of the chains (as far as the store can tell), and gone on with: the same bits."""
    where = store.uri("runs/toy")
    run = Folder(where)
    pipeline.execute(Run(changed(), run), ("collect",))
    for name in ("_config.json", "chain-00003.parquet"):
        (run / "snapshots").delete(name)
    chain = store.client.head_object(Bucket=BUCKET, Key="runs/toy/snapshots/chain-00001.parquet")["LastModified"]
    capsys.readouterr()
    pipeline.execute(Run(changed(), run))
    said = capsys.readouterr().out
    assert "the base is there already, and 4 of 5 chains" in said and "aBEND" in said
    kept = store.client.head_object(Bucket=BUCKET, Key="runs/toy/snapshots/chain-00001.parquet")["LastModified"]
    assert kept == chain
    left = [name for name in store.names("runs/toy/") if "/timings/" not in name]
    assert not any(word in name for name in left for word in (".tmp-", ".ray", "block-", "driver.json", "visible-"))
    for kind in ARTIFACTS:
        made = read_manifest(run / kind, kind)
        if kind != "report":
            assert made == read_manifest(Folder(reference) / kind, kind), kind
    metrics = json.loads((run / "report").read("metrics.json"))
    assert metrics["abend"] == json.loads((reference / "report" / "metrics.json").read_text())["abend"]
    pipeline.execute(Run(changed(), run))  # all is there
    assert torch.equal(Ensemble.load(where).theta_MD, Ensemble.load(reference).theta_MD)
    cli.main(["show", where])
    said = capsys.readouterr().out
    assert "aBEND" in said and "word@" not in said
