"""What stands before the replicas: HAProxy's configuration as we change it, and a proxy whose replica died."""

import http.client
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bend_ray.serving import proxy
from bend_ray.serving.middleware import ReplicaLossMiddleware
from serving_helpers import app, ask

CONFIG = """defaults
    errorfile 502 /tmp/x/500.http
    errorfile 503 /tmp/x/500.http
frontend prometheus
    bind :9101
frontend http_frontend
    bind *:8000
listen stats
  bind *:8404
"""


def test_haproxys_refusals_are_503_and_its_statistics_stay_here(tmp_path: Path) -> None:
    config, binary = tmp_path / "haproxy.cfg", tmp_path / "haproxy"
    config.write_text(CONFIG)
    binary.write_text('#!/bin/sh\necho "$@"\n')
    binary.chmod(0o755)
    environment = os.environ | {"BEND_RAY_HAPROXY": str(binary)}
    words: list[str | Path] = [proxy.HERE / "haproxy", "-db", "-f", config, "-sf", "7"]
    for _ in range(2):  # Ray reloads the same file
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"-db -f {config} -sf 7\n"
        lines = [line.strip() for line in config.read_text().splitlines()]
        assert [line for line in lines if line.startswith("errorfile")] == [
            f"errorfile {status} {proxy.HERE / '503.http'}" for status in (502, 503)
        ]
        wanted = ["bind 127.0.0.1:9101", "bind *:8000", "bind 127.0.0.1:8404"]
        assert [line for line in lines if line.startswith("bind")] == wanted


def test_haproxys_refusal_is_whole_http() -> None:
    class Socket:
        def makefile(self, mode: str) -> io.BytesIO:
            return io.BytesIO((proxy.HERE / "503.http").read_bytes())

    response = http.client.HTTPResponse(Socket())  # type: ignore[arg-type]  # it asks for no more than a file
    response.begin()
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert "try again later" in json.loads(response.read())["error"]


def test_a_proxy_that_says_nothing_says_503() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        pass

    response = ask(ReplicaLossMiddleware(silent), "GET", "/predict")
    assert response.status_code == 503 and response.headers["retry-after"] == "1" and "error" in response.json()
    assert ask(ReplicaLossMiddleware(app()), "GET", "/v2").status_code == 200


def test_without_haproxy_the_python_proxy_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert proxy.settings(tmp_path)["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not [name for name in proxy.settings(tmp_path) if "HA" in name.split("_")]
    (middleware,) = proxy.middlewares()
    made_by: object = middleware.cls
    assert made_by is ReplicaLossMiddleware
