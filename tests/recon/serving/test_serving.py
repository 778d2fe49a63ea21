"""Scans sent by foreign clients come back as the images that `larmor reconstruct` makes of them as files."""

from __future__ import annotations

import gc
import os
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigText

from larmor.recon.models.model import Model
from larmor.recon.models.reconstruct import reconstruct_scans
from larmor.recon.models.scans import open_scans
from larmor.recon.serving.server import Listening, ScanServer
from larmor.storage.objects.errors import InputError
from tests.recon.models.test_reconstruct import make_model
from tests.recon.serving.clients import exchange, gadgetron_scan, scan
from tests.storage.formats.test_mrd import line, lines_of, random_kspace, write, xml

SHAPE = (32, 32)
HEADER = xml((*SHAPE, 1))
LAST = ismrmrd.ACQ_LAST_IN_SLICE
GEOMETRY = {"position": (1, 2, 3), "read_dir": (0, 1, 0), "phase_dir": (0, 0, 1), "slice_dir": (1, 0, 0)}
pytestmark = pytest.mark.filterwarnings("ignore::xsdata.exceptions.ConverterWarning")  # of the clients
parsed = ismrmrd.xsd.CreateFromDocument


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(trained=True)


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[ScanServer]:
    running = ScanServer(model, Listening(port=0, connections=64, patience=20))
    yield running
    running.close()


def slices(num_slices: int, coils: int = 1, seed: int = 0, columns: Any = None) -> list[Any]:
    """The lines of slices one after another, in one plane each, of all columns or of some with the last one flagged."""
    kspace = np.roll(random_kspace(num_slices, coils, *SHAPE), seed, axis=-1) * (1 + seed)
    found = []
    for number in range(num_slices):
        place = {**GEOMETRY, "position": (1, 2, 3 + number), "slice": number}
        ones = list(lines_of(kspace[number], **place))
        if columns is not None:
            ones = [ones[column] for column in columns]
            ones[-1].setFlag(LAST)
        found += ones
    return found


def of_file(model: Model, folder: Path, header: str, lines: list[Any]) -> np.ndarray:
    """(slice, height, width): what `larmor reconstruct` writes of the same lines in a file."""
    path = write(folder / "scan.mrd", header, lines)
    with open_scans(str(path), model.physics, whole=True) as scans:
        (report,) = reconstruct_scans(model, scans, folder / "images", 1)
    assert not report.problem
    return np.load(report.files[0])


def pixels(image: Any) -> np.ndarray:
    """(slice, height, width) of an image whose x is the readout."""
    return image.data[0].transpose(0, 2, 1)


def check_alive(server: ScanServer) -> None:
    images, texts = scan(server.address, HEADER, slices(1))
    assert (len(images), texts) == (1, [])


@pytest.mark.parametrize("columns", [None, [0, 3, *range(8, 24), 30]], ids=["whole", "undersampled"])
def test_images_are_those_of_the_file(server: ScanServer, model: Model, tmp_path: Path, columns: Any) -> None:
    lines = slices(3, columns=columns)
    images, texts = scan(server.address, HEADER, lines)
    assert texts == []
    assert np.array_equal(np.concatenate([pixels(image) for image in images]), of_file(model, tmp_path, HEADER, lines))
    for number, image in enumerate(images):
        assert (image.slice, image.image_index, image.matrix_size) == (number, number + 1, (*SHAPE, 1))
        assert list(image.position) == [1, 2, 3 + number]
        assert [list(getattr(image, name)) for name in ("read_dir", "phase_dir", "slice_dir")] == [
            list(GEOMETRY[name]) for name in ("read_dir", "phase_dir", "slice_dir")
        ]
        assert list(image.field_of_view) == [400, 200, 6]


def test_gadgetrons_own_client_gets_the_same(server: ScanServer) -> None:
    lines = slices(2)
    found, expected = gadgetron_scan(server.address, HEADER, lines), scan(server.address, HEADER, lines)[0]
    assert [image == other for image, other in zip(found, expected, strict=True)] == [True, True]


def test_a_slice_comes_back_before_the_next_is_sent(server: ScanServer) -> None:
    """The client waits for each image before it sends another line."""
    from ismrmrd.serialization import ProtocolDeserializer, ProtocolSerializer

    with socket.create_connection(server.address, timeout=30) as connection, connection.makefile("rwb") as stream:
        out, back = ProtocolSerializer(stream), ProtocolDeserializer(stream).deserialize()
        out.serialize(parsed(HEADER))
        lines = slices(2)
        for number in range(2):
            for item in lines[number * SHAPE[1] : (number + 1) * SHAPE[1]]:
                out.serialize(item)
            stream.flush()
            assert next(back).slice == number
        out.close()
        assert list(back) == []


def test_unmarked_undersampled_slices_come_with_the_end(server: ScanServer, model: Model, tmp_path: Path) -> None:
    lines = [item for item in slices(2) if item.idx.kspace_encode_step_1 % 3 < 2]
    images, _ = scan(server.address, HEADER, lines)
    assert np.array_equal(np.concatenate([pixels(image) for image in images]), of_file(model, tmp_path, HEADER, lines))


def test_stacks_of_a_volume(server: ScanServer, model: Model, tmp_path: Path) -> None:
    kspace = random_kspace(4, 1, *SHAPE)
    header = xml((*SHAPE, 4), (0, 31, 16), (0, 3, 2))
    lines = [item for z in range(4) for item in lines_of(kspace[z], kspace_encode_step_2=z)]
    (image,), _ = scan(server.address, header, lines)
    assert image.matrix_size == (*SHAPE, 4)
    assert np.array_equal(pixels(image), of_file(model, tmp_path, header, lines))


@pytest.mark.parametrize("flagged", [True, False], ids=["flags", "counts"])
def test_averages_are_waited_for(server: ScanServer, model: Model, tmp_path: Path, flagged: bool) -> None:
    limit = "<average><minimum>0</minimum><maximum>1</maximum><center>0</center></average></encodingLimits>"
    header = HEADER.replace("</encodingLimits>", limit)
    kspace = random_kspace(2, 1, *SHAPE)
    lines = [item for number in range(2) for item in lines_of(kspace[number], average=number)]
    if flagged:
        lines[SHAPE[1] - 1].setFlag(LAST)
        lines[-1].setFlag(LAST)
    (image,), texts = scan(server.address, header, lines)
    assert texts == []
    assert np.array_equal(pixels(image), of_file(model, tmp_path, header, lines))


def test_noise_texts_and_waveforms_are_passed_over(server: ScanServer) -> None:
    noise = line(np.ones((1, 100)), [ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    others = [noise, "a remark", ismrmrd.Waveform.from_array(np.ones((2, 5), np.uint32))]
    images, texts = exchange(server.address, [ConfigText("<x/>"), parsed(HEADER), *others, *slices(1)])
    assert (len(images), texts) == (1, [])


def test_coils_are_those_of_the_model(tmp_path: Path) -> None:
    """All coils together: fewer are padded as in a file, and more need the whole scan."""
    signal = {"mode": "complex", "coils": "all", "num_coils": 3}
    model = make_model(signal=signal, generator={"width": 4, "data_consistency": "hard"})
    running = ScanServer(model, Listening(port=0))
    try:
        lines = slices(2, coils=2, columns=[1, *range(8, 24)])
        images, texts = scan(running.address, HEADER, lines)
        assert texts == []
        expected = of_file(model, tmp_path, HEADER, lines)
        assert np.array_equal(np.concatenate([pixels(image) for image in images]), expected)
        _, texts = scan(running.address, HEADER, slices(1, coils=4))
        assert "4 coils are sent; the model takes 3" in texts[0]
    finally:
        running.close()


def wrong(name: str) -> tuple[list[Any], bytes]:
    """Objects and raw bytes of a client that does something wrong."""
    header, lines = parsed(HEADER), slices(2)
    nan = line(np.full((1, SHAPE[0]), np.nan), kspace_encode_step_1=SHAPE[1] - 1)
    short = line(np.ones((1, 30)), kspace_encode_step_1=0, slice=1)
    wide = ismrmrd.AcquisitionHeader(number_of_samples=65535, active_channels=65535)
    late = line(np.ones((1, SHAPE[0])), kspace_encode_step_1=3)
    huge = xml((60000, 60000, 1))
    return {
        "garbage": ([], b"GET / HTTP/1.1\r\n\r\n" + bytes(1000)),
        "unknown": ([header], struct.pack("<H", 4711)),
        "image": ([header, ismrmrd.Image.from_array(np.ones((4, 4), np.float32))], b""),
        "length": ([], struct.pack("<HI", 3, 2**32 - 1)),
        "size": ([header], struct.pack("<H", 1008) + bytes(wide)),
        "empty": ([header], struct.pack("<H", 1008) + bytes(340)),
        "xml": ([], struct.pack("<HI", 3, 6) + b"<html>"),
        "no header": (lines, b""),
        "two headers": ([header, header], b""),
        "two configs": ([ConfigText("a"), ConfigText("b"), header], b""),
        "nan": ([header, *lines[: SHAPE[1] - 1], nan], b""),
        "matrix": ([header, *lines[: SHAPE[1]], short], b""),
        "late": ([header, *lines[: SHAPE[1]], late], b""),
        "encoding": ([header, line(np.ones((1, 32)), encoding_space_ref=3)], b""),
        "cut": ([header, *slices(1, columns=range(32)), *lines[SHAPE[1] : -5]], b""),
        "huge": ([parsed(huge), line(np.ones((1, 60000)), [LAST])], b""),
    }[name]


WRONG = {
    "garbage": "message 17735 is not understood",
    "unknown": "message 4711 is not understood",
    "image": "message 1022 is not understood",
    "length": "announces 4294967295 bytes",
    "size": "announces .* at most",
    "empty": "no samples",
    "xml": "is not ISMRMRD",
    "no header": "before the header",
    "two headers": "a second header",
    "two configs": "a second configuration",
    "nan": "not finite",
    "matrix": "samples=30; it is 32",
    "late": "another line after its image",
    "encoding": "the header has 1",
    "cut": "ended after 27 lines",
    "huge": "MiB; at most",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_once(server: ScanServer, name: str) -> None:
    import re

    objects, raw = wrong(name)
    _, texts = exchange(server.address, objects, raw)
    assert len(texts) == 1
    assert re.search(WRONG[name], texts[0]), texts
    check_alive(server)


def test_silence_ends_a_connection(model: Model) -> None:
    running = ScanServer(model, Listening(port=0, patience=0.2))
    try:
        _, texts = exchange(running.address, [parsed(HEADER)], end=False)
        assert "0.2 s" in texts[0]
        _, texts = exchange(running.address, [], struct.pack("<HI", 3, 100), end=False)
        assert "0.2 s" in texts[0]
    finally:
        running.close()


def test_too_many_connections_are_told_so(model: Model) -> None:
    running = ScanServer(model, Listening(port=0, connections=1))
    try:
        with socket.create_connection(running.address) as first:
            first.sendall(struct.pack("<H", 2))
            texts: list[str] = []
            while not texts:  # until the first is being served
                _, texts = exchange(running.address, [])
            assert "taken" in texts[0]
    finally:
        running.close()


def test_eight_at_once_each_get_their_own(server: ScanServer, model: Model, tmp_path: Path) -> None:
    def one(seed: int) -> tuple[list[Any], list[str]]:
        return scan(server.address, HEADER, slices(2, seed=seed))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    for seed, (images, texts) in enumerate(answers):
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert texts == []
        expected = of_file(model, folder, HEADER, slices(2, seed=seed))
        assert np.array_equal(np.concatenate([pixels(image) for image in images]), expected)


def held() -> tuple[int, int]:
    """Threads and descriptors of this process."""
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")
def test_two_hundred_connections_leave_nothing(server: ScanServer) -> None:
    """Half of them are cut in the middle: of an identifier, a length, a header, a line or a slice."""
    from io import BytesIO

    from ismrmrd.serialization import ProtocolSerializer

    content = BytesIO()
    serializer = ProtocolSerializer(content)
    for item in (parsed(HEADER), *slices(1)):
        serializer.serialize(item)
    serializer.close()
    whole = content.getvalue()
    cuts = np.random.default_rng(0).integers(1, len(whole) - 3, 100)

    def cut(size: int) -> None:
        with socket.create_connection(server.address, timeout=30) as connection:
            connection.sendall(whole[:size])

    check_alive(server)
    before = held()
    with ThreadPoolExecutor(8) as pool:
        broken = pool.map(cut, [*range(1, 4), *cuts[3:].tolist()])
        alive = [len(exchange(server.address, [], whole, end=False)[0]) for _ in range(100)]
        list(broken)
    assert alive == [1] * 100
    for _ in range(500):
        if held() == before:
            break
        threading.Event().wait(0.02)
    assert held() == before


def test_other_machines_need_a_word(model: Model) -> None:
    with pytest.raises(InputError, match="neither encryption nor a password; add --unencrypted"):
        ScanServer(model, Listening("0.0.0.0", 0))
    running = ScanServer(model, Listening("0.0.0.0", 0, unencrypted=True))
    running.close()
    with pytest.raises(InputError, match="no address"):
        ScanServer(model, Listening("no such host", 0))


def test_a_taken_port_is_named(server: ScanServer, model: Model) -> None:
    with pytest.raises(InputError, match=f"--port {server.address[1]}: cannot be used"):
        ScanServer(model, Listening(port=server.address[1]))
