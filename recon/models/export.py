"""A model for other programs: ONNX or `torch.export`, written only if it computes what the model computes."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import resize
from torch import Tensor

from larmor.recon.models.model import Model
from larmor.recon.models.portable import portable
from larmor.recon.networks.data_consistency import ConsistentGenerator
from larmor.recon.networks.idpcnn import IdpGenerator
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.masks import make_mask
from larmor.recon.physics.sense import complex_to_channels, sense_expand, sense_reduce
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.storage.formats.provenance import larmor_version
from larmor.storage.objects.errors import InputError

SUFFIXES = (".onnx", ".pt2")
TOLERANCE = 1e-4  # of zero-filled images in [0, 1]
_KEY = "larmor"  # of the metadata
_LARGEST = 4096  # height and width where they may vary
Inputs = dict[str, Tensor]
Program = Callable[[Inputs], np.ndarray]


@dataclass(frozen=True)
class ExportConfig:
    """What is exported: images of `size` or, if `dynamic_size`, of any height and width that are multiples of the
    network's own; k-space of `num_coils`, which a model with signal.coils=all knows itself. A batch may have any size;
    of stacks any number in ONNX, in `torch.export`, which tells one from several for ever, a single one."""

    size: tuple[int, int]
    dynamic_size: bool = False
    num_coils: int = 1


@dataclass(frozen=True)
class Exported:
    """What was written, its inputs by name with their shapes, and the largest difference from the model in checks."""

    path: Path
    inputs: Mapping[str, tuple[int | str, ...]]
    error: float
    num_checks: int


def export_model(model: Model, path: Path, config: ExportConfig) -> Exported:
    """Write `path`, ONNX or `torch.export` by its suffix.

    The file is read back, and must agree with the model to 1e-4 on random images and on an undersampled phantom, in
    batches of one and more; else nothing is left. Raises `InputError` for that, and for what cannot be exported.
    """
    _check(model, path, config)
    stack = model.physics.stack
    fixed = path.suffix != ".onnx" and stack > 1
    inputs = _random_inputs(model, config.size, stack if fixed else 2 * stack, _num_coils(model, config))
    program = _traced(model, inputs, config.dynamic_size, fixed)
    shapes = _shapes(inputs, config.dynamic_size, stack if fixed else "batch" if stack == 1 else f"{stack} * stacks")

    def errors_of(run: Program) -> list[float]:
        return _errors(model, run, config, fixed)

    errors = write_program(program, path, _about(model, config, shapes), errors_of)
    return Exported(path, shapes, max(errors), len(errors))


def write_program(
    program: Any, path: Path, about: Mapping[str, Any], errors_of: Callable[[Program], Sequence[float]]
) -> Sequence[float]:
    """Write an exported program as ONNX or for `torch.export`, by its suffix, with `about` in its metadata.

    The file is read back: `errors_of` gives its differences from the model, which are returned. Raises `InputError`,
    and leaves nothing, if one is above 1e-4.
    """
    write = _write_onnx if path.suffix == ".onnx" else _write_pt2
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".larmor-", dir=path.parent) as scratch:
        partial = Path(scratch, path.name)
        errors = errors_of(write(program, partial, json.dumps(about)))
        if not max(errors) <= TOLERANCE:
            raise InputError(
                f"{path}: the exported program differs from the model by up to {max(errors):.2g}, more than "
                f"{TOLERANCE:g}, so it was removed; try the other of {' and '.join(SUFFIXES)}"
            )
        partial.replace(path)
    return errors


def describe_export(exported: Exported) -> list[str]:
    """What `larmor export` prints."""
    inputs = (f"  {name} ({', '.join(map(str, shape))})" for name, shape in exported.inputs.items())
    return [
        *inputs,
        f"differs from the model by at most {exported.error:.1e} in {exported.num_checks} checks",
        str(exported.path),
    ]


def check_suffix(path: Path) -> None:
    """Raises `InputError` for a name of no known format, and for ONNX where its libraries are not installed."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if path.suffix == ".onnx":
        _onnxruntime()


def _check(model: Model, path: Path, config: ExportConfig) -> None:
    check_suffix(path)
    if model.physics.signal.guide:
        raise InputError(
            f"{model.folder}: sees a second contrast beside each image (signal.guide), for which an exported program "
            "has no input; use `larmor reconstruct --guide`, or export a model without"
        )
    step = _network(model).multiple
    if config.dynamic_size and any(length % step or not 2 * step <= length <= _LARGEST for length in config.size):
        raise InputError(
            f"size {config.size[0]}×{config.size[1]}: with --dynamic-size height and width are multiples of {step} up "
            f"to {_LARGEST} for this network, from {2 * step} on; pad the images, and cut the results, or leave out "
            "--dynamic-size"
        )
    if config.num_coils > 1 and model.physics.signal.keeps_coils:
        raise InputError(
            f"--coils {config.num_coils}: this model takes the {model.physics.signal.num_coils} coils that it was "
            "trained for (signal.num_coils); leave --coils out"
        )
    if config.num_coils > 1 and not (_consistent(model) and model.physics.signal.needs_maps):
        raise InputError(
            f"--coils {config.num_coils}: this model sees no coils; only one with generator.data_consistency and "
            "signal.mode=complex, signal.coils=sense does, leave --coils out"
        )


def _num_coils(model: Model, config: ExportConfig) -> int:
    return model.physics.signal.kspace_coils if model.physics.signal.keeps_coils else config.num_coils


def _consistent(model: Model) -> bool:
    """Whether the generator puts measured points back."""
    return isinstance(model.generator, ConsistentGenerator | IdpGenerator)


def _takes_maps(model: Model) -> bool:
    return model.physics.signal.needs_maps


def _is_started(model: Model) -> bool:
    return isinstance(model.generator, ConsistentGenerator) and model.generator.start_config.enabled


def _network(model: Model) -> Any:
    return model.generator.networks[0] if isinstance(model.generator, ConsistentGenerator) else model.generator


def _random_inputs(model: Model, size: tuple[int, int], batch: int, num_coils: int, seed: int = 0) -> Inputs:
    """Noise in all inputs, of no measurement."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.rand((batch, model.physics.signal.channels, *size), generator=rng)
    if not _consistent(model):
        return {"zero_filled": image}
    kspace, maps = torch.randn((2, batch, num_coils, *size), dtype=torch.complex64, generator=rng)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    mask = torch.rand((batch, 1, *size), generator=rng) < 0.3
    return _real(model, image, kspace * mask, mask, maps if num_coils > 1 and _takes_maps(model) else None)


def _phantom_inputs(model: Model, size: tuple[int, int], num_coils: int) -> Inputs:
    """A Shepp-Logan head as coils would measure a third of it."""
    head = torch.from_numpy(resize(shepp_logan_phantom(), size).astype(np.float32))[None, None]
    stack = model.physics.stack
    head = head * torch.linspace(1, 0.8, stack).view(-1, 1, 1, 1)
    mask = torch.from_numpy(make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=0.3), size))
    mask = mask.expand(stack, 1, *size)
    maps = None
    if num_coils > 1:
        turns = torch.arange(num_coils) / num_coils + torch.linspace(0, 0.5, size[1])[None, :, None]
        maps = torch.polar(torch.full_like(turns, num_coils**-0.5), 2 * torch.pi * turns)
        maps = maps.permute(2, 0, 1)[None].expand(stack, num_coils, size[0], size[1])
    kspace = fft2c(sense_expand(torch.complex(head, 0.3 * head), maps)) * mask
    maps = maps if _takes_maps(model) else None
    zero_filled = complex_to_channels(sense_reduce(ifft2c(kspace), maps))
    if model.physics.signal.channels == 1:
        kspace = fft2c(head) * mask
        zero_filled = ifft2c(kspace).abs()
    if not _consistent(model):
        return {"zero_filled": zero_filled}
    return _real(model, zero_filled, kspace, mask, maps)


def _real(model: Model, zero_filled: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None) -> Inputs:
    generator, name, first = model.generator.cpu(), "zero_filled", zero_filled
    if isinstance(generator, ConsistentGenerator) and generator.start_config.enabled:
        name, first = "start", generator.start(zero_filled, kspace, mask, maps)
    inputs = {name: first, "kspace": torch.view_as_real(kspace.contiguous()), "mask": mask}
    return inputs if maps is None else {**inputs, "maps": torch.view_as_real(maps.contiguous())}


def _errors(model: Model, run: Program, config: ExportConfig, fixed: bool) -> list[float]:
    """The largest difference from the model for each of several inputs, of several sizes if they may vary."""
    sizes, step = [config.size], _network(model).multiple
    if config.dynamic_size:
        sizes += [(config.size[0] + step, config.size[1]), (config.size[0], config.size[1] + 2 * step)]
    errors = []
    for size in sizes:
        for inputs in (
            _phantom_inputs(model, size, _num_coils(model, config)),
            *(
                _random_inputs(model, size, batch * model.physics.stack, _num_coils(model, config), seed=batch)
                for batch in ((1,) if fixed else (1, 3))
            ),
        ):
            with torch.no_grad():
                expected = _expected(model, inputs).numpy()
            found = run(inputs)
            same = found.shape == expected.shape and np.isfinite(found).all()
            errors.append(float(np.abs(found - expected).max()) if same else np.inf)
    return errors


def _expected(model: Model, inputs: Inputs) -> Tensor:
    measurement = _measurement(inputs)
    if not _is_started(model):
        return model.generator.cpu()(*measurement)
    start, kspace, mask, *maps = measurement
    return model.generator.cpu()(start, kspace, mask, maps[0] if maps else None, start)


def _measurement(inputs: Inputs) -> list[Tensor]:
    return [torch.view_as_complex(value) if name in ("kspace", "maps") else value for name, value in inputs.items()]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log of the exporter, about itself."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _traced(model: Model, inputs: Inputs, dynamic_size: bool, fixed: bool) -> Any:
    """The exported program, for a `fixed` batch or any. Raises `InputError` if the network cannot be traced."""
    step = _network(model).multiple
    batch = torch.export.Dim("batch", min=1, max=_LARGEST)
    # a feature map of one row or column is traced as one for ever
    rows, columns = (torch.export.Dim(name, min=2, max=_LARGEST) for name in ("rows", "columns"))
    dims = {} if fixed else {0: _times(model.physics.stack, batch)}
    if dynamic_size:
        dims |= {2: _times(step, rows), 3: _times(step, columns)}
    network = portable(model.generator.cpu()).eval()
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(network, tuple(inputs.values()), dynamic_shapes=dict.fromkeys(inputs, dims))
    except (RuntimeError, ValueError, torch._dynamo.exc.UserError) as error:
        remedy = "leave out --dynamic-size" if dynamic_size else "choose another --size"
        raise InputError(f"this network cannot be exported so ({str(error).splitlines()[0]}); {remedy}") from error


def _times(step: int, dimension: Any) -> Any:
    return dimension if step == 1 else step * dimension


def _shapes(inputs: Inputs, dynamic_size: bool, batch: int | str) -> dict[str, tuple[int | str, ...]]:
    def named(shape: tuple[int, ...]) -> tuple[int | str, ...]:
        size = ("height", "width") if dynamic_size else shape[2:4]
        return (batch, shape[1], *size, *shape[4:])

    return {name: named(tuple(tensor.shape)) for name, tensor in inputs.items()}


def _about(model: Model, config: ExportConfig, shapes: Mapping[str, tuple[int | str, ...]]) -> dict[str, Any]:
    """What a program must know to feed the model: stands in the file as JSON, under `larmor`."""
    one = "image" if model.physics.stack == 1 else f"stack of {model.physics.stack} consecutive images"
    return {
        "larmor": larmor_version(),
        "system": model.recipe.system,
        "inputs": shapes,
        "output": "reconstruction, of the shape and in the units of the first input",
        "start": model.recipe.generator.start.model_dump(mode="json"),
        "units": f"each {one} and its k-space divided by the largest magnitude of its zero-filled image",
        "stack": model.physics.stack,
        "channels": _channel_names(model),
        "kspace": "centred orthonormal FFT of the image in those units, 0 where not mask; last axis real, imaginary",
        "size_multiple": _network(model).multiple if config.dynamic_size else None,
        "trained_on": {
            "size": list(model.physics.crop),
            "mask": model.physics.mask.model_dump(mode="json"),
            "signal": model.physics.signal.model_dump(mode="json"),
        },
        "model": model.record,
    }


def _channel_names(model: Model) -> list[str]:
    signal = model.physics.signal
    if signal.keeps_coils:
        return [f"{part} of coil {coil}" for part in ("real", "imaginary") for coil in range(signal.num_coils)]
    return ["magnitude"] if signal.channels == 1 else ["real", "imaginary"]


def _write_pt2(program: Any, path: Path, about: str) -> Program:
    torch.export.save(program, path, extra_files={_KEY: about})
    loaded = torch.export.load(path).module()

    @torch.no_grad()
    def run(inputs: Inputs) -> np.ndarray:
        return np.asarray(loaded(*inputs.values()).numpy())

    return run


def _write_onnx(program: Any, path: Path, about: str) -> Program:
    runtime = _onnxruntime()
    with quiet():
        try:
            converted = torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as error:  # of torch.onnx's own kinds, which are not public
            raise InputError(
                f"{path}: PyTorch cannot write this model as ONNX ({str(error).splitlines()[0]}); export it as .pt2"
            ) from error
        assert converted is not None
        converted.model.metadata_props[_KEY] = about
        converted.save(path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> np.ndarray:
        (result,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return np.asarray(result)

    return run


def _onnxruntime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"ONNX needs onnx, onnxscript and onnxruntime ({error}); install them with "
            "pip install 'larmor-mri[export]', or export as .pt2"
        ) from error
    return onnxruntime
