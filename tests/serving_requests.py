"""What several tests of the routes ask for, the apps that they ask, and how a refusal looks."""

import re
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from bend_ray.serving import middleware
from serving_helpers import app, npy, pictures

IMAGES = pictures(3)
INFER = "/v2/models/bend/infer"
NPY: dict[str, Any] = {"content": npy(IMAGES)}
LONG = bytes(2**17 + 1)
TOKEN = "sesam"


@pytest.fixture(scope="module")
def plain() -> FastAPI:
    return app()


@pytest.fixture(scope="module")
def guarded() -> FastAPI:
    return app(token_digest=middleware.digest(TOKEN))


def refused(response: httpx.Response, status: int, sentence: str = ".") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    said = response.json()
    assert list(said) == ["error"] and re.search(sentence, said["error"]), said


def tensor(images: np.ndarray = IMAGES, **more: Any) -> dict[str, Any]:
    facts = {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.reshape(-1).tolist()}
    return {"inputs": [facts], **more}
