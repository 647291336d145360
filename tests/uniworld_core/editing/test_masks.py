"""Edit masks: the published numbers, their meaning, and invalid input."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from uniworld.uniworld_core.editing import masks
from uniworld.uniworld_core.editing.weights import edit_weight

SEED0 = Path(__file__).parents[2] / "data" / "seed0"
CASES = ("large", "small", "whole")


def picture(name: str) -> torch.Tensor:
    rgb = np.array(Image.open(SEED0 / "images" / f"{name}.png").convert("RGB"))
    return torch.from_numpy(rgb).float()[None] / 255


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(SEED0 / "training.safetensors")


def gray(height: int, width: int, value: float = 0.5, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, height, width, 3), value)


def painted(base: torch.Tensor, top: int, left: int, height: int, width: int, value: float = 1.0) -> torch.Tensor:
    after = base.clone()
    after[:, top : top + height, left : left + width] = value
    return after


# --- the published numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_mask_equals_the_published_one(golden: dict[str, torch.Tensor], case: str) -> None:
    mask = masks.edit_mask(picture(f"mask_{case}_src"), picture(f"mask_{case}_tgt"))
    assert torch.equal(mask.latent[0], golden[f"mask.{case}.mask"] > 0)
    assert not mask.too_small.any()


def test_batching_does_not_change_the_result_of_an_item(golden: dict[str, torch.Tensor]) -> None:
    before = torch.cat([picture(f"mask_{case}_src") for case in CASES])
    after = torch.cat([picture(f"mask_{case}_tgt") for case in CASES])
    mask = masks.edit_mask(before, after)
    weight = edit_weight(mask.latent)
    for item, case in enumerate(CASES):
        assert torch.equal(mask.latent[item], golden[f"mask.{case}.mask"] > 0)
        torch.testing.assert_close(weight[item], golden[f"mask.{case}.log.weight"][0], rtol=0, atol=1e-6)


# --- the steps, against other ways to compute them ------------------------------------------------------------------


def test_difference_is_pillows_gray_of_the_8_bit_pictures() -> None:
    from PIL import ImageChops

    rng = np.random.default_rng(3)
    before, after = rng.integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    difference = np.array(ImageChops.difference(Image.fromarray(before), Image.fromarray(after)).convert("L"))
    for threshold in (0, 1, 18, 90, 255):
        marked = masks._changed(torch.tensor(before)[None] / 255, torch.tensor(after)[None] / 255, threshold)
        assert np.array_equal(marked[0].numpy(), difference >= threshold)


def test_a_megapixel_mask_takes_about_a_second() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.rand(1, 1024, 1024, 3, generator=generator) for _ in range(2))
    masks.edit_mask(before[:, :64, :64], after[:, :64, :64])  # imports kornia
    start = time.perf_counter()
    masks.edit_mask(before, after)
    assert time.perf_counter() - start < 10  # about a second; ten on a machine that is busy with other things


# --- what the mask means --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", masks.METHODS)
def test_an_unchanged_picture_counts_as_edited_as_a_whole(method: str) -> None:
    mask = masks.edit_mask(gray(32, 48), gray(32, 48), method)
    assert mask.whole.tolist() == [True]
    assert mask.too_small.tolist() == [False]
    assert mask.share.tolist() == [1]
    assert mask.pixels.all()
    assert mask.latent.all()
    assert (edit_weight(mask.latent) == 1).all()


def test_a_tiny_edit_is_flagged_and_kept_as_it_is() -> None:
    before = gray(256, 256)
    mask = masks.edit_mask(before, painted(before, 16, 16, 5, 5))
    assert mask.too_small.tolist() == [True]
    assert mask.whole.tolist() == [False]
    assert mask.pixels.sum() == 25
    assert mask.latent.any()
    assert not mask.latent.all()


def test_specks_far_smaller_than_the_edit_are_dropped() -> None:
    before = gray(64, 64)
    after = painted(painted(before, 8, 8, 24, 24), 50, 50, 4, 4)
    mask = masks.edit_mask(before, after)
    assert mask.pixels[0, 8:32, 8:32].all()
    assert not mask.pixels[0, 40:, 40:].any()
    assert masks.edit_mask(before, after, min_component=0).pixels[0, 50:54, 50:54].all()


def test_only_what_differs_from_every_reference_is_edited() -> None:
    before = gray(64, 64)
    after = painted(painted(before, 0, 0, 32, 16), 32, 32, 32, 16)
    only_lower = painted(before, 0, 0, 32, 16)
    mask = masks.edit_mask([before, only_lower], after)
    assert mask.pixels[0, 32:, 32:48].all()
    assert not mask.pixels[0, :32].any()


def test_the_papers_way_dilates_where_the_codes_way_closes() -> None:
    before = gray(64, 64)
    after = painted(before, 16, 16, 16, 16)
    code, paper = masks.edit_mask(before, after, "code"), masks.edit_mask(before, after, "paper")
    assert code.pixels.sum() == 16 * 16
    assert paper.pixels[0, 14:34, 16:32].all()
    assert paper.pixels.sum() == 20 * 18 + 16 * 2  # the ellipse is 5x3 with a pixel above and below
    assert code.latent.sum() == 4
    assert paper.latent.sum() == 16


def test_the_threshold_is_reached_not_passed() -> None:
    before = torch.zeros(1, 16, 16, 3)
    after = painted(before, 0, 0, 16, 8, 18 / 255)
    assert not masks.edit_mask(before, after, threshold=18).whole
    assert masks.edit_mask(before, after, threshold=19).whole


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 9), (13, 260), (20, 400), (400, 20), (17, 23)])
@pytest.mark.parametrize("method", masks.METHODS)
def test_any_size_makes_a_mask(height: int, width: int, method: str) -> None:
    before = gray(height, width)
    mask = masks.edit_mask(before, 1 - before * 0, method)
    assert mask.pixels.shape == (1, height, width)
    assert mask.latent.shape == (1, max(height // 8, 1), max(width // 8, 1))
    covering = masks.edit_mask(before, 1 - before * 0, method, cover_edges=True)
    assert covering.latent.shape == (1, -(-height // 8), -(-width // 8))
    assert masks.picture_mask(covering).shape == (1, height, width)
    assert masks.picture_mask(covering).all()


def test_incomplete_cells_are_left_out_as_published_and_kept_on_demand() -> None:
    before = gray(80, 84)
    after = painted(before, 0, 81, 80, 3)
    assert not masks.edit_mask(before, after).latent.any()
    assert masks.edit_mask(before, after, cover_edges=True).latent[0].tolist() == [[False] * 10 + [True]] * 10


def test_a_single_reference_serves_a_whole_batch() -> None:
    before = gray(32, 32)
    after = torch.cat([painted(before, 0, 0, 16, 16), painted(before, 16, 16, 8, 8)])
    assert masks.edit_mask(before, after).pixels.sum(dim=(1, 2)).tolist() == [256, 64]
    assert masks.edit_mask(after, before).pixels.sum(dim=(1, 2)).tolist() == [256, 64]
    assert masks.edit_mask([before, after * 0], after).pixels.shape[0] == 2


def test_transparent_pictures_are_composited_on_white() -> None:
    clear = torch.cat([gray(16, 16, 0.0), torch.zeros(1, 16, 16, 1)], dim=-1)
    assert masks.edit_mask(clear, gray(16, 16, 1.0)).whole.all()


# --- what bad input gets --------------------------------------------------------------------------------------------


def with_nan() -> torch.Tensor:
    broken = gray(16, 16)
    broken[0, 3, 3, 1] = float("nan")
    return broken


@pytest.mark.parametrize(
    ("before", "after", "settings", "sentence"),
    [
        (gray(16, 16), gray(16, 24), {}, "'before' is 16x16 pixels and 'after' is 24x16"),
        (gray(16, 16)[0], gray(16, 16), {}, r"'before' has shape \[16, 16, 3\]"),
        (gray(16, 16), gray(16, 16)[..., :2], {}, r"'after' has shape \[1, 16, 16, 2\]"),
        (gray(16, 16), gray(0, 16), {}, "at least one pixel"),
        (with_nan(), gray(16, 16), {}, "'before' has NaN"),
        (gray(16, 16), with_nan(), {}, "'after' has NaN"),
        ((gray(16, 16) * 255).byte(), gray(16, 16), {}, "dtype torch.uint8"),
        ([], gray(16, 16), {}, "at least one picture from before"),
        (gray(16, 16, batch=2), gray(16, 16, batch=3), {}, "'before' holds 2 pictures and 'after' holds 3"),
        (gray(16, 16), gray(16, 16), {"method": "magic"}, "'magic' is not known; choose one of code, paper"),
        (gray(16, 16), gray(16, 16), {"threshold": 256}, "threshold is 256"),
        (gray(16, 16), gray(16, 16), {"kernel_size": 4}, "kernel size is 4"),
        (gray(16, 16), gray(16, 16), {"min_component": 1.5}, "smallest component is 1.5"),
    ],
)
def test_bad_edit_mask_input_gets_a_sentence(before, after, settings, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        masks.edit_mask(before, after, **settings)
