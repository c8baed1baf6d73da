"""How a cluster is reached, and what is said where it is not."""

import pytest
import ray

from bend_ray import cli, cluster
from bend_ray.errors import ResourceError


def test_a_machine_too_busy_to_start_ray_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**arguments: object) -> None:
        raise Exception("The current node timed out during startup.\nThe GCS has become overloaded.")  # as Ray does

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ResourceError, match=r"not start on this machine \(The current .* overloaded\.\); .* again$"):
        cluster.connect(verbose=False)
