"""Write docs/settings.md from the settings tree: every key, its type, default and meaning."""

import enum
import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from service.settings import ENV_LEVEL, ENV_PREFIX, Section, Settings

FILE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

_HEAD = """\
# Settings

<!-- Written by scripts/make_settings_reference.py: `make schemas` after a change of settings. -->

Strongest first: command line, environment, the TOML file that `--config` or `HEADWATER_CONFIG`
names, the defaults below. An unknown key is an error. `headwater config` prints what is in effect.

In the environment a list is JSON, such as `HEADWATER_EVENTS__KINDS='["view", "buy"]'`. In the file
a section is a table:

```toml
[kafka]
bootstrap_servers = "kafka-1:9092,kafka-2:9092"

[trainer.gate]
min_rows = 200
```
"""

_LISTED = "[]"  # behind the name of a list of sections: one variable holds all of it
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def reference() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_section(Settings, ())])


def _section(section: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    """A heading and a table for the keys of a section, then the sections below it."""
    below: list[tuple[type[BaseModel], str]] = []
    rows: list[str] = []
    for name, field in section.model_fields.items():
        inner = _sections(field.annotation)
        is_list = get_origin(field.annotation) is tuple
        below += [(each, f"{name}{_LISTED * is_list}") for each in inner]
        # A plain key, a list, or a choice between sections, told by its `kind`.
        if len(inner) != 1 or is_list:
            rows.append(_row((*path, name), field))
    if rows:
        name = ".".join(path).replace(_LISTED, "") or "above all sections"
        yield f"## {name}{_choice(section)}\n"
        yield f"{' '.join((section.__doc__ or '').split())}\n"
        yield "| key | type | default | environment | meaning |\n|---|---|---|---|---|"
        yield from rows
        yield ""
    for each, name in below:
        yield from _section(each, (*path, name))


def _choice(section: type[BaseModel]) -> str:
    """What selects this section, where it is one of several."""
    kind = section.model_fields.get("kind")
    return f" (kind = {get_args(kind.annotation)[0]})" if kind else ""


def _row(path: tuple[str, ...], field: FieldInfo) -> str:
    variable, listed, _ = (ENV_PREFIX + ENV_LEVEL.join(path).upper()).partition(_LISTED)
    cells = (
        f"`{path[-1]}`",
        _type(field.annotation) + _bounds(field),
        "required" if field.is_required() else _default(field.default),
        f"{'in ' if listed else ''}`{variable}`",
        field.description or "",
    )
    return f"| {' | '.join(cells)} |"


def _sections(annotation: object) -> list[type[BaseModel]]:
    """The sections that a key may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for each in get_args(annotation) for found in _sections(each)]


def _type(annotation: Any) -> str:
    if annotation in _NAMES:
        return _NAMES[annotation]
    if annotation is SecretStr:
        return "secret text"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " or ".join(f"`{each.value}`" for each in annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    inner = [each for each in get_args(annotation) if each not in (type(None), Ellipsis)]
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is Annotated:
        return _type(inner[0])
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"{_type(inner[1])} by {_type(inner[0])}"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_type, inner)))
    raise TypeError(f"no name for the type {annotation}")


def _bounds(field: FieldInfo) -> str:
    """Such as `, >= 0, < 1`."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return "".join(
        f", {sign} {getattr(each, name)}"
        for each in field.metadata
        for name, sign in signs.items()
        if hasattr(each, name)
    )


def _default(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, Section):
        return f"`{json.dumps(value.model_dump(mode='json'))}`"
    if isinstance(value, enum.Enum | Path):
        value = str(value)
    return f"`{json.dumps(value)}`"


def main() -> None:
    FILE.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
