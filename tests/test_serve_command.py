"""What `bend-ray serve` decides by itself, before Ray is there."""

import json
import os
import socket
from pathlib import Path

import pytest

from bend_ray.config import Serve, Serving
from bend_ray.config.reading import inference
from bend_ray.errors import ConfigError
from bend_ray.serving import middleware
from bend_ray.serving.proxy import free_port
from bend_ray.stages import serve

LIMITS = Serve(port=8001)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", middleware.TOKEN):
        monkeypatch.setenv(name, "")  # so that it is there again after the test
        monkeypatch.delenv(name)


def test_a_second_command_joins_the_cluster_that_is_noted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as cluster:
        address = f"127.0.0.1:{cluster.getsockname()[1]}"
        serve._note(LIMITS, address)
        serve._join(Serve(port=8002))
        assert "RAY_ADDRESS" not in os.environ
        serve._join(LIMITS)
    assert (os.environ["RAY_ADDRESS"], os.environ["RAY_AUTH_MODE"]) == (address, "token")


def test_a_note_whose_process_is_another_by_now_is_no_cluster() -> None:
    serve._note(LIMITS, f"127.0.0.1:{free_port()}")  # by a process that lives: this one
    serve._join(LIMITS)
    assert "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize("note", ["", "7", "{}", json.dumps({"pid": 1 << 22, "address": "127.0.0.1:1"})])
def test_other_notes_are_no_cluster(note: str, tmp_path: Path) -> None:
    (tmp_path / "bend-ray").mkdir()
    (tmp_path / "bend-ray" / "serve-8001.json").write_text(note)
    serve._join(LIMITS)
    assert "RAY_ADDRESS" not in os.environ


@pytest.mark.parametrize("host", ["::", "::1", "fe80::1", "127.0.0.1:80"])
def test_ipv6_is_refused_with_the_key(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"^command line: serve\.host: {host} is no IPv4 address or name"):
        inference(Serving, {"serve.host": json.dumps(host)})


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_it_warns_where_anybody_may_ask(host: str, warned: bool) -> None:
    words = serve._words(7, "runs/digits", Serve(host=host), "", own_cluster=True)
    assert ("warning:" in words) == warned
    assert f" at http://{'127.0.0.1' if warned else host}:8000\n" in words
