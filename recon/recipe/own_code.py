"""Networks, losses and masks of one's own, named by path: `MODULE:NAME`.

Whatever stands in a configuration of one's own is imported. Of a model that somebody else made nothing is, unless its
code is trusted by name (see `recon/models/model.py`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from larmor.recon.recipe.own_name import declared_parts, is_own
from larmor.storage.objects.errors import InputError

INSTALLED = "installed"
"""What to trust where the code is a package that is installed."""


@dataclass(frozen=True)
class OneOf:
    """For a field: one of `known`, `MODULE:NAME`, or a name that an installed package gives to such a part.

    Packages declare these names as entry points of `group`. The configuration keeps the part's `MODULE:NAME`, so that
    whoever reads it later needs the code and not the package's metadata.
    """

    known: tuple[str, ...]
    group: str

    def check(self, name: str) -> str:
        """Raises `ValueError` for any other name."""
        if name in self.known or is_own(name):
            return name
        installed = declared_parts(self.group)
        if name not in installed:
            packages = f" (installed packages have {', '.join(sorted(installed))})" if installed else ""
            known = [*map(repr, self.known)]
            listed = f"{', '.join(known[:-1])} or {known[-1]}, or " if known else ""
            raise ValueError(f"input should be {listed}MODULE:NAME of your own code{packages}")
        return installed[name]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # an installed package may give any other name to its part
        other = {"type": "string", "pattern": r"^[^\s:]+(:\w+)?$"}
        return {"anyOf": [{"type": "string", "enum": list(self.known)}, other]} if self.known else other


def _as_paths(given: Any) -> Any:
    return {"paths": given} if isinstance(given, list | tuple) else given


class CodeConfig(BaseModel):
    """Code of one's own: a list of folders (packages) and .py files, which travels with jobs and to workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    paths: tuple[str, ...] = Field((), description="folders of Python packages, and .py files, such as [./mylab]")
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="the hash of the code; other code is refused; a run that begins with null keeps what it found",
    )


Code = Annotated[CodeConfig, BeforeValidator(_as_paths, json_schema_input_type=CodeConfig | list[str])]


def make_importable(paths: Iterable[str | Path]) -> None:
    """Let packages and modules at these paths be imported by name. A path that is not here is passed over: on the
    nodes of a cluster the code lies elsewhere, and is importable already.

    Raises `InputError` if Python finds other code by that name first, which is not what is hashed and recorded."""
    for path in paths:
        place = Path(path).expanduser().resolve()
        if not place.exists():
            continue
        if str(place.parent) not in sys.path:
            sys.path.insert(0, str(place.parent))
        _forget_if_changed(place)
        importlib.invalidate_caches()
        found = _place_of(place.stem)
        if found != place and (found is None or code_hash([found]) != code_hash([place])):
            raise InputError(
                f"code={path}: Python finds another module {place.stem}, at {found or 'no file'}; rename yours, or "
                "start Python without the other one"
            )


_known: dict[Path, str] = {}  # hash of each place as it was made importable last


def _forget_if_changed(place: Path) -> None:
    """In a notebook code is edited between trainings: what is hashed is imported anew."""
    now = code_hash([place])
    if _known.setdefault(place, now) != now:
        for name in [name for name in sys.modules if name.partition(".")[0] == place.stem]:
            del sys.modules[name]
        _known[place] = now


def _place_of(module: str) -> Path | None:
    """The folder of a package or the file of a module, which is not imported for that; None if there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except ValueError:  # a module that was made by hand
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None


def parts_elsewhere(parts: Mapping[str, str], paths: Sequence[str | Path]) -> dict[str, str]:
    """Those of `parts` (key → `MODULE:NAME`) that do not lie in the packages and modules at `paths`."""
    here = {Path(path).expanduser().resolve().stem for path in paths}
    return {key: name for key, name in parts.items() if re.split("[.:]", name)[0] not in here}


def code_files(paths: Sequence[str | Path]) -> dict[str, Path]:
    """Every file below these paths by its name, which begins with that of the path; no caches and nothing hidden.

    Raises `InputError` for a path that is not there, is neither a folder nor a .py file, or has the name of another.
    """
    found: dict[str, Path] = {}
    for path in paths:
        place = Path(path).expanduser().resolve()
        if any(Path(name).parts[0] == place.name for name in found):
            raise InputError(f"code={path}: there are two paths that end in {place.name}; rename one")
        if place.is_file() and place.suffix == ".py":
            found[place.name] = place
        elif place.is_dir():
            for file in sorted(place.rglob("*")):
                name = Path(place.name, file.relative_to(place))
                if file.is_file() and not any(part.startswith((".", "__pycache__")) for part in name.parts):
                    found[name.as_posix()] = file
        else:
            raise InputError(f"code={path}: expected the folder of a Python package, or a .py file; there is none")
    return found


def code_hash(paths: Sequence[str | Path]) -> str:
    """SHA-256 of the names and contents of all files of one's own code. Raises as `code_files`."""
    digest = hashlib.sha256()
    for name, file in sorted(code_files(paths).items()):
        content = file.read_bytes()
        digest.update(f"{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def check_code(config: CodeConfig) -> str | None:
    """The hash of the code as it is now; None without any. Raises `InputError` if it is not that of `config`."""
    return _checked(config, config.paths) if config.paths else None


def use_pinned_code(config: CodeConfig) -> None:
    """For workers: let the code be imported, if what Python finds by its names is what `config` pins.

    A worker that is started again finds a shared disk as it is then. Raises `InputError` for other code than that of
    the run, and for none.
    """
    make_importable(config.paths)
    if config.sha256 is None:
        return
    names = [Path(path).stem for path in config.paths]
    places = {name: _place_of(name) for name in names}
    if missing := [name for name, place in places.items() if place is None]:
        raise InputError(
            f"code={', '.join(config.paths)}: this worker finds no module {', '.join(missing)}; `larmor train "
            "--address` and `larmor submit` bring it along"
        )
    _checked(config, [place for place in places.values() if place])


def _checked(config: CodeConfig, places: Sequence[str | Path]) -> str:
    found = code_hash(places)
    if config.sha256 and config.sha256 != found:
        raise InputError(
            f"code={', '.join(config.paths)}: is not the code of this experiment (SHA-256 {config.sha256[:12]}…, now "
            f"{found[:12]}…); restore it, or set code.sha256=null"
        )
    return found


def import_part(name: str) -> Any:
    """What `MODULE:NAME` leads to. Raises `InputError` if it cannot be imported."""
    module_name, _, attribute = name.partition(":")
    top = module_name.partition(".")[0]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name}: there is no module {error.name}; name the folder that holds it, such as code=[./{top}], or "
            "install it on every node"
        ) from error
    except Exception as error:
        raise InputError(f"{name}: {module_name} cannot be imported ({type(error).__name__}: {error})") from error
    if not hasattr(module, attribute):
        there = [key for key in vars(module) if not key.startswith("_")]
        raise InputError(f"{name}: {module_name} has no {attribute}; it has {', '.join(there[:12]) or 'nothing'}")
    return getattr(module, attribute)


def call_part(name: str, call: Callable[[Any], Any], how: str) -> Any:
    """`call` of what `name` leads to. Raises `InputError` if that fails, saying `how` it was called."""
    part = import_part(name)
    try:
        return call(part)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name}: called as {how}: {type(error).__name__}: {error}") from error
