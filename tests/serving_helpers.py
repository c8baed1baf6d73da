"""A small real ensemble behind the routes, asked without a network; bodies of every kind."""

import asyncio
import functools
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import torch
from fastapi import FastAPI
from starlette.types import ASGIApp
from torch import Tensor

from bend_ray.config import Classifier, Serve
from bend_ray.data.preprocess import Preprocess
from bend_ray.ensemble.aggregate import Prediction, Strategy
from bend_ray.ensemble.ensemble import DEFAULTS, Ensemble, make_trunk
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import choose
from bend_ray.serving.app import Served, make_app
from bend_ray.store.artifacts import FileFacts, Manifest

GREY = Preprocess(1, 8, (0.3,), (0.4,))
COLOUR = Preprocess(3, 8, (0.3, 0.4, 0.5), (0.4, 0.3, 0.2))
ROWS = 16
"""Most images in one request of the tests."""


@functools.cache
def ensemble() -> Ensemble:
    """Five members that often disagree: a small network's own parameters, and noise."""
    description = ModelSpec(Classifier(name="convnet", kwargs={"width": 4}), ("nought", "one", "two", "three"), GREY)
    module = description.build().requires_grad_(False)
    subset = choose(module, "norm+head")
    noise = torch.randn(5, subset.D, generator=torch.Generator().manual_seed(0))
    manifest = Manifest(
        format=1,
        kind="ensemble",
        made_by="bend_ray tests",
        hash="f" * 64,
        config={},
        inputs={"base": "0" * 64},
        files={"members.safetensors": FileFacts(bytes=1, sha256="a" * 64)},
        facts={},
    )
    trunk = make_trunk(module, subset, description)
    return Ensemble(description, subset, subset.take(module) + 0.5 * noise, trunk, manifest, DEFAULTS)


async def answer(images: Tensor, strategy: Strategy) -> tuple[Prediction, Tensor]:
    tally = ensemble().tally(images, strategy)
    return tally.prediction(strategy), tally.label_MB


def served(limits: dict[str, Any] | None = None, **changes: Any) -> Served:
    """What an app of the tests' ensemble needs; `facts` as `workers.replica.facts` gives them, which needs Ray."""
    made, chosen = ensemble(), Serve(**{"max_rows": ROWS, "max_body": 0.125} | (limits or {}))
    names = made.spec.class_names
    facts: dict[str, Any] = {
        "model": "digits",
        "run": "runs/digits",
        "members": made.members,
        "classes": len(names),
        "class_names": list(names),
        "image": {"channels": GREY.channels, "size": GREY.image_size},
        "subset_size": made.subset.D,
        "trunks": made.trunks,
        "accuracy": {"abend": 0.5, "sbend": 0.25},
        "hash": made.manifest.hash,
        "digest": made.manifest.digest,
        "inputs": made.manifest.inputs,
        "made_by": made.manifest.made_by,
        "strategies": ["abend", "sbend"],
        "plan": made.settings.plan,
        "temperature": made.temperature.to_json(),
        "distance": {},
        "limits": chosen.model_dump(include={"max_rows", "max_body", "timeout", "queue"}),
    }
    needed: dict[str, Any] = {"answer": answer, "fit": GREY, "class_names": names, "facts": facts, "limits": chosen}
    return Served(**needed | changes)


def app(limits: dict[str, Any] | None = None, **changes: Any) -> FastAPI:
    return make_app(served(limits, **changes))


def client(made: ASGIApp, **settings: Any) -> httpx.AsyncClient:
    """Talks to ``made`` in this process. What the app raises after its answer is for the server's log, not for us."""
    transport = httpx.ASGITransport(made, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://bend", **settings)


def ask(made: ASGIApp, method: str, path: str, **request: Any) -> httpx.Response:
    """One request and its answer."""

    async def asked() -> httpx.Response:
        async with client(made) as http:
            return await http.request(method, path, **request)

    return asyncio.run(asked())


def pictures(rows: int, fit: Preprocess = GREY, seed: int = 0) -> np.ndarray:
    """uint8 (B, C, H, W)."""
    shape = (rows, fit.channels, fit.image_size, fit.image_size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    return stream.getvalue()


def npy_of(header: str, data: bytes = b"") -> bytes:
    """A .npy whose header is what is given, however wrong."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode("latin-1") + data


def arrow(columns: dict[str, pa.Array] | pa.Table, file: bool = False, **options: Any) -> bytes:
    """An Arrow IPC stream or file."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    sink = io.BytesIO()
    new: Callable[..., Any] = pa.ipc.new_file if file else pa.ipc.new_stream
    with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def tensors(images: np.ndarray) -> pa.Array:
    """A column of fixed-shape tensors."""
    return pa.FixedShapeTensorArray.from_numpy_ndarray(images)
