"""From YAML and the command line to a checked configuration, and back; errors say where and which key."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_origin

import yaml
from pydantic import ValidationError

from bend_ray.config.keys import nearest, put
from bend_ray.config.section import Section
from bend_ray.config.whole import Config, Inference, keys
from bend_ray.errors import ConfigError

Parsed = TypeVar("Parsed", bound=Section)
Settings = TypeVar("Settings", bound=Inference)
Say = Callable[[str], object]

_SHOULD = "Input should be "
_SEVERAL = {key for key, field in keys().items() if get_origin(field.annotation) in (Union, UnionType)}
"""Keys that take several kinds of value."""


def load(path: str | Path, overrides: dict[str, str] | None = None, say: Say = lambda line: None) -> Config:
    """The configuration in the YAML file at ``path`` with dotted ``overrides`` (their values read as YAML) laid over.

    Of keys that exclude each other (classifier.name and classifier.target) an override takes the place of the file's,
    whose kwargs go with it; ``say`` is told so in a line. Raises ConfigError, which names the file, the key, and the
    nearest known key.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; give the path of a YAML file") from None
    return loads(text, str(path), overrides, say)


def loads(text: str, where: str, overrides: dict[str, str] | None = None, say: Say = lambda line: None) -> Config:
    """`load` from YAML text that stands at ``where``."""
    raw = _yaml(text, where)
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: holds no configuration; expected sections such as data: and classifier:")
    values = {key: _yaml(value, f"--{key}") for key, value in (overrides or {}).items()}
    for line in _take_out(raw, values):
        say(f"{where}: {line}")
    for key, value in values.items():
        put(raw, key, value)
    config = parse(Config, raw, where)
    # Other processes have other working directories.
    data = config.data.model_copy(update={"path": _absolute(config.data.path)})
    hub = config.classifier.hub
    hub = _absolute(hub) if hub and Path(hub).is_dir() else hub  # or else a name on the Hugging Face Hub
    classifier = config.classifier.model_copy(update={"weights": _absolute(config.classifier.weights), "hub": hub})
    strangers = tuple(one.model_copy(update={"path": _absolute(one.path)}) for one in config.evaluate.strangers)
    evaluate = config.evaluate.model_copy(update={"strangers": strangers})
    return config.model_copy(update={"data": data, "classifier": classifier, "evaluate": evaluate})


def _take_out(raw: dict[str, Any], values: dict[str, Any]) -> Iterator[str]:
    """Take out of the file's ``raw`` what the command line's ``values`` exclude: with classifier.target goes
    classifier.name, and its kwargs. Gives a line for each section that says what has gone."""
    for section, field in Config.model_fields.items():
        mine, keys_of_one = raw.get(section), getattr(field.annotation, "one_of", ())
        given = [name for name in keys_of_one if values.get(f"{section}.{name}") is not None]
        if not given or not isinstance(mine, dict):
            continue
        others = [name for name in keys_of_one if name not in given and mine.get(name) is not None]
        gone = [name for name in others if f"{section}.{name}" not in values]
        gone += ["kwargs"] if others and mine.get("kwargs") else []
        if not gone:
            continue
        left = " and ".join(f"{section}.{name} ({mine.pop(name)})" for name in gone)
        yield f"{left} left out, for --{section}.{given[0]} takes the place of {section}.{others[0]}"


def inference(model: type[Settings], overrides: dict[str, str], text: str = "", where: str = "") -> Settings:
    """``model``'s part of the configuration in YAML ``text``, which stands at ``where``, with ``overrides`` as in
    `load`."""
    raw = _yaml(text, where)
    mine = {name: raw[name] for name in model.model_fields if name in raw} if isinstance(raw, dict) else {}
    for key, value in overrides.items():
        put(mine, key, _yaml(value, f"--{key}"))
    return parse(model, mine, where or "command line")


def parse(model: type[Parsed], raw: dict[str, Any], where: str) -> Parsed:
    """``raw`` as a ``model``, or a ConfigError that says ``where`` and which key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = _key(first["loc"])
        if first["type"] == "extra_forbidden":
            near = nearest(key, [*keys(model), *model.model_fields])
            hint = f"; did you mean {near}?" if near else f"; known: {', '.join(_siblings(key))}"
            raise ConfigError(f"{where}: unknown key {key}{hint}") from None
        got = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
        raise ConfigError(f"{where}: {complaint(error)}{got}") from None


def complaint(error: ValidationError) -> str:
    """The first key that is wrong, and why; of a key that takes several kinds of value, what each would be."""
    errors = error.errors()
    key = _key(errors[0]["loc"])
    whys = [one["msg"].removeprefix("Value error, ") for one in errors if _key(one["loc"]) == key]
    if len(whys) > 1:
        kinds = dict.fromkeys(why.removeprefix(_SHOULD).split(", unable to parse")[0] for why in whys)
        whys[0] = f"{_SHOULD}{', or '.join(kinds)}"
    return f"{key + ': ' if key else ''}{whys[0]}"


def _key(place: tuple[int | str, ...]) -> str:
    """The dotted key at ``place``, which pydantic lengthens by the kind of value that it tried."""
    several = len(place) > 2 and ".".join(map(str, place[:2])) in _SEVERAL
    return ".".join(map(str, place[:2] if several else place))


def dump(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _absolute(path: str | None) -> str | None:
    return path if path is None or "://" in path else str(Path(path).absolute())


def _siblings(key: str) -> list[str]:
    section = Config.model_fields.get(key.split(".")[0])
    model: Any = section.annotation if section and "." in key else Config
    return list(model.model_fields)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from None
