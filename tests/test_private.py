"""The private API of others: that it stands in two rooms alone, and that each part of it has the shape we go by."""

import ast
import contextlib
import inspect
import os
import pickle
import platform
import re
import signal
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from torch import fx, nn

from bend_ray.cluster import connection
from bend_ray.cluster import private as ray_private
from bend_ray.models import private as torch_private
from bend_ray.serving import proxy

PACKAGE = Path(connection.__file__).parents[1]
ROOMS = ("cluster/private.py", "models/private.py")
PUBLIC = {"_replace", "_asdict", "_fields"}
"""Of named tuples: Python documents them, and the underscore keeps them apart from the fields."""
LOOKED_UP = ("getattr", "hasattr", "setattr")


def private_names(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of each private attribute or import that the same file does not define."""
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    ours = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    ours |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    ours |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and (
        isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))}  # fmt: skip
    for node in nodes:
        names: list[str] = []
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = [part for alias in node.names for part in f"{module}.{alias.name}".split(".")]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LOOKED_UP:
            names = [str(word.value) for word in node.args[1:2] if isinstance(word, ast.Constant)]
        for name in names:
            if re.match("_[^_]", name) and name not in ours | PUBLIC:
                yield line, name


def test_private_names_of_others_stand_in_two_rooms() -> None:
    outside = [
        f"bend_ray/{name}:{line}: {word} is private to others; take a public way, or give it a function with a test of"
        " its shape in cluster/private.py (Ray) or models/private.py (torch)"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (name := path.relative_to(PACKAGE).as_posix()) not in ROOMS
        for line, word in private_names(path.read_text())
    ]
    assert not outside, "\n".join(outside)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("request._body = b''", ["_body"]),
        ("self._actions", ["_actions"]),
        ("getattr(node.target, '_schema', None)", ["_schema"]),
        ("from torch._C import thing", ["_C"]),
        ("import _socket", ["_socket"]),
        ("class A:\n    def _f(self): self._x = 1\n    def g(self, other): return self._f, other._x", []),
        ("pair._replace(x=1), a.__name__", []),
    ],
)
def test_what_counts_as_private(text: str, names: list[str]) -> None:
    assert [name for _, name in private_names(text)] == names


SHAPES: set[str] = set()
"""What `shape` was asked about by the tests of this file."""


@contextlib.contextmanager
def shape(room: Any, name: str) -> Iterator[None]:
    """Any error within is one sentence: which part of which room no longer fits, and what is installed."""
    try:
        yield
    except Exception as error:
        versions = f"ray {ray.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
        why = " ".join(str(error).split()) or type(error).__name__
        file = "/".join(Path(str(room.__file__)).parts[-3:])
        pytest.fail(f"{name} of {file} no longer fits what is installed ({versions}): {why}; mend it there")


def test_each_part_of_the_rooms_has_a_test_of_its_shape() -> None:
    tests = Path(__file__).read_text()
    for room, alias in ((ray_private, "ray_private"), (torch_private, "torch_private")):
        for node in ast.parse(Path(str(room.__file__)).read_text()).body:
            name = getattr(node, "name", None) or (
                ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else "_"
            )
            tested = f'shape({alias}, "{name}")' in tests
            assert name.startswith("_") or tested, f"{room.__name__}.{name} has no test of its shape in {__file__}"


def test_a_part_that_no_longer_fits_is_a_sentence() -> None:
    sentence = r"moved of bend_ray/models/private.py no longer fits .*ray 2\..*: no attribute 'x'; mend it there"
    with pytest.raises(pytest.fail.Exception, match=sentence), shape(torch_private, "moved"):
        raise AttributeError("no attribute 'x'")


# torch


class Net(nn.Module):
    """Exported, its graph has a batch norm, a size that depends on the batch, and a write in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x).relu_().reshape(-1)


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    shapes = {"x": {0: torch.export.Dim("batch", min=1)}}
    return torch.export.export(Net().eval(), (torch.randn(2, 3),), dynamic_shapes=shapes, strict=False)


def calls(program: torch.export.ExportedProgram) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def test_vmap_can_be_told_to_say_nothing_where_it_loops(capfd: pytest.CaptureFixture[str]) -> None:
    def looped() -> str:
        torch.func.vmap(torch.ops.aten.histc.default)(torch.rand(3, 5))  # an operation without a rule
        return capfd.readouterr().err

    with shape(torch_private, "silence_vmap_fallback"):
        torch_private.silence_vmap_fallback()
        assert not (text := looped()), f"vmap still says: {text}"
        torch._C._functorch._set_vmap_fallback_warning_enabled(True)  # type: ignore[attr-defined]  # no stub has it
        text = looped()
        torch_private.silence_vmap_fallback()
        assert "performance drop" in text, f"this test needs another operation without a rule: vmap says {text!r}"


def test_a_batch_norm_decomposes_into_the_one_with_statistics(program: torch.export.ExportedProgram) -> None:
    with shape(torch_private, "BATCH_NORM_WITH_STATISTICS"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        targets = [node.target for node in calls(program.run_decompositions({}))]
        assert torch_private.BATCH_NORM_WITH_STATISTICS in targets, f"a batch norm is now one of {targets}"
        arguments = [torch.ones(2, 3), *[torch.ones(3) for _ in range(4)], 0.1, 1e-5]
        assert len(torch_private.BATCH_NORM_WITH_STATISTICS(*arguments)) == 3, "it gives other than three values"


def test_the_check_of_a_tensors_type_only_checks() -> None:
    with shape(torch_private, "CHECKS"):
        (check,) = torch_private.CHECKS
        assert check(torch.ones(2), None, None, torch.float32) is None, "the check of a tensor's type gives a value"


def test_an_operation_says_its_schema(program: torch.export.ExportedProgram) -> None:
    with shape(torch_private, "schema"):
        schemas = {str(schema.name): schema for node in calls(program) if (schema := torch_private.schema(node))}
        assert schemas["aten::relu_"].is_mutable, "relu_ is no longer said to write in place"
        assert not schemas["aten::batch_norm"].is_mutable, "batch_norm is now said to write in place"
        arguments = {argument.name: argument.default_value for argument in schemas["aten::batch_norm"].arguments}
        assert {"input", "weight", "running_mean", "training", "eps"} <= arguments.keys(), f"it takes {[*arguments]}"
    assert torch_private.schema(next(node for node in program.graph.nodes if node.op == "placeholder")) is None


def test_a_size_that_depends_on_the_batch_is_an_expression(program: torch.export.ExportedProgram) -> None:
    with shape(torch_private, "expression"):
        values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
        rows, flat = values["x"].shape[0], calls(program)[-1].meta["val"].shape[0]
        symbol = torch_private.expression(rows)
        assert torch_private.expression(flat).subs(symbol, 7) == 21, "3 values a row are not 21 for 7 rows"
        assert symbol.free_symbols == {symbol}, f"the batch's size is no symbol but {symbol}"


def test_a_program_moves_to_another_device(program: torch.export.ExportedProgram) -> None:
    with shape(torch_private, "moved"):
        moved = torch_private.moved(program, torch.device("meta"))
        devices = {tensor.device.type for tensor in moved.state_dict.values()}
        assert devices == {"meta"}, f"its tensors are now on {devices}"


def test_layers_can_be_initialised_again() -> None:
    with shape(torch_private, "initialiser"):
        for layer in (nn.Linear(3, 3), nn.Conv2d(3, 3, 3), nn.LayerNorm(3), nn.MultiheadAttention(4, 2)):
            rule, before = torch_private.initialiser(layer), [value.clone() for value in layer.parameters()]
            assert rule is not None, f"{type(layer).__name__} has no reset_parameters"
            with torch.no_grad():
                for value in layer.parameters():
                    value.fill_(7.0)
            rule()
            changed = [bool((value != 7).any()) for value in layer.parameters()]
            assert changed[0] and len(before) == len(changed), f"{type(layer).__name__} stays as it is"
    assert torch_private.initialiser(nn.ReLU()) is None


def test_autograd_keeps_the_shape_of_what_it_has_seen() -> None:
    with shape(torch_private, "shape_of"):
        result = nn.Linear(3, 5)(torch.ones(2, 3)).relu()
        assert result.grad_fn is not None and torch_private.shape_of(result.grad_fn) == (2, 5)


class AsManyTimes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row + 1 for row in x])


def test_a_fixed_number_of_rows_is_said_once_with_its_line(caplog: pytest.LogCaptureFixture) -> None:
    def raised() -> Exception:
        shapes = {"x": {0: torch.export.Dim("batch", min=1)}}
        with pytest.raises(RuntimeError) as error:
            torch.export.export(AsManyTimes(), (torch.randn(2, 3),), dynamic_shapes=shapes, strict=True)
        return error.value

    with shape(torch_private, "fixed_rows"):
        said = torch_private.fixed_rows(raised())
        assert "specialized it to be a constant (2)" in said and f"at {__file__}, line " in said, f"it says {said!r}"
        assert torch_private.fixed_rows(RuntimeError("something else")) == ""
    with shape(torch_private, "silent_guards"):
        logged = [record.name for record in caplog.records if record.levelname == "ERROR"]
        assert "torch._guards" in logged, f"torch no longer logs it there, but in {logged}"
        caplog.clear()
        with torch_private.silent_guards():
            raised()
        logged = [record.name for record in caplog.records if record.levelname == "ERROR"]
        assert not logged, f"torch still logs it in {logged}"


# Ray


@pytest.fixture(scope="module")
def joined(ray_cluster: str) -> str:
    """The tests' cluster, joined by this process."""
    connection.connect(verbose=False)
    return ray_cluster


@pytest.mark.ray
def test_a_driver_knows_whether_its_node_is_the_head(joined: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with shape(ray_private, "is_head"):
        assert ray_private.is_head() is False, "a driver that joined a cluster counts as its head"
        monkeypatch.setattr(ray_private._node(), "head", True)
        assert ray_private.is_head() is True, "a driver's node that is the head is not said to be"


@pytest.mark.ray
def test_a_cluster_has_a_folder_of_its_own(joined: str) -> None:
    with shape(ray_private, "session_folder"):
        assert (ray_private.session_folder() / "logs").is_dir(), f"no logs in {ray_private.session_folder()}"


def test_ray_start_notes_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with shape(ray_private, "noted_address"):
        assert ray_private.noted_address() == "", "an address is noted where there is none"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379\n")
        assert ray_private.noted_address() == "10.0.0.1:6379", f"it says {ray_private.noted_address()!r}"


@pytest.mark.ray
def test_actors_and_drivers_are_listed(joined: str) -> None:
    class OneOfATest:
        def number(self) -> int:
            return 3

    actor: Any = ray.remote(num_cpus=0)(OneOfATest).remote()
    with shape(ray_private, "call_in"):
        answer = ray.get(ray_private.call_in(actor, lambda self: self.number() + 1))
        assert answer == 4, f"a function called in an actor gave {answer}"
    with shape(ray_private, "live_actors"):
        names = ray_private.live_actors()
        assert any(name.endswith("OneOfATest") for name in names), f"the actor that lives is not among {names}"
    with shape(ray_private, "drivers"):
        mine = [job for job in ray_private.drivers() if job["DriverPid"] == os.getpid() and not job["IsDead"]]
        assert mine, "this process is not among the drivers that live"
        missing = {"JobID", "DriverIPAddress", "Entrypoint"} - mine[0].keys()
        assert not missing, f"a driver says no {', '.join(sorted(missing))} any more but {', '.join(mine[0])}"
    ray.kill(actor)


@pytest.mark.ray
def test_serve_says_its_port(joined: str) -> None:
    from ray import serve
    from ray.serve._private.client import ServeControllerClient
    from ray.serve._private.controller import ServeController
    from ray.serve.config import HTTPOptions

    serve.shutdown()
    with shape(ray_private, "serve_port"):
        assert ray_private.serve_port() is None, "a port where Serve does not run"
        assert isinstance(ServeControllerClient.http_config, property), "Serve's client has no http_config"
        assert isinstance(HTTPOptions().port, int), "Serve's HTTPOptions has no port"
        answer = inspect.signature(ServeController.get_http_config).return_annotation
        assert answer is HTTPOptions, f"Serve's controller gives {answer} as its http_config"


def test_serve_lets_a_class_build_its_application() -> None:
    from ray import serve

    class Application:
        def app(self) -> str:
            return "the application"

    with shape(ray_private, "builds_app"):
        with contextlib.suppress(ValueError):
            serve.ingress()(Application)
            raise AssertionError("serve.ingress() now takes a class without a method that builds its application")
        built: Any = ray_private.builds_app(Application, "app")
        assert built().__serve_build_asgi_app__() == "the application"
        importable = ray_private.builds_app(Counter, "most_common")
        travels = b"__serve_build_asgi_app__" in ray.cloudpickle.dumps(importable)
        assert travels, "the class goes to replicas by its name alone, and they do not know the method"
        wrapped = serve.ingress()(built)
        assert issubclass(wrapped, Application), "serve.ingress() gives no subclass"


@pytest.mark.ray
def test_ray_train_hands_its_controller_over_and_leaves_control_c_alone(
    joined: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api import data_parallel_trainer

    class Controller:
        """In place of Ray's own, which would start workers; `fit` is the real one."""

        def __init__(self, **arguments: Any) -> None:
            pass

        def run(self) -> None:
            pass

        def get_result(self) -> SimpleNamespace:
            return SimpleNamespace(error=None)

    monkeypatch.setattr(data_parallel_trainer, "TrainController", Controller)
    before = signal.getsignal(signal.SIGINT)
    with shape(ray_private, "stoppable_trainer"):
        run = RunConfig(storage_path=str(tmp_path))
        trainer = ray_private.stoppable_trainer()(
            lambda: None, scaling_config=ScalingConfig(num_workers=1), run_config=run
        )
        trainer.fit()
        assert trainer.controller is not None, "fit no longer calls _register_sigint_handler with its controller"
        assert signal.getsignal(signal.SIGINT) is before, "Ray Train registers a handler of Control-C by another way"


@pytest.mark.ray
def test_what_dead_trainings_asked_for_is_forgotten(joined: str) -> None:
    """As an elastic training asks, whose request Ray keeps for three minutes after a kill."""
    with shape(ray_private, "forget_requests"):
        from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
            TrainAutoscalingCoordinatorClient as Client,
        )

        ray_private.forget_requests()  # also where nobody has asked for anything
        client = Client("train-dead")
        client.send_resource_request(ray.train.ScalingConfig(num_workers=1), 1)

        def requesters() -> list[str]:
            found: list[str] = ray.get(
                ray_private.call_in(client._autoscaling_coordinator, lambda self: [*self._ongoing_reqs])
            )
            return found

        assert requesters() == ["train-dead"]
        ray_private.forget_requests()
        assert requesters() == []


def test_a_sharded_checkpoint_can_be_read_without_its_pickles(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process alone
        save({"model": {"w": torch.arange(6.0).reshape(2, 3)}, "step": 3}, checkpoint_id=tmp_path, no_dist=True)
    with shape(torch_private, "read_sharded"):
        tensors = torch_private.read_sharded(tmp_path)
        assert list(tensors) == ["model.w"] and tensors["model.w"].tolist() == [[0, 1, 2], [3, 4, 5]], f"{tensors}"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(print))
    with (
        shape(torch_private, "read_sharded"),
        pytest.raises(pickle.UnpicklingError, match="print, which is not called"),
    ):
        torch_private.read_sharded(tmp_path)


def test_a_trial_can_be_forgotten_by_asha() -> None:
    from ray.tune.schedulers import ASHAScheduler

    scheduler: Any = ASHAScheduler(metric="loss", mode="min", max_t=4, grace_period=1, reduction_factor=2)
    with shape(ray_private, "forget_trial"):
        for name, loss in (("kept", 1.0), ("forgotten", 2.0)):
            trial: Any = SimpleNamespace(trial_id=name, config={})
            scheduler.on_trial_add(None, trial)
            scheduler.on_trial_result(None, trial, {"training_iteration": 1, "loss": loss})
        rungs = [recorded for bracket in scheduler._brackets for _, recorded in bracket._rungs]
        assert sorted(name for recorded in rungs for name in recorded) == ["forgotten", "kept"], f"rungs are {rungs}"
        ray_private.forget_trial(scheduler, "forgotten")
        assert [name for recorded in rungs for name in recorded] == ["kept"], f"rungs afterwards are {rungs}"


@pytest.mark.ray
def test_a_trial_keeps_the_error_it_ended_with(joined: str, tmp_path: Path) -> None:
    from ray.train._internal.storage import StorageContext
    from ray.tune.experiment import Trial

    storage = StorageContext(str(tmp_path), "experiment", trial_dir_name="trial")
    with shape(ray_private, "trial_error"):
        trial = Trial("trainable", stub=True, storage=storage)
        assert ray_private.trial_error(trial) is None, "an error before there was one"
        trial.init_local_path()
        trial.handle_error(ray.exceptions.RayTaskError("f", "traceback", ValueError("why")))
        error = ray_private.trial_error(trial)
        assert isinstance(error, ray.exceptions.RayTaskError), f"the error is {error!r}"
        assert isinstance(error.cause, ValueError), f"its cause is {error.cause!r}"


# HAProxy


def test_our_haproxy_changes_the_lines_that_ray_writes(tmp_path: Path) -> None:
    from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig
    from ray.serve.config import HTTPOptions

    config, binary = tmp_path / "haproxy.cfg", tmp_path / "haproxy"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    page, options = str(tmp_path / "500.http"), HTTPOptions(host="0.0.0.0", port=8000)
    settings = HAProxyConfig(metrics_port=9101, stats_port=8404, error_file_path=page, http_options=options)
    HAProxyApi(settings, {}, str(config))._generate_config_file_internal()
    before = config.read_text()
    subprocess.run(
        [proxy.HERE / "haproxy", "-db", "-f", config], env=os.environ | {"BEND_RAY_HAPROXY": str(binary)}, check=True
    )
    lines = [line.strip() for line in config.read_text().splitlines()]
    why = f"bend_ray/serving/haproxy no longer fits the configuration that Serve of ray {ray.__version__} writes:"
    for pattern in (r"errorfile 50[234] .*", r"frontend prometheus\n +bind :9101", r"listen stats\n +bind \*:8404"):
        assert re.search(pattern, before), f"{why} no line of it fits {pattern!r}; mend the sed there"
    errors = [line for line in lines if line.startswith("errorfile 50")]
    mended = [f"errorfile {status} {proxy.HERE / '503.http'}" for status in (502, 503, 504)]
    assert errors == mended, f"{why} its error files are now {errors}"
    binds = {line for line in lines if line.startswith("bind")}
    assert binds == {"bind 127.0.0.1:9101", "bind *:8000", "bind 127.0.0.1:8404"}, f"{why} it binds {binds}"
