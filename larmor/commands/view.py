"""What `larmor view` shows: data sets, scans, runs, models, reconstructions and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larmor.cluster.runs.published import is_published
from larmor.commands.model_places import is_training, is_url, model_folder
from larmor.storage.dataset.dataset import read_split
from larmor.storage.formats.source import Plane
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore

if TYPE_CHECKING:
    from larmor.recon.models.model import Model
    from larmor.recon.recipe.signal import SignalConfig
    from larmor.recon.viewing.live import Gallery
    from larmor.recon.viewing.server import ViewServer

_NAMED = 8  # runs that a message names
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class ViewOptions:
    """What to show beside the images.

    `model` is a model directory or a URL as for `load_model`; `methods` are those of `EvaluateOptions`. `split`: of a
    data set, default test (of a run: its validation split). `plane`: of slices cut from images. `port`: 0 chooses a
    free one. `trust_code` is as for `load_model`.
    """

    model: str | None = None
    methods: Sequence[str] = ()
    split: str | None = None
    plane: Plane = "coronal"
    port: int = 0
    trust_code: Sequence[str | Path] | None = None


def view(source: str | Path, options: ViewOptions | None = None) -> ViewServer:
    """Serve a page about `source` on 127.0.0.1 (`larmor view`); its `url` opens it, `close` ends it.

    `source` is a data set, scans as for `convert`, a run or a sweep, a model directory, or a folder that `reconstruct`
    or `evaluate` wrote. Raises `InputError` for anything else.
    """
    from larmor.recon.viewing.server import ViewServer

    gallery = _gallery(str(source), options or ViewOptions())
    if not gallery.names:
        gallery.close()
        raise InputError(f"{source}: has nothing to show")
    return ViewServer(gallery, (options or ViewOptions()).port)


def _gallery(source: str, options: ViewOptions) -> Gallery:
    local = Path(source).expanduser()
    if "://" not in source and local.is_dir() and (stored := _stored(local)):
        return stored
    if _is_model(local) or (is_url(source) and is_published(source)) or is_training(source):
        if options.model is not None:
            raise InputError(f"--model {options.model}: {source} is a model itself; leave it out")
        model = _load(source, options.trust_code)
        data = model.recipe.data
        try:
            return _live(source, data.url, options.split or data.validation_split, model, options)
        except InputError as error:
            raise InputError(
                f"{source}: is a model, which is shown on the data set of its training, {data.url}, and that cannot be "
                f"opened ({error}); `larmor view SCANS --model {source}` shows it on other scans"
            ) from error
    beside = _load(options.model, options.trust_code) if options.model else None
    try:
        return _live(source, source, options.split, beside, options)
    except InputError as error:
        if inside := _trainings_in(source):
            names = ", ".join(inside)
            raise InputError(f"{source}: is a folder of runs or sweeps; name one of them: {names}") from error
        raise


def _stored(folder: Path) -> Gallery | None:
    """The slices that the pages of a reconstruction or an evaluation hold."""
    from larmor.recon.inference.slices_page import read_page
    from larmor.recon.viewing.live import StoredGallery

    stacks: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.html")):
        stacks += read_page(path)
    volumes = {}
    for path in sorted(folder.glob("*-reconstruction.nii.gz")):
        volumes[path.name.removesuffix("-reconstruction.nii.gz")] = path
    return StoredGallery(folder.name, stacks, volumes) if stacks else None


def _is_model(place: Path) -> bool:
    return (place / "generator.safetensors").is_file()


def _trainings_in(source: str) -> list[str]:
    """The names of a few runs and sweeps right below a folder or URL, as a remedy."""
    local = Path(source).expanduser()
    if "://" not in source and not local.is_dir():
        return []
    folders = ObjectStore(source).folders()[:_NAMED]
    places = {name: f"{source.rstrip('/')}/{name}" for name in folders}
    return [name for name, place in places.items() if is_training(place) or ObjectStore(place).exists("config.yaml")]


def _load(place: str, trust_code: Sequence[str | Path] | None) -> Model:
    from larmor.recon.models.model import load_model

    return load_model(model_folder(place), trust_code=trust_code)


def _live(title: str, source: str, split: str | None, model: Model | None, options: ViewOptions) -> Gallery:
    from larmor.recon.inference.inference import Physics
    from larmor.recon.models.scans import is_dataset, open_scans
    from larmor.recon.viewing.live import UNDERSAMPLED, LiveGallery, Recipes

    plain = Physics((256, 256), UNDERSAMPLED, _signal(source, split))
    wants = model is not None or bool(options.methods) or is_dataset(source)
    physics = model.physics if model else plain
    # the size of the training for its own data; scans are shown whole
    whole = model is None or not is_dataset(source)
    scans = open_scans(source, physics, split, plane=options.plane, whole=whole)
    recipes = Recipes(model, options.methods, physics if wants else None)
    return LiveGallery(title, scans, recipes, _volumes(source))


def _signal(source: str, split: str | None) -> SignalConfig:
    """What the images are where no model says it."""
    from larmor.recon.models.scans import is_dataset
    from larmor.recon.recipe.signal import SignalConfig

    if is_dataset(source) and read_split(ObjectStore(source), split or "test").modality == "pet":
        return SignalConfig(mode="pet")
    return SignalConfig()


def _volumes(source: str) -> dict[str, Path]:
    """The NIfTI files of a file or folder, by the name of their scan."""
    place = Path(source).expanduser()
    files = [place] if place.is_file() else sorted(place.rglob("*")) if place.is_dir() else []
    found = {}
    for path in files:
        for suffix in _NIFTI:
            if path.name.lower().endswith(suffix):
                found[path.name[: -len(suffix)]] = path
    return found
