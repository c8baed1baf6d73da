"""benchmarks/serve.py under fire: replicas are killed and another ensemble is rolled in, while clients ask."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from serve_load import CLIENTS, Connection, LostError, one_by_one, waited
from serve_models import Model
from serve_sides import ours, serving

from bend_ray.serving.oip import MODEL

TOLERANCE = 1e-4
TRY_S, TRIES = 60.0, 31
KILL_S, ROLLS = 5.0, 5


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
        """What one try came to, and after how many seconds to try again."""
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

    def judged(self, row: int, response: Any) -> str:
        self.versions[response["version"]] += 1
        expected, answer = self.by_version[response["version"]], response["predictions"][0]
        near = np.allclose(answer["probabilities"], expected.prob_NK[row].numpy(), rtol=0, atol=TOLERANCE)
        return "right" if near and answer["label"] == expected.label_N[row] else "wrong"

    async def kill(self, server: int) -> None:
        stream = random.Random(0)
        while True:
            await asyncio.sleep(KILL_S)
            if alive := replicas(server):
                stream.choice(alive).kill()
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
    processes = []
    for process in psutil.Process(server).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if f"ServeReplica:{MODEL}" in " ".join(process.cmdline()):
                processes.append(process)
    return processes


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
