"""The OpenAPI document says what the routes do: its examples are answered, and so is what is made up from it."""

import json
from typing import Any

import jsonschema
import pytest
import schemathesis
from fastapi import FastAPI
from schemathesis.specs.openapi.checks import positive_data_acceptance

from bend_ray import __version__
from bend_ray.serving import middleware
from serving_helpers import app, ask, served
from serving_requests import IMAGES, LONG, NPY, TOKEN, guarded, plain, tensor

__all__ = ["guarded", "plain"]


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
        health = path in middleware.HEALTH
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
        assert ("503" in found["responses"]) == (path not in middleware.HEALTH), path


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
NOT_SAID: list[Any] = [positive_data_acceptance]
schemathesis.serializer.alias(["application/x-npy", "application/vnd.apache.arrow.stream"], "application/octet-stream")
from_document = schemathesis.openapi.from_asgi("/openapi.json", app(), config=MADE_UP)
of_our_model = from_document.include(path_regex="/models/")
with_token = schemathesis.openapi.from_asgi(
    "/openapi.json",
    app(token_digest=middleware.digest(TOKEN)),
    config=schemathesis.Config.from_dict(
        {
            "generation": {"deterministic": True, "max-examples": 5, "database": "none"},
            "auth": {"openapi": {"bearer": {"bearer": TOKEN}}},
        }
    ),
    headers={"Authorization": f"Bearer {TOKEN}"},  # for the document itself
)


@from_document.parametrize()
def test_made_up_requests(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(excluded_checks=NOT_SAID)


@of_our_model.parametrize()
def test_made_up_requests_to_the_model_that_is_there(case: schemathesis.Case[Any]) -> None:
    case.path_parameters["model"] = "bend"
    case.call_and_validate(excluded_checks=NOT_SAID)


@with_token.parametrize()
def test_made_up_requests_with_and_without_a_token(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(excluded_checks=NOT_SAID)
