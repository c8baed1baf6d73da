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

Models: the ConvNet of jobs/digits_base.yaml (norms and head are generated), and ResNet-18 with a generated head on
images of 3x32x32 (as in ensemble.py). The generator of the load shares the machine with the servers. Linux only. Writes
benchmarks/serve.json.

    python benchmarks/serve.py [--quick] [--run DIR] [--rivals-python PATH] [--parts throughput fire wire]
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from common import make
from serve_fire import under_fire
from serve_load import CLIENTS, load, one_by_one, post
from serve_models import Model, colour_model, digits_models, light_model, row_s_apart
from serve_sides import Side, adopt_orphans, ours, serving, sides_here

from bend_ray.serving import oip
from bend_ray.serving.oip import MODEL

WIRE_ROWS = 256


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="all in small, to try")
    arguments.add_argument("--parts", nargs="+", default=["throughput", "fire", "wire"])
    arguments.add_argument("--members", type=int, help="M: 32, or 8 when quick")
    arguments.add_argument("--rounds", type=int)
    arguments.add_argument("--seconds", type=float, help="of load, for each side and number of clients")
    arguments.add_argument("--fire", type=int, help="requests under fire, at least")
    arguments.add_argument("--run", help="a finished run of jobs/digits_base.yaml with twice as many members")
    arguments.add_argument("--rivals-python", help="a Python with litserve, bentoml and bend_ray's dependencies")
    args = arguments.parse_args()
    M, rounds, seconds, fired = (8, 1, 2.0, 600) if args.quick else (32, 3, 8.0, 20_000)
    M = args.members or M
    rounds, seconds, fired = args.rounds or rounds, args.seconds or seconds, args.fire or fired
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
        digits, others = digits_models(scratch, args.run, M)
        module, subset, _, theta_MD, _ = make("head", M)
        models = {"digits": digits, "resnet18": colour_model(scratch, "resnet18", module, subset, theta_MD)}
        if "throughput" in args.parts:
            sides = sides_here(scratch, args.rivals_python)
            result["throughput"] = {
                name: throughput(name, model, sides, scratch, rounds, seconds) for name, model in models.items()
            }
            save(result)
        if "fire" in args.parts:
            result["fire"] = under_fire(digits, others, scratch, fired)
            save(result)
        if "wire" in args.parts:
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


def throughput(
    name: str, model: Model, sides: dict[str, Side], scratch: Path, rounds: int, seconds: float
) -> dict[str, Any]:
    requests, turns = one_by_one(model.images), list[dict[str, Any]]()
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
        turns.append(one_round)
    return summary(turns, list(sides)) | {"left_behind": left, "turns": turns}


def summary(turns: list[dict[str, Any]], sides: list[str]) -> dict[str, Any]:
    """Medians over rounds; ratios are of one round, then their median."""

    def median(of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(of(one_round) for one_round in turns)

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
                measured = asyncio.run(load(port, [request], right, clients, seconds))
                turn[road] = {"rows_per_s": WIRE_ROWS * measured["per_s"], "p50_ms": measured["p50_ms"]}
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


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['members']} members, {result['cores']} cores, medians of {result['rounds']} rounds"]
    for name, measured in result.get("throughput", {}).items():
        for clients in map(str, CLIENTS):
            one = measured[clients]
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
        for side, left in measured["left_behind"].items():
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
    for name, measured in result.get("wire", {}).items():
        sizes = ", ".join(f"{road} {size / 1e6:.2f} MB" for road, size in measured["bytes"].items())
        lines += ["", f"the wire, {name}: {WIRE_ROWS} rows a request ({sizes})"]
        for clients in ("1", "4"):
            words = ", ".join(f"{road} {rate:.0f} rows/s" for road, rate in measured[clients]["rows_per_s"].items())
            lines.append(f"  {clients} clients: {words}; ratio {measured[clients]['binary_over_json']:.2f}")
    return "\n".join(lines)


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{words} {count}" for words, count in counts.items()) or "none"


if __name__ == "__main__":
    main()
