"""White matter, grey matter and CSF of a head, and how well two segmentations agree.

The image alone is used, so a reconstruction is segmented without knowing its original. Steps: N4 bias correction
(SimpleITK), anisotropic diffusion (SimpleITK), brain mask, intensity normalisation, hidden Markov random field (DIPY),
connected regions (scikit-image).

What the classes mean: the brain mask is found by thresholds and morphology, as in Shattuck et al., NeuroImage 13:856
(2001), without an atlas. It holds cerebrum, cerebellum and brain stem, and may keep a piece of the spinal cord, of
venous sinuses, of marrow or of muscle. Bone, meninges and CSF are all dark in T1 images: `csf` is what is dark inside
the mask (ventricles, cisterns, sulci) and a dark rim of `rim` mm around it, where CSF lies, but here and there bone.
Class limits follow from the image's own histogram, and deep grey matter, which is almost as bright as white matter,
often counts as white. All this measures how much a reconstruction changes what a segmentation finds; it is no
diagnosis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from skimage.filters import threshold_multiotsu, threshold_otsu
from skimage.measure import label, regionprops

from larmor.storage.objects.errors import InputError

TISSUES = ("csf", "grey_matter", "white_matter")  # classes 1, 2, 3, the order of their brightness in T1
MIN_SIZE = 32  # of a slice's sides: below, N4 has too few pixels to fit
_FEWEST_SLICES = 8  # of a volume that is segmented in three dimensions
_FEWEST_PIXELS = 8  # along an axis, for a bias field and for diffusion
_BIAS_STEPS = (40, 40, 40)  # N4: the most iterations at each resolution
_NUM_INSTANCES = 3  # of tissue, that a figure shows of a slice
_LEAST_SCORE = 0.25  # of the best piece's: in a slice, the halves of the brain may come apart
_WIDER, _MOST_LOST = 1.5, 0.25  # an opening wider by that factor is preferred if it loses more than that share
_BACKGROUND, _BACKGROUND_SPREAD = 1e-3, 1e-4  # as DIPY would fill zeros, but from a fixed generator


class SegmentationConfig(BaseModel):
    """Settings for heads at about 1 mm; lengths are in mm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spacing: tuple[float, float, float] = Field((1.0, 1.0, 1.0), description="mm between slices, rows and columns")
    bias_shrink: int = Field(4, ge=1, description="N4 fits the bias field to every n-th pixel")
    smoothing: int = Field(3, ge=0, description="steps of curvature anisotropic diffusion")
    opening_radius: float = Field(5.0, gt=0, description="bridges from brain to scalp thinner than twice this are cut")
    closing_radius: float = Field(6.0, ge=0, description="sulci narrower than twice this belong to the brain")
    rim: float = Field(2.0, ge=0, description="thickness of the dark layer around the brain that is taken as CSF")
    smoothness: float = Field(0.1, ge=0, description="weight of the neighbours in the Markov random field")
    iterations: int = Field(5, ge=1, description="the most steps of the Markov random field")
    min_area: int = Field(30, ge=1, description="regions with fewer pixels are dropped")


@dataclass(frozen=True)
class Region:
    """A connected region of one slice.

    `tissue` is one of `TISSUES`, or `brain` for the whole mask; `number` its value in `instances` (0 for the brain);
    `area` in pixels; `centroid` (row, column); `box` (top, left, bottom, right), the last two excluded;
    `mean_intensity` in the units of the images.
    """

    slice_index: int
    tissue: str
    number: int
    area: int
    centroid: tuple[float, float]
    box: tuple[int, int, int, int]
    mean_intensity: float


@dataclass(frozen=True)
class Segmentation:
    """`classes` (slice, height, width) uint8: 0 background, then `TISSUES`; `instances` int32 of the same shape:
    numbers from 1, 0 where there is none; `regions`: per slice the brain, then the instances, the largest first."""

    classes: np.ndarray
    instances: np.ndarray
    regions: Sequence[Region]

    def one_slice(self, index: int) -> Segmentation:
        """That of one slice alone, which is then number 0."""
        part = slice(index, index + 1)
        regions = [replace(region, slice_index=0) for region in self.regions if region.slice_index == index]
        return Segmentation(self.classes[part].copy(), self.instances[part].copy(), regions)

    def regions_of_interest(self, slice_index: int) -> list[Region]:
        """The brain of a slice and its largest instances; empty without brain."""
        return [region for region in self.regions if region.slice_index == slice_index][: 1 + _NUM_INSTANCES]


def segment(images: np.ndarray, config: SegmentationConfig, scale: np.ndarray | None = None) -> Segmentation:
    """Segment the slices (slice, height, width) in [0, 1] of one volume.

    With `scale` (slice, 2), minimum and maximum of each slice before it was normalised, the slices are put back to
    one scale and, if there are at least 8, segmented as a volume, which is clearly better: neighbouring slices
    tell brain from face. The slices must then be consecutive. Otherwise each slice is segmented on its own. The
    result is a pure function of the arguments. A slice without brain is all background.

    Raises `InputError` if SimpleITK or DIPY is not installed, and for other shapes and values that are not finite.
    """
    if images.ndim != 3 or len(images) < 1 or min(images.shape[1:]) < MIN_SIZE:
        raise InputError(
            f"images of shape {images.shape}; (slice, height, width) of at least {MIN_SIZE}×{MIN_SIZE} is expected"
        )
    if not np.isfinite(images).all():
        raise InputError("the images have values that are not finite; they cannot be segmented")
    if scale is not None and scale.shape != (len(images), 2):
        raise InputError(f"scale of shape {scale.shape} for {len(images)} slices; ({len(images)}, 2) is expected")
    _simple_itk()
    _tissue_classifier()
    classes = np.zeros(images.shape, np.uint8)
    if scale is not None and len(images) >= _FEWEST_SLICES:
        low, high = (scale[:, side].reshape(-1, 1, 1) for side in (0, 1))
        classes[:] = _classes(images * (high - low) + low, config)
    else:
        for index, image in enumerate(images):
            classes[index] = _classes(image, config)
    return _with_regions(images, classes, config)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """2|A∩B| / (|A| + |B|) of two boolean arrays; 1 if both are empty."""
    if first.shape != second.shape:
        raise InputError(f"masks of shapes {first.shape} and {second.shape} cannot be compared")
    first, second = first.astype(bool), second.astype(bool)
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def dice_per_class(original: Segmentation, reconstructed: Segmentation) -> dict[str, float]:
    """Dice of each of `TISSUES` over all slices, their `mean`, and of the whole `brain`."""
    found = {
        tissue: dice(original.classes == number, reconstructed.classes == number)
        for number, tissue in enumerate(TISSUES, 1)
    }
    mean = float(np.mean(list(found.values())))
    return {**found, "mean": mean, "brain": dice(original.classes > 0, reconstructed.classes > 0)}


def _classes(image: np.ndarray, config: SegmentationConfig) -> np.ndarray:
    """Classes of one slice (height, width) or one volume (slice, height, width)."""
    image = image.astype(np.float32) - np.float32(image.min())
    top = np.percentile(image, 99.9)
    if top <= 0:
        return np.zeros(image.shape, np.uint8)
    image = np.minimum(image / top, 1.5)
    head = image > _air(image)
    even = _correct_bias(image, head, config)
    brain = brain_mask(_smooth(even, config), config)
    if not brain.any():
        return np.zeros(image.shape, np.uint8)
    # the field over the head is bent by fat and muscle: fit it again where the brain alone counts
    box = _bounds(brain)
    inside = brain[box]
    even = _smooth(_correct_bias(even[box], inside, config), config)
    classes = np.zeros(image.shape, np.uint8)
    classes[box] = _classify(even, inside, config)
    return classes


def _correct_bias(image: np.ndarray, mask: np.ndarray, config: SegmentationConfig) -> np.ndarray:
    """Divide by the smooth field that N4 finds inside `mask` (Tustison et al., IEEE TMI 29:1310, 2010)."""
    if min(image.shape) < _FEWEST_PIXELS:
        return image
    itk = _simple_itk()
    # no axis is left with too few pixels for the splines
    shrink = [max(1, min(config.bias_shrink, size // 32)) for size in reversed(image.shape)]
    small_mask = itk.Shrink(itk.GetImageFromArray(mask.astype(np.uint8)), shrink)
    if not itk.GetArrayViewFromImage(small_mask).any():
        return image
    whole = itk.GetImageFromArray(image)
    n4 = itk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_BIAS_STEPS)
    n4.SetNumberOfThreads(1)  # sums of several threads would depend on their number
    n4.Execute(itk.Shrink(whole, shrink), small_mask)
    field = itk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(whole))
    return (image / np.exp(np.clip(field, -2, 2))).astype(np.float32)


def _smooth(image: np.ndarray, config: SegmentationConfig) -> np.ndarray:
    if config.smoothing == 0 or min(image.shape) < _FEWEST_PIXELS:
        return image
    itk = _simple_itk()
    smoothed = itk.CurvatureAnisotropicDiffusion(
        itk.GetImageFromArray(image),
        timeStep=0.5 ** (image.ndim + 1),  # the largest that is stable
        conductanceParameter=3.0,
        numberOfIterations=config.smoothing,
    )
    return np.asarray(itk.GetArrayFromImage(smoothed))


def brain_mask(image: np.ndarray, config: SegmentationConfig) -> np.ndarray:
    """The brain in an even image (height, width) or (slice, height, width), as a boolean array.

    Pixels as bright as brain are eroded until brain and face come apart; the piece that is large, in the middle and
    towards the top is grown back, its sulci are closed, its holes (the ventricles) filled, and its dark rim added.
    """
    spacing = config.spacing[3 - image.ndim :]
    low, high = _tissue_range(image)
    tissue = (image > low) & (image < high)
    mask = np.zeros(image.shape, bool)
    if not tissue.any():
        return mask
    weights = _upper_middle(image.shape)
    box = _bounds(ndimage.binary_dilation(tissue, iterations=3))
    tissue, image = tissue[box], image[box]
    depth = ndimage.distance_transform_edt(np.pad(tissue, 1, mode="edge"), spacing)[(slice(1, -1),) * image.ndim]
    grown = _open(tissue, depth, weights[box[-2:]], config.opening_radius, spacing)
    if not grown.any():
        return mask
    narrower = _open(tissue, depth, weights[box[-2:]], _WIDER * config.opening_radius, spacing)
    # gyri alone are less than that: a bridge to the face was cut
    if _MOST_LOST < 1 - narrower.sum() / grown.sum() < 1:
        grown = narrower
    brain = _fill(_close(grown, config.closing_radius, spacing))
    if config.rim > 0:
        dark = image < np.percentile(image[brain], 30)
        brain |= dark & (ndimage.distance_transform_edt(~brain, spacing) <= config.rim)
    mask[box] = brain
    return mask


def _air(image: np.ndarray) -> float:
    """Otsu's threshold of the roots: of the brightness itself, it may part bright fat from the rest."""
    return float(threshold_otsu(np.sqrt(np.maximum(image, 0)))) ** 2


def _open(
    tissue: np.ndarray, depth: np.ndarray, weights: np.ndarray, radius: float, spacing: Sequence[float]
) -> np.ndarray:
    """The pieces of `tissue` deeper than `radius` whose weighted depth is large, grown back."""
    core, count = ndimage.label(depth > radius)
    if count == 0:
        return np.zeros_like(tissue)
    score = ndimage.sum_labels(depth * weights, core, np.arange(1, count + 1))
    core = np.isin(core, 1 + np.flatnonzero(score >= _LEAST_SCORE * score.max()))
    return np.asarray(tissue & (ndimage.distance_transform_edt(~core, spacing) <= radius + 1))


def _tissue_range(image: np.ndarray) -> tuple[float, float]:
    """Brightness between that of CSF, bone and air and that of fat.

    Otsu's thresholds, but a crop may hold no air or no fat; then they would part grey matter from white.
    """
    low = min(float(threshold_otsu(image)), 0.55 * float(np.median(image[image > _air(image)])))
    tissue = image[image > low]
    high = threshold_otsu(tissue)
    return low, max(high, 1.6 * float(np.median(tissue[tissue <= high])))


def _bounds(mask: np.ndarray) -> tuple[slice, ...]:
    """The bounding box of a mask that is not empty."""
    return tuple(ndimage.find_objects(mask.astype(np.uint8))[0])


def _upper_middle(shape: tuple[int, ...]) -> np.ndarray:
    """Weights (height, width): coronal slices have the brain at the top and in the middle, the neck at the bottom."""
    rows, columns = (np.arange(size) / (size - 1) for size in shape[-2:])
    return np.outer((1 - rows) ** 2, 1 - np.abs(2 * columns - 1))


def _close(mask: np.ndarray, radius: float, spacing: Sequence[float]) -> np.ndarray:
    """Morphological closing by a ball of `radius`."""
    if radius == 0:
        return mask
    pads = [int(np.ceil(radius / step)) + 1 for step in spacing]
    padded = np.pad(mask, [(pad, pad) for pad in pads])
    dilated = ndimage.distance_transform_edt(~padded, spacing) <= radius
    closed = ndimage.distance_transform_edt(dilated, spacing) > radius
    return np.asarray(closed[tuple(slice(pad, -pad) for pad in pads)])


def _fill(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of each slice."""
    if mask.ndim == 2:
        return np.asarray(ndimage.binary_fill_holes(mask))
    return np.stack([ndimage.binary_fill_holes(part) for part in mask])


def _classify(image: np.ndarray, inside: np.ndarray, config: SegmentationConfig) -> np.ndarray:
    """Classes 1 to 3 inside the brain, 0 outside (Zhang et al., IEEE TMI 20:45, 2001)."""
    values = _normalize(image, inside)
    # DIPY fills zeros from a generator that cannot be seeded, hence none is left
    background = np.random.default_rng(0).normal(_BACKGROUND, _BACKGROUND_SPREAD, values.shape)
    values = np.where(inside, values, background)
    solid = values if values.ndim == 3 else values[..., None]
    classifier = _tissue_classifier()(verbose=False)
    with np.errstate(divide="ignore", invalid="ignore"):
        _, found, _ = classifier.classify(
            solid, len(TISSUES), config.smoothness, tolerance=1e-4, max_iter=config.iterations
        )
    labels = np.maximum(np.asarray(found).reshape(values.shape), 1).astype(np.uint8)
    return np.where(inside, _by_brightness(labels, values, inside), 0).astype(np.uint8)


def _normalize(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Put Otsu's two thresholds between three classes where DIPY starts: at 3/8 and 5/8; within [0.1, 1]."""
    values = image[inside]
    low, high = np.percentile(values, (0.5, 99.5))
    values = np.clip(values, low, high)
    try:
        first, second = threshold_multiotsu(values, len(TISSUES))
    except ValueError:  # fewer than three different values
        first, second = low, max(high, low + 1e-6)
    return np.clip(0.375 + 0.25 * (image.astype(np.float64) - first) / (second - first), 0.1, 1.0)


def _by_brightness(labels: np.ndarray, values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Number the classes 1, 2, 3 by their mean brightness; a class without pixels keeps its place."""
    present = [number for number in (1, 2, 3) if (inside & (labels == number)).any()]
    order = sorted(present, key=lambda number: float(values[inside & (labels == number)].mean()))
    table = np.arange(4, dtype=np.uint8)
    for place, number in zip(present, order, strict=True):
        table[number] = place
    return table[labels]


def _with_regions(images: np.ndarray, classes: np.ndarray, config: SegmentationConfig) -> Segmentation:
    instances = np.zeros(classes.shape, np.int32)
    regions: list[Region] = []
    last = 0
    for index, (image, found) in enumerate(zip(images, classes, strict=True)):
        regions += [_region(index, "brain", 0, part) for part in regionprops((found > 0).astype(np.uint8), image)]
        labels = label(found, background=0, connectivity=1)
        parts = [part for part in regionprops(labels, image) if part.area >= config.min_area]
        for part in sorted(parts, key=lambda part: (-part.area, part.label)):
            last += 1
            instances[index][labels == part.label] = last
            tissue = TISSUES[int(found[tuple(part.coords[0])]) - 1]
            regions.append(_region(index, tissue, last, part))
    return Segmentation(classes, instances, regions)


def _region(slice_index: int, tissue: str, number: int, part: Any) -> Region:
    row, column = (float(place) for place in part.centroid)
    top, left, bottom, right = (int(place) for place in part.bbox)
    return Region(
        slice_index,
        tissue,
        number,
        int(part.area),
        (row, column),
        (top, left, bottom, right),
        float(part.intensity_mean),
    )


def _simple_itk() -> ModuleType:
    try:
        import SimpleITK
    except ImportError as error:
        raise _missing("SimpleITK", error) from error
    return SimpleITK


def _tissue_classifier() -> Any:
    try:
        from dipy.segment.tissue import TissueClassifierHMRF
    except ImportError as error:
        raise _missing("DIPY", error) from error
    return TissueClassifierHMRF


def _missing(library: str, error: ImportError) -> InputError:
    return InputError(f"segmentation needs {library} ({error}); install it with pip install 'larmor-mri[segmentation]'")
