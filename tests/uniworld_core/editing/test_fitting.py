"""Edited pictures of other sizes over the one from before the edit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from uniworld.uniworld_core.editing.fitting import fit_before, fit_edit
from uniworld.uniworld_core.errors import UniWorldError


def gray(height: int, width: int, value: float = 0.5, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, height, width, 3), value)


def test_fit_edit_brings_edit_and_mask_to_the_originals_size() -> None:
    after, mask = fit_edit(gray(50, 70), gray(32, 32, 0.2), torch.eye(16)[None])
    assert after.shape == (1, 50, 70, 3)
    assert mask.shape == (1, 50, 70)
    assert set(mask.unique().tolist()) == {0, 1}


def test_fit_before_resizes_as_pillow_does() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    expected = np.array(Image.fromarray(rgb).resize((40, 30), Image.Resampling.BICUBIC))
    fitted = fit_before(torch.tensor(rgb)[None] / 255, gray(30, 40))
    assert np.abs((fitted[0].numpy() * 255).round() - expected.astype(float)).max() <= 1


def test_a_cropped_edit_is_put_back_into_the_whole_picture() -> None:
    before = torch.rand(1, 30, 50, 3, generator=torch.Generator().manual_seed(0))
    after = gray(16, 16, 0.2)  # the 30x30 pixels in the middle
    assert torch.equal(fit_before(before, gray(30, 30), "crop"), before[:, :, 10:40])
    placed, mask = fit_edit(before, after, torch.ones(1, 16, 16), "crop")
    assert mask.sum() == 30 * 30
    assert torch.equal(placed * (1 - mask[..., None]), before * (1 - mask[..., None]))
    assert torch.allclose(placed[:, :, 10:40], torch.full((), 0.2))
    with pytest.raises(UniWorldError, match="fit is 'pad'; it must be one of stretch, crop"):
        fit_before(before, after, "pad")
