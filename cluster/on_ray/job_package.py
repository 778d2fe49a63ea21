"""What travels to a cluster: Larmor's own source and a job's experiment; dependencies are there, or get installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from larmor.cluster.experiments.experiment import dump_yaml
from larmor.recon.recipe.own_code import code_files
from larmor.recon.recipe.recipe import Recipe
from larmor.storage.formats.provenance import DISTRIBUTION
from larmor.storage.objects.errors import InputError


def write_package(folder: Path, experiment: Recipe) -> None:
    """Make `folder` a working directory in which `python -m larmor train experiment.yaml` runs this very Larmor.

    Code of the user's own lies beside it. Raises `InputError` for code that is not there.
    """
    write_source(folder)
    names = tuple(path.name for path in write_code(folder, experiment.code.paths))
    code = experiment.code.model_copy(update={"paths": names})
    (folder / "experiment.yaml").write_text(dump_yaml(experiment.model_copy(update={"code": code})))


def write_code(folder: Path, code: Sequence[str]) -> list[Path]:
    """Copy code of the user's own to `folder`; returns where its packages and .py files lie there.

    Raises `InputError` for code that is not there, and for a name that Larmor has.
    """
    tops: dict[str, Path] = {}
    for name, file in code_files(code).items():
        top = Path(name).parts[0]
        if top in ("larmor", "experiment.yaml"):
            raise InputError(f"code={', '.join(code)}: {top} is a name of Larmor's own; choose another")
        tops[top] = folder / top
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return list(tops.values())


def write_source(folder: Path) -> Path:
    """Copy Larmor's own source to `folder`/larmor, as a wheel has it, without NiiVue and shipped models; that path."""
    unused = shutil.ignore_patterns("__pycache__", "niivue.*", "shipped")
    return Path(shutil.copytree(package_folder(), folder / "larmor", ignore=unused))


def package_folder() -> Path:
    """Where the source of `larmor` lies; in a checkout links lead from it to the folders beside it."""
    found = importlib.util.find_spec("larmor")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def pinned_requirements(extras: Collection[str] = ()) -> list[str]:
    """Larmor's dependencies, and those of some `extras`, in the versions that are installed here; Ray is the cluster's.

    Raises `InputError` where only Larmor's source is there.
    """
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError("Larmor is not installed here, so its dependencies are not known: pip install .") from error
    wanted = [
        text for text in requirements if "extra ==" not in text or text.rpartition("==")[2].strip(" \"'") in extras
    ]
    names = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in wanted]
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in names if name != "ray"}
    return [f"{name}=={version}" for name, version in versions.items()]
