"""Scans of any number of coils as images of so many: compressed, filled up, and refused without a phase."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from larmor.recon.inference.inference import Physics, undersampled_split
from larmor.recon.physics.coils import coils_of_scan, coils_of_split, compressed, compression_matrix
from larmor.recon.physics.feed import to_device
from larmor.recon.physics.fourier import fft2c
from larmor.recon.physics.samples import display, prepare, root_sum_of_squares
from larmor.recon.physics.sense import channels_to_complex
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.signal import SignalConfig, check_phase
from larmor.storage.conversion.convert import ConvertOptions, convert
from larmor.storage.formats.recognise import find_sources
from larmor.storage.loading.config import DataConfig, open_reader
from larmor.storage.loading.loader import Batch
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import coil_scan, random_kspace, write_coil_splits, write_heads

CPU = torch.device("cpu")
SIZE = (40, 36)
MASK = MaskConfig(kind="gaussian1d", sampling_ratio=0.4)
FOUR = SignalConfig(mode="complex", coils="all", num_coils=4)


def samples_of(count: int) -> np.ndarray:
    return np.array([(0, place) for place in range(count)])


@pytest.fixture(scope="module")
def scans() -> list[np.ndarray]:
    """k-space of 6, 3 and 4 coils, three slices each."""
    return [coil_scan(coils, 3, *SIZE, seed=seed)[0] for seed, coils in enumerate((6, 3, 4))]


@pytest.fixture
def reader(scans: Sequence[np.ndarray], tmp_path: Path) -> Iterator[SliceReader]:
    store = ObjectStore(str(tmp_path / "set"))
    write_coil_splits(store, {"train": [(kspace, kspace) for kspace in scans]})
    with contextlib.closing(open_reader(DataConfig(url=store.url), "train")) as opened:
        yield opened


class TestCompression:
    def test_virtual_coils_are_orthonormal_and_in_order(self, scans: Sequence[np.ndarray]) -> None:
        matrix = compression_matrix(list(scans[0]), 4)
        np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(4), atol=1e-5)
        strength = np.linalg.norm(np.einsum("vc,scyx->vsyx", matrix, scans[0]).reshape(4, -1), axis=1)
        assert (np.diff(strength) < 0).all()
        largest = matrix[np.arange(4), np.abs(matrix).argmax(axis=1)]
        assert (largest.real > 0).all()
        np.testing.assert_allclose(largest.imag, 0, atol=1e-6)

    def test_what_few_coils_explain_is_kept_whole(self) -> None:
        """Eight coils that mix three: three virtual ones have the same root sum of squares everywhere."""
        rng = np.random.default_rng(0)
        few = random_kspace(2, (3, 20, 24))
        mixing = np.linalg.qr(rng.standard_normal((8, 3)) + 1j * rng.standard_normal((8, 3)))[0]
        many = np.einsum("ck,skyx->scyx", mixing, few).astype(np.complex64)
        matrix = torch.from_numpy(compression_matrix(list(many), 3)).expand(2, 3, 8)
        found = compressed(torch.from_numpy(many), matrix)
        wanted = root_sum_of_squares(torch.from_numpy(few))
        torch.testing.assert_close(root_sum_of_squares(found), wanted, rtol=1e-4, atol=1e-4)

    def test_no_other_coils_would_keep_more(self, scans: Sequence[np.ndarray]) -> None:
        whole = np.linalg.norm(scans[0])
        kept = np.linalg.norm(np.einsum("vc,scyx->svyx", compression_matrix(list(scans[0]), 4), scans[0]))
        assert kept / whole > 0.99
        dropped = np.linalg.norm(scans[0][:, :4])
        assert kept > 1.05 * dropped, "than leaving two of them out"


class TestSplit:
    def test_a_scan_has_one_matrix_whatever_the_batch(self, reader: SliceReader) -> None:
        alone = coils_of_split(reader, FOUR)
        one = [alone(to_device(Batch.read(reader, np.array([(0, index)])), CPU)).groups[0].kspace for index in range(9)]
        together = coils_of_split(reader, FOUR)(to_device(Batch.read(reader, samples_of(9)[::-1].copy()), CPU))
        for group in together.groups:
            for row, kspace in zip(group.rows, group.kspace, strict=True):
                torch.testing.assert_close(kspace[None], one[8 - row])

    def test_scans_with_as_many_or_fewer_coils_stay_as_they_are(
        self, reader: SliceReader, scans: Sequence[np.ndarray]
    ) -> None:
        batch = coils_of_split(reader, FOUR)(to_device(Batch.read(reader, samples_of(9)), CPU))
        sample = prepare(batch, SIZE, MASK, CPU, signal=FOUR)
        assert sample.kspace.shape == (9, 4, *SIZE)
        assert sample.target.shape == (9, 8, *SIZE)
        own = sample.kspace * sample.scale[:, 1].view(-1, 1, 1, 1)
        for first, scan in ((3, scans[1]), (6, scans[2])):
            coils = scan.shape[1]
            expected = torch.from_numpy(scan) * sample.mask[first : first + 3]
            torch.testing.assert_close(own[first : first + 3, :coils], expected, rtol=1e-4, atol=1e-2)
            assert not own[first : first + 3, coils:].any(), "coils that are not there see nothing"

    def test_other_signals_are_not_touched(self, reader: SliceReader) -> None:
        batch = to_device(Batch.read(reader, samples_of(2)), CPU)
        assert coils_of_split(reader, SignalConfig(mode="complex", coils="rss"))(batch) is batch

    def test_evaluation_sees_the_same(self, reader: SliceReader) -> None:
        physics = Physics(SIZE, MASK, FOUR)
        found = [sample for _, sample in undersampled_split(reader, range(9), physics, 2, CPU)]
        whole = next(sample for _, sample in undersampled_split(reader, range(9), physics, 9, CPU))
        torch.testing.assert_close(torch.cat([sample.target for sample in found]), whole.target)


def test_a_sample_is_of_all_coils_in_units_of_their_root_sum_of_squares(scans: Sequence[np.ndarray]) -> None:
    sample = prepare(Batch.of(scans[2], samples_of(3)), SIZE, MASK, CPU, signal=FOUR)
    assert sample.maps is None
    assert display(sample.zero_filled).amax(dim=(1, 2)).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    target = channels_to_complex(sample.target)
    torch.testing.assert_close(fft2c(target) * sample.mask, sample.kspace, rtol=0, atol=2e-5)
    wanted = root_sum_of_squares(target)[:, 0]
    torch.testing.assert_close(display(sample.target), wanted, rtol=0, atol=1e-6)


def test_a_scan_of_a_file_is_compressed_as_a_volume_of_a_split(
    reader: SliceReader, scans: Sequence[np.ndarray]
) -> None:
    scan = coils_of_scan(lambda places: [scans[0][place] for place in places], 3, FOUR)
    found = scan(to_device(Batch.of(scans[0], samples_of(3)), CPU)).groups[0].kspace
    split = coils_of_split(reader, FOUR)(to_device(Batch.read(reader, samples_of(3)), CPU)).groups[0].kspace
    torch.testing.assert_close(found, split)


def test_images_without_a_phase_are_refused(tmp_path: Path) -> None:
    write_heads(tmp_path / "heads", ["ann", "bob"])
    np.save(tmp_path / "heads" / "cat.npy", np.random.default_rng(0).uniform(1, 9, (3, 64, 64)).astype(np.float32))
    np.save(tmp_path / "heads" / "dan.npy", random_kspace(3, (1, 64, 64)))
    held_out = {"validation": ["bob"], "test": ["dan"]}
    convert(find_sources([str(tmp_path / "heads")]), str(tmp_path / "set"), ConvertOptions((64, 64), 0.01, held_out))
    for split, names in {"train": ("ann", "cat"), "validation": ("bob",), "test": ()}.items():
        with contextlib.closing(open_reader(DataConfig(url=str(tmp_path / "set")), split)) as opened:
            assert opened.info.image_volumes == names
            check_phase(SignalConfig(mode="complex"), split, opened.info.image_volumes)
            if names:
                with pytest.raises(InputError, match=rf"{names[0]} holds magnitude images.*larmor simulate coils"):
                    coils_of_split(opened, FOUR)
            else:
                coils_of_split(opened, FOUR)
