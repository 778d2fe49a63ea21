"""A model that sees a second contrast, from the data set to an image; and where there is no place for one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import larmor
from larmor.cluster.on_ray.http_server import HttpOptions, http_server
from larmor.commands.data import convert
from larmor.commands.models import EvaluateOptions, ReconstructOptions, evaluate, export, pull, reconstruct
from larmor.commands.serve import serve, stream
from larmor.commands.training import train
from larmor.recon.evaluation.tables import table_text
from larmor.recon.models.measured import measured_sample
from larmor.recon.models.model import Model, load_model
from larmor.storage.conversion.convert import ConvertOptions
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.loading.loader import Batch
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.experiment import load_sweep_experiment
from tests.helpers import ellipsoid, write_volume
from tests.recon.models.test_reconstruct import data_of

NAMES = ("a", "b", "c")
SHAPE = (32, 14, 32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`t1` and `t2`, the data set `guided` of both, and the models `with` and `without`, trained for two steps."""
    folder = tmp_path_factory.mktemp("guided")
    for seed, name in enumerate(NAMES):
        write_volume(folder / "t1" / f"{name}.nii.gz", ellipsoid(SHAPE, seed))
        write_volume(folder / "t2" / f"{name}.nii.gz", 10 * ellipsoid(SHAPE, seed + 50))
    held_out = {"validation": ["b"], "test": ["c"]}
    options = ConvertOptions((32, 32), 0.01, held_out, num_threads=2)
    convert(folder / "t1", str(folder / "guided"), options, guide=folder / "t2")
    for name, guide in (("with", "true"), ("without", "false")):
        experiment = load_sweep_experiment("laptop", settings(folder, name, f"signal.guide={guide}")).training_part()
        train(experiment, local=True)
        pull(experiment.run_url, folder / name)
    return folder


def settings(folder: Path, name: str, *more: str) -> tuple[str, ...]:
    return (
        f"name={name}",
        "system=larmor",
        f"data.url={folder / 'guided'}",
        f"output_url={folder / 'runs'}",
        "data.client=s3fs",
        "data.crop=[32,32]",
        "augment.flip=0.5",
        "augment.rotation=10",
        "mask.sampling_ratio=0.3",
        "generator.width=4",
        "generator.levels=2",
        "generator.start.iterations=4",
        "critic.width=4",
        "cluster.num_workers=1",
        "training.num_steps=2",
        "training.validate_every=2",
        "training.checkpoint_every=2",
        "training.validation_slices=2",
        "training.global_batch_size=4",
        "training.backend=plain",
        "training.zero_stage=0",
        *more,
    )


def test_both_stand_in_one_table(place: Path) -> None:
    """On the same slices and masks; the one without is rated as it is where no guide lies beside the slices."""
    both = evaluate(
        [place / "with", place / "without"], str(place / "guided"), EvaluateOptions(every=3), to=place / "t"
    )
    (table,) = both.tables
    assert [row[0] for row in table_text(table)[1]] == ["zero_filled", "larmor with guide", "larmor"]
    assert table.label.endswith("with a guide")
    (alone,) = evaluate(place / "without", str(place / "guided"), EvaluateOptions(every=3), to=place / "u").tables
    for method in ("larmor", "zero_filled"):
        assert all(alone.mean(method)[name] == table.mean(method)[name] for name in ("psnr", "ssim", "nmse"))


def test_files_give_the_images_of_the_data_set(place: Path, tmp_path: Path) -> None:
    model = place / "with"
    options = ReconstructOptions(guide=str(place / "t2" / "c.nii.gz"))
    (of_file,) = reconstruct(model, str(place / "t1" / "c.nii.gz"), tmp_path / "files", options)
    (of_set,) = reconstruct(model, str(place / "guided"), tmp_path / "set")
    assert not of_file.problem
    images, stored = (data_of(report.files[0]) for report in (of_file, of_set))
    np.testing.assert_allclose(images[1:13], stored, atol=1e-3 * stored.max())  # but for the outermost


def test_the_guide_counts(place: Path, tmp_path: Path) -> None:
    """Another guide gives another image, and a brighter one the same: it is in units of its own."""
    write_volume(tmp_path / "other" / "c.nii.gz", ellipsoid(SHAPE, 99))
    write_volume(tmp_path / "brighter" / "c.nii.gz", 70 * ellipsoid(SHAPE, 52))
    found = []
    for guide in (place / "t2", tmp_path / "other", tmp_path / "brighter"):
        options = ReconstructOptions(guide=str(guide / "c.nii.gz"), format="npy")
        (report,) = reconstruct(place / "with", str(place / "t1" / "c.nii.gz"), tmp_path / guide.name, options)
        found.append(data_of(report.files[0]))
    assert np.abs(found[0] - found[1]).max() > 1e-4
    np.testing.assert_allclose(found[0], found[2], atol=1e-4)


@pytest.mark.parametrize(
    ("model", "source", "guide", "message"),
    [
        ("with", "t1/c.nii.gz", None, "sees a second contrast.*--guide"),
        ("without", "t1/c.nii.gz", "t2/c.nii.gz", r"sees no second contrast \(signal.guide=false\)"),
        ("with", "guided", "t2", "is a data set, which holds its own guides"),
        ("with", "t1/c.nii.gz", "none.nii.gz", "none.nii.gz"),
        ("with", "t1", "t2/c.nii.gz", "subject 'a' has no guide"),
        ("with", "t1/c.nii.gz", "t1/c.nii.gz", "would be its own guide"),
    ],
)
def test_a_guide_too_few_or_too_many(
    place: Path, tmp_path: Path, model: str, source: str, guide: str | None, message: str
) -> None:
    options = ReconstructOptions(guide=None if guide is None else str(place / guide))
    with pytest.raises(InputError, match=message):
        reconstruct(place / model, str(place / source), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_guide_of_another_shape_is_the_problem_of_its_scan(place: Path, tmp_path: Path) -> None:
    write_volume(tmp_path / "c.nii.gz", ellipsoid((32, 12, 32), 1))
    options = ReconstructOptions(guide=str(tmp_path / "c.nii.gz"))
    (report,) = reconstruct(place / "with", str(place / "t1" / "c.nii.gz"), tmp_path / "out", options)
    assert "has 12 slices, not 14" in report.problem
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_guides_is_refused(place: Path, tmp_path: Path) -> None:
    convert(place / "t1", str(tmp_path / "plain"), ConvertOptions((32, 32), 0.01, {"validation": ["b"], "test": ["c"]}))
    for use in (
        lambda: evaluate(place / "with", str(tmp_path / "plain"), to=tmp_path / "t"),
        lambda: reconstruct(place / "with", str(tmp_path / "plain"), tmp_path / "out"),
        lambda: larmor.open_dataset(tmp_path / "plain", "train", signal={"guide": True}),
    ):
        with pytest.raises(InputError, match="has no guide"):
            use()


@pytest.mark.parametrize(
    "use",
    [
        lambda model, folder: export(model, folder / "model.onnx"),
        lambda model, _: serve(model),
        lambda model, _: stream(model, io.BytesIO(), io.BytesIO()),
        lambda model, _: http_server(model, HttpOptions()).__enter__(),
    ],
)
def test_where_there_is_no_place_for_a_guide(place: Path, tmp_path: Path, use: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="sees a second contrast"):
        use(place / "with", tmp_path)


def test_measured_kspace_comes_with_its_guide(place: Path) -> None:
    model = load_model(place / "with")
    images = np.random.default_rng(0).uniform(1, 2, (2, 2, 1, 32, 32)).astype(np.float32)
    measured, guide = image_to_kspace(images)
    sample = measured_sample(Batch.of(measured, np.zeros((2, 2), np.int64), guide=guide), model, CPU)
    assert sample.guide is not None
    expected = torch.from_numpy(images[1])
    assert torch.allclose(sample.guide / sample.guide.amax(), expected / expected.amax(), atol=1e-2)
    with pytest.raises(InputError, match="come without a guide"):
        measured_sample(Batch.of(measured, np.zeros((2, 2), np.int64)), model, CPU)


def test_a_loop_of_ones_own_gets_it(place: Path) -> None:
    with_guide = larmor.open_dataset(place / "guided", "train", signal={"guide": True}, shuffle=False)
    plain = larmor.open_dataset(place / "guided", "train", shuffle=False)
    sample = with_guide[3]
    assert sample["guide"].shape == sample["target"].shape == (1, 32, 32)
    assert torch.equal(sample["target"], plain[3]["target"])
    assert "guide" not in plain[3]
    with_guide.close()
    plain.close()


def test_the_model_knows(place: Path) -> None:
    model: Model = load_model(place / "with")
    assert model.recipe.signal.guide
    assert model.recipe.title == "larmor with guide"
    cards = [(place / name / "model-card.md").read_text() for name in ("with", "without")]
    assert ["sees a second, registered contrast" in card for card in cards] == [True, False]
