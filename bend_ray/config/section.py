"""What all sections of the configuration have in common."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

RENAMED = {
    "collect.gate": "collect.accuracy_filter",
    "sample.recalibrate": "sample.reestimate_batch_norm",
}
"""Names of keys in 0.1 that are still understood, and what they are called now."""


def current(key: str) -> str:
    """What a dotted ``key`` is called now."""
    return RENAMED.get(key, key)


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )
    one_of: ClassVar[tuple[str, ...]] = ()
    """Keys of which one alone may be given; `kwargs` belong to it."""

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, raw: Any) -> Any:
        """Keys by the names that they have now. Raises ValueError where a key is given by both of its names."""
        if not isinstance(raw, dict):
            return raw
        section = cls.__name__.lower()
        named: dict[Any, Any] = {}
        for key, value in raw.items():
            name = current(f"{section}.{key}").removeprefix(f"{section}.") if f"{section}.{key}" in RENAMED else key
            if name in named:
                raise ValueError(f"{section}.{name}: is given twice, once by its old name; give it once")
            named[name] = value
        return named


def placement(default: Any, **limits: Any) -> Any:
    """The default of a key that says where work runs or a file lies, not what is computed."""
    return Field(default, json_schema_extra={"placement": True}, **limits)


def added(default: Any, off: Any, **limits: Any) -> Any:
    """The default of a key that runs may lack, because they were begun before there was one. ``off``: the value at
    which all is computed as it was then. At that value it stands in no hash, so that such runs are gone on with."""
    return Field(default, json_schema_extra={"off": off}, **limits)


def off_values(section: type[Section]) -> dict[str, Any]:
    """Keys whose default is `added`, and what a run is made by that lacks them."""
    marks = {key: field.json_schema_extra for key, field in section.model_fields.items()}
    return {key: mark["off"] for key, mark in marks.items() if isinstance(mark, dict) and "off" in mark}


def _one_or_whole(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"{gpus:g} GPUs: Ray gives a fraction of one, or whole ones")
    return gpus


Gpus = Annotated[float, AfterValidator(_one_or_whole)]


def placement_keys(section: type[Section]) -> set[str]:
    """Keys whose default is a `placement`."""
    return {
        key
        for key, field in section.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("placement")
    }
