"""The routes over ASGI: every status and body, who may ask and how many, and the document that says so."""

import asyncio
import base64
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
import schemathesis
import torch
from fastapi import FastAPI
from schemathesis.specs.openapi.checks import positive_data_acceptance
from torch import Tensor

from bend_ray import __version__
from bend_ray.ensemble.aggregate import Prediction, Strategy
from bend_ray.serving import guard, oip
from bend_ray.serving.app import PAGE
from serving_helpers import ROWS, answer, app, arrow, ask, client, encoded, ensemble, npy, pictures, served, tensors

IMAGES = pictures(3)
ALL = torch.from_numpy(IMAGES)
VERSION = ensemble().manifest.digest[:12]
STRATEGIES = ("abend", "sbend")
JSON = {"Content-Type": "application/json"}
INFER = "/v2/models/bend/infer"


@pytest.fixture(scope="module")
def plain() -> FastAPI:
    return app()


def rows(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["predictions"]
    return found


def refused(response: httpx.Response, status: int, sentence: str = ".") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    said = response.json()
    assert list(said) == ["error"] and re.search(sentence, said["error"]), said


def tensor(images: np.ndarray = IMAGES, **more: Any) -> dict[str, Any]:
    facts = {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.reshape(-1).tolist()}
    return {"inputs": [facts], **more}


# --- answers


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("where", ["query", "body", "protocol"])
def test_answers_are_those_of_the_ensemble(plain: FastAPI, strategy: Strategy, where: str) -> None:
    wanted = ensemble().predict(ALL, strategy)
    if where == "protocol":
        response = ask(plain, "POST", INFER, json=tensor(parameters={"strategy": strategy}))
        said, found = oip.tensors(response.content, None)
        assert said["parameters"] == {"strategy": strategy}
        assert np.array_equal(found["label"], wanted.label_B) and np.array_equal(found["prob"], wanted.prob_BK)
        return
    body = {"images": IMAGES.tolist()} | ({"strategy": strategy} if where == "body" else {})
    params = {"strategy": strategy} if where == "query" else {}
    response = ask(plain, "POST", "/predict", params=params, json=body)
    found = rows(response)
    head = response.json()
    assert (head["model"], head["version"], head["strategy"], head["members"]) == ("bend", VERSION, strategy, 5)
    assert head["class_names"] == ["nought", "one", "two", "three"]
    assert [row["label"] for row in found] == wanted.label_B.tolist()
    assert [row["class"] for row in found] == [head["class_names"][label] for label in wanted.label_B]
    assert [row["probabilities"] for row in found] == wanted.prob_BK.tolist()
    assert [row["probability"] for row in found] == [row["probabilities"][row["label"]] for row in found]
    for name in ("entropy", "mutual_information", "disagreement"):
        assert [row[name] for row in found] == vars(wanted)[f"{name}_B"].tolist()


@pytest.mark.parametrize("where", ["query", "body"])
def test_votes_are_those_of_the_members(plain: FastAPI, where: str) -> None:
    params = {"members": True} if where == "query" else {}
    body = {"images": IMAGES.tolist()} | ({"members": True} if where == "body" else {})
    label_MB = ensemble().tally(ALL).label_MB
    for row, label_M in zip(
        rows(ask(plain, "POST", "/predict", params=params, json=body)), label_MB.T.tolist(), strict=True
    ):
        assert row["member_labels"] == label_M and sum(row["votes"]) == 5
        assert row["votes"] == [Counter(label_M)[k] for k in range(4)]
        assert row["disagreement"] == pytest.approx(1 - row["votes"][row["label"]] / 5)


def test_no_member_is_named_unless_asked_for(plain: FastAPI) -> None:
    for more in ({}, {"members": False}):
        found = rows(ask(plain, "POST", "/predict", json={"images": IMAGES.tolist()} | more))
        assert all("member_labels" not in row and sum(row["votes"]) == 5 for row in found)


PNGS = [encoded(image[0]) for image in IMAGES]


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        ({"content": npy(IMAGES), "headers": {"Content-Type": "application/x-npy"}}, 3),
        ({"content": npy(IMAGES)}, 3),
        ({"content": arrow({"image": tensors(IMAGES)})}, 3),
        ({"content": arrow({"image": tensors(IMAGES)}, True)}, 3),
        ({"content": json.dumps({"images": IMAGES.tolist()})}, 3),
        ({"content": PNGS[0], "headers": {"Content-Type": "image/png"}}, 1),
        ({"content": PNGS[0], "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 1),
        ({"files": {"image": ("0.png", PNGS[0], "image/png")}}, 1),
        ({"files": [("image", (f"{i}.png", png)) for i, png in enumerate(PNGS)]}, 3),
        ({"files": [(f"any{i}", (f"{i}.png", png)) for i, png in enumerate(PNGS)]}, 3),
    ],
    ids=["npy", "npy unnamed", "arrow", "arrow file", "json", "png", "curl", "form", "files", "files of any name"],
)
def test_a_body_of_any_kind_has_the_same_answer(plain: FastAPI, request_: dict[str, Any], count: int) -> None:
    found = rows(ask(plain, "POST", "/predict", **request_))
    wanted = ensemble().predict(ALL[:count])
    assert [row["label"] for row in found] == wanted.label_B.tolist()
    for row, prob_K in zip(found, wanted.prob_BK.tolist(), strict=True):
        assert row["probabilities"] == pytest.approx(prob_K, abs=1e-6)  # by strides, convolutions sum in another order


def test_bytes_in_and_bytes_out(plain: FastAPI) -> None:
    facts = {"name": "images", "datatype": "UINT8", "shape": [3, 1, 8, 8], "parameters": {"binary_data_size": 192}}
    head = json.dumps({"inputs": [facts], "id": "7", "parameters": {"binary_data_output": True}}).encode()
    headers = {oip.LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
    response = ask(plain, "POST", INFER, content=head + IMAGES.tobytes(), headers=headers)
    assert response.status_code == 200 and response.headers["content-type"] == "application/octet-stream"
    said, found = oip.tensors(response.content, response.headers[oip.LENGTH])
    as_json = oip.tensors(ask(plain, "POST", INFER, json=tensor()).content, None)[1]
    assert (said["id"], said["model_name"], said["model_version"]) == ("7", "bend", VERSION)
    assert all(found[name].tobytes() == as_json[name].tobytes() for name in oip.OUTPUTS)


def test_what_is_served_is_told(plain: FastAPI) -> None:
    async def told() -> list[httpx.Response]:
        paths = ["/ensemble", "/v2", "/v2/health/live", "/v2/health/ready"]
        model = ["/v2/models/bend", f"/v2/models/bend/versions/{VERSION}"]
        async with client(plain) as http:
            return [await http.get(path) for path in [*paths, *model, *(f"{path}/ready" for path in model)]]

    found = asyncio.run(told())
    assert [response.status_code for response in found] == [200] * 8
    facts, server, live, ready, metadata, of_version, *models = [response.json() for response in found]
    assert facts["members"] == 5 and facts["limits"]["max_rows"] == ROWS
    assert server == {"name": "bend_ray", "version": __version__, "extensions": ["binary_tensor_data"]}
    assert (live, ready) == ({"live": True}, {"ready": True}) and models == [{"name": "bend", "ready": True}] * 2
    assert metadata == of_version and metadata["versions"] == [VERSION]
    response = ask(plain, "POST", f"/v2/models/bend/versions/{VERSION}/infer", json=tensor())
    assert response.status_code == 200


# --- refusals


def form(charset: str = "utf-8", head: str = 'name="image"; filename="a.png"') -> dict[str, Any]:
    content_type = f"multipart/form-data; boundary=line; charset={charset}"
    part = f"--line\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode()
    return {"content": part + PNGS[0] + b"\r\n--line--\r\n", "headers": {"Content-Type": content_type}}


def deep(depth: int) -> bytes:
    lists = b"[" * depth + b"]" * depth
    return b'{"strategy": ' + lists + b', "images": ' + json.dumps(pictures(ROWS).tolist()).encode() + b"}"


NPY = {"content": npy(IMAGES)}
LONG = bytes(2**17 + 1)


@pytest.mark.parametrize(
    ("path", "request_", "status", "sentence"),
    [
        ("/predict", {}, 400, "body: is empty"),
        ("/predict", {"content": b"nothing known"}, 400, "no image"),
        ("/predict", {"content": b"{", "headers": JSON}, 400, "is no JSON"),
        ("/predict", {"json": {"images": [[1]]}}, 400, r"has shape \(1, 1\); expected \(N, 1, 8, 8\)"),
        ("/predict", {"json": {"images": IMAGES.tolist(), "strategy": "mean"}}, 400, "strategy: 'mean' is unknown"),
        ("/predict", {"json": {"images": IMAGES.tolist(), "strategy": ["abend"]}}, 400, "strategy: .* is unknown"),
        ("/predict", {"json": {"images": IMAGES.tolist(), "members": 1}}, 400, "members: must be true or false"),
        ("/predict?strategy=mean", NPY, 400, "^strategy: Input should be 'abend' or 'sbend' .got 'mean'"),
        ("/predict?strategy=", NPY, 400, "^strategy: "),
        ("/predict?members=some", NPY, 400, "^members: "),
        ("/predict", {"content": b"a", "headers": {"Content-Type": "text/plain"}}, 415, "text/plain.? is not read"),
        ("/predict", {"content": npy(pictures(ROWS + 1))}, 413, f"{ROWS + 1} images in one request; at most {ROWS}"),
        ("/predict", {"content": LONG}, 413, r"longer than 0\.125 MiB"),
        (INFER, {"content": LONG}, 413, r"longer than 0\.125 MiB"),
        (INFER, {"json": tensor(pictures(ROWS + 1))}, 413, "17 images"),
        (INFER, {}, 400, "is no JSON"),
        (INFER, {"json": {}}, 400, "^inputs: "),
        (INFER, {"json": tensor(parameters={"strategy": "mean"})}, 400, "strategy: 'mean' is unknown"),
        (INFER, {"json": tensor(), "headers": {oip.LENGTH: "x"}}, 400, f"^{oip.LENGTH}: 'x'"),
        ("/v2/models/other/infer", {"json": tensor()}, 404, "model other .* is not here; bend"),
        ("/v2/models/bend/versions/0/infer", {"json": tensor()}, 404, "of version 0 is not here"),
        ("/nowhere", {}, 404, "Not Found"),
        ("/ensemble", {}, 405, "Method Not Allowed"),
        ("/page/page.js", {}, 405, "Method Not Allowed"),
        ("/predict", form(head='name="image"'), 400, "form field 'image': is no file"),
        ("/predict", form(head='filename="a.png"'), 400, "is no form"),
        ("/predict", form() | {"headers": {"Content-Type": "multipart/form-data"}}, 400, "is no form"),
        ("/predict", form() | {"content": b"--line--\r\n"}, 400, "has no file"),
        ("/predict", form() | {"content": PNGS[0]}, 400, "is no form|has no file"),
        ("/predict", {"files": {"image": ("a.png", b"GIF8")}}, 400, r"^file 'a\.png': is no image"),
        ("/predict", {"files": {"image": ("", b"x")}}, 400, "."),
        ("/predict", {"files": [(f"f{i}", (None, "x")) for i in range(20)]}, 400, "is no form .Too many fields"),
        ("/predict", {"files": [("image", ("a.png", PNGS[0]))] * (ROWS + 1)}, 413, f"more than {ROWS} images"),
        ("/predict", form("idna"), 200, ""),
        ("/predict", form("undefined"), 400, "is no form"),
        ("/predict", form("a\0b"), 400, "is no form"),
        ("/predict", {"content": b"x", "headers": {"Content-Length": b"\xb2"}}, 400, "no image"),
        (INFER, {"json": tensor(), "headers": {oip.LENGTH: "0" * 5000}}, 400, f"^{oip.LENGTH}"),
        ("/predict", form() | {"headers": {"Content-Type": "Multipart/Form-Data; boundary=line"}}, 200, ""),
    ],
    ids=lambda value: str(value)[:50],
)
def test_refusals(plain: FastAPI, path: str, request_: dict[str, Any], status: int, sentence: str) -> None:
    response = ask(plain, "POST", path, **request_)
    if status == 200:
        assert len(rows(response)) == 1
    else:
        refused(response, status, sentence)


@pytest.mark.parametrize("path", ["/predict", INFER])
def test_a_long_body_is_refused_whether_it_tells_its_length_or_not(plain: FastAPI, path: str) -> None:
    sent = 0

    async def chunks() -> Any:
        nonlocal sent
        for _ in range(64):
            sent += 1
            yield bytes(2**13)

    refused(ask(plain, "POST", path, content=chunks()), 413, "longer than")
    assert sent == 17  # and not one more than needed
    refused(ask(plain, "POST", path, content=b"", headers={"Content-Length": str(10**15)}), 413, "longer than")


def test_as_much_as_is_allowed_is_answered(plain: FastAPI) -> None:
    body = json.dumps({"images": pictures(ROWS).tolist()}).ljust(2**17)
    assert len(rows(ask(plain, "POST", "/predict", content=body))) == ROWS


def test_a_strategy_nested_as_deeply_as_json_allows_is_refused(plain: FastAPI) -> None:
    for depth in range(900, 1000):
        refused(ask(plain, "POST", "/predict", content=deep(depth), headers=JSON), 400)


@pytest.mark.parametrize("body", [{"strategy": "mean"}, {"strategy": 7}], ids=str)
def test_a_wrong_strategy_in_the_body_is_refused_whatever_the_query_says(plain: FastAPI, body: dict[str, Any]) -> None:
    body = {"images": IMAGES.tolist()} | body
    refused(ask(plain, "POST", "/predict?strategy=abend", json=body), 400, "strategy")


# --- the page


def test_the_page_and_its_files_are_there(plain: FastAPI) -> None:
    response = ask(plain, "GET", "/")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    assert response.headers["content-security-policy"].startswith("default-src 'self'")
    named = re.findall(r'(?:href|src)="(page/[^"]+)"', response.text)
    assert named and all(ask(plain, "GET", f"/{name}").status_code == 200 for name in named)


@pytest.mark.parametrize("path", sorted(PAGE.glob("*")), ids=lambda path: path.name)
def test_page_files_load_from_no_other_host(path: Any) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, not a place
    assert not re.findall(r"https?://[^\s\"')]*", text) and not re.findall(r"""["'(]//\w""", text)


def test_docs_load_from_no_other_host(plain: FastAPI) -> None:
    response = ask(plain, "GET", "/docs")
    assert response.status_code == 200 and "://" not in response.text
    named = re.findall(r"""(?:href|src)="([^"]+)"|url: '([^']+)'""", response.text)
    assert len(named) == 4
    for name in named:
        assert ask(plain, "GET", "/" + "".join(name)).status_code == 200


@pytest.mark.parametrize("path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page/", "/swagger/", "/page/%00"])
def test_no_other_file_is_given(plain: FastAPI, path: str) -> None:
    assert (PAGE.parent / "app.py").exists()
    refused(ask(plain, "GET", path), 404)


# --- tokens

TOKEN = "sesam"


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


@pytest.fixture(scope="module")
def guarded() -> FastAPI:
    return app(token_digest=guard.digest(TOKEN))


@pytest.mark.parametrize("path", GUARDED)
def test_without_a_token_only_health_is_told(guarded: FastAPI, path: str) -> None:
    response = ask(guarded, "GET", path)
    refused(response, 401, "a token is needed")
    assert {"Bearer", "Basic"} <= set(re.findall(r"\w+", response.headers["www-authenticate"]))
    for health in guard.HEALTH:
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
        (f"Bearer {guard.digest(TOKEN)}", 401),
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
    made = app(token_digest=guard.digest("schlüssel:ß"))
    assert ask(made, "GET", "/v2", headers={"Authorization": basic("me:schlüssel:ß")}).status_code == 200


# --- queue, time, and what goes wrong


def after(seconds: float) -> Callable[[Tensor, Strategy], Any]:
    async def slow(images: Tensor, strategy: Strategy) -> tuple[Prediction, Tensor]:
        await asyncio.sleep(seconds)
        return await answer(images, strategy)

    return slow


def busy(response: httpx.Response, sentence: str) -> None:
    refused(response, 503, sentence)
    assert int(response.headers["retry-after"]) == guard.RETRY_AFTER


def test_more_than_the_queue_holds_are_told_to_come_again() -> None:
    made = app({"queue": 2}, answer=after(0.1))

    async def all_at_once() -> list[httpx.Response]:
        async with client(made) as http:
            found = await asyncio.gather(*(http.post("/predict", **NPY) for _ in range(4)), http.get(guard.HEALTH[0]))
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
    made = app({"timeout": 0.1, "queue": 1}, seen=seen.append, token_digest=guard.digest(TOKEN))

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
        await guard.refuse(send, 418, "a teapot")

    busy(ask(guard.Unanswered(silent), "GET", "/"), "is gone; try again later")  # type: ignore[arg-type]
    refused(ask(guard.Unanswered(fine), "GET", "/"), 418, "a teapot")  # type: ignore[arg-type]


# --- the document


@pytest.fixture(scope="module")
def document(plain: FastAPI) -> dict[str, Any]:
    found: dict[str, Any] = ask(plain, "GET", "/openapi.json").json()
    return found


def valid(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema | {"components": document["components"]}).validate(value)


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, found) for path, methods in document["paths"].items() for method, found in methods.items()]


def test_the_document_names_the_routes_and_no_422(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.0.3" and document["info"]["version"] == __version__
    assert {(method, path) for path, method, _ in operations(document)} == {
        ("get", "/ensemble"),
        ("post", "/predict"),
        ("get", "/v2"),
        ("get", "/v2/health/live"),
        ("get", "/v2/health/ready"),
        ("get", "/v2/models/{model}"),
        ("get", "/v2/models/{model}/ready"),
        ("post", "/v2/models/{model}/infer"),
    }
    assert "422" not in {status for *_, found in operations(document) for status in found["responses"]}
    assert "Validation" not in json.dumps(document)
    assert "securitySchemes" not in document["components"]


def test_the_document_says_where_a_token_is_needed(guarded: FastAPI) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for _ in range(2):
        document = ask(guarded, "GET", "/openapi.json", headers=headers).json()
    assert document["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, _, found in operations(document):
        health = path in guard.HEALTH
        assert ("401" in found["responses"]) != health and (found.get("security") == [{"bearer": []}]) != health


def test_examples_are_valid_and_answered(plain: FastAPI, document: dict[str, Any]) -> None:
    count = 0
    for path, method, found in operations(document):
        for kind, content in found.get("requestBody", {}).get("content", {}).items():
            if "example" in content:
                valid(content["example"], content["schema"], document)
                response = ask(plain, method.upper(), path.format(model="bend"), json=content["example"])
                assert kind == "application/json" and response.status_code == 200
                count += 1
    for schema in document["components"]["schemas"].values():
        for property_ in schema["properties"].values():
            for example in property_.get("examples", []):
                valid(example, property_, document)
                count += 1
    assert count > 10


ASKED: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", "/ensemble", {}, 200),
    ("GET", "/v2", {}, 200),
    ("GET", "/v2/health/live", {}, 200),
    ("GET", "/v2/health/ready", {}, 200),
    ("GET", "/v2/models/{model}", {}, 200),
    ("GET", "/v2/models/{model}/ready", {}, 200),
    ("POST", "/predict", {"json": {"images": IMAGES.tolist(), "members": True}}, 200),
    ("POST", "/predict", NPY, 200),
    ("POST", "/predict", {}, 400),
    ("POST", "/predict", {"content": LONG}, 413),
    ("POST", "/predict", {"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415),
    ("POST", "/v2/models/{model}/infer", {"json": tensor(id="x", parameters={"strategy": "sbend"})}, 200),
    ("POST", "/v2/models/{model}/infer", {"json": tensor(parameters={"binary_data_output": True})}, 200),
    ("POST", "/v2/models/{model}/infer", {"json": {}}, 400),
    ("POST", "/v2/models/{model}/infer", {"content": LONG}, 413),
]


@pytest.mark.parametrize(("method", "path", "request_", "status"), ASKED, ids=lambda value: str(value)[:30])
def test_responses_are_as_the_document_says(
    plain: FastAPI, document: dict[str, Any], method: str, path: str, request_: dict[str, Any], status: int
) -> None:
    response = ask(plain, method, path.format(model="bend"), **request_)
    assert response.status_code == status
    content = document["paths"][path][method.lower()]["responses"][str(status)]["content"]
    kind = response.headers["content-type"]
    if kind == "application/json":
        valid(response.json(), content[kind]["schema"], document)
    else:
        assert content[kind]["schema"] == {"type": "string", "format": "binary"}


@pytest.mark.parametrize("accuracy", [{}, {"abend": 0.5, "sbend": 0.25}])
def test_an_ensemble_without_a_report_is_as_the_document_says(document: dict[str, Any], accuracy: Any) -> None:
    facts = ask(app(facts=served().facts | {"accuracy": accuracy}), "GET", "/ensemble").json()
    assert facts["accuracy"] == accuracy
    valid(facts, {"$ref": "#/components/schemas/Ensemble"}, document)


def test_wherever_503_may_come_the_document_says_so(document: dict[str, Any]) -> None:
    for path, _, found in operations(document):
        assert ("503" in found["responses"]) == (path not in guard.HEALTH), path


def test_the_document_is_of_the_version_that_it_says(document: dict[str, Any]) -> None:
    assert '"type": "null"' not in json.dumps(document)


def test_the_documents_form_has_files_only(document: dict[str, Any]) -> None:
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert content["schema"]["additionalProperties"] in (False, {"type": "string", "format": "binary"})


@pytest.mark.parametrize("key", ["strategy", "members"])
def test_null_is_taken_where_the_document_says_so(plain: FastAPI, document: dict[str, Any], key: str) -> None:
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    said = content["schema"]["properties"][key].get("nullable", False)
    response = ask(plain, "POST", "/predict", json={"images": IMAGES.tolist(), key: None})
    assert (response.status_code == 200) == said


# --- requests made up from the document

MADE_UP = schemathesis.Config.from_dict(
    {"generation": {"deterministic": True, "max-examples": 20, "database": "none", "no-shrink": True}}
)
# No schema says which bytes are an image, or how long the JSON is in front of others.
NOT_SAID = [positive_data_acceptance]
schemathesis.serializer.alias(["application/x-npy", "application/vnd.apache.arrow.stream"], "application/octet-stream")
from_document = schemathesis.openapi.from_asgi("/openapi.json", app(), config=MADE_UP)
of_our_model = from_document.include(path_regex="/models/")
with_token = schemathesis.openapi.from_asgi(
    "/openapi.json",
    app(token_digest=guard.digest(TOKEN)),
    config=schemathesis.Config.from_dict(
        {
            "generation": {"deterministic": True, "max-examples": 5, "database": "none"},
            "auth": {"openapi": {"bearer": {"bearer": TOKEN}}},
        }
    ),
    headers={"Authorization": f"Bearer {TOKEN}"},  # for the document itself
)


@from_document.parametrize()
def test_made_up_requests(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=NOT_SAID)


@of_our_model.parametrize()
def test_made_up_requests_to_the_model_that_is_there(case: schemathesis.Case) -> None:
    case.path_parameters["model"] = "bend"
    case.call_and_validate(excluded_checks=NOT_SAID)


@with_token.parametrize()
def test_made_up_requests_with_and_without_a_token(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=NOT_SAID)
