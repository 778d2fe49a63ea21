"""What nibabel reads is read: each kind gives what its NIfTI twin gives, from folders and from S3."""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
from nibabel.parrec import PARRECImage

from larmor.storage.formats import volume_array
from larmor.storage.formats.recognise import find_sources, open_source
from larmor.storage.formats.source import SourceOptions, SourceRef
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import ellipsoid

OPTIONS = SourceOptions((36, 32), 0.0)
DATA = (ellipsoid((16, 12, 18)) * 30 + np.arange(18)).astype(np.int16)
AFFINE = np.array([[0, 1.5, 0, 4], [-1.25, 0, 0, 2], [0, 0, 1.0, -5], [0, 0, 0, 1]])
PHILIPS = Path(nibabel.__file__).parent / "tests" / "data" / "phantom_EPI_asc_CLEAR_2_1.PAR"


def save(kind: type, name: str, affine: np.ndarray = AFFINE) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        nibabel.save(kind(DATA, affine), folder / name)

    return write


def analyze(folder: Path) -> None:
    save(nibabel.AnalyzeImage, "head.img", np.diag([-1.5, 1.5, 2, 1]))(folder)
    (folder / "head.mat").unlink(missing_ok=True)


def minc2(folder: Path) -> None:
    """MINC 2 as its specification has it: (z, y, x), a direction for each axis."""
    with h5py.File(folder / "head.mnc", "w") as file:
        root = file.create_group("minc-2.0")
        for number, axis in enumerate("zyx"):
            variable = root.create_dataset(f"dimensions/{axis}space", data=0)
            variable.attrs["step"], variable.attrs["start"] = 1.0 + number / 4, -5.0
            variable.attrs["length"] = DATA.shape[number]
            variable.attrs["direction_cosines"] = np.roll([0.0, 0.0, 1.0], -number)
            variable.attrs["spacing"] = np.bytes_("regular__")
        image = root.create_dataset("image/0/image", data=DATA)
        image.attrs["dimorder"] = np.bytes_("zspace,yspace,xspace")
        image.attrs["valid_range"] = np.array([0.0, 255.0])
        for name, value in (("min", 0.0), ("max", 255.0)):
            root.create_dataset(f"image/0/image-{name}", data=value).attrs["dimorder"] = np.bytes_("")


def philips(folder: Path) -> None:
    """The first of the three repetitions of nibabel's own example."""
    lines = PHILIPS.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not re.match(r"\s*\d+\s+\d+\s+[23]\s", line)]
    text = re.sub(r"(Max. number of dynamics\s*:\s*)3", r"\g<1>1", "".join(kept))
    (folder / "head.PAR").write_text(text)
    content = np.fromfile(PHILIPS.with_suffix(".REC"), "<u2").reshape(3, 9, 64, 64)
    content[0].tofile(folder / "head.REC")


KINDS: dict[str, tuple[str, Callable[[Path], None], int]] = {  # format, writer, number of files
    ".nii.bz2": ("nifti", save(nibabel.Nifti1Image, "head.nii.bz2"), 1),
    ".mgz": ("mgh", save(nibabel.MGHImage, "head.mgz"), 1),
    ".mgh": ("mgh", save(nibabel.MGHImage, "head.mgh"), 1),
    "NIfTI pair": ("analyze", save(nibabel.Nifti1Pair, "head.img"), 2),
    "Analyze": ("analyze", analyze, 2),
    "SPM": ("analyze", save(nibabel.Spm99AnalyzeImage, "head.img"), 3),
    "MINC": ("minc", minc2, 1),
    "Philips": ("parrec", philips, 2),
}


@pytest.fixture(params=KINDS)
def scan(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    KINDS[request.param][1](tmp_path / "in")
    return tmp_path / "in"


def twin_of(folder: Path, target: Path) -> SourceRef:
    """What nibabel itself makes of the files, as NIfTI."""
    names = [path for path in folder.iterdir() if path.suffix.lower() not in (".hdr", ".mat", ".rec")]
    image: Any = nibabel.load(names[0])
    target.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj, np.float64), image.affine), target / "head.nii")
    return find_sources([str(target)])[0]


def test_a_kind_gives_what_its_nifti_twin_gives(
    scan: Path,
    tmp_path: Path,
    store_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    kind, _, num_files = KINDS[request.node.callspec.params["scan"]]
    twin = twin_of(scan, tmp_path / "twin")
    monkeypatch.setattr(volume_array, "SLAB_BYTES", 3 * 8 * 16 * 12)
    url = f"s3://larmor/{uuid.uuid4().hex}"
    ObjectStore(url).upload(scan, "in")
    for place in (str(scan), f"{url}/in"):
        said: list[str] = []
        (ref,) = find_sources([place], said.append)
        assert (ref.format, ref.name, len(ref.files), said) == (kind, "head", num_files, [])
        with open_source(ref, OPTIONS) as source, open_source(twin, OPTIONS) as other:
            assert source.num_slices == other.num_slices > 1
            assert source.voxel_size == pytest.approx(other.voxel_size, rel=1e-5)
            for index in range(source.num_slices):
                one, wanted = source.kspace(index), other.kspace(index)
                assert np.linalg.norm(one - wanted) <= 1e-5 * np.linalg.norm(wanted)


def test_a_header_may_be_named_and_stands_for_its_image(tmp_path: Path) -> None:
    save(nibabel.Nifti1Pair, "head.img")(tmp_path)
    philips(tmp_path)
    (tmp_path / "head.PAR").rename(tmp_path / "other.PAR")
    (tmp_path / "head.REC").rename(tmp_path / "other.REC")
    refs = find_sources([str(tmp_path / "head.hdr"), str(tmp_path / "head.img"), str(tmp_path / "other.PAR")])
    assert [(ref.name, ref.format) for ref in refs] == [("head", "analyze"), ("other", "parrec")]


def test_an_analyze_file_without_orientation_says_so(tmp_path: Path) -> None:
    for folder, write in {"plain": analyze, "spm": KINDS["SPM"][1], "nifti": KINDS["NIfTI pair"][1]}.items():
        (tmp_path / folder).mkdir()
        write(tmp_path / folder)
        (ref,) = find_sources([str(tmp_path / folder)])
        with open_source(ref, OPTIONS) as source:
            assert [("no orientation" in note) for note in source.notes] == [True] * (folder == "plain")


def test_a_nifti_pair_is_repaired_as_a_single_file_is(tmp_path: Path) -> None:
    """Its header is read as that of any NIfTI file."""
    image = nibabel.Nifti1Pair(DATA, np.diag([-1.0, 1.5, 2, 1]))
    image.set_sform(None, 0)
    image.set_qform(image.affine, 1)
    nibabel.save(image, tmp_path / "head.img")
    content = bytearray((tmp_path / "head.hdr").read_bytes())
    struct.pack_into("<3f", content, 256, 0, 1 + 2e-6, 0)  # quatern_b, quatern_c, quatern_d
    (tmp_path / "head.hdr").write_bytes(content)
    (ref,) = find_sources([str(tmp_path)])
    with open_source(ref, OPTIONS) as source:
        assert ["quaternion" in note for note in source.notes] == [True]


def cut(name: str, count: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-count])  # type: ignore[return-value]


def text(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("hello " * 100)  # type: ignore[return-value]


def four(folder: Path) -> None:
    nibabel.save(nibabel.MGHImage(np.stack([DATA, DATA], axis=3), AFFINE), folder / "head.mgz")


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a cut .mgz": (".mgz", cut("head.mgz", 40), "head.mgz: cannot be read to its end"),
    "a cut .nii.bz2": (".nii.bz2", cut("head.nii.bz2", 40), "head.nii.bz2: cannot be read to its end"),
    "a cut .img": ("NIfTI pair", cut("head.img", 40), "head.img: cannot be read to its end"),
    "no .hdr": ("NIfTI pair", lambda folder: (folder / "head.hdr").unlink(), "head.hdr: no such file, which its other"),
    "no .PAR": ("Philips", lambda folder: (folder / "head.PAR").unlink(), "head.PAR: no such file, which its other"),
    "a text": ("MINC", text("head.mnc"), "head.mnc: does not match its suffix"),
    "another text": (".mgh", text("head.mgh"), "head.mgh: "),
    "a .PAR of text": ("Philips", text("head.PAR"), "head.REC: its header is invalid"),
    "4-D": (".mgz", four, r"head.mgz: has shape \(16, 12, 18, 2\); one 3-D volume is expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    kind, damage, reason = BAD[case]
    KINDS[kind][1](tmp_path)
    damage(tmp_path)
    (ref,) = find_sources([str(tmp_path)])
    with pytest.raises(InputError, match=f"^{tmp_path}/{reason}"), open_source(ref, OPTIONS):
        pass


def test_the_example_of_philips_is_what_it_is_taken_for(tmp_path: Path) -> None:
    philips(tmp_path)
    whole, first = PARRECImage.load(PHILIPS), PARRECImage.load(tmp_path / "head.PAR")
    assert np.array_equal(np.asarray(first.dataobj), np.asarray(whole.dataobj)[..., 0])
