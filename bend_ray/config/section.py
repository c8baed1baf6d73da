"""What all sections of the configuration have in common."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


def placement(default: Any, **limits: Any) -> Any:
    """The default of a key that says where work runs or a file lies, not what is computed."""
    return Field(default, json_schema_extra={"placement": True}, **limits)


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
