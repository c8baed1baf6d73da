"""Every mistake at the command line: one clear sentence, exit code 2, no traceback, nothing written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from bend_ray import cli
from conftest import BEND_RAY, TOY

Command = Callable[..., tuple[int | str | None, str]]


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(TOY))
    return str(path)


@pytest.fixture
def bend_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in ``tmp_path``, in this process (a new one takes seconds to start): exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> tuple[int | str | None, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        return ended.value.code, capfd.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["rum"], "invalid choice: 'rum'"),
        (["run"], "CONFIG.yaml"),
        (["run", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["run", "CONFIG", "--collect.chain", "3"], "did you mean --collect.chains?"),
        (["run", "CONFIG", "--base.weights", "w.pt"], "did you mean --classifier.weights?"),
        (["run", "CONFIG", "--weights=w.pt"], "did you mean --classifier.weights?"),
        (["run", "CONFIG", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["run", "CONFIG", "--collect.chains", "x"], "collect.chains"),
        (["run", "CONFIG", "--data.name", "null", "--data.path", "no/such"], "no/such"),
        (["run", "CONFIG", "--classifier.kwargs.widht", "3", "--dry-run"], "classifier.kwargs"),
        (["run", "--classifier.kwargs.widht", "3", "CONFIG", "--dry-run"], "classifier.kwargs"),
        (["run", "CONFIG", "--classifier.kwargs.width", "--dry-run"], "--classifier.kwargs.width: expected one value"),
        (["run", "CONFIG", "--data.kwargs.root=x"], "data.kwargs: are those of data.target"),
        (["show", "no-run", "--classifier.kwargs.width", "3"], "unrecognized arguments: --classifier.kwargs.width"),
        (["run", "CONFIG", "--collect.subset", "regex:nothing", "--dry-run"], "chooses no parameter"),
        (["run", "CONFIG", "--classifier.weights", "none.safetensors"], "classifier.weights: "),
        (["run", "CONFIG", "--run-dir", "s3//bucket", "--collect.subset", "heads"], "no parameter 'heads'"),
        (["run", "CONFIG", "--run-dir", "nosuch://bucket/run"], "nosuch://bucket/run/base: cannot be reached"),
        (["run", "CONFIG", "--run-dir"], "argument --run-dir: expected one argument; see --help"),
        (["run", "CONFIG", "--sample.gpus_per_actor", "1.5"], "sample.gpus_per_actor: 1.5 GPUs: Ray gives a fraction"),
        (["predict", "no-run", "x.npy"], "no-run"),
        (["predict", "no-run", "x.npy", "--ensemble.plan", "fast"], "ensemble.plan: Input should be 'graph'"),
        (["predict", "no-run", "x.npy", "--ensemble.chunks", "4"], "did you mean --ensemble.chunk?"),
        (["show", "no-run"], "no-run: is no run"),
    ],
)
def test_mistake_is_one_sentence(
    bend_ray: Command, tmp_path: Path, config: str, arguments: list[str], said: str
) -> None:
    code, error = bend_ray(*[config if word == "CONFIG" else word for word in arguments])
    assert code == 2 and said in error
    assert error.startswith("bend-ray: ") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["toy.yaml"]


def test_keys_may_have_hyphens_and_kwargs_keep_what_lies_in_them(config: str) -> None:
    free, rest = cli._free_keys(["run", config, "--collect.held-out=2", "--run-dir", "a-b.c-d", "--seed", "1"])
    assert free == {} and rest == ["run", config, "--collect.held_out=2", "--run-dir", "a-b.c-d", "--seed", "1"]
    free, _ = cli._free_keys(["run", config, "--data.kwargs.root-dir", "/data/x-1", "--data.kwargs.columns.a-b=c-d"])
    assert free == {"data.kwargs.root_dir": "/data/x-1", "data.kwargs.columns.a-b": "c-d"}


def test_a_hyphenated_key_counts_and_what_it_replaces_is_said(bend_ray: Command, config: str) -> None:
    code, error = bend_ray("run", config, "--collect.held-out", "9", "--dry-run")
    assert code == 2 and "collect.held_out: 9 of 5 chains" in error
    code, error = bend_ray("run", config, "--classifier.target", "no.such:Net", "--dry-run")
    first, second = error.splitlines()
    assert first.startswith(
        f"bend-ray: {config}: classifier.name (convnet) and classifier.kwargs ({{'width': 8}}) left"
    )
    assert code == 2 and "classifier.target: 'no.such:Net' cannot be imported" in second


def test_the_real_command_ends_with_2_and_one_line(tmp_path: Path, config: str) -> None:
    words = [BEND_RAY, "run", config, "--collect.subset", "regex:nothing"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and "chooses no parameter" in done.stderr
    assert done.stderr.startswith("bend-ray: ") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["toy.yaml"]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((1, 8, 8), np.nan), "NaN|finite"),
        (np.zeros((1, 9, 9), np.uint8), "8"),
        (np.zeros((0, 8, 8), np.uint8), "no image|empty"),
        (np.array([{}], dtype=object), "npy"),
    ],
)
def test_bad_array_is_refused(bend_ray: Command, reference: Path, tmp_path: Path, array: np.ndarray, said: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    code, error = bend_ray("predict", str(reference), "x.npy")
    assert code == 2 and "x.npy" in error and error.count("\n") == 1
    assert any(word in error for word in said.split("|"))
