"""The body of a request: all of it, if it is not too long, and the images in it."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from torch import Tensor

from bend_ray.config import Serve
from bend_ray.data.datasets import Preprocess
from bend_ray.errors import DataError
from bend_ray.progress import counted
from bend_ray.serving import inputs

DIGITS = re.compile("[0-9]{1,20}")
INLINE = 4096
"""Bytes of JSON or numbers up to which a body is read at once; larger ones, and images, in a thread."""


async def whole(request: Request, limits: Serve) -> bytes:
    """The whole body, if it is no longer than allowed."""
    most = int(limits.max_body * 2**20)
    error = f"the body is longer than {limits.max_body:g} MiB; send fewer images at once"
    told = request.headers.get("content-length", "")
    if DIGITS.fullmatch(told) and int(told) > most:
        raise HTTPException(413, error)
    parts, length = [], 0
    async for part in request.stream():
        parts.append(part)
        length += len(part)
        if length > most:
            raise HTTPException(413, error)
    return b"".join(parts)


async def images(request: Request, fit: Preprocess, limits: Serve) -> tuple[Tensor, dict[str, Any]]:
    """Images, uint8 (B, C, H, W), and what else a JSON body said."""
    body = await whole(request, limits)
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() == "multipart/form-data":
        return await _of_form(request, body, fit, limits.max_rows), {}
    kind = inputs.kind_of(content_type, body)
    found, said = await reader(body, slow=kind == "image")(inputs.read, kind, body, fit, limits.max_rows)
    return found, said


def reader(body: bytes, slow: bool = False) -> Callable[..., Awaitable[Any]]:
    """What calls a function that reads ``body``: in a thread, where other requests would wait for it."""
    return asyncio.to_thread if slow or len(body) > INLINE else _at_once


async def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


async def _of_form(request: Request, body: bytes, fit: Preprocess, max_rows: int) -> Tensor:
    request._body = body  # what Starlette reads again
    files = []
    try:
        form = await request.form(max_files=max_rows, max_fields=16)
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
