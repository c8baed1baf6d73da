"""The body of a request: all of it, if it is not too long, of which kind it is, and the images in it."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from torch import Tensor

from bend_ray.config import Serve
from bend_ray.data.preprocess import Preprocess
from bend_ray.errors import DataError
from bend_ray.progress import counted
from bend_ray.serving import arrow, inputs

DIGITS = re.compile("[0-9]{1,20}")
INLINE = 4096
"""Bytes of JSON or numbers up to which a body is read at once; larger ones, and images, in a thread."""
KINDS = {
    "application/json": "json",
    "application/x-npy": "npy",
    "application/vnd.apache.arrow.stream": "arrow",
    "application/vnd.apache.arrow.file": "arrow",
}
MAGIC = {b"\x93NUMPY": "npy", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow", b"{": "json"}


class KindError(DataError):
    """The body is of no kind that can be read."""


async def read_body(request: Request, limits: Serve) -> bytes:
    """The whole body, if it is no longer than allowed."""
    most = int(limits.max_body * 2**20)
    error = f"the body is longer than {limits.max_body:g} MiB; send fewer images at once"
    declared = request.headers.get("content-length", "")
    if DIGITS.fullmatch(declared) and int(declared) > most:
        raise HTTPException(413, error)
    chunks, length = [], 0
    async for chunk in request.stream():
        chunks.append(chunk)
        length += len(chunk)
        if length > most:
            raise HTTPException(413, error)
    return b"".join(chunks)


async def images(request: Request, fit: Preprocess, limits: Serve) -> tuple[Tensor, dict[str, Any]]:
    """Images, uint8 (B, C, H, W), and what else a JSON body holds."""
    body = await read_body(request, limits)
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() == "multipart/form-data":
        return await _of_form(request, body, fit, limits.max_rows), {}
    kind = kind_of(content_type, body)
    tensor, extras = await reader(body, slow=kind == "image")(read, kind, body, fit, limits.max_rows)
    return tensor, extras


def kind_of(content_type: str, body: bytes) -> str:
    """json, npy, arrow or image: as the type says, or as the body begins where the type says nothing of use."""
    plain = content_type.split(";")[0].strip().lower()
    if plain in KINDS:
        return KINDS[plain]
    if plain.startswith("image/"):
        return "image"
    if plain not in ("", "application/octet-stream", "application/x-www-form-urlencoded"):
        raise KindError(f"Content-Type: {plain[:60]} is not read; send image/png, image/jpeg, {', '.join(KINDS)}")
    head = body[:64].lstrip() if body[:1].isspace() else body
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "image")


def read(kind: str, body: bytes, fit: Preprocess, max_rows: int) -> tuple[Tensor, dict[str, Any]]:
    """Images, uint8 (B, C, H, W), and what else a JSON body holds. Raises DataError, which says what is wrong."""
    if not body:
        raise DataError("body: is empty; send an image, JSON, .npy or Arrow IPC")
    if kind == "json":
        return inputs.from_json(body, fit)
    if kind == "npy":
        return inputs.numbers(inputs.from_npy(body), "body", fit), {}
    if kind == "arrow":
        return arrow.from_arrow(body, fit, max_rows), {}
    return inputs.images([("body", body)], fit), {}


def reader(body: bytes, slow: bool = False) -> Callable[..., Awaitable[Any]]:
    """What calls a function that reads ``body``: in a thread, where other requests would wait for it."""
    return asyncio.to_thread if slow or len(body) > INLINE else _at_once


async def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


async def _of_form(request: Request, body: bytes, fit: Preprocess, max_rows: int) -> Tensor:
    async def again() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    files = []
    try:
        form = await Request(request.scope, again).form(max_files=max_rows, max_fields=16)
    except StarletteHTTPException as error:
        if "Too many files" in str(error.detail):
            raise HTTPException(413, f"more than {counted(max_rows, 'images')} in one request") from None
        raise DataError(f"body: is no form ({error.detail})") from None
    except Exception as error:  # it decodes by any codec that a body names
        raise DataError(f"body: is no form ({str(error)[:100]})") from None
    try:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise DataError(f"form field {name!r}: is no file")
            files.append((f"file {inputs.brief(value.filename or name)}", await value.read()))
    finally:
        await form.close()
    if not files:
        raise DataError("body: the form has no file; send e.g. curl -F image=@digit.png")
    return await asyncio.to_thread(inputs.images, files, fit)
