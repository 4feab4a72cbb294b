"""What every section of the settings is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("input should be a valid number, not true or false")
    return value


# Not strict: YAML reads 1e-5 as a string.
Number = Annotated[float, BeforeValidator(no_flag)]
DecayRate = Annotated[Number, Field(ge=0, lt=1)]
Share = Annotated[Number, Field(ge=0)]


class Section(BaseModel):
    """A group of settings: immutable, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


def refuse_doubles(
    key: str, names: list[str], remedy: str = "remove one, or give it a label of its own"
) -> None:
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{key}: {', '.join(doubles)} is there twice; {remedy}")
