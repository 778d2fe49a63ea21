"""The paper's six cells at full width on one GPU, on a machine without network, Ray, DeepSpeed or an object store.

    python benchmarks/paper_grid.py pack --heads heads                   # where there is a network
    python benchmarks/paper_grid.py run --to results --device cuda       # on the GPU machine, beside the same source
    python benchmarks/paper_grid.py unpack results --to tables           # at home

`pack` writes `build/paper_grid`: the heads compressed, the wheels that such a machine lacks (PyTorch, NumPy, SciPy,
scikit-image and matplotlib have to be there), and compressed sensing's figures, which no training changes: 60 MB.
`run` makes the data set on the local disk, then trains and evaluates every system in `--images` images, or in as many
as fit into `--minutes` by what each system is measured to cost: the same number for all systems of a cell. Several
cells at a time share the device, each in a process of its own, so that it computes while others read, evaluate and
write. After each cell the results are in `--to`: tables, figures, per-slice CSV, validation curves; at the end one
generator (float16, in parts of 15 MiB).
`--sizes` takes a part of the grid, `--tiny` tries everything out on a CPU within minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import json
import lzma
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PACK = ROOT / "build" / "paper_grid"
# what such a machine lacks; SigPy stays at home, since its numba alone is larger than all of this
WHEELS = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions", "platformdirs"),
    *("psutil", "safetensors", "crc32c", "zarr", "numcodecs", "google-crc32c", "donfig", "monai", "nibabel"),
    *("tensorboardX", "protobuf"),
)
PART = 15 * 2**20  # bytes of one file that is brought back
BROUGHT = "gan_resnet50_modl"  # the system whose generator is brought, of the first cell
SHARE = 0.8  # of the time that is left; the rest is for what was not foreseen
TINY = {
    "generator.width": 4,
    "generator.turns": 2,
    "critic.width": 4,
    "training.global_batch_size": 4,
    "training.validation_slices": 4,
    "cluster.cpus_per_worker": 1,
}
TINY_IMAGES = 48  # at most: a trial needs no more, however long it may take
TINY_SIZES = ((64, 64), (32, 64), (16, 32))


def pack(options: argparse.Namespace) -> None:
    """Heads, wheels and compressed sensing's figures to one folder."""
    folder: Path = options.pack
    (folder / "heads").mkdir(parents=True, exist_ok=True)
    for path in sorted(options.heads.iterdir()):
        target = folder / "heads" / path.name.removesuffix(".gz")
        if ".nii" not in path.suffixes:
            target.write_bytes(path.read_bytes())
        elif not (target := target.with_name(f"{target.name}.xz")).exists():
            content = path.read_bytes()
            target.write_bytes(lzma.compress(gzip.decompress(content) if path.suffix == ".gz" else content))
    if not options.no_wheels:
        shutil.rmtree(folder / "wheels", ignore_errors=True)  # of other versions
        _download(folder / "wheels", options.python)
    with tempfile.TemporaryDirectory() as work:
        data = _make_data(folder, Path(work))
        _rate_classical(data, folder, options)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


def _download(folder: Path, python: str) -> None:
    pins = ["--constraint", str(ROOT / "constraints.txt"), "--python-version", python, "--only-binary", ":all:"]
    platforms = [f"--platform={name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, *pins, *platforms, "--platform=any", *WHEELS], check=True)


def _add_wheels(folder: Path, site: Path) -> None:
    """Put the carried wheels before whatever is installed: they fit each other."""
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    sys.path.insert(0, str(site))


def _make_data(folder: Path, work: Path) -> str:
    """Convert the carried heads; the URL of the data set."""
    from larmor.storage.conversion.convert import ConvertOptions, convert
    from larmor.storage.conversion.splits import read_splits_file
    from larmor.storage.formats.recognise import find_sources

    heads, data = work / "heads", work / "data"
    heads.mkdir()
    for path in (folder / "heads").iterdir():
        content = path.read_bytes()
        packed = path.suffix == ".xz"
        (heads / path.name.removesuffix(".xz")).write_bytes(lzma.decompress(content) if packed else content)
    convert(find_sources([str(heads)]), str(data), ConvertOptions(held_out=read_splits_file(heads / "splits.yaml")))
    return str(data)


def _grid(options: argparse.Namespace) -> Any:
    """The shipped grid `paper` with `--set`, or the same with narrow networks on small images."""
    from larmor.cluster.comparison.grid import load_grid
    from larmor.cluster.experiments.experiment import parse_override

    grid = load_grid("paper", {})
    overrides = {**grid.overrides, **dict(map(parse_override, options.set))}
    if options.tiny:
        return grid.model_copy(update={"sizes": TINY_SIZES, "overrides": {**overrides, **TINY}})
    return grid.model_copy(update={"overrides": overrides})


def _rate_classical(data: str, folder: Path, options: argparse.Namespace) -> None:
    from larmor.cluster.comparison.grid import cells, experiments
    from larmor.cluster.comparison.grid_cell import physics_of, rate_classical
    from larmor.storage.loading.config import DataConfig, open_reader

    grid = _grid(options)
    reader = open_reader(DataConfig(url=data), "test")
    for cell in cells(grid):
        physics = physics_of(next(iter(experiments(grid, cell, "classical", data, "out").values())))
        began = time.perf_counter()
        rate_classical(grid.classical, physics, reader, folder)
        print(f"compressed sensing, {cell}: {time.perf_counter() - began:.0f} s", flush=True)
    reader.close()


def run(options: argparse.Namespace) -> None:
    """Fill the grid within the time; everything that is brought back lies in `options.to`."""
    began = time.time()
    work = Path(options.work or tempfile.mkdtemp(prefix="larmor-paper-", dir=_roomy()))
    _add_wheels(options.pack / "wheels", work / "site")
    os.environ["LARMOR_HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = str(work)
    import torch

    from larmor.cluster.comparison.grid import cells

    say = Log(work / "tables" / "log.txt", began)
    say(f"{_name(options.device)}, torch {torch.__version__}, {options.minutes:g} minutes")
    data = _make_data(options.pack, work)
    if (options.pack / "cells").is_dir():
        shutil.copytree(options.pack / "cells", work / "tables" / "cells")
    say("the data set is made")
    wanted = [cell for cell in cells(_grid(options)) if not options.sizes or str(cell).split("-")[0] in options.sizes]
    deadline = began + 60 * options.minutes - options.reserve
    spawn = multiprocessing.get_context("spawn")  # a process for each task: what it has made leaves nothing behind
    count = options.images
    if not count:
        with spawn.Pool(1) as pool:
            cost = pool.apply(_measure, (options, wanted, say))
        batch = _grid(options).overrides["training.global_batch_size"]
        count = int(max(0.0, SHARE * (deadline - time.time()) - options.fixed) / cost) // batch * batch
        count = min(count, TINY_IMAGES) if options.tiny else count
    if not count:
        raise SystemExit(f"no time is left to train: raise --minutes={options.minutes:g} or lower --fixed")
    say(f"{count} images for each system in each cell")
    filled: list[Any] = []
    with spawn.Pool(options.processes, maxtasksperchild=1) as pool:  # at its end what still runs is killed
        cells_done = pool.imap_unordered(functools.partial(_fill, options, count, data, work, say), wanted)
        for _ in wanted:
            try:
                filled.append(cells_done.next(max(0.0, deadline - time.time())))
            except multiprocessing.TimeoutError:
                say("the time is over")
                break
            except Exception:  # of one cell; the others are worth their time
                say(traceback.format_exc())
                continue
            say(f"{len(filled)} of {len(wanted)} cells are filled")
            filled.sort(key=wanted.index)
            _write(options, filled, count, data, work)
    if not filled:
        raise SystemExit("not one cell was filled: see above; if there was no time, lower --images or raise --fixed")
    say(f"done; not filled: {', '.join(str(cell) for cell in wanted if cell not in filled) or 'none'}")
    _bring_tables(work, options.to)
    _bring_generator(work, f"paper-{filled[0]}-{BROUGHT}", options.to)


def _fill(options: argparse.Namespace, count: int, data: str, work: Path, say: Log, cell: Any) -> Any:
    """Train and evaluate all systems of `cell`, in a process of its own."""
    from larmor.cluster.comparison.grid import experiments
    from larmor.cluster.comparison.grid_cell import CellOptions, CellPlace, fill_cells
    from larmor.storage.loading.config import DataConfig, open_reader

    grid = _grid(options).model_copy(update={"num_images": count})
    trained = experiments(grid, cell, "paper", data, str(work))
    with contextlib.closing(open_reader(DataConfig(url=data), "test")) as reader:
        place = CellPlace(reader, work / "tables", options.device, say)
        fill_cells(trained, place, CellOptions(grid.classical, keep_runs=False))
    return cell


def _write(options: argparse.Namespace, filled: Sequence[Any], count: int, data: str, work: Path) -> None:
    """The tables of the cells that are filled so far, from their files, to where they are brought from."""
    from larmor.cluster.comparison.grid import experiments, write_grid
    from larmor.cluster.comparison.grid_cell import CellOptions, CellPlace, fill_cells
    from larmor.storage.loading.config import DataConfig, open_reader

    grid, found = _grid(options).model_copy(update={"num_images": count}), []
    with contextlib.closing(open_reader(DataConfig(url=data), "test")) as reader:
        for cell in filled:
            trained = experiments(grid, cell, "paper", data, str(work))
            place = CellPlace(reader, work / "tables", "cpu", print)
            found += fill_cells(trained, place, CellOptions(grid.classical, keep_runs=False))
    write_grid(found, work / "tables")
    _bring_tables(work, options.to)


def _measure(options: argparse.Namespace, wanted: Sequence[Any], say: Log) -> float:
    """Seconds in which every system trains on one image of each of the cells `wanted`."""
    from paper_pace import cost_of_image

    from larmor.cluster.comparison.grid import experiments
    from larmor.recon.engines.device import choose_device

    costs = {}
    for cell in (min(wanted, key=_pixels), max(wanted, key=_pixels)):
        trainings = experiments(_grid(options), cell, "pace", "none", "none")
        found = {name: cost_of_image(each, choose_device(options.device)).seconds for name, each in trainings.items()}
        costs[_pixels(cell)] = sum(found.values())
        say(f"{cell}: ms/image " + ", ".join(f"{name} {1000 * cost:.2f}" for name, cost in found.items()))
    known = sorted(costs)
    return float(sum(np.interp([_pixels(cell) for cell in wanted], known, [costs[pixels] for pixels in known])))


def _pixels(cell: Any) -> int:
    return int(cell.size[0] * cell.size[1])


def _roomy() -> str | None:
    """Memory for checkpoints, where there is enough: nothing of them is kept."""
    shared = Path("/dev/shm")
    if shared.is_dir() and os.statvfs(shared).f_bavail * os.statvfs(shared).f_frsize > 32 * 2**30:
        return str(shared)
    return None


def _name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


class Log:
    """Lines with the seconds since `began`, on the screen and in a file that several processes share."""

    def __init__(self, path: Path, began: float) -> None:
        self._path, self._began = path, began
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, text: str) -> None:
        line = f"{time.time() - self._began:7.1f} s  {text}"
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")


def _bring_tables(work: Path, to: Path) -> None:
    """`results.tar.gz`: tables, figures, curves, and what the processes said."""
    to.mkdir(parents=True, exist_ok=True)
    with tarfile.open(to / "results.tar.gz", "w:gz") as archive:
        for path in sorted(work.glob("tables/**/*")) + sorted(work.glob("runs/*/history/*")):
            if path.is_file() and path.suffix not in (".safetensors", ".npz"):  # the figures show what .npz holds
                archive.add(path, path.relative_to(work))


def _bring_generator(work: Path, name: str, to: Path) -> None:
    """The generator of the training `name` in parts."""
    from safetensors.torch import load_file, save_file

    weights = load_file(work / "tables" / "models" / name / "generator.safetensors")
    whole = work / "halved.safetensors"
    save_file({key: tensor.half() for key, tensor in weights.items()}, whole, {"model": name})
    content = whole.read_bytes()
    for number, start in enumerate(range(0, len(content), PART)):
        (to / f"generator-{number:02d}.part").write_bytes(content[start : start + PART])


def unpack(options: argparse.Namespace) -> None:
    """Tables, figures and curves; and the generator as a model folder for `larmor reconstruct` and `evaluate`."""
    options.to.mkdir(parents=True, exist_ok=True)
    with tarfile.open(options.results / "results.tar.gz") as archive:
        archive.extractall(options.to, filter="data")
    parts = sorted(options.results.glob("generator-*.part"))
    if not parts:
        return
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from larmor.storage.objects.file_digest import file_digest

    whole = options.to / "halved.safetensors"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    with safe_open(whole, "pt") as file:
        model = options.to / "tables" / "models" / file.metadata()["model"]
    weights = {name: tensor.to(torch.float32) for name, tensor in load_file(whole).items()}
    save_file(weights, model / "generator.safetensors")
    record = json.loads((model / "metrics.json").read_text())
    record["sha256"] = {"generator.safetensors": file_digest(model / "generator.safetensors")}
    (model / "metrics.json").write_text(json.dumps({**record, "rounded": "weights were brought as float16"}, indent=2))
    whole.unlink()
    print(model)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack", help="heads, wheels and compressed sensing to one folder")
    packing.add_argument("--heads", type=Path, required=True, help="a folder made by `larmor fetch heads`")
    packing.add_argument("--python", default="3.12", help="of the GPU machine")
    packing.add_argument("--no-wheels", action="store_true")
    packing.set_defaults(call=pack)
    running = commands.add_parser("run", help="fill the grid on the GPU machine")
    running.add_argument("--to", type=Path, required=True, help="folder for what is brought back")
    running.add_argument("--device", default="cuda")
    running.add_argument("--minutes", type=float, default=25.0, help="for all, the start included")
    running.add_argument("--images", type=int, help="for each system and cell; measured and reckoned if not given")
    running.add_argument("--processes", type=int, default=6, help="cells at a time, all on one device")
    running.add_argument("--sizes", nargs="*", default=[], help="such as 256x256; all of them if not given")
    running.add_argument("--work", help="an empty folder for data, checkpoints and models (about 20 GB at full width)")
    running.add_argument(
        "--fixed", type=float, default=60.0, help="seconds besides training: start, evaluation, writing"
    )
    running.add_argument("--reserve", type=float, default=20.0, help="seconds for the end")
    running.set_defaults(call=run)
    for each in (packing, running):
        each.add_argument("--pack", type=Path, default=PACK)
        each.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every system")
        each.add_argument("--tiny", action="store_true", help="narrow networks on small images, for a trial on a CPU")
    unpacking = commands.add_parser("unpack", help="what was brought back, as a folder of tables and a model")
    unpacking.add_argument("results", type=Path)
    unpacking.add_argument("--to", type=Path, required=True)
    unpacking.set_defaults(call=unpack)
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
