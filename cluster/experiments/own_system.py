"""A system of one's own: defaults for the sections of an experiment, named by path or as an installed package calls it.

It is read where an experiment's file is, and nowhere else: the configuration that a run keeps has every value, so that
whoever reads a run or a model imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from larmor.recon.recipe.own_code import call_part, code_files, make_importable
from larmor.recon.recipe.own_name import declared_parts, is_own, short_name
from larmor.recon.recipe.recipe import SECTIONS_OF_A_SYSTEM
from larmor.recon.recipe.systems import SYSTEMS, merged
from larmor.storage.objects.errors import InputError


def with_own_system(content: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """What stands in an experiment's file, over the defaults of its own system; and MODULE:NAME of that, if it has one.

    Raises `InputError` for a system that cannot be imported, or is no mapping of sections.
    """
    name = content.get("system")
    if not isinstance(name, str) or name in SYSTEMS:
        return dict(content), None
    path = name if is_own(name) else declared_parts("larmor.systems").get(name)
    if path is None:  # validation says which there are
        return dict(content), None
    code = content.get("code") or ()
    paths = code.get("paths") if isinstance(code, Mapping) else code
    if isinstance(paths, list | tuple):  # validation says what else it is
        code_files(paths)  # what is not there is said first
        make_importable(paths)
    return merged({"generator": {}, **_for(content, _defaults(path))}, {**content, "system": path}), path


def _for(content: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults, without options of a network in whose place the experiment names another one."""
    found = dict(defaults)
    for section in ("generator", "critic"):
        own, given = defaults.get(section, {}), content.get(section)
        if isinstance(given, Mapping) and given.get("name", own.get("name")) != own.get("name"):
            found[section] = {key: value for key, value in own.items() if key != "options"}
    return found


def _defaults(path: str) -> Mapping[str, Any]:
    found = call_part(path, lambda part: part() if callable(part) else part, f"{short_name(path)}()")
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: expected a dictionary, or a function that returns one, got {type(found).__name__}")
    for key, section in found.items():
        if key not in SECTIONS_OF_A_SYSTEM or not isinstance(section, Mapping):
            raise InputError(
                f"{path}: {key}={section!r} is no section of a system; it may have {', '.join(SECTIONS_OF_A_SYSTEM)}, "
                "each a dictionary"
            )
    return found
