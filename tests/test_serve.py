"""serve for real: the command, its replicas and what stands before them, while others ask."""

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import bend_ray
from bend_ray.ensemble.ensemble import MEMBERS, Ensemble
from bend_ray.errors import ArtifactError, DataError
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import read_tensors, write_tensors
from conftest import ROOT
from endpoint import Endpoint, served

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROWS = torch.arange(40 * 64).remainder(251).to(torch.uint8).reshape(40, 1, 8, 8)


def other(run: Path, where: Path) -> Path:
    """An ensemble like that of ``run`` with other members."""
    source, folder = Folder(run / "ensemble"), Folder(where)
    manifest = artifacts.load(source, "ensemble")
    for name in manifest.files:
        folder.write(name, source.read(name))
    theta_MD = read_tensors(source, MEMBERS)[0]["theta_MD"]
    write_tensors(folder, MEMBERS, {"theta_MD": theta_MD.flip(0) * 0.8})
    files = {name: artifacts.file_facts(folder, name) for name in manifest.files}
    folder.write("config.json", manifest.model_copy(update={"files": files}).model_dump_json().encode())
    return where


@pytest.fixture(scope="module")
def endpoint(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    scratch = tmp_path_factory.mktemp("serve")
    with served(reference, scratch, "--serve.cpus_per_replica", "0.5") as found:
        found.runs["second"] = other(reference, scratch / "other")
        yield found


def test_answers_are_those_of_the_ensemble(endpoint: Endpoint, reference: Path) -> None:
    ensemble = Ensemble.load(reference)
    with bend_ray.Client(endpoint.url) as client:
        assert client.ready()
        facts = client.ensemble()
        assert (facts["members"], facts["run"]) == (7, str(reference))
        assert facts["digest"] == ensemble.manifest.digest and facts["accuracy"]["abend"] > 0.2
        for strategy in ("abend", "sbend"):
            found, expected = client.predict(ROWS.numpy(), strategy), ensemble.predict(ROWS, strategy)
            assert torch.equal(found.label_B, expected.label_B) and torch.equal(found.vote_BK, expected.vote_BK)
            torch.testing.assert_close(found.prob_BK, expected.prob_BK, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.mutual_information_B, expected.mutual_information_B, atol=1e-5, rtol=1e-4)
        many = ROWS.repeat(40, 1, 1, 1)  # more than fits in a request: several
        assert torch.equal(client.predict(many.numpy()).label_B, ensemble.predict(many).label_B)
        with pytest.raises(DataError, match=r"has shape \(40, 1, 8, 4\)"):
            client.predict(ROWS[..., :4].numpy())


def test_it_is_seen_from_outside(endpoint: Endpoint) -> None:
    request = urllib.request.Request(f"{endpoint.url}/ensemble", headers={"X-Request-ID": "mine"})
    assert urllib.request.urlopen(request).headers["x-request-id"] == "mine"
    with bend_ray.Client(endpoint.url) as client:
        client.predict(ROWS.numpy())
    address = next(line for line in endpoint.log.read_text().splitlines() if line.startswith("metrics:")).split()[1]
    wanted = {
        "ray_bend_ray_request_latency_ms_count",
        "ray_bend_ray_batch_rows_count",
        "ray_bend_ray_entropy_count",
        "ray_bend_ray_disagreement_count",
    }
    deadline = time.monotonic() + 40  # Ray sends metrics every few seconds
    while missing := {name for name in wanted if name not in urllib.request.urlopen(address).read().decode()}:
        assert time.monotonic() < deadline, missing
        time.sleep(0.5)


@contextlib.contextmanager
def asking(endpoint: Endpoint, threads: int = 2) -> Iterator[dict[str, int]]:
    """Clients that ask all the time; every answer is compared with what the version it names should say."""
    counts: dict[str, int] = {}
    faults: list[str] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        body = json.dumps({"images": ROWS[number : number + 2].tolist()}).encode()
        with bend_ray.Client(endpoint.url) as client:
            while not stop.is_set():
                try:
                    answer = client._request(
                        "POST", "/predict", content=body, headers={"Content-Type": "application/json"}
                    )
                    version, rows = answer.json()["version"], answer.json()["predictions"]
                    expected = endpoint.expected(version).predict(ROWS[number : number + 2])
                    if [row["label"] for row in rows] != expected.label_B.tolist():
                        faults.append(f"{version} said {rows}")
                    counts[version] = counts.get(version, 0) + 1
                except Exception as error:
                    faults.append(repr(error))

    endpoint.expected(next(iter({Ensemble.load(run).manifest.digest[:12] for run in endpoint.runs.values()})))
    asked = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    for thread in asked:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        for thread in asked:
            thread.join()
    assert faults == []


def test_a_killed_replica_loses_no_request(endpoint: Endpoint) -> None:
    with asking(endpoint) as counts:
        (replica,) = endpoint.replicas()
        replica.kill()
        deadline = time.monotonic() + 60
        before = sum(counts.values())
        while sum(counts.values()) < before + 20:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert replica.pid not in [process.pid for process in endpoint.replicas()]


def test_a_new_version_rolls_in_without_losing_a_request(endpoint: Endpoint) -> None:
    first, second = (Ensemble.load(endpoint.runs[name]).manifest.digest[:12] for name in ("first", "second"))
    with asking(endpoint) as counts:
        done = endpoint.serve(endpoint.runs["second"])
        assert done.returncode == 0 and "serving:   7 members" in done.stdout, done.stderr
        before = counts.get(second, 0)
        deadline = time.monotonic() + 30
        while counts.get(second, 0) < before + 20:
            assert time.monotonic() < deadline, counts
            time.sleep(0.1)
    assert counts[first] > 0 and counts[second] > 0


def test_what_cannot_be_served_changes_nothing(endpoint: Endpoint, tmp_path: Path) -> None:
    broken = other(endpoint.runs["first"], tmp_path / "broken")
    (broken / MEMBERS).write_bytes((broken / MEMBERS).read_bytes()[:-8])
    with bend_ray.Client(endpoint.url) as client:
        before, replicas = client.ensemble()["digest"], [process.pid for process in endpoint.replicas()]
        for words, said in (
            ([broken], "is truncated"),
            ([endpoint.runs["first"], "--serve.replicas", "64"], "serve.cpus_per_replica: 64 x 0.5 CPU asked for"),
            ([endpoint.runs["first"], "--serve.replica", "2"], "did you mean --serve.replicas?"),
        ):
            done = endpoint.serve(*words)
            assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
        assert client.ensemble()["digest"] == before
    assert [process.pid for process in endpoint.replicas()] == replicas


def test_the_golden_yaml_is_what_ray_and_the_builder_take(reference: Path, tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    from bend_ray.stages.deployment import build
    from bend_ray.workers.replica import Arguments

    raw = yaml.safe_load((ROOT / "jobs" / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(raw)
    (application,) = schema.applications
    module, name = application.import_path.split(":")
    assert getattr(__import__(module, fromlist=[name]), name) is build
    arguments = Arguments.model_validate(application.args)
    assert arguments.run == "runs/digits" and arguments.ensemble.plan == "measured"
    with pytest.raises(ArtifactError, match="no ensemble here"):
        build(arguments.model_copy(update={"run": str(tmp_path)}))
