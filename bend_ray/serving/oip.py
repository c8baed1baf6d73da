"""The Open Inference Protocol v2 (KServe, Triton): tensors as JSON, or as bytes behind it (binary tensor extension).

One input, `images` (B, C, H, W); outputs are the fields of a `Prediction`. The request's parameters may name the
`strategy`. Binary tensors are little-endian and row-major, in the order in which they are named.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from bend_ray.data.preprocess import Preprocess
from bend_ray.ensemble.aggregate import Prediction
from bend_ray.errors import DataError
from bend_ray.serving import inputs
from bend_ray.serving.inputs import MAX_AXES, brief

MODEL = "bend"
"""The model's name."""
LENGTH = "Inference-Header-Content-Length"
"""The header that says how long the JSON in front of binary tensors is."""
LENGTHS = re.compile("[0-9]{1,12}")
TYPES = {
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
OUTPUTS = {  # of a Prediction: datatype and the shape behind B
    "label": ("INT64", ()),
    "prob": ("FP64", ("K",)),
    "vote": ("FP64", ("K",)),
    "entropy": ("FP64", ()),
    "mutual_information": ("FP64", ()),
    "disagreement": ("FP64", ()),
    "members": ("INT64", ()),
    "distance": ("FP64", ()),
}
MEASURED = ("distance",)
"""Outputs that only some ensembles have."""


@dataclass(frozen=True)
class Request:
    """What one inference request asks for."""

    images: Tensor
    id: str | None
    strategy: str
    outputs: dict[str, bool]
    """Names, and whether each comes back as bytes."""


def offered(distance: bool) -> tuple[str, ...]:
    """Names of the outputs of an ensemble that measures a ``distance``, or does not."""
    return tuple(name for name in OUTPUTS if distance or name not in MEASURED)


def metadata(name: str, version: str, fit: Preprocess, classes: int, distance: bool = False) -> dict[str, Any]:
    """What the model takes and gives."""
    outputs = [
        {"name": output, "datatype": OUTPUTS[output][0], "shape": [-1, *(classes for _ in OUTPUTS[output][1])]}
        for output in offered(distance)
    ]
    images = {"name": "images", "datatype": "UINT8", "shape": [-1, fit.channels, fit.image_size, fit.image_size]}
    return {"name": name, "versions": [version], "platform": "bend_ray", "inputs": [images], "outputs": outputs}


def read(body: bytes, header_length: str | None, fit: Preprocess, distance: bool = False) -> Request:
    """The request in ``body``, to an ensemble that measures a ``distance`` or does not. Raises DataError, which says
    what does not fit."""
    length = len(body)
    if header_length is not None:
        if not LENGTHS.fullmatch(header_length) or int(header_length) > len(body):
            raise DataError(f"{LENGTH}: {brief(header_length)} is not the length of JSON within the body")
        length = int(header_length)
    raw = inputs.load_json(body[:length])
    parameters = _object(raw.get("parameters", {}), "parameters")
    given = raw.get("inputs")
    if not isinstance(given, list) or len(given) != 1:
        raise DataError("inputs: must be a list of one tensor, images")
    images = inputs.numbers(_tensor(_object(given[0], "inputs[0]"), memoryview(body)[length:]), "images", fit)
    id_, strategy = raw.get("id"), parameters.get("strategy", "abend")
    if not isinstance(strategy, str) or not (id_ is None or isinstance(id_, str)):
        raise DataError("id, parameters.strategy: must be strings")
    binary = _flag(parameters, "binary_data_output", False)
    return Request(images, id_, strategy, _outputs(raw.get("outputs"), binary, offered(distance)))


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise DataError(f"{name}: must be true or false")
    return value


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{name}: must be an object")
    return value


def _tensor(tensor: dict[str, Any], behind: memoryview) -> np.ndarray:
    if tensor.get("name") != "images":
        raise DataError(f"inputs[0].name: {brief(tensor.get('name'))} is unknown; the one input is images")
    kind, shape = tensor.get("datatype"), tensor.get("shape")
    if not isinstance(kind, str) or kind not in TYPES:
        raise DataError(f"inputs[0].datatype: {brief(kind)} cannot be read; use one of {', '.join(TYPES)}")
    if not isinstance(shape, list) or not 0 < len(shape) <= MAX_AXES:
        raise DataError("inputs[0].shape: must be a list of whole numbers, (B, C, H, W)")
    if not all(type(side) is int and 0 < side < 1 << 32 for side in shape):
        raise DataError(f"inputs[0].shape: {brief(shape)} has sides that are no whole numbers above 0")
    dtype, count = np.dtype(TYPES[kind]), math.prod(shape)
    size = _object(tensor.get("parameters", {}), "inputs[0].parameters").get("binary_data_size")
    if size is not None:
        if type(size) is not int or not size == len(behind) == count * dtype.itemsize:
            raise DataError(
                f"inputs[0].parameters.binary_data_size: {brief(size)} given, {len(behind)} bytes are there, and {kind}"
                f" {shape} takes {count * dtype.itemsize}"
            )
        return np.frombuffer(behind, dtype).reshape(shape)
    if len(behind):
        raise DataError(
            f"{LENGTH}: {len(behind)} bytes behind the JSON belong to no tensor (binary_data_size is not given)"
        )
    array = inputs.nested(tensor.get("data"), "inputs[0].data")
    if array.size != count:
        raise DataError(f"inputs[0].data: holds {array.size} values, not {count} numbers for {shape}")
    if dtype.kind == "f":
        return array.reshape(shape).astype(np.float64)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    if array.dtype.kind == "f" or array.min() < least or array.max() > most:
        raise DataError(f"inputs[0].data: holds what is no {kind} (whole numbers from {least} to {most})")
    return array.reshape(shape)


def _outputs(requested: Any, binary: bool, names: tuple[str, ...]) -> dict[str, bool]:
    if requested is None or requested == []:
        return dict.fromkeys(names, binary)
    if not isinstance(requested, list):
        raise DataError("outputs: must be a list of tensors")
    as_bytes: dict[str, bool] = {}
    for index, output in enumerate(requested):
        name = _object(output, f"outputs[{index}]").get("name")
        if not isinstance(name, str) or name not in names:
            raise DataError(f"outputs[{index}].name: {brief(name)} is unknown; there are {', '.join(names)}")
        parameters = _object(output.get("parameters", {}), f"outputs[{index}].parameters")
        as_bytes[name] = _flag(parameters, "binary_data", binary)
    return as_bytes


def field(output: str) -> str:
    """The name of an output in a `Prediction`."""
    return f"{output}_BK" if OUTPUTS[output][1] else f"{output}_B"


def write(request: Request, prediction: Prediction, name: str, version: str) -> tuple[bytes, dict[str, str]]:
    """The response's body and headers."""
    outputs, behind = [], []
    for output, as_bytes in request.outputs.items():
        tensor = vars(prediction)[field(output)]
        facts = {"name": output, "datatype": OUTPUTS[output][0], "shape": list(tensor.shape)}
        if as_bytes:
            behind.append(tensor.numpy().astype(TYPES[OUTPUTS[output][0]]).tobytes())
            outputs.append({**facts, "parameters": {"binary_data_size": len(behind[-1])}})
        else:
            outputs.append({**facts, "data": tensor.reshape(-1).tolist()})
    response: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": outputs}
    response["parameters"] = {"strategy": prediction.strategy}
    if request.id is not None:
        response["id"] = request.id
    head = json.dumps(response).encode()
    if not behind:
        return head, {"Content-Type": "application/json"}
    return b"".join([head, *behind]), {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}


def tensors(body: bytes, header_length: str | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A response's JSON and its outputs: the inverse of `write`, for clients."""
    length = int(header_length) if header_length is not None else len(body)
    response = json.loads(body[:length])
    arrays, start = {}, length
    for output in response["outputs"]:
        dtype, size = np.dtype(TYPES[output["datatype"]]), output.get("parameters", {}).get("binary_data_size")
        if size is None:
            flat = np.asarray(output["data"], dtype)
        else:
            flat = np.frombuffer(body[start : start + size], dtype)
            start += size
        arrays[output["name"]] = flat.reshape(output["shape"])
    return response, arrays
