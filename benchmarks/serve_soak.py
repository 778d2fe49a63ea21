"""Many slices through one server: `python benchmarks/serve_soak.py [--slices 10000] [--size 64] [--width 4]`.

Two scanners, each in a process of its own, send scans of 25 undersampled slices of one coil one after another, a new
connection each. Every image is compared, bit for bit, with what `larmor reconstruct` writes of the same lines in an
ISMRMRD file. Printed are slices per second, the images that differ, and the resident memory, the threads and the open
files of the server's process as they were at each tenth of the slices. The weights are random.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import tempfile
import time
from pathlib import Path

import ismrmrd
import numpy as np
import psutil
import torch
from ismrmrd.serialization import ProtocolDeserializer, ProtocolSerializer

from larmor.recon.inference.inference import Physics
from larmor.recon.models.model import Model
from larmor.recon.models.reconstruct import reconstruct_scans
from larmor.recon.models.scans import open_scans
from larmor.recon.networks.networks import build_generator
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.serving.server import Listening, ScanServer

SCAN = 25  # slices of a connection
SCANNERS = 2
HEADER = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>
<H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions><encoding>
<encodedSpace><matrixSize><x>{0}</x><y>{0}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>256</x><y>256</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{0}</x><y>{0}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>256</x><y>256</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits/><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""


def lines_of(number: int, size: int) -> list[ismrmrd.Acquisition]:
    """A third of the lines of a slice, its centre whole."""
    rng = np.random.default_rng(number)
    found = []
    for y in sorted({*range(0, size, 5), *range(size // 2 - 4, size // 2 + 4)}):
        values = rng.normal(size=(1, size, 2)).astype(np.float32).view(np.complex64)[..., 0]
        line = ismrmrd.Acquisition.from_array(np.ascontiguousarray(values))
        line.center_sample, line.idx.kspace_encode_step_1, line.idx.slice = size // 2, y, number
        found.append(line)
    found[-1].setFlag(ismrmrd.ACQ_LAST_IN_SLICE)
    return found


def scanner(address: tuple[str, int], expected: np.ndarray, scans: int) -> int:
    """How many images differ from the `expected` (slice, height, width), or are missing."""
    size = expected.shape[-1]
    lines = [line for number in range(SCAN) for line in lines_of(number, size)]
    header, wrong = ismrmrd.xsd.CreateFromDocument(HEADER.format(size)), 0
    for _ in range(scans):
        with socket.create_connection(address) as connection, connection.makefile("rwb") as stream:
            out = ProtocolSerializer(stream)
            out.serialize(header)
            for line in lines:
                out.serialize(line)
            out.close()
            stream.flush()
            images = list(ProtocolDeserializer(stream).deserialize())
        found = [image.data[0, 0].T for image in images if isinstance(image, ismrmrd.Image)]
        wrong += SCAN - sum(np.array_equal(one, other) for one, other in zip(found, expected, strict=False))
    return wrong


def reconstructed(model: Model, size: int) -> np.ndarray:
    """(slice, height, width): what `larmor reconstruct` makes of the lines as a file."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "scan.mrd")
        with ismrmrd.Dataset(path, "dataset", mode="a") as dataset:
            dataset.write_xml_header(HEADER.format(size).encode())
            for number in range(SCAN):
                for line in lines_of(number, size):
                    dataset.append_acquisition(line)
        with open_scans(str(path), model.physics, whole=True) as scans:
            (report,) = reconstruct_scans(model, scans, Path(scratch, "images"), 1)
        return np.load(report.files[0])


def tiny_model(size: int, width: int) -> Model:
    recipe = Recipe.model_validate({"data": {"url": "unused", "crop": [size, size]}, "generator": {"width": width}})
    torch.manual_seed(0)
    generator = build_generator(recipe.generator, recipe.signal.channels).eval()
    for values in generator.parameters():
        torch.nn.init.normal_(values, std=0.02)
    return Model(generator, Physics((size, size), recipe.mask, recipe.signal), recipe, {}, Path("model"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, process = tiny_model(options.size, options.width), psutil.Process()
    expected, server = reconstructed(model, options.size), ScanServer(model, Listening(port=0), print)
    scans, began, done, tenth = options.slices // (SCANNERS * SCAN), time.perf_counter(), 0.0, 0
    with multiprocessing.get_context("spawn").Pool(SCANNERS) as pool:
        work = [pool.apply_async(scanner, (server.address, expected, scans)) for _ in range(SCANNERS)]
        while not all(one.ready() for one in work):
            done = server.counts.registry.get_sample_value("larmor_serve_slices_total") or 0.0
            if done >= tenth * options.slices / 10:
                tenth = int(10 * done / options.slices) + 1
                memory = process.memory_info().rss / 2**20
                print(
                    f"{done:.0f} slices: {memory:.1f} MiB, {process.num_threads()} threads, {process.num_fds()} files"
                )
            time.sleep(0.05)
        wrong, seconds = sum(one.get() for one in work), time.perf_counter() - began
    done = server.counts.registry.get_sample_value("larmor_serve_slices_total") or 0.0
    errors = server.counts.registry.get_sample_value("larmor_serve_errors_total")
    server.close()
    print(f"{done:.0f} slices in {seconds:.0f} s, {done / seconds:.1f} a second; {wrong} differ, {errors:.0f} errors")


if __name__ == "__main__":
    main()
