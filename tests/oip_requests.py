"""Requests of the Open Inference Protocol, in JSON and in bytes."""

import json
from typing import Any

import numpy as np

from bend_ray.serving import oip
from serving_helpers import pictures

IMAGES = pictures(3)


def tensor(images: np.ndarray = IMAGES, datatype: Any = "UINT8", **changes: Any) -> dict[str, Any]:
    facts = {"name": "images", "datatype": datatype, "shape": list(images.shape), "data": images.reshape(-1).tolist()}
    return {key: value for key, value in (facts | changes).items() if value is not ...}


def asked(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors)} | more).encode()


def in_bytes(
    images: np.ndarray = IMAGES, datatype: str = "UINT8", data: bytes | None = None, **changes: Any
) -> tuple[bytes, str]:
    """A body and the length of its JSON; `data` are other bytes than those of ``images``."""
    data = images.astype(oip.TYPES.get(datatype, "u1")).tobytes() if data is None else data
    parameters = changes.pop("parameters", {"binary_data_size": len(data)})
    head = asked(tensor(images, datatype, data=..., parameters=parameters, **changes))
    return head + data, str(len(head))
