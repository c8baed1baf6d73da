"""Unknown, mistyped and impossible keys are refused in one sentence; what is hashed is what matters."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bend_ray import config
from bend_ray.errors import ConfigError
from conftest import ROOT, TOY, changed


def load(tmp_path: Path, raw: object, **overrides: str) -> config.Config:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(raw))
    return config.load(path, overrides)


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("collect", "worker", 2, "did you mean collect.workers?"),
        ("base", "weights", "w.pt", r"unknown key base\.weights; did you mean classifier\.weights\?"),
        ("diffusion", "chains", 3, r"unknown key diffusion\.chains; did you mean collect\.chains\?"),
        ("collect", "workers", 0, "collect.workers: .*greater than or equal to 1"),
        ("base", "lr", "fast", "base.lr: .*number"),
        ("base", "lr", ".nan", "base.lr: .*number"),
        ("base", "ema", 1, "base.ema: .*less than 1"),
        ("augment", "crop", -1, "augment.crop: .*greater than or equal to 0"),
        ("sample", "steps", 2000, "sample.steps: 2000 is more than diffusion.steps"),
        ("collect", "held_out", 4, "collect.held_out: 4 of 5 chains"),
        ("data", "path", "x", "exactly one of data.name, data.path and data.target"),
        ("evaluate", "baselines", ["magic"], "evaluate.baselines.0"),
    ],
)
def test_bad_key_is_named(tmp_path: Path, section: str, key: str, value: object, said: str) -> None:
    raw = {name: dict(part) for name, part in TOY.items()}
    raw[section] = raw.get(section, {}) | {key: value}
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, raw)


def test_unknown_section_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key colect; did you mean collect\?"):
        load(tmp_path, TOY | {"colect": {}})


@pytest.mark.parametrize("text", ["a: [", "just words", "", "\x00"])
def test_file_that_is_no_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        config.load(tmp_path / "c.yaml")


def test_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        config.load("nowhere.yaml")


def test_overrides_are_typed_and_checked(tmp_path: Path) -> None:
    loaded = load(tmp_path, TOY, **{"collect.chains": "9", "base.lr": "1e-3", "classifier.kwargs.width": "4"})
    assert (loaded.collect.chains, loaded.base.lr, loaded.classifier.kwargs) == (9, 1e-3, {"width": 4})
    with pytest.raises(ConfigError, match=r"collect\.chains"):
        load(tmp_path, TOY, **{"collect.chains": "many"})


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = TOY | {"data": {"path": "images"}, "classifier": {"name": "mlp", "weights": "s3://bucket/w.safetensors"}}
    loaded = load(tmp_path, raw)
    assert loaded.data.path == str(tmp_path / "images")
    assert loaded.classifier.weights == "s3://bucket/w.safetensors"


def test_where_work_runs_is_not_hashed_and_all_else_is() -> None:
    toy = changed()
    moved = changed(collect={"workers": 7, "gpus_per_worker": 1}, sample={"actors": 5}, diffusion={"gpus": 1})
    sections = ("seed", "collect", "diffusion", "sample")
    assert toy.hashed(*sections) == moved.hashed(*sections)
    assert toy.hashed("augment") != changed(augment={"flip": True}).hashed("augment")
    assert toy.hashed("collect") != changed(collect={"lr": 0.5}).hashed("collect")


def test_dump_loads_as_the_same(tmp_path: Path, toy: config.Config) -> None:
    (tmp_path / "c.yaml").write_text(config.dump(toy))
    assert config.load(tmp_path / "c.yaml") == toy


def test_every_key_has_a_description() -> None:
    assert [key for key, field in config.keys().items() if not field.description] in ([], ["data", "classifier"])


RAYS_OWN = ("serve.yaml", "runtime_env.yaml")  # test_serve.py, test_deploy_files.py
RUNS = sorted(path for path in (ROOT / "jobs").glob("*.yaml") if path.name not in RAYS_OWN)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_golden_configurations_load(path: Path) -> None:
    config.load(path)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"sample": {"wanted_loss": -1}}, "add val_loss to diffusion.condition"),
        ({"sample": {"eta": 0.5}, "diffusion": {"objective": "flow"}}, "a flow has no noise to add"),
        ({"sample": {"sampler": "ddpm"}, "diffusion": {"objective": "flow"}}, "a flow has no noise to add"),
        ({"autoencoder": {"kind": "conv"}, "search": {"trials": 2}}, "use autoencoder.kind: span"),
        ({"sample": {"spread": "matched"}, "search": {"trials": 2}}, "give sample.spread a number"),
        ({"collect": {"features": "uint8"}, "augment": {"flip": True}}, "use auto or none"),
        ({"sample": {"keep": "best", "candidates": 3}}, "3 is less than sample.members: 7"),
        ({"sample": {"candidates": 30}}, "all are kept; set sample.keep"),
        ({"sample": {"guidance": 3}}, "set diffusion.condition"),
        ({"sample": {"sampler": "heun", "eta": 0.7}}, "heun adds no noise"),
        ({"sample": {"spread": "matched", "members": 1}}, "one member does not disagree"),
        ({"sample": {"spread": "matched"}, "collect": {"init": "fresh"}}, "ends at the mean of many modes"),
        (
            {"search": {"trials": 2}, "diffusion": {"objective": "flow"}},
            r"search\.space\.sample\.eta: 1\.0 does not go",
        ),
        (
            {"search": {"trials": 2, "space": {"autoencoder.kind": {"choice": ["span", "conv"]}}}},
            "space.autoencoder.kind",
        ),
        ({"sample": {"spread": -1}}, "sample.spread"),
        ({"sample": {"spread": "wide"}}, "sample.spread"),
    ],
)
def test_what_does_not_go_together_is_said(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        changed(**sections)


def test_candidates_are_four_times_the_members_unless_told() -> None:
    assert changed().sample.made == 7
    assert changed(sample={"keep": "best"}).sample.made == 28
    assert changed(sample={"keep": "greedy", "candidates": 9}).sample.made == 9


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ensemble.temperature", "0", "ensemble.temperature: Input should be greater than 0, or 'auto' (got 0)"),
        ("sample.spread", "big", "sample.spread: Input should be a valid number, or 'matched' (got 'big')"),
        ("collect.workers", "x", "collect.workers: Input should be a valid integer, or a valid tuple (got 'x')"),
        ("base.cycle_lr", "0", "base.cycle_lr: Input should be greater than 0 (got 0)"),
        ("diffusion.condition", "[loss]", "diffusion.condition.0: Input should be 'val_loss' or 'chain' (got 'loss')"),
    ],
)
def test_a_key_of_several_kinds_is_named_as_it_is_written(key: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^x: {re.escape(said)}$"):
        config.loads("data: {name: digits}\nclassifier: {name: convnet}\n", "x", {key: value})


# --- keys that exclude each other

DIGITS = "data: {name: digits}\nclassifier: {name: convnet, kwargs: {width: 8}}\n"
OWN = "data: {target: 'mine:images', kwargs: {rows: 9}}\nclassifier: {target: 'mine:Net', kwargs: {deep: true}}\n"


@pytest.mark.parametrize(
    ("text", "key", "value", "gone", "said"),
    [
        (
            DIGITS,
            "classifier.target",
            "mine:Net",
            ("name", "kwargs"),
            "classifier.name (convnet) and classifier.kwargs ({'width': 8}) left out, for --classifier.target takes the"
            " place of classifier.name",
        ),
        (DIGITS, "data.target", "mine:images", ("name",), "data.name (digits) left out, for --data.target takes the"),
        (DIGITS, "data.path", "x.npz", ("name",), "data.name (digits) left out, for --data.path takes the place of"),
        (
            OWN,
            "data.path",
            "x.npz",
            ("target", "kwargs"),
            "data.target (mine:images) and data.kwargs ({'rows': 9}) lef",
        ),
        (
            OWN,
            "data.name",
            "digits",
            ("target", "kwargs"),
            "data.target (mine:images) and data.kwargs ({'rows': 9}) le",
        ),
        (
            OWN,
            "classifier.name",
            "mlp",
            ("target", "kwargs"),
            "classifier.target (mine:Net) and classifier.kwargs ({'d",
        ),
    ],
)
def test_a_key_of_the_command_line_takes_the_place_of_the_one_it_excludes(
    text: str, key: str, value: str, gone: tuple[str, ...], said: str
) -> None:
    lines: list[str] = []
    section, name = key.split(".")
    found = getattr(config.loads(text, "c.yaml", {key: value}, lines.append), section)
    assert getattr(found, name).endswith(value) and all(not getattr(found, other) for other in gone)
    assert len(lines) == 1 and lines[0].startswith(f"c.yaml: {said}")


def test_kwargs_that_are_given_anew_are_the_new_ones_alone() -> None:
    for overrides in ({"classifier.kwargs.depth": "3"}, {"classifier.kwargs": "{depth: 3}"}):
        found = config.loads(DIGITS, "c.yaml", {"classifier.target": "mine:Net"} | overrides).classifier
        assert (found.name, found.target, found.kwargs) == (None, "mine:Net", {"depth": 3})


def test_nothing_is_left_out_that_is_not_excluded() -> None:
    lines: list[str] = []
    overrides = {"classifier.name": "mlp", "classifier.target": "null", "data.name": "null", "data.path": "x.npz"}
    found = config.loads(DIGITS, "c.yaml", overrides, lines.append)
    assert found.classifier.kwargs == {"width": 8} and (found.data.name, lines) == (None, [])
    config.loads(OWN, "c.yaml", {"data.target": "null", "data.path": "x.npz"}, lines.append)
    assert lines == [
        "c.yaml: data.kwargs ({'rows': 9}) left out, for --data.path takes the place of data.target"
    ]  # said by nobody


def test_files_and_command_lines_that_give_two_are_refused() -> None:
    two = {"classifier.name": "mlp", "classifier.target": "mine:Net"}
    with pytest.raises(ConfigError, match=r"exactly one of classifier\.name, classifier\.target and classifier\.hub"):
        config.loads(DIGITS, "c.yaml", two)
    with pytest.raises(ConfigError, match=r"exactly one of data\.name, data\.path and data\.target"):
        config.loads(DIGITS.replace("name: digits", "name: digits, path: x"), "c.yaml")
