"""Latency of `larmor serve`: `python benchmarks/serve.py [--system larmor] [--width 16] [--slices 40] [--threads 2]`.

A scanner in a process of its own sends the lines of 256×256 slices of one coil, about a quarter of them, and waits for
each image before it sends the next slice. Printed are p50 and p95 of the milliseconds from the last line of a slice,
handed to the socket, to its whole image, and slices per second with the sending. The weights are random, which
cost the same as trained ones, unless `--model DIR` is a trained one; `--runtime` is as for `larmor serve`; a few slices
before warm up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import time
from pathlib import Path

import ismrmrd
import numpy as np
import torch
from ismrmrd.serialization import ProtocolDeserializer, ProtocolSerializer

from larmor.recon.inference.inference import Physics
from larmor.recon.models.model import Model, load_model
from larmor.recon.models.runtimes import with_runtime
from larmor.recon.networks.networks import build_generator
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.serving.server import Listening, ScanServer

SIZE = (256, 256)
WARM_UP = 5
HEADER = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>
<H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions><encoding>
<encodedSpace><matrixSize><x>256</x><y>256</y><z>1</z></matrixSize>
<fieldOfView_mm><x>256</x><y>256</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>256</x><y>256</y><z>1</z></matrixSize>
<fieldOfView_mm><x>256</x><y>256</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits/><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""


def lines_of(number: int) -> list[ismrmrd.Acquisition]:
    """A quarter of the lines of a slice, its centre whole."""
    rng = np.random.default_rng(number)
    found = []
    for y in sorted({*range(0, SIZE[1], 5), *range(116, 140)}):
        values = rng.normal(size=(1, SIZE[0], 2)).astype(np.float32).view(np.complex64)[..., 0]
        line = ismrmrd.Acquisition.from_array(np.ascontiguousarray(values))
        line.center_sample, line.idx.kspace_encode_step_1, line.idx.slice = SIZE[0] // 2, y, number
        found.append(line)
    found[-1].setFlag(ismrmrd.ACQ_LAST_IN_SLICE)
    return found


def scanner(address: tuple[str, int], num_slices: int) -> tuple[list[float], float]:
    """Seconds from each slice's last line to its image, and those of all slices together."""
    scan = [lines_of(number) for number in range(WARM_UP + num_slices)]
    with socket.create_connection(address) as connection, connection.makefile("rwb") as stream:
        out, back = ProtocolSerializer(stream), ProtocolDeserializer(stream).deserialize()
        out.serialize(ismrmrd.xsd.CreateFromDocument(HEADER))
        waits: list[float] = []
        for number, lines in enumerate(scan):
            if number == WARM_UP:
                began = time.perf_counter()
            for line in lines:
                out.serialize(line)
            stream.flush()
            sent = time.perf_counter()
            assert next(back).slice == number
            waits.append(time.perf_counter() - sent)
        seconds = time.perf_counter() - began
        out.close()
    return waits[WARM_UP:], seconds


def model(system: str, width: int, device: str) -> Model:
    content = {"system": system, "data": {"url": "unused", "crop": SIZE}, "generator": {"width": width}}
    recipe = Recipe.model_validate(content)
    torch.manual_seed(0)
    generator = build_generator(recipe.generator, recipe.signal.channels).eval().to(device)
    return Model(generator, Physics(SIZE, recipe.mask, recipe.signal), recipe, {}, Path("model"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="gan_resnet50")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--runtime", default="eager")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = model(options.system, options.width, options.device)
    made = load_model(options.model, options.device) if options.model else made
    began = time.process_time()
    server = ScanServer(with_runtime(made, options.runtime), Listening(port=0))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        waits, seconds = pool.apply(scanner, (server.address, options.slices))
    server.close()
    p50, p95 = (1000 * float(np.quantile(waits, share)) for share in (0.5, 0.95))
    rate = options.slices / seconds
    busy = 1000 * (time.process_time() - began) / (WARM_UP + options.slices)
    print(f"{busy:.0f} ms of processor time for each slice, with start and warm-up")
    name, width = options.model or options.system, made.recipe.generator.width
    print(f"{name}, width {width}: p50 {p50:.0f} ms, p95 {p95:.0f} ms, {rate:.1f} slices/s")


if __name__ == "__main__":
    main()
