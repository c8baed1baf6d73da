"""A client of a served ensemble: numpy in, `Prediction` out, as binary tensors of the Open Inference Protocol."""

import json
import os
import time
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import torch
from torch import Tensor

from bend_ray.ensemble.aggregate import Prediction, Strategy
from bend_ray.errors import DataError, EndpointError
from bend_ray.progress import counted
from bend_ray.serving import middleware, oip

BUSY = (502, 503, 504)
"""Status codes after which the same request may succeed later."""


class Client:
    """Asks the ensemble at ``url`` (such as http://127.0.0.1:8000); to be used by one thread at a time.

    ``token``: as BEND_SERVE_TOKEN, which is the default. A request that finds no connection, a busy server (503) or a
    replica that dies is sent again, up to ``retries`` times, after what the server asks for or 0.1 s, 0.2 s, ... up to
    2 s: to ask twice does no harm. ``timeout``: seconds for one try.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 60.0, retries: int = 30) -> None:
        token = token or os.environ.get(middleware.TOKEN)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url, self.retries = url.rstrip("/"), retries
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
        self._limits: dict[str, Any] | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    def ensemble(self) -> dict[str, Any]:
        """What is served: members, accuracy, run and hashes, limits. Raises EndpointError."""
        facts: dict[str, Any] = self._request("GET", "/ensemble").json()
        return facts

    def ready(self) -> bool:
        """Whether the endpoint can answer now; no retries."""
        try:
            return self._http.get("/v2/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def predict(self, images: np.ndarray | Tensor, strategy: Strategy = "abend") -> Prediction:
        """The answer for images (B, C, H, W), also (B, H, W), (B, H, W, C) or one: uint8, or fractions from 0 to 1.

        More than the server takes in one request are sent in several. Raises DataError where the server cannot use
        them, EndpointError where it cannot be reached or refuses.
        """
        array = np.ascontiguousarray(images)
        kind = next(
            (name for name, dtype in oip.TYPES.items() if np.dtype(dtype) == array.dtype.newbyteorder("<")), None
        )
        if kind is None or array.size == 0:
            raise DataError(f"images: {array.dtype} {array.shape} given; expected numbers, at least one image")
        if self._limits is None:
            self._limits = self.ensemble()["limits"]
        limits = self._limits
        rows = max(1, min(limits["max_rows"], int(limits["max_body"] * 2**20 * 0.9) // max(1, array[0].nbytes)))
        single = array.ndim < 3 or len(array) <= rows
        batches = [array] if single else [array[start : start + rows] for start in range(0, len(array), rows)]
        return Prediction.joined([self._infer(batch, kind, strategy) for batch in batches])

    def _infer(self, array: np.ndarray, kind: str, strategy: Strategy) -> Prediction:
        data = array.astype(oip.TYPES[kind]).tobytes()
        tensor: dict[str, Any] = {"name": "images", "datatype": kind, "shape": list(array.shape)}
        tensor |= {"parameters": {"binary_data_size": len(data)}}
        parameters = {"strategy": strategy, "binary_data_output": True}
        head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
        headers = {oip.LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        response = self._request("POST", f"/v2/models/{oip.MODEL}/infer", content=head + data, headers=headers)
        response_head, tensors = oip.tensors(response.content, response.headers.get(oip.LENGTH))
        fields: Any = {oip.field(name): torch.from_numpy(values.copy()) for name, values in tensors.items()}
        return Prediction(strategy=response_head["parameters"]["strategy"], **fields)

    def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        why = ""
        for attempt in range(self.retries + 1):
            wait = min(2.0, 0.1 * 2**attempt)
            try:
                response = self._http.request(method, path, **request)
            except httpx.TransportError as error:
                why = f"cannot be reached ({error or type(error).__name__})"
            else:
                if response.status_code == 200:
                    return response
                why = f"says {response.status_code}: {_reason(response)}"
                if response.status_code in (400, 413, 415):
                    raise DataError(f"{self.url}{path} {why}")
                if response.status_code not in BUSY:
                    raise EndpointError(f"{self.url}{path} {why}")
                retry_after = response.headers.get("retry-after", "")
                wait = float(retry_after) if retry_after.isdigit() else wait
            if attempt < self.retries:
                time.sleep(wait)
        raise EndpointError(f"{self.url}{path} {why}; asked {counted(self.retries + 1, 'times')}")


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text.strip()[:200]
