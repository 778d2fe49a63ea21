"""MRD 2 through pipes: the phantom and the readers of `mrd-python`, and the images of `larmor reconstruct`."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from larmor.recon.models.model import Model
from larmor.recon.serving.pipe import reconstruct_stream
from larmor.storage.formats.mrd2_items import preamble
from larmor.storage.objects.errors import InputError
from tests.helpers import small_recipe, write_model
from tests.recon.models.test_reconstruct import make_model
from tests.recon.serving.test_serving import of_file
from tests.storage.formats.test_mrd import ENCODING, HEADER, LIMIT, line

mrd: Any = pytest.importorskip("mrd", reason="pip install mrd-python")
pytestmark = pytest.mark.filterwarnings("ignore::xsdata.exceptions.ConverterWarning")
SIZE = 32
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(trained=True)


def phantom(coils: int = 1, repetitions: int = 1, oversampling: int = 1) -> bytes:
    """The package's own phantom."""
    from mrd.tools.phantom import generate

    content = io.BytesIO()
    generate(content, SIZE, coils, oversampling, repetitions, 0.05)
    return content.getvalue()


def read(content: bytes) -> tuple[Any, list[Any]]:
    """The header and the items, by the package's own reader."""
    with mrd.BinaryMrdReader(io.BytesIO(content)) as reader:
        header = reader.read_header()
        return header, list(reader.read_data())


def written(header: Any, items: list[Any]) -> bytes:
    content = io.BytesIO()
    with mrd.BinaryMrdWriter(content) as writer:
        writer.write_header(header)
        writer.write_data(items)
    return content.getvalue()


class Unbuffered(io.BytesIO):
    """Takes a part of what is written, as a pipe may."""

    def write(self, content: Any, /) -> int:
        return super().write(content[:5000])


def images_of(model: Model, content: bytes) -> list[Any]:
    to = Unbuffered()
    count = reconstruct_stream(model, io.BytesIO(content), to)
    header, items = read(to.getvalue())
    assert header == read(content)[0]
    assert [type(item) for item in items] == count * [mrd.StreamItem.ImageFloat]
    return [item.value for item in items]


def as_file(content: bytes, repetition: int) -> tuple[str, list[Any]]:
    """The header and the lines of one repetition, by hand, for a file of ISMRMRD."""
    header, items = read(content)
    space = header.encoding[0].encoded_space.matrix_size
    limits = LIMIT.format(0, SIZE - 1, SIZE // 2, n=1)
    encoding = ENCODING.format(x=space.x, y=space.y, z=1, limits=limits, trajectory="cartesian")
    lines = []
    for item in items:
        head = item.value.head
        if not head.flags & mrd.AcquisitionFlags.IS_NOISE_MEASUREMENT and head.idx.repetition == repetition:
            lines.append(line(item.value.data, kspace_encode_step_1=head.idx.kspace_encode_step_1))
    return HEADER.format(encodings=encoding), lines


@pytest.mark.parametrize(("coils", "oversampling"), [(1, 1), (3, 1), (1, 2)])
def test_images_of_the_packages_phantom_are_those_of_the_file(
    model: Model, tmp_path: Path, coils: int, oversampling: int
) -> None:
    content = phantom(coils, 2, oversampling)
    images = images_of(model, content)
    assert [(image.head.repetition, image.head.image_index) for image in images] == [(0, 1), (1, 2)]
    for repetition, image in enumerate(images):
        folder = tmp_path / str(repetition)
        folder.mkdir()
        expected = of_file(model, folder, *as_file(content, repetition))
        assert image.data.shape == (1, 1, SIZE, oversampling * SIZE)  # rows are lines of the phase encoding
        assert np.array_equal(image.data[0, 0].T, expected[0])
        assert list(image.head.field_of_view) == [300 * oversampling, 300, 5]
        assert [list(image.head.col_dir), list(image.head.line_dir)] == [[1, 0, 0], [0, 1, 0]]


def test_all_coils_together_as_in_a_file(tmp_path: Path) -> None:
    signal = {"mode": "complex", "coils": "all", "num_coils": 3}
    model = make_model(signal=signal, generator={"width": 4, "data_consistency": "hard"})
    content = phantom(coils=2)
    (image,) = images_of(model, content)
    assert np.array_equal(image.data[0, 0].T, of_file(model, tmp_path, *as_file(content, 0))[0])
    with pytest.raises(InputError, match="4 coils are sent; the model takes 3"):
        images_of(model, phantom(coils=4))


def test_waveforms_are_passed_over_and_counted_blocks_are_read(model: Model) -> None:
    header, items = read(phantom())
    waveform = mrd.WaveformUint32(data=np.arange(600, dtype=np.uint32).reshape(2, 300))
    (image,) = images_of(model, written(header, [mrd.StreamItem.WaveformUint32(waveform), *items]))
    assert image.head.image_type == mrd.ImageType.MAGNITUDE


def test_an_image_is_there_before_the_next_line_is_sent(model: Model) -> None:
    """The source waits for the image before it goes on."""
    content = phantom()
    images, outputs = os.pipe()
    inputs, lines = os.pipe()

    def work() -> None:
        with open(inputs, "rb") as source, io.FileIO(outputs, "wb") as to:
            reconstruct_stream(model, source, to)

    thread = threading.Thread(target=work)
    thread.start()
    with open(lines, "wb", buffering=0) as out, open(images, "rb") as back:
        out.write(content[:-1])  # all but the end of the stream
        first = back.read(4 * SIZE * SIZE + len(preamble()))  # more than the header
        assert len(first) == 4 * SIZE * SIZE + len(preamble())
        out.write(content[-1:])
        out.close()
        (item,) = read(first + back.read())[1]
    thread.join()
    assert item.value.data.shape == (1, 1, SIZE, SIZE)


def changed(name: str) -> bytes:
    """The phantom's stream, with something wrong."""
    content = phantom()
    header, items = read(content)
    data = [item for item in items if not item.value.head.flags & mrd.AcquisitionFlags.IS_NOISE_MEASUREMENT]
    encoding, first = header.encoding[0], data[0].value
    if name in ("empty", "garbage", "old", "cut", "cut header"):
        text = {"empty": b"", "garbage": b"GET / HTTP/1.1\r\n" * 9000, "old": content[:5] + b"\2" + content[6:]}
        cuts = {"cut": content[:-5000], "cut header": content[: len(preamble()) + 20]}
        return {**text, **cuts}[name]
    if name == "radial":
        encoding.trajectory = mrd.Trajectory.RADIAL
    elif name == "no encoding":
        header.encoding = []
    elif name == "no matrix":
        encoding.encoded_space.matrix_size.x = 0
    elif name == "short line":
        first.data = first.data[:, :-2]
    elif name == "nothing":
        first.data = first.data[:, :0]
    elif name == "nan":
        first.data = first.data * np.nan
    elif name == "counter":
        first.head.idx.kspace_encode_step_1 = 2**20
    elif name == "limits":
        first.head.idx.kspace_encode_step_1 = SIZE + 1
    elif name == "image":
        head = mrd.ImageHeader(image_type=mrd.ImageType.MAGNITUDE)
        data.insert(0, mrd.StreamItem.ImageFloat(mrd.Image(head=head, data=np.ones((1, 1, 4, 4), np.float32))))
    elif name in ("size", "kind"):
        whole = written(header, data[:1])
        start = len(written(header, [])) - 1
        if name == "kind":
            return whole[:start] + b"\1\77"
        coils = whole.rindex(b"\1\40" + first.data.tobytes())  # its shape, (1, 32), is written before the samples
        return whole[:coils] + b"\xff\xff\xff\x7f" + whole[coils + 1 :]
    return written(header, data)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("empty", "ends in the middle"),
        ("garbage", "no MRD 2 stream of a version"),
        ("old", "no MRD 2 stream of a version"),
        ("cut", "ends in the middle of an item"),
        ("cut header", "ends in the middle"),
        ("no encoding", "describes no encoding"),
        ("no matrix", "matrixSize.x is 0"),
        ("radial", "its trajectory is radial"),
        ("short line", "samples="),
        ("nothing", "no samples"),
        ("nan", "not finite"),
        ("counter", "at most 65535"),
        ("limits", "correct them"),
        ("image", "the stream holds ImageFloat; send acquisitions"),
        ("kind", "the stream holds item 63"),
        ("size", "bytes; at most"),
    ],
)
def test_what_is_wrong_is_said_and_the_stream_stays_open(model: Model, name: str, sentence: str) -> None:
    to = io.BytesIO()
    with pytest.raises(InputError, match=sentence):
        reconstruct_stream(model, io.BytesIO(changed(name)), to)
    if to.getvalue():
        with pytest.raises((EOFError, mrd.ProtocolError)):
            read(to.getvalue())


def test_a_model_of_stacks_is_refused(model: Model) -> None:
    stacks = dataclasses.replace(model, physics=dataclasses.replace(model.physics, stack=3))
    with pytest.raises(InputError, match="sees 3 slices together"):
        reconstruct_stream(stacks, io.BytesIO(), io.BytesIO())


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model", small_recipe())


def piped(model_dir: Path, source: str, reader: str, folder: Path) -> tuple[list[int], str]:
    """`source` | larmor stream | `reader`, by a shell: the exit statuses, and what came to standard error."""
    larmor = f"{sys.executable} -m larmor stream {model_dir}"
    command = f"{source} | {larmor} | {reader} > out; echo ${{PIPESTATUS[@]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    return [int(status) for status in done.stdout.split()], done.stderr


def test_the_packages_tools_on_both_sides_of_the_command(model_dir: Path, tmp_path: Path) -> None:
    tools = f"{sys.executable} -m mrd.tools"
    statuses, said = piped(
        model_dir, f"{tools}.phantom -m 32 -c 2 -r 3 -s 1", f"{tools}.export_png_images -o image-", tmp_path
    )
    assert statuses == [0, 0, 0], said
    assert said == "3 image(s)\n"
    for number in range(3):
        with Image.open(tmp_path / f"image-{number:04d}.png") as image:
            assert image.size == (32, 32)
            assert np.asarray(image).std() > 20


def test_a_reader_that_has_gone_is_said(model: Model) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with io.FileIO(writing, "wb") as to, pytest.raises(InputError, match="nobody reads the images any more; 0 were"):
        reconstruct_stream(model, io.BytesIO(phantom()), to)


def test_a_stream_that_is_cut_ends_the_command_with_a_sentence(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(phantom()[:-200])
    statuses, said = piped(model_dir, "cat cut", "cat", tmp_path)
    assert (statuses, said.count("\n")) == ([0, 1, 0], 1)
    assert said.startswith("larmor: the stream ends in the middle")
