"""The OpenAPI document's requests, errors and headers; for responses see `schemas`."""

from typing import Any

from pydantic import BaseModel

from bend_ray.config.choices import AGGREGATIONS, listed
from bend_ray.data.preprocess import Preprocess
from bend_ray.serving.oip import LENGTH as LENGTH_HEADER
from bend_ray.serving.oip import MODEL
from bend_ray.serving.schemas import Error

STRATEGIES = listed(f"`{name}` ({one.label})" for name, one in AGGREGATIONS.items())
DESCRIPTION = f"""An ensemble of image classifiers sampled from a diffusion model over their parameters (BEND).

`strategy` is {STRATEGIES}. Of the entropy of an answer (nats),
`mutual_information` is what the members disagree about; `disagreement` is the share of members that vote otherwise.
`distance` is how far the image is from the training rows, where the ensemble measures it (`GET /ensemble` says how)."""
ERRORS = {
    400: "The body or a parameter cannot be used",
    401: "A token is needed",
    404: "Not here",
    413: "The body is too long, or holds too many images",
    415: "The body is of an unknown kind",
    503: "Too busy, or not in time: try again after the seconds in Retry-After",
}
LENGTH = {
    "name": LENGTH_HEADER,
    "in": "header",
    "required": False,
    "description": "Bytes of JSON in front of binary tensors",
    "schema": {"type": "integer", "minimum": 0},
}


def responses(model: type[BaseModel], *errors: int, binary: bool = False) -> dict[int | str, dict[str, Any]]:
    """A route's responses; 503 and, where a token is asked for, 401 are added by `correct`."""
    documented: dict[int | str, dict[str, Any]] = {200: {"model": model, "description": "Answered"}}
    if binary:
        documented[200]["content"] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return documented | {status: {"model": Error, "description": ERRORS[status]} for status in errors}


def predict_body(fit: Preprocess) -> dict[str, Any]:
    """The request body of ``POST /predict``."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    pixels = [[[0] * fit.image_size] * fit.image_size] * fit.channels
    json_schema = {
        "type": "object",
        "required": ["images"],
        "additionalProperties": False,
        "properties": {
            "images": {
                "type": "array",
                "minItems": 1,
                "items": _nested(fit, {"type": "number", "minimum": 0, "maximum": 255}),
                "description": "(B, C, H, W), also (B, H, W) or (B, H, W, C); whole numbers, or fractions from 0 to 1",
            },
            "strategy": {"type": "string", "enum": list(AGGREGATIONS)},
            "members": {"type": "boolean", "description": "Also the vote of each member"},
        },
    }
    file = {"type": "object", "minProperties": 1, "additionalProperties": binary["schema"]}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": json_schema, "example": {"images": [pixels], "strategy": "abend"}},
            **dict.fromkeys(("image/png", "image/jpeg", "application/x-npy"), binary),
            "application/vnd.apache.arrow.stream": binary,
            "multipart/form-data": {"schema": file},
        },
    }


def infer_body(fit: Preprocess) -> dict[str, Any]:
    """The request body of inference."""
    shape = [1, fit.channels, fit.image_size, fit.image_size]
    count = fit.channels * fit.image_size**2
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"type": "string", "enum": ["images"]},
            "datatype": {"type": "string", "enum": ["UINT8"]},
            "shape": {"type": "array", "items": {"type": "integer"}, "enum": [shape]},
            "data": {
                "type": "array",
                "minItems": count,
                "maxItems": count,
                "items": {"type": "integer", "minimum": 0, "maximum": 255},
            },
        },
    }
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "properties": {
                    "strategy": {"type": "string", "enum": list(AGGREGATIONS)},
                    "binary_data_output": {"type": "boolean"},
                },
            },
            "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": tensor},
        },
    }
    image = {"name": "images", "datatype": "UINT8", "shape": shape, "data": [0] * count}
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {
        "application/json": {"schema": schema, "example": {"inputs": [image]}},
        "application/octet-stream": binary,
    }
    return {"required": True, "content": content}


def _nested(fit: Preprocess, pixel: dict[str, Any]) -> dict[str, Any]:
    schema = pixel
    for count in (fit.image_size, fit.image_size, fit.channels):
        schema = {"type": "array", "minItems": count, "maxItems": count, "items": schema}
    return schema


def correct(document: dict[str, Any], token: bool) -> dict[str, Any]:
    """FastAPI's document as our routes are: no 422, what the middleware may answer, null as OpenAPI 3.0 writes it."""
    document["components"]["schemas"]["Error"] = Error.model_json_schema()
    error_content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    retry = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["schema"] = {"type": "string", "enum": [MODEL]}
            if path.startswith("/v2/health"):
                continue
            operation["responses"]["503"] = {"description": ERRORS[503], "content": error_content, "headers": retry}
            if token:
                operation["responses"]["401"] = {"description": ERRORS[401], "content": error_content}
                operation["security"] = [{"bearer": []}]
    if token:
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    corrected: dict[str, Any] = _nullable(document)
    return corrected


def _nullable(part: Any) -> Any:
    if isinstance(part, list):
        return [_nullable(item) for item in part]
    if not isinstance(part, dict):
        return part
    kept = {key: _nullable(value) for key, value in part.items()}
    null = {"type": "null"}
    if null in kept.get("anyOf", ()):
        rest = [kind for kind in kept.pop("anyOf") if kind != null]
        kept |= {"nullable": True, **({"allOf": rest} if len(rest) == 1 else {"anyOf": rest})}
    return kept
