"""The other sides of benchmarks/serve.py: M whole models, asked in turn, as the documentation of each server shows it.

Ray Serve, LitServe and BentoML with their default settings: one worker, one thread, .npy bytes in, JSON out. Started by
serve.py, which says through the environment what is served, for each of them starts processes of its own. Ray's default
for requests at once in a replica, 5, is kept apart from 256: the Python proxy looks for room again and again, and with
more clients than that answers by far fewer requests.

    RIVAL_FOLDER=... RIVAL_MODELS=loop|one RIVAL_ONGOING=5 python benchmarks/serve_rivals.py ray|litserve PORT
    RIVAL_FOLDER=... RIVAL_MODELS=loop|one bentoml serve serve_rivals:Bento --working-dir benchmarks
"""

import importlib.util
import io
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import Depends, Request

from bend_ray.ensemble.ensemble import MEMBERS
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import Subset
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import read_tensors


class Models:
    """Whole classifiers: all members, or (``one``) the first of them alone."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        folder = Folder(os.environ["RIVAL_FOLDER"]) / "ensemble"
        facts = artifacts.load(folder, "ensemble").facts
        description, subset = ModelSpec.from_json(facts, str(folder)), Subset.from_json(facts["subset"])
        self.preprocess, self.models = description.preprocess, []
        theta_MD = read_tensors(folder, MEMBERS)[0]["theta_MD"]
        for theta_D in theta_MD[:1] if os.environ["RIVAL_MODELS"] == "one" else theta_MD:
            self.models.append(bases.load(folder, description))
            subset.put(self.models[-1], theta_D)
        self(np.zeros((1, self.preprocess.channels, self.preprocess.image_size, self.preprocess.image_size), np.uint8))

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> dict[str, Any]:
        x = self.preprocess(torch.from_numpy(images))
        prob_K = sum(model(x).softmax(1) for model in self.models)[0] / len(self.models)
        return {"label": int(prob_K.argmax()), "probabilities": prob_K.tolist()}


def array(body: bytes) -> np.ndarray:
    images: np.ndarray = np.load(io.BytesIO(body), allow_pickle=False)
    return images


if importlib.util.find_spec("litserve"):  # at the top level, for its worker is a process that imports this again
    import litserve  # type: ignore[import-not-found]  # in no extra of ours

    async def body_of(request: Request) -> bytes:
        """LitServe reads JSON and forms only, unless FastAPI is told otherwise."""
        return await request.body()

    class Api(litserve.LitAPI):  # type: ignore[misc]  # Any, where it is not installed
        def setup(self, device: str) -> None:
            self.models = Models()

        def decode_request(self, request: Annotated[bytes, Depends(body_of)]) -> np.ndarray:
            return array(request)

        def predict(self, images: np.ndarray) -> dict[str, Any]:
            return self.models(images)

        def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
            return output


if importlib.util.find_spec("bentoml"):
    import bentoml  # type: ignore[import-not-found]  # in no extra of ours

    @bentoml.service(workers=1, traffic={"timeout": 600}, logging={"access": {"enabled": False}})
    class Bento:
        def __init__(self) -> None:
            self.models = Models()

        @bentoml.api  # type: ignore[untyped-decorator]  # Any, where it is not installed
        def predict(
            self, image: Annotated[Path, bentoml.validators.ContentType("application/x-npy")], /
        ) -> dict[str, Any]:
            return self.models(array(image.read_bytes()))


def in_ray(port: int) -> None:
    import ray
    from ray import serve

    @serve.deployment(max_ongoing_requests=int(os.environ["RIVAL_ONGOING"]))
    class App:
        def __init__(self) -> None:
            self.models = Models()

        async def __call__(self, request: Request) -> dict[str, Any]:
            return self.models(array(await request.body()))

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(App.bind(), route_prefix="/predict")  # type: ignore[attr-defined]  # what the decorator makes
    while True:
        time.sleep(1)


def in_litserve(port: int) -> None:
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    {"ray": in_ray, "litserve": in_litserve}[sys.argv[1]](int(sys.argv[2]))
