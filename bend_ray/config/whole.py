"""All sections together, and what must go with what; of an ensemble that is there, those that still matter."""

import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import Field, ValidationError, model_validator

from bend_ray.config.cluster import Cluster
from bend_ray.config.collect import Collect
from bend_ray.config.data import Augment, Base, Classifier, Data
from bend_ray.config.generator import Autoencoder, Diffusion, Sample
from bend_ray.config.members import Ensemble, Evaluate, Serve
from bend_ray.config.search import SEARCHED, Search
from bend_ray.config.section import Section, placement_keys


class Config(Section):
    seed: int = Field(0, ge=0)
    """Every random number follows from it."""
    data: Data
    classifier: Classifier
    base: Base = Base()
    augment: Augment = Augment()
    collect: Collect = Collect()
    autoencoder: Autoencoder = Autoencoder()
    diffusion: Diffusion = Diffusion()
    search: Search = Search()
    sample: Sample = Sample()
    ensemble: Ensemble = Ensemble()
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
    serve: Serve = Serve()

    @property
    def changes_for_chains(self) -> Augment:
        """Random changes of the images that chains train on."""
        return self.augment if self.collect.augment else Augment()

    @model_validator(mode="after")
    def _steps_fit(self) -> "Config":
        if self.sample.steps > self.diffusion.steps:
            raise ValueError(f"sample.steps: {self.sample.steps} is more than diffusion.steps: {self.diffusion.steps}")
        return self

    @model_validator(mode="after")
    def _sampling_fits(self) -> "Config":
        if self.collect.features not in ("auto", "none") and self.changes_for_chains != Augment():
            raise ValueError(
                "collect.features: rows that augment changes have none to keep; use auto or none, or set"
                " collect.augment to false"
            )
        if self.sample.wanted_loss is not None and "val_loss" not in self.diffusion.condition:
            raise ValueError("sample.wanted_loss: the model is not told of losses; add val_loss to diffusion.condition")
        if self.diffusion.objective == "flow" and (self.sample.eta or self.sample.sampler == "ddpm"):
            raise ValueError("sample.eta: a flow has no noise to add; use ddim with eta 0, dpm++ or heun")
        if self.sample.eta and self.sample.sampler in ("dpm++", "heun"):
            raise ValueError(f"sample.eta: {self.sample.sampler} adds no noise; use ddim, or eta 0")
        if self.sample.guidance != 1 and not self.diffusion.condition:
            raise ValueError("sample.guidance: the model is told of nothing; set diffusion.condition")
        if self.sample.spread == "matched" and self.sample.members < 2:
            raise ValueError("sample.spread: one member does not disagree; give a number")
        if self.sample.spread == "matched" and self.collect.init == "fresh":
            raise ValueError("sample.spread: matched ends at the mean of many modes; with collect.init fresh give 1")
        if self.search.trials and self.autoencoder.kind == "conv":
            raise ValueError("search.trials: a search works in the snapshots' span; use autoencoder.kind: span")
        if self.search.trials and self.sample.spread == "matched":
            raise ValueError("search.trials: give sample.spread a number, or values to try in search.space")
        return self

    @model_validator(mode="after")
    def _space_fits(self) -> "Config":
        if self.search.trials:
            for key, domain in self.search.space.items():
                for value in domain.values:
                    known = self.as_value(key, value)
                    if not self._goes_with(key, known):
                        raise ValueError(
                            f"search.space.{key}: {known!r} does not go with the other keys; give search.space without"
                            " it"
                        )
        return self

    def _goes_with(self, key: str, value: Any) -> bool:
        try:
            self.with_keys({key: value, "search.space": {}})
        except ValueError:
            return False
        return True

    def as_value(self, key: str, value: Any) -> Any:
        """``value`` in the type of the searched ``key``, for YAML reads 1e-4 as a word. Raises ValueError."""
        section, _, name = key.partition(".")
        if section not in SEARCHED or name not in Config.model_fields[section].annotation.model_fields:  # type: ignore[union-attr]
            near = nearest(key, [known for known in keys() if known.split(".")[0] in SEARCHED])
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"search.space: {key} is no key of {', '.join(SEARCHED)}{hint}")
        try:
            changed = type(getattr(self, section)).model_validate(getattr(self, section).model_dump() | {name: value})
            return getattr(changed, name)
        except ValidationError as error:
            raise ValueError(f"search.space.{key}: {value!r}: {error.errors()[0]['msg']}") from None

    def with_keys(self, values: dict[str, Any]) -> "Config":
        """This configuration with some dotted keys changed, checked as a whole."""
        raw = self.model_dump()
        for key, value in values.items():
            put(raw, key, value)
        return Config.model_validate(raw)

    def hashed(self, *sections: str) -> dict[str, Any]:
        """What an artifact depends on: these sections (or plain keys) without the keys of placement."""
        picked: dict[str, Any] = {}
        for section in sections:
            value = getattr(self, section)
            if isinstance(value, Section):
                kept = value.model_dump(mode="json", exclude=placement_keys(type(value)))
                picked |= {f"{section}.{key}": item for key, item in kept.items()}
            else:
                picked[section] = value
        return picked


class Inference(Section):
    """What matters to an ensemble that is there already."""

    ensemble: Ensemble = Ensemble()


class Serving(Inference):
    """What matters to an ensemble that is served."""

    serve: Serve = Serve()


def keys(model: type[Section] = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its pydantic field, in order."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= keys(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def meaning(field: Any) -> str:
    """What a pydantic field is for, in one line, with the names it takes where its docstring does not say them."""
    text = " ".join((field.description or "").split())
    names = _names(field.annotation)
    return text if all(name in text for name in names) else f"{text} Values: {', '.join(names)}."


def _names(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [name for part in get_args(kind) for name in _names(part)]


def nearest(key: str, known: Iterable[str]) -> str:
    """What was meant by ``key``: a known one of the same name in another section, else the one spelt most alike; empty
    where none is."""
    among = list(known)
    same = [other for other in among if _name(other) == _name(key)]
    return next(iter(difflib.get_close_matches(key, same or among, n=1, cutoff=0.0 if same else 0.5)), "")


def _name(key: str) -> str:
    return key.lstrip("-").rpartition(".")[2]


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted ``key``, the sections on the way to it made where they are not there."""
    *path, last = key.split(".")
    for part in path:
        inner = raw.get(part)
        raw[part] = inner = inner if isinstance(inner, dict) else {}
        raw = inner
    raw[last] = value
