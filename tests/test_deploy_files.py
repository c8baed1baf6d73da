"""What is sent to a cluster, and what makes one: each file against the schema and the code of those that read it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from copy import deepcopy
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from ray._private.runtime_env import packaging as ray_packaging
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
from ray.runtime_env import RuntimeEnv
from ray.serve.schema import ServeDeploySchema

from bend_ray import cli
from bend_ray.config import load
from bend_ray.store.kinds import STAGES
from bend_ray.version import __version__
from bend_ray.workers.replica import Arguments
from conftest import ROOT
from kuberay import RESOURCES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
JOBS = sorted((ROOT / "jobs").glob("*.py"))
DOCKERFILE = (ROOT / "Dockerfile").read_text()
KUBERNETES = ("1.30", "1.37")
"""The oldest and the newest whose schemas the pods are compared with."""


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


# The upload of a job


def test_upload_of_the_working_directory_is_small_and_has_what_a_job_needs(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    ray_packaging.create_package(str(ROOT), package, include_gitignore=True, excludes=[".git"])
    names = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "bend_ray").rglob("*") if path.is_file()}
    wanted |= {f"jobs/{path.name}" for path in (ROOT / "jobs").glob("*.*")}
    wanted |= needed_to_install() - {"bend_ray"}  # for `pip` in jobs/runtime_env.yaml
    assert {name for name in wanted if "__pycache__" not in name} <= names
    assert package.stat().st_size < 2_000_000
    assert {name.split("/")[0] for name in names} & {".git", ".venv", "benchmarks", "docs", "runs", "tests"} == set()


def test_every_command_of_the_command_line_that_writes_has_an_entry_point() -> None:
    assert {path.stem for path in JOBS} == {*STAGES, "pipeline", "serve"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_entry_points_run_the_command_that_they_show(path: Path) -> None:
    text = path.read_text().split('"""')[1]
    shown = re.search(
        rf"ray job submit --working-dir \. --runtime-env (\S+) -- \\\s+python jobs/{path.name} (.+)", text
    )
    assert shown is not None and (ROOT / shown[1]).exists()
    command = {"pipeline": "run"}.get(path.stem, path.stem)
    arguments = cli.parser().parse_args([command, *shown[2].split()])
    assert "config" not in arguments or (ROOT / arguments.config).exists()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    helped = subprocess.run([sys.executable, path, "--help"], env=environment, capture_output=True, text=True)
    assert helped.stdout.startswith(f"usage: bend-ray {command} ")


def test_runtime_environment_is_one_as_it_is_and_with_what_it_offers(tmp_path: Path) -> None:
    path = ROOT / "jobs" / "runtime_env.yaml"
    RuntimeEnv(**parse_runtime_env_args(str(path), working_dir=str(ROOT)))
    offered = yaml.safe_load(re.sub(r"^( *)# (\w+: \S)", r"\1\2", path.read_text(), flags=re.MULTILINE))
    assert set(offered) == {"env_vars", "pip"} and len(offered["env_vars"]) == 4
    RuntimeEnv(**offered)


# cluster.yaml


@pytest.fixture
def prepared() -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read("cluster.yaml"))
    validate_config(config)
    return config


def test_cluster_is_one_to_ray(prepared: dict[str, Any]) -> None:
    node_types = prepared["available_node_types"]
    head = node_types.pop(prepared["head_node_type"])
    assert head["max_workers"] == 0 and "InstanceMarketOptions" not in head["node_config"]
    assert all(kind["max_workers"] <= prepared["max_workers"] for kind in node_types.values())
    assert prepared["worker_setup_commands"] == prepared["setup_commands"]  # none of Ray's defaults


def test_cluster_syncs_what_it_installs(prepared: dict[str, Any]) -> None:
    for remote, local in prepared["file_mounts"].items():
        assert (ROOT / local).exists() and remote == f"~/bend_ray/{Path(local).name}"
    assert {Path(local).name for local in prepared["file_mounts"].values()} >= needed_to_install()
    assert any("pip install" in command and "~/bend_ray" in command for command in prepared["setup_commands"])


def needed_to_install() -> set[str]:
    return {"bend_ray", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]}


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_cluster_starts_ray_with_options_that_ray_has(commands: str, prepared: dict[str, Any]) -> None:
    import click
    from ray.scripts.scripts import start

    started = prepared[commands][-1].split("; ")[-1]
    assert started.startswith("ray start ")
    options, rest, _ = start.make_parser(click.Context(start)).parse_args(shlex.split(started)[2:])
    assert rest == [] and ("head" in options) == ("autoscaling_config" in options) == commands.startswith("head")


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An account of moto's, over HTTP, with the role that cluster.yaml has its reader make."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "ENDPOINT_URL": f"http://{host}:{port}",
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "x",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray puts a key there
    import boto3

    iam, name = boto3.client("iam", region_name="us-east-1"), "bend-ray"
    comments = " ".join(re.findall(r"^# (.*)", (ROOT / "cluster.yaml").read_text(), re.MULTILINE))
    assumed, passed = re.findall(r"policy-document '(.+?)'", comments)
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=assumed)
    iam.put_role_policy(RoleName=name, PolicyName="pass", PolicyDocument=passed)
    iam.create_instance_profile(InstanceProfileName=name)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    yield
    server.stop()


def test_cluster_gets_its_machines(aws: None, prepared: dict[str, Any]) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = AWSNodeProvider.fillout_available_node_types_resources(bootstrap_aws(deepcopy(prepared)))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    launched = {}
    for name, kind in config["available_node_types"].items():
        nodes = provider.create_node(deepcopy(kind["node_config"]), {"ray-user-node-type": name}, 1)
        launched[name] = next(iter(nodes.values()))
    assert config["available_node_types"]["gpu"]["resources"]["GPU"] == 1
    assert config["available_node_types"]["head"]["resources"]["CPU"] >= 2
    assert (launched["gpu"].instance_lifecycle, launched["head"].instance_lifecycle) == ("spot", None)
    assert all(node.iam_instance_profile["Arn"].endswith("/bend-ray") for node in launched.values())


# Kubernetes


@pytest.mark.parametrize("kind", RESOURCES)
def test_resources_are_kuberays(kind: str) -> None:
    resource = read(f"jobs/k8s/{kind.lower()}.yaml")
    jsonschema.validate(resource, RESOURCES[kind])
    wrongs: list[dict[str, Any]] = [{"backofLimit": 1}, {"rayClusterSpec": {}}, {"rayClusterConfig": {}}]
    for wrong in wrongs:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(resource | {"spec": resource["spec"] | wrong}, RESOURCES[kind])


def cluster_of(kind: str) -> dict[str, Any]:
    spec = read(f"jobs/k8s/{kind.lower()}.yaml")["spec"]
    return spec["rayClusterSpec"] if kind == "RayJob" else spec["rayClusterConfig"]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("kind", RESOURCES)
def test_pods_are_kubernetes(kind: str, version: str) -> None:
    cluster = cluster_of(kind)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, version, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod | {"spec": pod["spec"] | {"tolerance": []}}, version, strict=True)


def gpus(kind: str) -> int:
    """Of all workers; each has one, so that what asks for one each finds it."""
    groups = cluster_of(kind)["workerGroupSpecs"]
    for group in groups:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"
    return sum(group["replicas"] for group in groups)


def test_job_asks_for_what_its_cluster_has() -> None:
    spec = read("jobs/k8s/rayjob.yaml")["spec"]
    RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"]))
    python, script, *words = spec["entrypoint"].split()
    assert python == "python" and in_image(script).exists()
    arguments = cli.parser().parse_args(["run", *words])
    overrides = {key: value for key, value in vars(arguments).items() if "." in key}
    config = load(str(in_image(arguments.config)), overrides)
    assert isinstance(config.collect.workers, int)
    assert config.collect.workers * config.collect.gpus_per_worker == gpus("RayJob")
    assert config.sample.actors * config.sample.gpus_per_actor == gpus("RayJob")
    assert arguments.run_dir.startswith("s3://")


def in_image(path: str) -> Path:
    """The file of this project that lies at ``path`` in the Dockerfile's image."""
    folder = re.findall(r"^WORKDIR (\S+)", DOCKERFILE, re.MULTILINE)[0]
    assert path.startswith(f"{folder}/")
    return ROOT / path.removeprefix(f"{folder}/")


def test_service_is_the_endpoint_of_jobs_serve_yaml() -> None:
    served = yaml.safe_load(read("jobs/k8s/rayservice.yaml")["spec"]["serveConfigV2"])
    here = read("jobs/serve.yaml")
    for config in (served, here):
        ServeDeploySchema.model_validate(config)
        limits = Arguments.model_validate(config["applications"][0].pop("args")).serve
        assert limits.host == config["http_options"].pop("host")
    assert limits.gpus_per_replica == 0  # jobs/serve.yaml: a laptop's
    assert served.pop("proxy_location") == "EveryNode" and here.pop("proxy_location") == "HeadOnly"
    assert served == here


def test_service_has_room_for_its_replicas() -> None:
    served = yaml.safe_load(read("jobs/k8s/rayservice.yaml")["spec"]["serveConfigV2"])
    limits = Arguments.model_validate(served["applications"][0]["args"]).serve
    assert limits.replicas * limits.gpus_per_replica == gpus("RayService")


# The image


def test_one_version_of_ray_everywhere() -> None:
    named = set(re.findall(r"\bray==([\d.]+)", (ROOT / "cluster.yaml").read_text()))
    named |= set(re.findall(r"^ARG RAY_VERSION=(\S+)", DOCKERFILE, re.MULTILINE))
    named |= {cluster_of(kind)["rayVersion"] for kind in RESOURCES}
    ranges = [Requirement(line) for line in PROJECT["dependencies"] if line.startswith("ray[")]
    assert len(named) == 1 and all(Version(version) in wanted.specifier for version in named for wanted in ranges)


def test_one_version_of_the_image_and_of_python_everywhere() -> None:
    files = [ROOT / "Dockerfile", *(ROOT / "jobs" / "k8s").glob("*.yaml")]
    assert {tag for path in files for tag in re.findall(r"/bend-ray:(\S+)", path.read_text())} == {__version__}
    image = re.findall(r"^FROM python:(\d\.\d+)-", DOCKERFILE, re.MULTILINE)
    nodes = re.findall(r"--python (\d\.\d+)", (ROOT / "cluster.yaml").read_text())
    assert [*image, *nodes] == ["3.11", "3.11"]


def copied() -> list[str]:
    """What the Dockerfile copies."""
    return [word for line in re.findall(r"^COPY (.+)", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]


def test_what_the_image_copies_is_there_and_sent_to_docker() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*" and set(copied()) == {line[1:] for line in lines if line[0] == "!"}
    assert all((ROOT / name).exists() and not any(fnmatch(name, line) for line in lines[1:]) for name in copied())


@pytest.mark.slow
def test_image_can_be_installed_from_what_it_copies(tmp_path: Path) -> None:
    for name in set(copied()) & needed_to_install():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    install(tmp_path)
    assert (tmp_path / "installed" / "bend_ray" / "serving" / "page").is_dir()


def install(folder: Path) -> None:
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", "installed", "."]
    subprocess.run([sys.executable, "-m", "pip", *words], cwd=folder, check=True)


@pytest.mark.slow
def test_image_can_be_installed_for_an_empty_package(tmp_path: Path) -> None:
    """The layer of what bend_ray needs: the commands before its `pip install`, and the files copied before."""
    made = re.search(
        r"^COPY (.+) \./\nRUN (mkdir bend_ray.+?) \\\n && pip install", DOCKERFILE, re.MULTILINE | re.DOTALL
    )
    assert made is not None
    for name in made[1].split():
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["sh", "-ec", made[2]], cwd=tmp_path, check=True)
    install(tmp_path)
    assert {path.name for path in (tmp_path / "installed" / "bend_ray").glob("*.py")} == {"__init__.py", "version.py"}


def test_image_is_as_hadolint_likes_it() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    said = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
