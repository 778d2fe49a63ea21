"""Every key of an experiment with its type, unit, default, range and description, as its JSON schema has them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from larmor.cluster.experiments.units import UNITS

Schema = Mapping[str, Any]
_BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
_TYPES = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}


@dataclass(frozen=True)
class Key:
    """One key, all of it as a person reads it. `range` is what the value alone must obey; empty where it is free.
    `unit` is what a number counts or is measured in."""

    name: str
    type: str
    unit: str
    default: str
    range: str
    description: str


@dataclass(frozen=True)
class Section:
    """Keys that stand together; `name` is "" at the top level. `about` is the first sentence about them."""

    name: str
    about: str
    keys: tuple[Key, ...]


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of an experiment's file: editors complete and check YAML by it.

    A number has its `unit`, which validators pass over.
    """
    schema = model.model_json_schema()
    _add_units(schema, "", schema["$defs"])
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def _add_units(schema: Schema, prefix: str, definitions: Schema) -> None:
    for name, value in schema["properties"].items():
        section = _inner(value, definitions)
        if (unit := UNITS.get(f"{prefix}{name}")) is not None:
            value["unit"] = unit
        elif section is not None:
            _add_units(section, f"{prefix}{name}.", definitions)


def sections(model: type[BaseModel]) -> list[Section]:
    """The top level, then each section, in the order of the file."""
    schema = json_schema(model)
    return list(_sections(schema, schema, "", schema["$defs"]))


def _sections(schema: Schema, shown: Schema, prefix: str, definitions: Schema) -> Iterator[Section]:
    inner = {name: _inner(value, definitions) for name, value in schema["properties"].items()}
    keys = tuple(
        _key(f"{prefix}{name}", value, definitions, name in schema.get("required", ()))
        for name, value in schema["properties"].items()
        if inner[name] is None
    )
    yield Section(prefix.rstrip("."), _first_sentence(shown.get("description", "")), keys)
    for name, section in inner.items():
        if section is not None:
            value = schema["properties"][name]
            yield from _sections(section, value if "description" in value else section, f"{prefix}{name}.", definitions)


def _inner(value: Schema, definitions: Schema) -> Schema | None:
    """The section that a key opens; None for a value. A section that may be null is one too."""
    choices = [value, *(choice for choice in value.get("anyOf", ()))]
    found = [_resolved(choice, definitions) for choice in choices if "$ref" in choice]
    return found[0] if found else None


def _resolved(value: Schema, definitions: Schema) -> Schema:
    return definitions[value["$ref"].rpartition("/")[2]] if "$ref" in value else value


def _key(name: str, value: Schema, definitions: Schema, required: bool) -> Key:
    choices = [_resolved(choice, definitions) for choice in value.get("anyOf", value.get("oneOf", [value]))]
    types = dict.fromkeys(_type(choice) for choice in choices)
    ranges = dict.fromkeys(text for choice in choices if (text := _range(choice)))
    default = json.dumps(value["default"], ensure_ascii=False) if "default" in value else "{}"
    default = "required" if required else default
    bounds, about = ", ".join(ranges), value.get("description", "")
    return Key(name, " or ".join(types), value.get("unit", ""), default, bounds, about)


def _type(value: Schema) -> str:
    if "enum" in value:
        return "one of " + ", ".join(str(item) for item in value["enum"])
    if "properties" in value:
        return "{" + ", ".join(value["properties"]) + "}"
    if value.get("type") == "array":
        items = value.get("prefixItems")
        return f"list of {len(items)} {_type(items[0])}s" if items else f"list of {_type(value['items'])}s"
    return _TYPES.get(value.get("type", ""), "any")


def _range(value: Schema) -> str:
    if value.get("type") == "array":
        return _range((value.get("prefixItems") or [value["items"]])[0])
    bounds = [text.format(_number(value[name])) for name, text in _BOUNDS.items() if name in value]
    return ", ".join([*bounds, *([f"matches {value['pattern']}"] if "pattern" in value else [])])


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _first_sentence(text: str) -> str:
    """What a docstring says first, on one line."""
    return " ".join(text.split("\n\n")[0].split())
