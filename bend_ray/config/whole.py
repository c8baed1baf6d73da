"""All sections together, and what must go with what; of an ensemble that is there, those that still matter."""

from typing import Any

from pydantic import Field, ValidationError, model_validator

from bend_ray.config.choices import SAMPLERS, listed
from bend_ray.config.cluster import Cluster
from bend_ray.config.collect import Collect
from bend_ray.config.data import CYCLES, Augment, Base, Classifier, Data
from bend_ray.config.generator import Autoencoder, Diffusion, Sample
from bend_ray.config.keys import nearest, put
from bend_ray.config.members import Ensemble, Evaluate, Serve
from bend_ray.config.search import SEARCHED, Search
from bend_ray.config.section import Section, off_values, placement_keys


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
    def _values_that_follow(self) -> "Config":
        """Keys that were left to others get their values here, so that hashes and a run's config.yaml have them."""
        cycles, trunk = self.base.cycles, self.collect.trunk
        if cycles is None:
            cycles = 0 if trunk == "base" or self.classifier.is_trained else CYCLES
        if trunk == "auto":
            trunk = "average" if cycles else "base"
        augment = trunk == "base" if self.collect.augment is None else self.collect.augment
        one = self.base.count == 1 and trunk != "each"
        distance = "none" if self.sample.distance == "auto" and not one else self.sample.distance
        for name, values in {
            "base": {"cycles": cycles},
            "collect": {"trunk": trunk, "augment": augment},
            "sample": {"distance": distance},
        }.items():
            object.__setattr__(self, name, getattr(self, name).model_copy(update=values))
        return self

    @property
    def cycles(self) -> int:
        """Cycles after each base."""
        return self.base.cycles or 0

    @property
    def trunks(self) -> int:
        """How many networks chains start from and members share. Chain and member i are of number i modulo so many."""
        return self.base.count * (1 + self.cycles if self.collect.trunk == "each" else 1)

    @model_validator(mode="after")
    def _trunk_fits(self) -> "Config":
        needs = {"average": "that of what cycles end with", "each": "the base and what cycles end with"}
        if (trunk := self.collect.trunk) in needs and not self.cycles:
            raise ValueError(
                f"collect.trunk: {trunk} is {needs[trunk]}, and base.cycles is 0; give 1 or more (4 is a start)"
            )
        return self

    @model_validator(mode="after")
    def _several_trunks_fit(self) -> "Config":
        """What members of several networks cannot have, and what each of these networks needs."""
        if (T := self.trunks) == 1:
            return self
        if self.classifier.is_trained and self.base.count > 1:
            raise ValueError("base.count: further bases are trained here, and classifier.weights brings one; give 1")
        count, each = self.base.count, self.collect.trunk == "each"
        why = " and ".join(["collect.trunk: each"] * each + [f"base.count: {count}"] * (count > 1))
        if self.collect.seen_chains < 2 * T:
            raise ValueError(
                f"collect.chains: {self.collect.seen_chains} chains that are not withheld leave fewer than 2 for each"
                f" of {T} trunks ({why}); give {2 * T + self.collect.held_out} or more"
            )
        if self.sample.members < T:
            raise ValueError(f"sample.members: {self.sample.members} is fewer than one for each of {T} trunks ({why})")
        by_chain = "chain" in self.diffusion.condition
        refused = {
            "collect.align: hidden units of several trunks have no order in common; give false": self.collect.aligned,
            "search.trials: a search knows one trunk alone; give 0": self.search.trials > 0,
            "sample.reestimate_batch_norm: is for members of one trunk; give 0": self.sample.reestimate_batch_norm > 0,
            "sample.distance: members of several trunks share no features; give none": self.sample.distance != "none",
            "diffusion.condition: a chain is of one trunk, and members are of each; leave chain out": by_chain,
        }
        if reasons := [reason for reason, is_set in refused.items() if is_set]:
            raise ValueError(f"{reasons[0]}, or do without several trunks ({why})")
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
        noise = SAMPLERS[self.sample.sampler].noise
        if self.diffusion.objective == "flow" and (self.sample.eta or noise == "always"):
            silent = listed(
                f"{name} with eta 0" if one.noise == "eta" else name
                for name, one in SAMPLERS.items()
                if one.noise != "always"
            )
            raise ValueError(f"sample.eta: a flow has no noise to add; use {silent}")
        if self.sample.eta and noise == "never":
            noisy = listed(name for name, one in SAMPLERS.items() if one.noise == "eta")
            raise ValueError(f"sample.eta: {self.sample.sampler} adds no noise; use {noisy}, or eta 0")
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
                    typed = self.as_value(key, value)
                    if not self._goes_with(key, typed):
                        raise ValueError(
                            f"search.space.{key}: {typed!r} does not go with the other keys; give search.space without"
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
        if section not in SEARCHED or name not in type(getattr(self, section)).model_fields:
            near = nearest(key, [other for other in keys() if other.split(".")[0] in SEARCHED])
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
        """What an artifact depends on: these sections (or plain keys) without the keys of placement, and without those
        that were `added` where they are off."""
        picked: dict[str, Any] = {}
        for section in sections:
            value = getattr(self, section)
            if isinstance(value, Section):
                off = {key for key, absent in off_values(type(value)).items() if getattr(value, key) == absent}
                kept = value.model_dump(mode="json", exclude=placement_keys(type(value)) | off)
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
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            fields |= keys(field.annotation, f"{prefix}{name}.")
        else:
            fields[prefix + name] = field
    return fields


def off_value(key: str) -> Any:
    """What a run is made by that lacks the dotted ``key``; None where all runs have it."""
    section, _, name = key.partition(".")
    field = Config.model_fields.get(section)
    model: Any = field.annotation if field and name else None
    return off_values(model).get(name) if model else None
