"""Simulated coils: together they see the image, each sees a smooth part of it, and `convert` reads the scans."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from larmor.storage.conversion.convert import ConvertOptions, convert
from larmor.storage.dataset.dataset import read_split
from larmor.storage.examples.coils import CoilOptions, Lie, simulate_coils, smooth_maps
from larmor.storage.formats.centred_fft import to_image, to_kspace
from larmor.storage.formats.recognise import find_sources, open_source
from larmor.storage.formats.source import SourceOptions
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import random_kspace, write_heads

SMALL = CoilOptions(num_coils=5, matrix=40, min_foreground=0.01)


def simulated(heads: Path, to: Path, options: CoilOptions = SMALL, overwrite: bool = False) -> list[np.ndarray]:
    """k-space (slice, coil, height, width) of each head."""
    return [np.load(path) for path in simulate_coils(find_sources([str(heads)]), to, options, overwrite)]


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    write_heads(tmp_path / "heads", ["ann", "bob", "cat"])
    return tmp_path / "heads"


def images_of(heads: Path, name: str) -> np.ndarray:
    """The slices (slice, height, width) that a conversion keeps."""
    (ref,) = find_sources([str(heads / f"{name}.nii.gz")])
    with open_source(ref, SourceOptions((40, 40), 0.01)) as source:
        return np.stack([to_image(source.kspace(index)[0]).real for index in source.kept_slices()])


@pytest.mark.parametrize("num_coils", [1, 2, 8, 12])
def test_maps_are_smooth_and_share_the_signal(num_coils: int) -> None:
    maps = smooth_maps(num_coils, (60, 48), np.random.default_rng(0))
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(axis=0), 1, rtol=1e-5)
    steps = max(np.abs(np.diff(maps, axis=axis)).max() for axis in (1, 2))
    assert steps < 0.1, "no map jumps from pixel to pixel"
    spectrum = np.abs(to_kspace(maps * np.hanning(60)[:, None] * np.hanning(48))) ** 2
    assert spectrum[:, 24:37, 18:31].sum() > 0.999 * spectrum.sum()
    if num_coils > 2:
        strongest = np.abs(maps).reshape(num_coils, -1).argmax(axis=0)
        assert len(set(strongest.tolist())) > num_coils / 2, "they stand around the image"


def test_the_coils_together_see_the_image(heads: Path, tmp_path: Path) -> None:
    for name, kspace in zip(("ann", "bob", "cat"), simulated(heads, tmp_path / "coils"), strict=True):
        assert kspace.dtype == np.complex64
        assert kspace.shape[1:] == (5, 40, 40)
        seen = np.linalg.norm(to_image(kspace), axis=1)
        np.testing.assert_allclose(seen, images_of(heads, name), atol=1e-2)


def test_one_array_measures_all_scans_which_lie_differently_in_it(heads: Path, tmp_path: Path) -> None:
    """Its coils keep their order: the strongest coil of a place is that, or the next one, of every scan."""
    seen = [np.abs(to_image(scan))[4, :, 20, 13:27] for scan in simulated(heads, tmp_path / "coils")]
    shares = [coils / np.linalg.norm(coils, axis=0) for coils in seen]
    for other in shares[1:]:
        assert 1e-4 < np.abs(other - shares[0]).max() < 0.3
    array, turned = (smooth_maps(8, (40, 40), np.random.default_rng(0), Lie(turn=turn)) for turn in (0, np.pi / 4))
    places = [np.abs(maps).reshape(8, -1).argmax(axis=1) for maps in (array, turned)]
    assert (places[0] != places[1]).all(), "an eighth of a turn further"


def test_the_object_has_a_smooth_phase_that_drifts(heads: Path, tmp_path: Path) -> None:
    coil = to_image(simulated(heads, tmp_path / "coils")[0])[:, 0]
    middle = coil[:, 18:22, 18:22].reshape(len(coil), -1)
    turns = np.angle(middle[1:] * middle[:-1].conj())
    assert 0 < np.abs(turns).max() < 0.5
    assert np.abs(np.angle(middle)).max() > 0.05


def test_noise_has_the_stated_deviation_in_each_coil(heads: Path, tmp_path: Path) -> None:
    noisy = CoilOptions(num_coils=5, matrix=40, min_foreground=0.01, noise=0.03)
    clean, found = simulated(heads, tmp_path / "clean")[0], simulated(heads, tmp_path / "noisy", noisy)[0]
    noise = (found - clean) / images_of(heads, "ann").max()
    for part in (noise.real, noise.imag):
        np.testing.assert_allclose(part.std(axis=(0, 2, 3)), 0.03, rtol=0.05)
    correlation = np.corrcoef(noise.transpose(1, 0, 2, 3).reshape(5, -1))
    assert np.abs(correlation - np.eye(5)).max() < 0.05, "each coil has its own"


def test_name_and_seed_decide(heads: Path, tmp_path: Path) -> None:
    first, again = (simulated(heads, tmp_path / name) for name in ("one", "two"))
    other = simulated(heads, tmp_path / "three", CoilOptions(5, matrix=40, min_foreground=0.01, seed=1))
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert np.abs(one - three).max() > 1
    few = simulated(heads, tmp_path / "few", CoilOptions(5, matrix=40, min_foreground=0.01, every=3))
    assert [len(scan) for scan in few] == [-(-len(scan) // 3) for scan in first]


def test_convert_reads_them_with_licence_and_origin(heads: Path, tmp_path: Path) -> None:
    (heads / "ann.json").write_text(json.dumps({"licence": "CC0", "source": "a study", "package": "heads 1"}))
    simulated(heads, tmp_path / "coils")
    held_out = {"validation": ["bob"], "test": ["cat"]}
    reports = convert(find_sources([str(tmp_path / "coils")]), str(tmp_path / "set"), ConvertOptions(held_out=held_out))
    assert {report.subject for report in reports} == {"ann", "bob", "cat"}
    info = read_split(ObjectStore(str(tmp_path / "set")), "train")
    assert info.buckets[0].shape == (5, 40, 40)
    assert info.image_volumes == ()
    stated = json.loads((tmp_path / "coils" / "ann.json").read_text())
    assert stated["licence"] == "CC0"
    assert stated["synthetic"] is True
    assert stated["source"].startswith("a study; 5 simulated coils, noise 0")


def test_what_cannot_be_simulated_is_refused(heads: Path, tmp_path: Path) -> None:
    simulated(heads, tmp_path / "coils")
    with pytest.raises(InputError, match=r"ann\.npy: already exists; pass --overwrite"):
        simulated(heads, tmp_path / "coils")
    simulated(heads, tmp_path / "coils", overwrite=True)
    with pytest.raises(InputError, match=r"noise of -1 requested.*use 0 or more"):
        simulated(heads, tmp_path / "no", CoilOptions(noise=-1))
    with pytest.raises(InputError, match=r"0 coils requested; choose 1 to 128"):
        simulated(heads, tmp_path / "no", CoilOptions(num_coils=0))
    with pytest.raises(InputError, match=r"no slice has 100% foreground; lower --min-foreground"):
        simulated(heads, tmp_path / "no", CoilOptions(matrix=40, min_foreground=1))
    np.save(tmp_path / "scan.npy", random_kspace(2))
    with pytest.raises(InputError, match=r"scan\.npy: is k-space already; give images"):
        simulate_coils(find_sources([str(tmp_path / "scan.npy")]), tmp_path / "no", SMALL)
    assert [path.name for path in (tmp_path / "no").iterdir()] == []
