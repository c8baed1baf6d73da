"""The routes: bytes in, an ensemble's predictions out. Ray is not needed: whatever can `answer` can be served.

* the Open Inference Protocol v2 under ``/v2`` (see `oip`),
* ``POST /predict`` for people and scripts: an image, JSON, .npy or Arrow IPC in, JSON out,
* ``GET /ensemble``: what is served; ``GET /``: a page to draw on; ``GET /docs``: the routes with examples.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import swagger_ui_bundle
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response
from torch import Tensor

from bend_ray.config import Serve
from bend_ray.config.choices import AGGREGATIONS, strategies
from bend_ray.data.preprocess import Preprocess
from bend_ray.ensemble.aggregate import Prediction, Strategy
from bend_ray.errors import DataError
from bend_ray.serving import inputs, oip, openapi, requests, responses, schemas
from bend_ray.serving.middleware import LimitsMiddleware
from bend_ray.serving.oip import MODEL
from bend_ray.version import __version__

PAGE = Path(__file__).parent / "page"
POLICY = "default-src 'self'; img-src 'self' data: blob:"


@dataclass(frozen=True)
class Served:
    """What the routes need of an ensemble."""

    answer: Callable[[Tensor, Strategy], Awaitable[tuple[Prediction, Tensor]]]
    """Prediction and ``label_MB`` for uint8 images (B, C, H, W)."""
    fit: Preprocess
    class_names: tuple[str, ...]
    facts: dict[str, Any]
    """What ``GET /ensemble`` says."""
    limits: Serve
    token_digest: str | None = None
    seen: Callable[[dict[str, Any]], None] = field(default=lambda facts: None)
    """Called for every request with its method, path, status, latency_ms, and rows and strategy where it had any."""

    @property
    def version(self) -> str:
        """The model's version in the protocol: the beginning of the ensemble's digest."""
        return str(self.facts["digest"])[:12]

    @property
    def distance(self) -> bool:
        """Whether predictions have a distance."""
        return bool(self.facts["distance"])


def make_app(served: Served) -> FastAPI:
    """The application that answers for ``served``."""
    app = FastAPI(title="bend_ray", version=__version__, description=openapi.DESCRIPTION, docs_url=None, redoc_url=None)
    app.openapi_version = "3.0.3"  # what the bundled Swagger UI shows
    limits = served.limits
    app.add_middleware(
        LimitsMiddleware, token_digest=served.token_digest, queue=limits.queue, timeout=limits.timeout, seen=served.seen
    )
    _add_errors(app)
    _add_pages(app, served)
    _add_predict(app, served)
    _add_protocol(app, served)
    whole = app.openapi

    def document() -> dict[str, Any]:
        return openapi.correct(whole(), served.token_digest is not None)

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to change it
    return app


def _add_errors(app: FastAPI) -> None:
    """Every error is ``{"error": sentence}``."""

    def error_response(status: int, error: str, headers: Any = None) -> Response:
        return JSONResponse({"error": error}, status, headers)

    @app.exception_handler(DataError)
    async def bad_data(request: Request, error: DataError) -> Response:
        return error_response(415 if isinstance(error, requests.KindError) else 400, str(error))

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return error_response(400, f"{first['loc'][-1]}: {first['msg']} (got {str(first['input'])[:100]!r})")

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return error_response(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(ClientDisconnect)
    async def client_left(request: Request, error: ClientDisconnect) -> Response:
        return error_response(499, "the client left")

    @app.exception_handler(Exception)
    async def server_error(request: Request, error: Exception) -> Response:
        return error_response(500, f"this is a fault of the server's ({type(error).__name__}); its log says more")


def _add_pages(app: FastAPI, served: Served) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="bend_ray: the routes",
            swagger_js_url="swagger/swagger-ui-bundle.js",
            swagger_css_url="swagger/swagger-ui.css",
            swagger_favicon_url="page/icon.svg",
        )

    app.mount("/page", StaticFiles(directory=PAGE))
    app.mount("/swagger", StaticFiles(directory=swagger_ui_bundle.swagger_ui_path))

    @app.get("/ensemble", tags=["ensemble"], responses=openapi.responses(schemas.Ensemble), summary="What is served")
    async def ensemble() -> Response:
        """Members, accuracy on test, the run it is from and the hashes of what made it, the limits of a request."""
        return JSONResponse(served.facts)


def _add_predict(app: FastAPI, served: Served) -> None:
    @app.post(
        "/predict",
        tags=["ensemble"],
        summary="Images in, answers and doubt out",
        openapi_extra={"requestBody": openapi.predict_body(served.fit)},
        responses=openapi.responses(schemas.Answer, 400, 413, 415),
    )
    async def predict(request: Request, strategy: Strategy | None = None, members: bool = False) -> Response:
        """An image (PNG, JPEG; also as a form's file), JSON, .npy or Arrow IPC. Images of another size are fitted;
        arrays must have the classifier's. `strategy` and `members` may stand in a JSON body, too."""
        images, extras = await requests.images(request, served.fit, served.limits)
        in_body = _strategy(extras.get("strategy", "abend"))
        strategy = strategy or in_body
        with_members = extras.get("members", members)
        if not isinstance(with_members, bool):
            raise DataError("members: must be true or false")
        prediction, label_MB = await _predict(request, served, images, strategy)
        body = {
            "model": MODEL,
            "version": served.version,
            "strategy": strategy,
            "members": len(label_MB),
            "class_names": served.class_names,
            "predictions": responses.rows(prediction, served.class_names, label_MB if with_members else None),
        }
        return Response(json.dumps(body), media_type="application/json")


def _add_protocol(app: FastAPI, served: Served) -> None:
    tags: list[str | Enum] = ["Open Inference Protocol v2"]
    one, of_version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"

    def check_model(request: Request) -> None:
        model, version = request.path_params["model"], request.path_params.get("version", served.version)
        if (model, version) != (MODEL, served.version):
            raise HTTPException(404, f"model {model} of version {version} is not here; {MODEL} {served.version} is")

    @app.get("/v2", tags=tags, responses=openapi.responses(schemas.Server), summary="The server")
    async def server() -> Response:
        return JSONResponse({"name": "bend_ray", "version": __version__, "extensions": ["binary_tensor_data"]})

    @app.get("/v2/health/live", tags=tags, responses=openapi.responses(schemas.Live), summary="The server is there")
    async def live() -> Response:
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", tags=tags, responses=openapi.responses(schemas.Ready), summary="The server can answer")
    async def ready() -> Response:
        return JSONResponse({"ready": True})

    @app.get(of_version, include_in_schema=False)
    @app.get(
        one, tags=tags, responses=openapi.responses(schemas.Metadata, 404), summary="What the model takes and gives"
    )
    async def metadata(request: Request, model: str) -> Response:
        check_model(request)
        return JSONResponse(oip.metadata(MODEL, served.version, served.fit, len(served.class_names), served.distance))

    @app.get(f"{of_version}/ready", include_in_schema=False)
    @app.get(f"{one}/ready", tags=tags, responses=openapi.responses(schemas.Ready, 404), summary="The model can answer")
    async def model_ready(request: Request, model: str) -> Response:
        check_model(request)
        return JSONResponse({"name": MODEL, "ready": True})

    @app.post(f"{of_version}/infer", include_in_schema=False)
    @app.post(
        f"{one}/infer",
        tags=tags,
        summary="Tensors in, tensors out",
        openapi_extra={"requestBody": openapi.infer_body(served.fit), "parameters": [openapi.LENGTH]},
        responses=openapi.responses(schemas.Inferred, 400, 404, 413, binary=True),
    )
    async def infer(request: Request, model: str) -> Response:
        """The Open Inference Protocol v2; with its binary tensor extension the tensor's bytes stand behind the
        JSON, whose length is in the header `Inference-Header-Content-Length`: less to send and nothing to parse."""
        check_model(request)
        body = await requests.read_body(request, served.limits)
        parsed = await requests.reader(body)(
            oip.read, body, request.headers.get(oip.LENGTH), served.fit, served.distance
        )
        prediction, _ = await _predict(request, served, parsed.images, _strategy(parsed.strategy))
        content, headers = oip.write(parsed, prediction, MODEL, served.version)
        return Response(content, headers=headers)


def _strategy(given: Any) -> Strategy:
    if isinstance(given, str) and given in AGGREGATIONS:
        return given
    shown = inputs.brief(given) if isinstance(given, str) else f"a {type(given).__name__}"
    raise DataError(f"strategy: {shown} is unknown; use {strategies()}")


async def _predict(request: Request, served: Served, images: Tensor, strategy: Strategy) -> tuple[Prediction, Tensor]:
    if len(images) > served.limits.max_rows:
        raise HTTPException(413, f"{len(images)} images in one request; at most {served.limits.max_rows} are answered")
    request.state.facts |= {"rows": len(images), "strategy": strategy}
    return await served.answer(images, strategy)
