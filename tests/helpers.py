"""What tests of several packages make: small data sets, volumes, models and runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import yaml
from hypothesis import settings
from safetensors.torch import save_file

from larmor.cluster.runs.checkpoint import Checkpoint, checkpoint_folder
from larmor.cluster.runs.run_folder import RunFolder
from larmor.recon.networks.generator import ResNet50Generator
from larmor.recon.recipe.recipe import Recipe
from larmor.storage.dataset import writing
from larmor.storage.dataset.layout import SplitLayout, StoredVolume
from larmor.storage.formats.source import SourceOptions
from larmor.storage.formats.volumes import CoronalSlice, Volume, VolumeSource, image_to_kspace
from larmor.storage.loading.order import SampleOrder
from larmor.storage.objects.object_store import ObjectStore
from larmor.tuning.search.records import SweepResult
from larmor.tuning.search.sweep_folder import SweepFolder

torch.set_num_threads(1)  # small tensors gain nothing from more, and lose much where cores are few
SHAPE = (1, 16, 12)
property_test = settings(deadline=None, database=None, max_examples=60)


def random_kspace(num_slices: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """(slice, coil, height, width) complex64."""
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((2, num_slices, *shape), dtype=np.float32)
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def random_images(num_images: int, *size: int) -> torch.Tensor:
    """(batch, 1, height, width) in [0, 1]."""
    return torch.rand(num_images, 1, *size, generator=torch.Generator().manual_seed(0))


def stored_volume(
    name: str, subject: str, shape: tuple[int, int, int], num_slices: int, first: int = 0
) -> StoredVolume:
    """The record of a volume whose slices are all stored."""
    indices = tuple(range(first, first + num_slices))
    return StoredVolume(
        name, subject, shape, indices, tuple(1.5 * i for i in indices), tuple((0.0, 1.0 + i) for i in indices)
    )


def write_layout(
    store: ObjectStore, layout: SplitLayout, volumes: Sequence[np.ndarray], maps: Sequence[np.ndarray] | None = None
) -> dict[str, Any]:
    """Store the k-space (slice, coil, height, width) of each volume of a layout; returns the split's entry.

    `maps` are stored beside it, as `larmor convert` does for several coils only.
    """
    checksums: dict[tuple[str, int], list[writing.StoredShard]] = {}
    for plan in layout.shards():
        arrays = {"kspace": volumes, **({"sensitivity_maps": maps} if maps and plan.bucket.shape[0] > 1 else {})}
        for kind, values in arrays.items():
            rows = [values[number][layout.volumes[number].indices.index(index)] for number, index in plan.rows]
            checksum = writing.write_shard(store, layout.split, kind, plan, np.stack(rows))
            checksums.setdefault((kind, plan.bucket.number), []).append(checksum)
    return writing.write_documents(store, layout, {key: tuple(value) for key, value in checksums.items()})


def write_split(store: ObjectStore, split: str, kspace: np.ndarray, subjects: int = 2) -> dict[str, Any]:
    """Store `kspace`, its slices divided evenly among the subjects; returns the split's entry."""
    parts = [part for part in np.array_split(kspace, subjects) if len(part)]
    firsts = np.cumsum([0, *(len(part) for part in parts)])
    volumes = tuple(
        stored_volume(f"{split}{number}", f"{split}{number}", part.shape[1:], len(part), int(firsts[number]))
        for number, part in enumerate(parts)
    )
    return write_layout(store, SplitLayout(split, volumes), parts)


def write_images(store: ObjectStore, contents: Mapping[str, np.ndarray]) -> None:
    """A published data set of these images (slice, height, width), one subject a split, with their true scales."""
    splits = {}
    for split, images in contents.items():
        kspace = image_to_kspace(images)[:, None]
        record = stored_volume(f"{split}0", split, kspace.shape[1:], len(kspace))
        scales = tuple((float(image.min()), float(image.max())) for image in images)
        layout = SplitLayout(split, (dataclasses.replace(record, scales=scales),))
        splits[split] = write_layout(store, layout, [kspace])
    writing.publish(store, splits, [])


def write_dataset(store: ObjectStore, contents: Mapping[str, np.ndarray], subjects: int = 2) -> None:
    """A published data set with these splits."""
    splits = {split: write_split(store, split, kspace, subjects) for split, kspace in contents.items()}
    writing.publish(store, splits, [])


def smooth_maps(coils: int, height: int, width: int) -> np.ndarray:
    """(coil, height, width) complex64: coils around the image, Σ|maps|² = 1, the first real: of one coil 1."""
    if coils == 1:
        return np.ones((1, height, width), np.complex64)
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    angles = 2 * np.pi * np.arange(coils)[:, None, None] / coils
    distance = (rows - np.cos(angles)) ** 2 + (columns - np.sin(angles)) ** 2
    maps = np.exp(-0.6 * distance + 1j * (rows * np.sin(angles) + columns * np.cos(angles)))
    maps = maps * np.exp(-1j * np.angle(maps[0])) / np.linalg.norm(maps, axis=0)
    return maps.astype(np.complex64)


def coil_scan(coils: int, num_slices: int, *size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(slice, coil, height, width) k-space and maps of a textured ellipsoid, as these coils would measure it."""
    images = ellipsoid((size[0], num_slices + 4, size[1]), seed).transpose(1, 0, 2)[2:-2]
    maps = np.broadcast_to(smooth_maps(coils, *size), (num_slices, coils, *size))
    return image_to_kspace(maps * images[:, None]), np.ascontiguousarray(maps)


def write_coil_splits(store: ObjectStore, scans: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]) -> None:
    """A published data set of multi-coil scans (k-space, maps) in these splits, with the maps stored."""
    splits = {}
    for split, found in scans.items():
        names = [f"{split}{number}" for number in range(len(found))]
        records = [
            stored_volume(name, name, kspace.shape[1:], len(kspace))
            for name, (kspace, _) in zip(names, found, strict=True)
        ]
        layout = SplitLayout(split, tuple(records))
        splits[split] = write_layout(store, layout, [kspace for kspace, _ in found], [maps for _, maps in found])
    writing.publish(store, splits, [])


def flip_byte(store: ObjectStore, path: str, place: int) -> None:
    """Damage one byte of an object; a negative place counts from its end."""
    content = bytearray(store.read(path))
    content[place] ^= 0x10
    store.write(path, bytes(content))


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ellipsoid(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A volume (x, y, z) float32: a textured ellipsoid that fills most of its box, in exact zeros."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    inside = sum((axis / 0.92) ** 2 for axis in axes) < 1
    texture = 100 + 40 * axes[0] + 25 * axes[2] + rng.uniform(0, 20, shape)
    return np.where(inside, texture, 0).astype(np.float32)


def cut_slices(volume: Volume, matrix: tuple[int, int], min_foreground: float) -> list[CoronalSlice]:
    """The slices that a conversion keeps of a volume."""
    source = VolumeSource(volume, SourceOptions(matrix, min_foreground))
    return [source.cut(index) for index in source.kept_slices()]


def global_batch(order: SampleOrder, number: int, batch_size: int) -> np.ndarray:
    """(batch_size, 2) int64: epoch and slice index of each sample of global batch `number`."""
    return order.samples(np.arange(number * batch_size, (number + 1) * batch_size, dtype=np.int64))


def write_volume(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A NIfTI file; without an affine, voxels of 1 mm in RAS+ order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def write_heads(folder: Path, names: Iterable[str]) -> list[Path]:
    """One small volume for each name."""
    return [write_volume(folder / f"{name}.nii.gz", ellipsoid((28, 14, 30), seed)) for seed, name in enumerate(names)]


def centre_of_mass(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The intensity-weighted mean position (3,) of a volume, in mm."""
    weights = data.astype(np.float64) / data.sum(dtype=np.float64)
    grid = np.meshgrid(*(np.arange(size) for size in data.shape), indexing="ij")
    voxel = np.array([float((weights * axis).sum()) for axis in grid])
    return affine[:3, :3] @ voxel + affine[:3, 3]


def small_recipe(**sections: Any) -> Recipe:
    """A narrow generator on 32×32 images."""
    content = {"data": {"url": "unused", "crop": [32, 32]}, "generator": {"width": 4}, "critic": {"width": 4}}
    return Recipe.model_validate({**content, **sections})


def make_generator(recipe: Recipe, seed: int = 0, trained: bool = True) -> ResNet50Generator:
    """A generator; a `trained` one has a last layer that is not zero, so that it changes its input."""
    torch.manual_seed(seed)
    generator = ResNet50Generator(recipe.generator)
    if trained:
        torch.nn.init.normal_(generator.last.weight, std=0.02)
    return generator.eval()


def write_model(folder: Path, recipe: Recipe, trained: bool = True) -> Path:
    """A model directory as `larmor pull` makes it, without `metrics.json`."""
    folder.mkdir(parents=True)
    save_file(make_generator(recipe, trained=trained).state_dict(), folder / "generator.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return folder


def add_checkpoint(
    run: RunFolder,
    scratch: Path,
    step: int,
    metrics: Mapping[str, float],
    files: Mapping[str, bytes] | None = None,
    token: str = "aa",
    publish: bool = True,
) -> Checkpoint:
    """Upload a checkpoint; an unpublished one is what an upload leaves that was cut off."""
    source = scratch / f"source-{step}-{token}"
    for name, content in (files or {"generator.safetensors": b"weights of step %d" % step}).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    folder = checkpoint_folder(step, token)
    checkpoint = Checkpoint(folder, step, metrics, run.upload_part(source, folder))
    if publish:
        run.publish(checkpoint)
    return checkpoint


def result_of(folder: SweepFolder) -> SweepResult:
    """Of a sweep that has finished."""
    result = folder.result()
    assert result is not None
    return result
