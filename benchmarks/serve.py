"""`bend-ray serve` against other ways to serve M classifiers: throughput, faults and a roll-over under fire, the wire.

* Throughput and latency: clients that each ask again as soon as they are answered, one image (.npy) a request. The
  other sides are in serve_rivals.py: a plain Ray Serve application that asks M whole models in turn, or one model
  alone, behind Ray's Python proxy (its default; also with room for more requests at once) and behind its HAProxy;
  LitServe and BentoML with the same loop. One replica of one thread everywhere. Each side is started anew in every
  round, alone, and ended before the next; ratios are of one round, then their median. The limit is what the ensemble
  takes for a row when nothing but it runs (one thread, as many rows at once as clients): no server with that replica
  could answer faster. An answer that is not 200, or has another label than the ensemble itself gives, ends the
  benchmark.
* Fire: two replicas; one is killed every 5 s, and half way another ensemble is rolled in. Every answer must be
  that of the version it names. What was refused (503 with Retry-After) or lost is asked for again.
* The wire: 256 rows a request of the Open Inference Protocol, as binary tensors and as JSON; also
  with one small network, so that little is computed besides.

Models: the ConvNet of jobs/digits.yaml (norms and head are generated), and ResNet-18 with a generated head on images of
3x32x32 (as in ensemble.py). The generator of the load shares the machine with the servers. Linux only. Writes
benchmarks/serve.json.

    python benchmarks/serve.py [--quick] [--run DIR] [--rivals-python PATH] [--parts throughput fire wire]
"""

import argparse
import asyncio
import contextlib
import ctypes
import io
import itertools
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from ensemble import SHAPE, make, rows
from torch import Tensor, nn

from bend_ray import artifacts
from bend_ray.config import Base, Classifier, Config, Data
from bend_ray.config import Ensemble as Settings
from bend_ray.data import base as bases
from bend_ray.data.base import Description
from bend_ray.data.classifiers import build
from bend_ray.data.datasets import Preprocess, load_dataset
from bend_ray.ensemble.ensemble import MEMBERS, Ensemble
from bend_ray.folders import Folder
from bend_ray.serving import front, oip
from bend_ray.serving.app import MODEL
from bend_ray.tensors import write_tensors
from bend_ray.weights.subset import Subset, choose

BEND_RAY = Path(sys.executable).with_name("bend-ray")
HERE = Path(__file__).parent
CLIENTS = (32, 1)
MARGIN = 0.01
"""Between the two largest probabilities of a row, at least: nearer ones may change places by rounding."""
TOLERANCE = 1e-4
TRY_S, TRIES = 60.0, 31
KILL_S, ROLLS = 5.0, 5
START_S, STOP_S, LINGER_S = 300.0, 60.0, 5.0
WIRE_ROWS = 256
PORTS = itertools.cycle(range(8100, 8400))  # below those that Linux gives away by itself


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="all in small, to try")
    arguments.add_argument("--parts", nargs="+", default=["throughput", "fire", "wire"])
    arguments.add_argument("--members", type=int, help="M: 32, or 8 when quick")
    arguments.add_argument("--rounds", type=int)
    arguments.add_argument("--seconds", type=float, help="of load, for each side and number of clients")
    arguments.add_argument("--fire", type=int, help="requests under fire, at least")
    arguments.add_argument("--run", help="a finished run of jobs/digits.yaml with twice as many members")
    arguments.add_argument("--rivals-python", help="a Python with litserve, bentoml and bend_ray's dependencies")
    arguments.add_argument("--compute", nargs=2, metavar=("FOLDER", "ROWS"), help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.compute:
        print(row_s(asked.compute[0], int(asked.compute[1])))
        return
    M, rounds, seconds, fired = (8, 1, 2.0, 600) if asked.quick else (32, 3, 8.0, 20_000)
    M = asked.members or M
    rounds, seconds, fired = asked.rounds or rounds, asked.seconds or seconds, asked.fire or fired
    adopt_orphans()
    result: dict[str, Any] = {
        "members": M,
        "rounds": rounds,
        "seconds": seconds,
        "cores": os.cpu_count(),
        "versions": {"torch": torch.__version__, "ray": ray.__version__},
    }
    with tempfile.TemporaryDirectory(prefix="serve-", dir="/tmp") as where:
        scratch = Path(where)
        digits, others = digits_models(scratch, asked.run, M)
        module, subset, _, theta_MD, _ = make("head", M)
        models = {"digits": digits, "resnet18": colour_model(scratch, "resnet18", module, subset, theta_MD)}
        if "throughput" in asked.parts:
            sides = sides_here(scratch, asked.rivals_python)
            result["throughput"] = {
                name: throughput(name, model, sides, scratch, rounds, seconds) for name, model in models.items()
            }
            save(result)
        if "fire" in asked.parts:
            result["fire"] = under_fire(digits, others, scratch, fired)
            save(result)
        if "wire" in asked.parts:
            sent = {"digits": digits, "one perceptron, 3x32x32": light_model(scratch)}
            result["wire"] = {name: wire(name, model, scratch, rounds, seconds) for name, model in sent.items()}
            save(result)
    print(table(result))
    if failed := [words for words, count in result.get("fire", {}).get("must_be_0", {}).items() if count]:
        sys.exit(f"FAILED under fire: {', '.join(failed)}")


def save(result: dict[str, Any]) -> None:
    """Parts that were not asked for keep their last result."""
    file = Path("benchmarks/serve.json")
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | result, indent=1) + "\n")


# --- what is served


@dataclass(frozen=True)
class Model:
    """An ensemble in a folder, and what it says of test rows, none of them undecided."""

    folder: Path
    images: Tensor
    label_N: list[int]
    prob_NK: Tensor
    one_N: list[int]
    """Labels of its first member alone."""
    version: str


def digits_models(scratch: Path, run: str | None, M: int) -> tuple[Model, Model]:
    """The first and the next M members of a run."""
    if run is None:
        run = str(scratch / "run")
        words = [str(BEND_RAY), "run", "jobs/digits.yaml", "--sample.members", str(2 * M), "--run-dir", run]
        subprocess.run(words, check=True)
    whole = Ensemble.load(run)
    if whole.members < 2 * M:
        sys.exit(f"--run: {run} has {whole.members} members; {2 * M} are needed, for two ensembles of {M}")
    module = bases.load(Folder(run) / "ensemble", whole.description)
    images = load_dataset(Data(name="digits"), 0).test.images
    found = []
    for name, theta_MD in (("digits", whole.theta_MD[:M]), ("digits-other", whole.theta_MD[M : 2 * M])):
        publish(scratch / name, whole.description, module, whole.subset, theta_MD)
        found.append(scratch / name)
    sure_N = sure(found[0], images) & sure(found[1], images)
    return model(found[0], images[sure_N]), model(found[1], images[sure_N])


def colour_model(scratch: Path, name: str, module: nn.Module, subset: Subset, theta_MD: Tensor) -> Model:
    """These members of a classifier of digits as colour images."""
    digits = load_dataset(Data(name="digits"), 0)
    preprocess = Preprocess(SHAPE[0], SHAPE[1], digits.preprocess.mean * 3, digits.preprocess.std * 3)
    description = Description(Classifier.model_validate({"name": name}), digits.class_names, preprocess)
    publish(scratch / name, description, module, subset, theta_MD)
    images = rows(digits.test).images
    return model(scratch / name, images[sure(scratch / name, images)])


def light_model(scratch: Path) -> Model:
    """One untrained perceptron on the same images: next to no computing, so that the wire shows."""
    module = build(Classifier(name="mlp"), 10, SHAPE[0], SHAPE[1], 0).eval()
    subset = choose(module, "head")
    return colour_model(scratch, "mlp", module, subset, 30 * subset.take(module)[None])  # decided, too


def publish(where: Path, description: Description, module: nn.Module, subset: Subset, theta_MD: Tensor) -> None:
    """An ensemble of these members as a folder."""
    run, facts = Folder(where), description.to_json() | {"subset": subset.to_json()}
    bases.save(run / "ensemble", module)
    write_tensors(run / "ensemble", MEMBERS, {"theta_MD": theta_MD})
    config = Config(data=Data(name="digits"), classifier=description.classifier, base=Base())
    artifacts.publish(run, "ensemble", config, {}, facts, [MEMBERS, bases.FILE], "")


def sure(folder: Path, images: Tensor) -> Tensor:
    """Which rows the ensemble and its first member are both decided about."""
    ensemble = Ensemble.load(folder)
    top = [side.predict(images).prob_BK.topk(2).values for side in (ensemble, first(ensemble))]
    return torch.stack([top_N2[:, 0] - top_N2[:, 1] > MARGIN for top_N2 in top]).all(0)


def first(ensemble: Ensemble) -> Ensemble:
    return replace(ensemble, theta_MD=ensemble.theta_MD[:1], _plans={})


def model(folder: Path, images: Tensor) -> Model:
    ensemble = Ensemble.load(folder)
    said, one = ensemble.predict(images), first(ensemble).predict(images)
    version = ensemble.manifest.digest[:12]
    return Model(folder, images, said.label_B.tolist(), said.prob_BK, one.label_B.tolist(), version)


def row_s(folder: str, count: int) -> float:
    """Seconds for a row, ``count`` at once on one thread, in a process that does nothing else."""
    torch.set_num_threads(1)
    ensemble = Ensemble.load(folder, settings=Settings(plan="measured"))  # as replicas do
    fit = ensemble.description.preprocess
    images = torch.zeros(count, fit.channels, fit.image_size, fit.image_size, dtype=torch.uint8)
    with torch.inference_mode():
        ensemble.predict(images)
        times: list[float] = []
        until = time.perf_counter() + 2.0
        while time.perf_counter() < until or not times:
            start = time.perf_counter()
            ensemble.predict(images)
            times.append(time.perf_counter() - start)
    return statistics.median(times) / count


def row_s_apart(folder: Path, count: int) -> float:
    words = [sys.executable, __file__, "--compute", str(folder), str(count)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


# --- the sides, each a command with processes of its own


@dataclass(frozen=True)
class Side:
    """A server of all members (``loop``) or of the first one alone (``one``)."""

    words: Callable[[Path, int], list[Any]]
    models: str = "loop"
    haproxy: bool = False
    ongoing: int = 5
    """Of a replica of Ray Serve, whose default this is."""
    label: Callable[[Any], int] = lambda said: int(said["label"])

    def environment(self, folder: Path, scratch: Path) -> dict[str, str]:
        own = {"RIVAL_FOLDER": str(folder), "RIVAL_MODELS": self.models, "RIVAL_ONGOING": str(self.ongoing)}
        own |= {"XDG_CACHE_HOME": str(scratch / "cache")}
        own |= {"BENTOML_HOME": str(scratch / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
        if self.haproxy:  # where its files and ports are, and nothing else of our own settings
            ends = ("_ENABLE_HA_PROXY", "_LOC", "_SOCKET_PATH", "_BASE", "_FILE", "_PORT")
            files = scratch / "h"  # short, for sockets' paths
            shutil.rmtree(files, ignore_errors=True)
            files.mkdir()
            settings = front.settings(files)
            own |= {name: value for name, value in settings.items() if name.endswith(ends)}
        return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | own


def ours(*more: Any) -> Side:
    def words(folder: Path, port: int) -> list[Any]:
        return [BEND_RAY, "serve", folder, "--port", port, *more]

    return Side(words, label=lambda said: int(said["predictions"][0]["label"]))


def rival(name: str, python: str, models: str = "loop", haproxy: bool = False, ongoing: int = 5) -> Side:
    def words(folder: Path, port: int) -> list[Any]:
        if name == "bentoml":
            at = ["--working-dir", HERE, "--host", "127.0.0.1", "--port", port]
            return [python, "-m", "bentoml", "serve", "serve_rivals:Bento", *at]
        return [python, HERE / "serve_rivals.py", name, port]

    return Side(words, models, haproxy, ongoing)


def sides_here(scratch: Path, rivals_python: str | None) -> dict[str, Side]:
    found = {
        "ours": ours(),
        "Ray Serve, loop": rival("ray", sys.executable),
        "Ray Serve, one model": rival("ray", sys.executable, "one"),
        "Ray Serve, 256 at once, loop": rival("ray", sys.executable, ongoing=256),
        "Ray Serve, 256 at once, one model": rival("ray", sys.executable, "one", ongoing=256),
        "Ray Serve + HAProxy, loop": rival("ray", sys.executable, haproxy=True),
        "Ray Serve + HAProxy, one model": rival("ray", sys.executable, "one", haproxy=True),
    }
    python = rivals_python or make_rivals(scratch / "rivals")
    for module, name in (("litserve", "LitServe, loop"), ("bentoml", "BentoML, loop")):
        if python and subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0:
            found[name] = rival(module, python)
        else:
            print(f"{name}: left out, for {module} is not installed")
    return found


def make_rivals(where: Path) -> str | None:
    """A virtual environment with LitServe and BentoML on top of what this Python has."""
    subprocess.run([sys.executable, "-m", "venv", where], check=True)
    site = next(where.glob("lib/python*/site-packages"))
    (site / "ours.pth").write_text(f"import site; site.addsitedir({str(Path(torch.__file__).parents[1])!r})\n")
    pip = subprocess.run([where / "bin" / "pip", "install", "--quiet", "litserve", "bentoml"], capture_output=True)
    if pip.returncode:
        print(f"pip cannot install litserve and bentoml ({pip.stderr.decode().strip().splitlines()[-1]})")
        return None
    return str(where / "bin" / "python")


def adopt_orphans() -> None:
    """Whatever a server starts stays our descendant (Linux's PR_SET_CHILD_SUBREAPER), so that none of it is missed."""
    if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0):
        sys.exit("prctl: this benchmark needs Linux")


@contextlib.contextmanager
def serving(
    side: Side, folder: Path, request: bytes, scratch: Path, left: list[str] | None = None
) -> Iterator[tuple[int, int]]:
    """Port and process of a server that answers ``request``; on leaving, it and all of its family have ended.

    What the server itself would have left behind is added to ``left``.
    """
    port, log = free_port(), scratch / "server.log"
    environment = side.environment(folder, scratch)
    with log.open("wb") as out:
        words = list(map(str, side.words(folder, port)))
        process = subprocess.Popen(
            words, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=scratch, start_new_session=True
        )
    try:
        wait_answered(process, port, request)
        yield port, process.pid
    except BaseException:
        print(f"{' '.join(words)}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        raise
    finally:
        gone = end(process)
        if left is not None:
            left += gone


def free_port() -> int:
    for port in PORTS:
        with socket.socket() as attempt, contextlib.suppress(OSError):
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def wait_answered(process: subprocess.Popen[bytes], port: int, request: bytes) -> None:
    body = request.partition(b"\r\n\r\n")[2]
    question = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/x-npy"})
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(question, timeout=60).read()
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server does not answer (exit status {process.poll()})")


def end(process: subprocess.Popen[bytes]) -> list[str]:
    """SIGTERM for the server, and SIGKILL for what is still there some seconds after it is gone, which is told."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    family = psutil.Process().children(recursive=True)
    _, left = psutil.wait_procs(family, LINGER_S)
    told = []
    for one in left:
        with contextlib.suppress(psutil.Error):
            told.append(" ".join(word.rsplit("/", 1)[-1] for word in one.cmdline())[:100] or one.name())
            one.kill()
    psutil.wait_procs(left, STOP_S)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.1)
    return told


# --- the load


class LostError(Exception):
    """The connection was not there, or ended before the answer did."""


class Connection:
    """HTTP/1.1 over one connection that is kept; by hand, for it shares the processor with the servers."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers (all in small letters) and body. Raises LostError."""
        if self.writer is None or self.reader.at_eof():  # one that was closed while nobody asked is no loss
            self.close()
            await self._open()
        assert self.writer is not None
        try:
            self.writer.write(request)
            await self.writer.drain()
            lines = (await self.reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            headers = {name: value.strip() for name, _, value in (line.partition(b":") for line in lines[1:-2])}
            if b"content-length" in headers:
                body = await self.reader.readexactly(int(headers[b"content-length"]))
            else:
                body = b"".join([part async for part in self._chunks()])
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            raise LostError(str(error)) from None
        except BaseException:
            self.close()
            raise
        if headers.get(b"connection") == b"close":
            self.close()
        return int(lines[0].split()[1]), headers, body

    async def _open(self) -> None:
        try:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        except OSError as error:
            raise LostError(str(error)) from None

    async def _chunks(self) -> Any:
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def post(path: str, kind: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def one_by_one(images: Tensor) -> list[bytes]:
    """A request for each row."""
    found = []
    for image in images:
        stream = io.BytesIO()
        np.save(stream, image[None].numpy())
        found.append(post("/predict", "application/x-npy", stream.getvalue()))
    return found


async def load(
    port: int,
    requests: list[bytes],
    right: Callable[[int, bytes, dict[bytes, bytes]], bool],
    clients: int,
    seconds: float,
) -> dict[str, float]:
    """Each client asks for rows by chance, again and again. Raises RuntimeError for a wrong answer."""
    waits: list[float] = []
    start = time.perf_counter()

    async def client(stream: random.Random) -> None:
        connection = Connection(port)
        while time.perf_counter() - start < seconds:
            row, asked = stream.randrange(len(requests)), time.perf_counter()
            try:
                status, headers, body = await connection.ask(requests[row])
            except LostError:  # closed by the server as we began to write: once more, as HTTP clients do
                status, headers, body = await connection.ask(requests[row])
            waits.append(time.perf_counter() - asked)
            if status != 200 or not right(row, body, headers):
                raise RuntimeError(f"row {row}: status {status}, {body[:300]!r}")
        connection.close()

    await asyncio.gather(*(client(random.Random(seed)) for seed in range(clients)))
    return {"per_s": len(waits) / (time.perf_counter() - start), **waited(waits), "requests": len(waits)}


def waited(waits: list[float]) -> dict[str, float]:
    p50, p99 = np.quantile(waits, [0.5, 0.99])
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99)}


# --- throughput


def throughput(
    name: str, model: Model, sides: dict[str, Side], scratch: Path, rounds: int, seconds: float
) -> dict[str, Any]:
    requests, found = one_by_one(model.images), list[dict[str, Any]]()
    left: dict[str, list[str]] = {side: [] for side in sides}
    for number in range(rounds):
        one_round: dict[str, Any] = {
            "row_s": row_s_apart(model.folder, CLIENTS[0]),
            "row_alone_s": row_s_apart(model.folder, 1),
        }
        for side_name, side in sides.items():
            labels = model.one_N if side.models == "one" else model.label_N

            def right(row: int, body: bytes, headers: dict[bytes, bytes]) -> bool:
                return side.label(json.loads(body)) == labels[row]  # noqa: B023 (called within the turn)

            with serving(side, model.folder, requests[0], scratch, left[side_name]) as (port, _):
                asyncio.run(load(port, requests, right, 4, min(1.0, seconds / 4)))
                one_round[side_name] = {
                    str(clients): asyncio.run(load(port, requests, right, clients, seconds)) for clients in CLIENTS
                }
            many = one_round[side_name][str(CLIENTS[0])]
            print(f"{name}, round {number + 1}: {side_name:<34} {many['per_s']:9.1f}/s", flush=True)
        found.append(one_round)
    return summary(found, list(sides)) | {"left_behind": left, "turns": found}


def summary(found: list[dict[str, Any]], sides: list[str]) -> dict[str, Any]:
    """Medians over rounds; ratios are of one round, then their median."""

    def median(of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(of(one_round) for one_round in found)

    by_clients: dict[str, Any] = {}
    for clients in map(str, CLIENTS):
        alone = "row_alone_s" if clients == "1" else "row_s"
        by_clients[clients] = {
            "sides": {
                side: {
                    key: median(lambda turn: turn[side][clients][key])  # noqa: B023 (called within the turn)
                    for key in ("per_s", "p50_ms", "p99_ms")
                }
                for side in sides
            },
            "ours_over": {
                side: median(lambda turn: turn["ours"][clients]["per_s"] / turn[side][clients]["per_s"])  # noqa: B023
                for side in sides
                if side != "ours"
            },
            "row_s": median(lambda turn: turn[alone]),  # noqa: B023
            "of_limit": median(lambda turn: turn["ours"][clients]["per_s"] * turn[alone]),  # noqa: B023
        }
    return by_clients


# --- fire


class Fire:
    """What becomes of requests while replicas are killed."""

    def __init__(self, port: int, models: tuple[Model, Model], wanted: int) -> None:
        self.port, self.wanted = port, wanted
        self.requests, self.by_version = one_by_one(models[0].images), {one.version: one for one in models}
        self.begun = self.done = self.kills = self.lost = 0
        self.first_tries, self.later_tries, self.versions = Counter[str](), Counter[str](), Counter[str]()
        self.waits: list[float] = []
        self.half, self.rolled, self.roll_s = asyncio.Event(), asyncio.Event(), 0.0
        self.odd, self.failed_rolls = list[str](), list[str]()

    async def client(self, stream: random.Random) -> None:
        connection = Connection(self.port)
        while self.begun < self.wanted or not self.rolled.is_set():
            self.begun += 1
            row, start = stream.randrange(len(self.requests)), time.perf_counter()
            for number in range(TRIES):
                outcome, pause = await self.once(connection, row)
                (self.later_tries if number else self.first_tries)[outcome] += 1
                if outcome in ("right", "wrong"):
                    break
                await asyncio.sleep(pause)
            else:
                self.lost += 1
            self.waits.append(time.perf_counter() - start)
            self.done += 1
            if 2 * self.done >= self.wanted:
                self.half.set()
        connection.close()

    async def once(self, connection: Connection, row: int) -> tuple[str, float]:
        """What one try came to, and after how many seconds to come again."""
        try:
            async with asyncio.timeout(TRY_S):
                status, headers, body = await connection.ask(self.requests[row])
        except TimeoutError:
            return "timed out", 0.0
        except LostError:
            return "connection lost", 0.1
        if status == 200:
            return self.judged(row, json.loads(body)), 0.0
        if status == 503 and b"retry-after" in headers and json.loads(body).keys() == {"error"}:
            return "refused", float(headers[b"retry-after"])
        self.odd.append(f"{status} {body[:200]!r}")
        return f"status {status}", 1.0

    def judged(self, row: int, said: Any) -> str:
        self.versions[said["version"]] += 1
        expected, answer = self.by_version[said["version"]], said["predictions"][0]
        near = np.allclose(answer["probabilities"], expected.prob_NK[row].numpy(), rtol=0, atol=TOLERANCE)
        return "right" if near and answer["label"] == expected.label_N[row] else "wrong"

    async def kill(self, server: int) -> None:
        stream = random.Random(0)
        while True:
            await asyncio.sleep(KILL_S)
            if found := replicas(server):
                stream.choice(found).kill()
                self.kills += 1

    async def roll(self, words: list[str], environment: dict[str, str], log: Path) -> None:
        """Serve the other ensemble, as often as the command fails: new replicas are killed like any other."""
        await self.half.wait()
        start = time.perf_counter()
        while not self.rolled.is_set():
            with log.open("wb") as out:
                process = await asyncio.create_subprocess_exec(*words, env=environment, stdout=out, stderr=out)
                if await process.wait() == 0:
                    self.roll_s = time.perf_counter() - start
                    self.rolled.set()
                    return
            self.failed_rolls.append(log.read_text(errors="replace").strip()[-500:])
            if len(self.failed_rolls) == ROLLS:
                raise RuntimeError(f"the roll-over failed {ROLLS} times: {self.failed_rolls[-1]}")


def replicas(server: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(server).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if f"ServeReplica:{MODEL}" in " ".join(process.cmdline()):
                found.append(process)
    return found


def under_fire(old: Model, new: Model, scratch: Path, wanted: int) -> dict[str, Any]:
    side, left = ours("--serve.replicas", 2, "--serve.cpus_per_replica", 0.5), list[str]()
    with serving(side, old.folder, one_by_one(old.images[:1])[0], scratch, left) as (port, server):
        words, environment = list(map(str, side.words(new.folder, port))), side.environment(new.folder, scratch)

        async def all_of_it() -> tuple[Fire, float]:
            fire, start = Fire(port, (old, new), wanted), time.perf_counter()
            killing = asyncio.create_task(fire.kill(server))
            clients = (fire.client(random.Random(seed)) for seed in range(CLIENTS[0]))
            await asyncio.gather(fire.roll(words, environment, scratch / "roll.log"), *clients)
            killing.cancel()
            return fire, time.perf_counter() - start

        fire, seconds = asyncio.run(all_of_it())
    tries = fire.first_tries + fire.later_tries
    return {
        "requests": fire.done,
        "seconds": seconds,
        "kills": fire.kills,
        "versions": dict(fire.versions),
        "roll_s": fire.roll_s,
        "failed_rolls": fire.failed_rolls,
        "first_tries": dict(fire.first_tries),
        "later_tries": dict(fire.later_tries),
        **waited(fire.waits),
        "longest_s": max(fire.waits),
        "other_answers": fire.odd[:20],
        "left_behind": left,
        "must_be_0": {
            "wrong answers": tries["wrong"],
            "timed out": tries["timed out"],
            "lost after retries": fire.lost,
            "other statuses": len(fire.odd),
        },
    }


# --- the wire


def wire(name: str, model: Model, scratch: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Rows a second as binary tensors and as JSON."""
    chosen = torch.arange(WIRE_ROWS) % len(model.images)
    images, label_B = model.images[chosen].numpy(), np.array(model.label_N)[chosen]
    path, kinds = f"/v2/models/{MODEL}/infer", ("application/octet-stream", "application/json")
    tensor: dict[str, Any] = {"name": "images", "shape": images.shape}
    pixels = tensor | {"datatype": "UINT8", "parameters": {"binary_data_size": images.nbytes}}
    head = json.dumps({"inputs": [pixels], "parameters": {"binary_data_output": True}}).encode()
    floats = tensor | {"datatype": "FP32", "data": (images / np.float32(255)).ravel().tolist()}
    requests = {
        "binary": post(path, kinds[0], head + images.tobytes(), f"{oip.LENGTH}: {len(head)}"),
        "json": post(path, kinds[1], json.dumps({"inputs": [floats]}).encode()),
    }

    def right(row: int, body: bytes, headers: dict[bytes, bytes]) -> bool:
        length = headers.get(oip.LENGTH.lower().encode())
        return np.array_equal(oip.tensors(body, length.decode() if length else None)[1]["label"], label_B)

    turns: list[dict[str, Any]] = []
    with serving(ours("--serve.max_body", 64), model.folder, one_by_one(model.images[:1])[0], scratch) as (port, _):
        for _, clients in itertools.product(range(rounds), (1, 4)):
            turn: dict[str, Any] = {"clients": clients}
            for road, request in requests.items():
                found = asyncio.run(load(port, [request], right, clients, seconds))
                turn[road] = {"rows_per_s": WIRE_ROWS * found["per_s"], "p50_ms": found["p50_ms"]}
            turns.append(turn)
            words = ", ".join(f"{road} {turn[road]['rows_per_s']:.0f} rows/s" for road in requests)
            print(f"{name}, {clients} clients: {words}", flush=True)
    result: dict[str, Any] = {"bytes": {road: len(request) for road, request in requests.items()}, "turns": turns}
    for clients in (1, 4):
        of = [turn for turn in turns if turn["clients"] == clients]
        medians = {road: statistics.median(turn[road]["rows_per_s"] for turn in of) for road in requests}
        ratio = statistics.median(turn["binary"]["rows_per_s"] / turn["json"]["rows_per_s"] for turn in of)
        result[str(clients)] = {"rows_per_s": medians, "binary_over_json": ratio}
    return result


# --- for people


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['members']} members, {result['cores']} cores, medians of {result['rounds']} rounds"]
    for name, found in result.get("throughput", {}).items():
        for clients in map(str, CLIENTS):
            one = found[clients]
            lines += [
                "",
                f"{name}, {clients} clients",
                f"{'':<34} {'answers/s':>10} {'p50 ms':>9} {'p99 ms':>9} {'ours /':>8}",
            ]
            for side, row in one["sides"].items():
                ratio = f"{one['ours_over'][side]:8.2f}" if side != "ours" else ""
                lines.append(f"{side:<34} {row['per_s']:10.1f} {row['p50_ms']:9.2f} {row['p99_ms']:9.2f} {ratio}")
            lines.append(
                f"the ensemble alone takes {1e3 * one['row_s']:.3f} ms a row: {1 / one['row_s']:.1f} rows/s, of which"
                f" ours serves {one['of_limit']:.0%}"
            )
        for side, left in found["left_behind"].items():
            if left:
                lines.append(f"{side}: ended with SIGTERM, {len(left)} processes were left (e.g. {left[0]})")
    if fire := result.get("fire"):
        lines += [
            "",
            f"under fire: {fire['requests']} requests in {fire['seconds']:.0f} s, {fire['kills']} replicas killed",
        ]
        lines += [f"  first tries: {counted(fire['first_tries'])}; later ones: {counted(fire['later_tries'])}"]
        lines += [f"  versions: {counted(fire['versions'])}; rolled over within {fire['roll_s']:.0f} s"]
        lines += [f"  a roll-over failed: {words}" for words in fire["failed_rolls"]]
        lines += [f"  p50 {fire['p50_ms']:.0f} ms, p99 {fire['p99_ms']:.0f} ms, at most {fire['longest_s']:.1f} s"]
        lines += [f"  must be 0: {counted(fire['must_be_0'])}", *(f"  odd: {words}" for words in fire["other_answers"])]
        lines += [f"  left after SIGTERM: {', '.join(fire['left_behind']) or 'nothing'}"]
    for name, found in result.get("wire", {}).items():
        sizes = ", ".join(f"{road} {size / 1e6:.2f} MB" for road, size in found["bytes"].items())
        lines += ["", f"the wire, {name}: {WIRE_ROWS} rows a request ({sizes})"]
        for clients in ("1", "4"):
            words = ", ".join(f"{road} {rate:.0f} rows/s" for road, rate in found[clients]["rows_per_s"].items())
            lines.append(f"  {clients} clients: {words}; ratio {found[clients]['binary_over_json']:.2f}")
    return "\n".join(lines)


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{words} {count}" for words, count in counts.items()) or "none"


if __name__ == "__main__":
    main()
