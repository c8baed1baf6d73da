"""The routes over ASGI: what is answered, what is refused and in which words, and the page."""

import asyncio
import json
import re
from collections import Counter
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI

from bend_ray import __version__
from bend_ray.ensemble.aggregate import Strategy
from bend_ray.serving import oip
from bend_ray.serving.app import PAGE
from image_files import encoded
from serving_helpers import ROWS, arrow, ask, client, ensemble, npy, pictures, tensors
from serving_requests import IMAGES, INFER, LONG, NPY, plain, refused, tensor

__all__ = ["plain"]

ALL = torch.from_numpy(IMAGES)
VERSION = ensemble().manifest.digest[:12]
STRATEGIES = ("abend", "sbend")
JSON = {"Content-Type": "application/json"}


def rows(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["predictions"]
    return found


# --- answers


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("where", ["query", "body", "protocol"])
def test_answers_are_those_of_the_ensemble(plain: FastAPI, strategy: Strategy, where: str) -> None:
    wanted = ensemble().predict(ALL, strategy)
    if where == "protocol":
        response = ask(plain, "POST", INFER, json=tensor(parameters={"strategy": strategy}))
        said, arrays = oip.tensors(response.content, None)
        assert said["parameters"] == {"strategy": strategy}
        assert np.array_equal(arrays["label"], wanted.label_B) and np.array_equal(arrays["prob"], wanted.prob_BK)
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
    assert all(found[name].tobytes() == as_json[name].tobytes() for name in oip.offered(distance=False))


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
