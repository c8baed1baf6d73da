"""The load of benchmarks/serve.py: clients that ask again as soon as they are answered."""

import asyncio
import io
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

CLIENTS = (32, 1)


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
    requests = []
    for image in images:
        stream = io.BytesIO()
        np.save(stream, image[None].numpy())
        requests.append(post("/predict", "application/x-npy", stream.getvalue()))
    return requests


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
            row, sent = stream.randrange(len(requests)), time.perf_counter()
            try:
                status, headers, body = await connection.ask(requests[row])
            except LostError:  # closed by the server as we began to write: once more, as HTTP clients do
                status, headers, body = await connection.ask(requests[row])
            waits.append(time.perf_counter() - sent)
            if status != 200 or not right(row, body, headers):
                raise RuntimeError(f"row {row}: status {status}, {body[:300]!r}")
        connection.close()

    await asyncio.gather(*(client(random.Random(seed)) for seed in range(clients)))
    return {"per_s": len(waits) / (time.perf_counter() - start), **waited(waits), "requests": len(waits)}


def waited(waits: list[float]) -> dict[str, float]:
    p50, p99 = np.quantile(waits, [0.5, 0.99])
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99)}
