"""Who may ask, how many at once and for how long; what goes wrong is said in a sentence, seen, and keeps no place."""

import asyncio
import base64
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from torch import Tensor

from bend_ray.ensemble.aggregate import Prediction, Strategy
from bend_ray.serving import middleware
from serving_helpers import ROWS, answer, app, ask, client, npy, pictures
from serving_requests import IMAGES, INFER, NPY, TOKEN, guarded, refused, tensor

__all__ = ["guarded"]


# --- tokens


def basic(words: str) -> str:
    return "Basic " + base64.b64encode(words.encode()).decode()


GUARDED = [
    "/",
    "/docs",
    "/openapi.json",
    "/ensemble",
    "/v2",
    "/v2/models/bend",
    "/page/page.js",
    "/nowhere",
    "/v2/health",
]


@pytest.mark.parametrize("path", GUARDED)
def test_without_a_token_only_health_is_told(guarded: FastAPI, path: str) -> None:
    response = ask(guarded, "GET", path)
    refused(response, 401, "a token is needed")
    assert {"Bearer", "Basic"} <= set(re.findall(r"\w+", response.headers["www-authenticate"]))
    for health in middleware.HEALTH:
        assert ask(guarded, "GET", health).status_code == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer sesam", 200),
        ("bearer sesam", 200),
        (basic("anyone:sesam"), 200),
        (basic(":sesam"), 200),
        ("", 401),
        ("sesam", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer sesame", 401),
        ("Bearer Sesam", 401),
        (f"Bearer {middleware.digest(TOKEN)}", 401),
        ("Digest sesam", 401),
        (b"Bearer \xff\xfe", 401),
        ("Basic", 401),
        ("Basic sesam", 401),
        ("Basic !!!", 401),
        (basic("anyone:wrong"), 401),
        (basic("sesam"), 401),
        (basic("sesam:"), 401),
        (basic("anyone:sesam") + "x", 401),
        ("Basic " + base64.b64encode(b"\xff:\xfe").decode(), 401),
        ("Basic sesam\xe9", 401),
    ],
)
def test_tokens(guarded: FastAPI, authorization: str | bytes, status: int) -> None:
    raw = authorization if isinstance(authorization, bytes) else authorization.encode("latin-1")
    response = ask(guarded, "POST", "/predict", **NPY, headers={b"Authorization": raw})
    assert response.status_code == status
    if status == 401:
        refused(response, 401, "a token is needed")


def test_a_token_of_any_letters_is_a_password(guarded: FastAPI) -> None:
    made = app(token_digest=middleware.digest("schlüssel:ß"))
    assert ask(made, "GET", "/v2", headers={"Authorization": basic("me:schlüssel:ß")}).status_code == 200


# --- queue, time, and what goes wrong


def after(seconds: float) -> Callable[[Tensor, Strategy], Any]:
    async def slow(images: Tensor, strategy: Strategy) -> tuple[Prediction, Tensor]:
        await asyncio.sleep(seconds)
        return await answer(images, strategy)

    return slow


def busy(response: httpx.Response, sentence: str) -> None:
    refused(response, 503, sentence)
    assert int(response.headers["retry-after"]) == middleware.RETRY_AFTER


def test_more_than_the_queue_holds_are_told_to_come_again() -> None:
    made = app({"queue": 2}, answer=after(0.1))

    async def all_at_once() -> list[httpx.Response]:
        async with client(made) as http:
            found = await asyncio.gather(
                *(http.post("/predict", **NPY) for _ in range(4)), http.get(middleware.HEALTH[0])
            )
            return [*found, await http.post("/predict", **NPY)]

    *four, health, later = asyncio.run(all_at_once())
    assert sorted(response.status_code for response in four) == [200, 200, 503, 503]
    for response in four:
        if response.status_code == 503:
            busy(response, r"the queue is full \(2 requests\)")
    assert (health.status_code, later.status_code) == (200, 200)


@pytest.mark.parametrize("path", ["/predict", INFER])
def test_what_takes_too_long_is_given_up(path: str) -> None:
    made = app({"queue": 1, "timeout": 0.1}, answer=after(5))
    for _ in range(2):  # so the first one's place is free again
        busy(ask(made, "POST", path, json=tensor() if path == INFER else {"images": IMAGES.tolist()}), r"within 0\.1 s")


def test_a_body_that_never_ends_is_given_up() -> None:
    async def chunks() -> Any:
        yield b"{"
        await asyncio.sleep(5)

    made = app({"queue": 1, "timeout": 0.1})
    busy(ask(made, "POST", "/predict", content=chunks()), "not answered within")
    assert ask(made, "POST", "/predict", **NPY).status_code == 200


def test_our_own_faults_are_500_and_tell_no_secrets() -> None:
    broken = True

    async def sometimes(images: Tensor, strategy: Strategy) -> tuple[Prediction, Tensor]:
        if broken:
            raise RuntimeError("a secret")
        return await answer(images, strategy)

    made = app({"queue": 1}, answer=sometimes)
    for path, body in (("/predict", {"images": IMAGES.tolist()}), (INFER, tensor())):
        response = ask(made, "POST", path, json=body)
        refused(response, 500, "fault of the server's .RuntimeError")
        assert "secret" not in response.text
    broken = False
    assert ask(made, "POST", "/predict", **NPY).status_code == 200


async def drive(made: FastAPI, messages: list[dict[str, Any]], path: str = "/predict") -> list[dict[str, Any]]:
    """One POST whose client says exactly these messages; what the app sends."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "server": ("bend", 80),
        "client": ("127.0.0.1", 1),
    }
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(left)

    async def send(message: Any) -> None:
        sent.append(message)

    await made(scope, receive, send)
    return sent


WHOLE = {"type": "http.request", "body": NPY["content"], "more_body": False}


def test_clients_that_leave_give_their_place_back() -> None:
    made = app({"queue": 1}, answer=after(0.05))

    async def left() -> None:
        part = {"type": "http.request", "body": b"{", "more_body": True}
        assert (await drive(made, [part, {"type": "http.disconnect"}]))[0]["status"] == 499
        task = asyncio.create_task(drive(made, [WHOLE]))  # as a server does it whose client leaves
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await drive(made, [WHOLE]))[0]["status"] == 200

    asyncio.run(left())


def test_every_request_is_seen_once() -> None:
    seen: list[dict[str, Any]] = []
    made = app({"timeout": 0.1, "queue": 1}, seen=seen.append, token_digest=middleware.digest(TOKEN))

    async def asked() -> None:
        async with client(made, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            await http.post("/predict?strategy=sbend", **NPY)
            await http.post(INFER, json=tensor())
            await http.post("/predict", content=b"")
            await http.post("/predict", content=npy(pictures(ROWS + 1)))
            await http.get("/nowhere?token=secret")
            await http.get("/v2/health/ready")
            await http.get("/v2", headers={"Authorization": ""})

    asyncio.run(asked())
    assert all(said.pop("latency_ms") >= 0 for said in seen)
    post, get = {"method": "POST", "path": "/predict"}, {"method": "GET"}
    assert seen == [
        post | {"status": 200, "rows": 3, "strategy": "sbend"},
        {"method": "POST", "path": INFER, "status": 200, "rows": 3, "strategy": "abend"},
        post | {"status": 400},
        post | {"status": 413},
        get | {"path": "/nowhere", "status": 404},
        get | {"path": "/v2/health/ready", "status": 200},
        get | {"path": "/v2", "status": 401},
    ]


def test_what_came_too_late_is_seen_as_such() -> None:
    seen: list[dict[str, Any]] = []
    made = app({"timeout": 0.1}, seen=seen.append, answer=after(5))
    ask(made, "POST", "/predict", **NPY)
    assert [said["status"] for said in seen] == [503] and 100 <= seen[0]["latency_ms"] < 2000


def test_our_own_faults_are_seen_as_such() -> None:
    async def broken(images: Tensor, strategy: Strategy) -> tuple[Prediction, Tensor]:
        raise RuntimeError("a secret")

    seen: list[dict[str, Any]] = []
    assert ask(app(seen=seen.append, answer=broken), "POST", "/predict", **NPY).status_code == 500
    assert [said["status"] for said in seen] == [500]


def test_around_a_proxy_silence_is_an_answer_to_come_again() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def fine(scope: Any, receive: Any, send: Any) -> None:
        await middleware.refuse(send, 418, "a teapot")

    busy(ask(middleware.ReplicaLossMiddleware(silent), "GET", "/"), "is gone; try again later")
    refused(ask(middleware.ReplicaLossMiddleware(fine), "GET", "/"), 418, "a teapot")
