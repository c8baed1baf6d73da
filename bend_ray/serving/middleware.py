"""ASGI around the routes: who may send requests, how many at once, for how long; and facts of each request."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bend_ray.progress import counted

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN = "BEND_SERVE_TOKEN"  # noqa: S105 (the name of the variable)
LOOPBACK = ("127.0.0.1", "localhost")
"""Hosts that only this machine reaches."""
HEALTH = ("/v2/health/live", "/v2/health/ready")
RETRY_AFTER = 1
"""Seconds that clients are asked to wait before they try again."""


def digest(token: str) -> str:
    """What is kept of a token: enough to know it again, not enough to use it."""
    return hashlib.sha256(token.encode()).hexdigest()


async def refuse(send: Send, status: int, error: str, headers: dict[str, str] | None = None) -> None:
    """Answer with ``{"error": ...}``."""
    body = json.dumps({"error": error}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def refuse_for_now(send: Send, error: str) -> None:
    await refuse(send, 503, error, {"retry-after": str(RETRY_AFTER)})


class LimitsMiddleware:
    """Refuses what has no token, comes when the queue is full, or takes too long.

    ``seen`` is called with the facts of every request. The token is a bearer's, or the password of HTTP Basic with any
    name, for browsers. Health needs none.
    """

    def __init__(
        self,
        app: App,
        token_digest: str | None = None,
        queue: int = 256,
        timeout: float = 30.0,
        seen: Callable[[dict[str, Any]], None] = lambda facts: None,
    ) -> None:
        self.app, self.token_digest, self.queue, self.timeout, self.seen = app, token_digest, queue, timeout, seen
        self.ongoing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        facts: dict[str, Any] = {}
        scope.setdefault("state", {})["facts"] = facts
        try:
            await self._pass_on(scope, receive, observed_send, lambda: status)
        except Exception:  # which becomes an answer further out
            status = status or 500
            raise
        finally:
            facts |= {"method": scope["method"], "path": scope["path"], "status": status or 499}
            self.seen(facts | {"latency_ms": round(1e3 * (time.perf_counter() - start), 3)})

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, status: Callable[[], int]) -> None:
        if scope["path"] in HEALTH:
            await self.app(scope, receive, send)
        elif not self._is_allowed(scope):
            challenge = {"www-authenticate": 'Bearer realm="bend_ray", Basic realm="bend_ray"'}
            await refuse(
                send, 401, "a token is needed: Authorization: Bearer TOKEN (or, in a browser, as password)", challenge
            )
        elif self.ongoing >= self.queue:
            await refuse_for_now(send, f"the queue is full ({counted(self.queue, 'requests')}); try again later")
        else:
            self.ongoing += 1
            try:
                async with asyncio.timeout(self.timeout):
                    await self.app(scope, receive, send)
            except TimeoutError:
                if not status():
                    await refuse_for_now(send, f"not answered within {self.timeout:g} s; try again later")
            finally:
                self.ongoing -= 1

    def _is_allowed(self, scope: Scope) -> bool:
        if self.token_digest is None:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode(
            errors="replace"
        )
        kind, _, secret = given.partition(" ")
        if kind.lower() == "basic":
            try:
                secret = base64.b64decode(secret, validate=True).decode().partition(":")[2]
            except ValueError:
                secret = ""
        elif kind.lower() != "bearer":
            secret = ""
        return hmac.compare_digest(digest(secret.strip()), self.token_digest)


class ReplicaLossMiddleware:
    """Around Ray Serve's own server: a request whose replica died is answered 503 instead of 500.

    Ray is also asked not to watch for clients that leave, which costs two tasks a request: an answer takes less long.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def observed_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], (b"x-request-disconnect-disabled", b"?1")]
        await self.app(scope, receive, observed_send)
        if scope["type"] == "http" and not started:
            await refuse_for_now(send, "the replica that had this request is gone; try again later")
