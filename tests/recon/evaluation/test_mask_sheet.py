"""The picture of masks: a column for each, and a line of text that can be checked against the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from larmor.recon.evaluation.mask_sheet import all_kinds, write_mask_sheet
from larmor.recon.physics.masks import achieved_ratio, make_mask, mask_hash
from larmor.recon.recipe.mask_config import MaskConfig


def test_all_kinds_share_the_setting() -> None:
    base = MaskConfig(sampling_ratio=0.3, seed=5, spread=0.3)
    configs = all_kinds(base)
    assert len({config.kind for config in configs}) == len(configs) == 8
    assert all(config.model_copy(update={"kind": base.kind}) == base for config in configs)


@pytest.mark.parametrize("shape", [(32, 48), (33, 17)])
def test_the_sheet_shows_every_mask_and_its_numbers(tmp_path: Path, shape: tuple[int, int]) -> None:
    np.save(tmp_path / "mask.npy", np.eye(*shape))
    file = MaskConfig(kind="file", file=str(tmp_path / "mask.npy"))
    configs = [*all_kinds(MaskConfig(sampling_ratio=0.25)), file]
    lines = write_mask_sheet(configs, shape, tmp_path / "masks.png")
    for config, line in zip(configs, lines, strict=True):
        mask = make_mask(config, shape, (0, 0))
        assert line.startswith(config.kind)
        assert f"{achieved_ratio(mask):.4f}" in line
        assert mask_hash(mask)[:12] in line
        assert ("0.2500" in line) == (config.kind != "file")
    few = tmp_path / "few.png"
    write_mask_sheet(configs[:2], shape, few)
    assert imread(tmp_path / "masks.png").shape[1] > 3 * imread(few).shape[1]


def test_the_same_sheet_is_the_same_file(tmp_path: Path) -> None:
    configs = all_kinds(MaskConfig(per_slice=True))[:3]
    for name in ("a.png", "b.png"):
        write_mask_sheet(configs, (32, 32), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
