"""Edit masks, edit weights, compositing, and the connected parts below them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from uniworld.uniworld_core.editing import masks
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.images.components import connected_components, keep_large

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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("function", "published"), [("logarithmic", "log"), ("exponential_root", "exp")])
def test_weight_equals_the_published_one(
    golden: dict[str, torch.Tensor], case: str, function: str, published: str
) -> None:
    weight = masks.edit_weight(golden[f"mask.{case}.mask"][None] > 0, function)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, golden[f"mask.{case}.{published}.weight"], rtol=0, atol=1e-6)


def test_batching_does_not_change_the_result_of_an_item(golden: dict[str, torch.Tensor]) -> None:
    before = torch.cat([picture(f"mask_{case}_src") for case in CASES])
    after = torch.cat([picture(f"mask_{case}_tgt") for case in CASES])
    mask = masks.edit_mask(before, after)
    weight = masks.edit_weight(mask.latent)
    for item, case in enumerate(CASES):
        assert torch.equal(mask.latent[item], golden[f"mask.{case}.mask"] > 0)
        torch.testing.assert_close(weight[item], golden[f"mask.{case}.log.weight"][0], rtol=0, atol=1e-6)


# --- the steps, against other ways to compute them ------------------------------------------------------------------


def test_ellipse_has_opencvs_shape() -> None:
    assert masks.ellipse(1).tolist() == [[1]]
    assert masks.ellipse(3).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert masks.ellipse(5).sum(dim=1).tolist() == [1, 5, 5, 5, 1]
    assert masks.ellipse(9).sum(dim=1).tolist() == [1, 7, 7, 9, 9, 9, 7, 7, 1]
    assert masks.ellipse(11).sum(dim=1).tolist() == [1, 7, 9, 11, 11, 11, 11, 11, 9, 7, 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3, 5, 7]), st.integers(0, 2**31))
def test_closing_leaves_the_picture_border_neutral(height: int, width: int, kernel_size: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    offsets = [(y, x) for y, x in np.argwhere(masks.ellipse(kernel_size).numpy() > 0) - kernel_size // 2]

    def around(values: np.ndarray, y: int, x: int) -> list[bool]:
        spots = [(y + dy, x + dx) for dy, dx in offsets]
        return [bool(values[spot]) for spot in spots if 0 <= spot[0] < height and 0 <= spot[1] < width]

    grid = [(y, x) for y in range(height) for x in range(width)]
    dilated = np.array([any(around(mask, y, x)) for y, x in grid]).reshape(height, width)
    closed = np.array([all(around(dilated, y, x)) for y, x in grid]).reshape(height, width)
    assert np.array_equal(masks.close_mask(torch.from_numpy(mask)[None], kernel_size)[0].numpy(), closed)


def test_difference_is_pillows_gray_of_the_8_bit_pictures() -> None:
    from PIL import ImageChops

    rng = np.random.default_rng(3)
    before, after = rng.integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    difference = np.array(ImageChops.difference(Image.fromarray(before), Image.fromarray(after)).convert("L"))
    for threshold in (0, 1, 18, 90, 255):
        marked = masks._changed(torch.tensor(before)[None] / 255, torch.tensor(after)[None] / 255, threshold)
        assert np.array_equal(marked[0].numpy(), difference >= threshold)


def flood_fill(classes: np.ndarray) -> list[tuple[int, frozenset[tuple[int, int]]]]:
    """The 8-connected parts of equal value, one pixel at a time: the slow and certain way."""
    parts, seen = [], set()
    for start in map(tuple, np.argwhere(classes != 0)):
        if start in seen:
            continue
        stack, part = [start], {start}
        while stack:
            y, x = stack.pop()
            for spot in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                inside = 0 <= spot[0] < classes.shape[0] and 0 <= spot[1] < classes.shape[1]
                if inside and spot not in part and classes[spot] == classes[start]:
                    part.add(spot)
                    stack.append(spot)
        seen |= part
        parts.append((int(classes[start]), frozenset((int(y), int(x)) for y, x in part)))
    return parts


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 16),
    st.integers(1, 16),
    st.sampled_from([0.1, 0.4, 0.6, 0.9]),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_components_are_those_of_a_flood_fill(
    batch: int, height: int, width: int, density: float, kinds: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    classes = (rng.random((batch, height, width)) < density) * rng.integers(1, kinds + 1, (batch, height, width))
    parts = connected_components(torch.from_numpy(classes))
    expected = [(item, *part) for item in range(batch) for part in flood_fill(classes[item])]
    assert [tuple(row) for row in zip(parts.items.tolist(), parts.values.tolist())] == [row[:2] for row in expected]
    for number, (item, _, spots) in enumerate(expected):
        found = (parts.labels == number + 1).nonzero().tolist()
        assert {(y, x) for _, y, x in found} == spots
        assert {row[0] for row in found} == {item}
        assert parts.areas[number] == len(spots)
        rows, columns = [y for y, _ in spots], [x for _, x in spots]
        box = [min(columns), min(rows), max(columns) - min(columns) + 1, max(rows) - min(rows) + 1]
        assert parts.boxes[number].tolist() == box


@pytest.mark.parametrize("upright", [False, True])
def test_a_snake_across_the_whole_picture_is_one_component(upright: bool) -> None:
    snake = torch.zeros(1, 257, 257, dtype=torch.bool)
    snake[:, ::2] = True
    snake[:, 1::4, -1] = True
    snake[:, 3::4, 0] = True
    snake = snake.transpose(1, 2) if upright else snake
    parts = connected_components(snake)
    assert parts.areas.tolist() == [int(snake.sum())]


def test_keep_large_measures_each_item_on_its_own() -> None:
    mask = torch.zeros(2, 10, 10, dtype=torch.bool)
    mask[:, 0, :3] = True
    mask[0, 5:9, 5:9] = True
    kept = keep_large(mask, torch.tensor([4.0, 2.0]))
    assert kept[0].sum() == 16
    assert kept[1].sum() == 3


def test_components_refuse_a_float_mask_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="bool or integer tensor"):
        connected_components(torch.zeros(1, 4, 4))


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
    assert (masks.edit_weight(mask.latent) == 1).all()


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


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "weight"),
    [("logarithmic", 5.0), ("linear", 16.0), ("exponential_root", 8.0), ("quadratic_root", 10.0)],
)
def test_weight_functions_are_the_papers(function: str, weight: float) -> None:
    latent = torch.zeros(2, 8, 8, dtype=torch.bool)
    latent[0, 3:5, 3:5] = True
    latent[1] = True
    weights = masks.edit_weight(latent, function)
    assert weights[0][latent[0]].tolist() == pytest.approx([weight] * 4, abs=1e-6)
    assert (weights[0][~latent[0]] == 1).all()
    assert (weights[1] == 1).all()


@pytest.mark.parametrize("function", masks.WEIGHT_FUNCTIONS)
def test_weights_stay_finite_for_one_cell_in_a_huge_latent(function: str) -> None:
    latent = torch.zeros(1, 256, 256, dtype=torch.bool)
    latent[0, 7, 7] = True
    weight = masks.edit_weight(latent, function)
    assert torch.isfinite(weight).all()
    assert weight[0, 7, 7] > 1


def test_a_mask_without_cells_weighs_everything_alike() -> None:
    assert (masks.edit_weight(torch.zeros(1, 4, 4, dtype=torch.bool), "linear") == 1).all()


def test_weight_picture_shows_the_heaviest_cell_white() -> None:
    latent = torch.zeros(1, 2, 2, dtype=torch.bool)
    latent[0, 0, 0] = True
    shown = masks.weight_picture(masks.edit_weight(latent, "linear"), 16, 13)
    assert shown.shape == (1, 16, 13, 3)
    assert (shown[0, :8, :8] == 1).all()
    assert (shown[0, 8:] == 0.25).all()


# --- compositing ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 12), st.integers(0, 2**31))
def test_what_was_not_edited_stays_the_original_bit_for_bit(height: int, width: int, feather: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, after = (torch.rand(2, height, width, 3, generator=generator) for _ in range(2))
    mask = (torch.rand(2, height, width, generator=generator) - 0.4).clamp(min=0)
    out = masks.composite_edit(before, after, mask, feather)
    assert torch.equal(out[mask == 0], before[mask == 0])
    assert ((out - before).abs() <= (after - before).abs() + 1e-6).all()


def test_a_hard_mask_takes_the_edit_bit_for_bit() -> None:
    before, after = torch.rand(2, 1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:9, 4:9] = 1
    out = masks.composite_edit(before, after, mask, feather=0)
    assert torch.equal(out[mask > 0], after[mask > 0])
    assert torch.equal(out[mask == 0], before[mask == 0])


def test_feather_fades_inward_by_equal_steps() -> None:
    mask = torch.zeros(1, 41, 41)
    mask[:, 5:36, 5:36] = 1
    out = masks.composite_edit(gray(41, 41, 0.0), gray(41, 41, 1.0), mask, feather=3)
    assert out[0, 20, 3:12, 0].tolist() == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_feather_keeps_full_strength_in_thin_parts_and_at_the_pictures_edge() -> None:
    mask = torch.zeros(1, 40, 40)
    mask[:, 10:15] = 1
    mask[:, 30:] = 1
    out = masks.composite_edit(gray(40, 40, 0.0), gray(40, 40, 1.0), mask, feather=16)
    assert (out[0, 12] == 1).all()
    assert (out[0, 39] == 1).all()
    assert (out[0, 10] < 1).all()


def test_composite_serves_a_batch_from_one_picture_and_one_mask() -> None:
    before, after = gray(8, 8, 0.0), torch.rand(3, 8, 8, 3)
    assert torch.equal(masks.composite_edit(before, after, torch.ones(1, 8, 8)), after)


def test_fit_edit_brings_edit_and_mask_to_the_originals_size() -> None:
    after, mask = masks.fit_edit(gray(50, 70), gray(32, 32, 0.2), torch.eye(16)[None])
    assert after.shape == (1, 50, 70, 3)
    assert mask.shape == (1, 50, 70)
    assert set(mask.unique().tolist()) == {0, 1}


def test_fit_before_resizes_as_pillow_does() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    expected = np.array(Image.fromarray(rgb).resize((40, 30), Image.Resampling.BICUBIC))
    fitted = masks.fit_before(torch.tensor(rgb)[None] / 255, gray(30, 40))
    assert np.abs((fitted[0].numpy() * 255).round() - expected.astype(float)).max() <= 1


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


def test_bad_weight_input_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="'cubic' is not known; choose one of logarithmic"):
        masks.edit_weight(torch.ones(1, 4, 4, dtype=torch.bool), "cubic")
    with pytest.raises(ValueError, match=r"pass EditMask\.latent"):
        masks.edit_weight(torch.ones(1, 4, 4))


def test_bad_composite_input_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="feather is -1"):
        masks.composite_edit(gray(8, 8), gray(8, 8), torch.ones(1, 8, 8), -1)
    with pytest.raises(ValueError, match="'before' is 8x8 pixels and 'mask' is 9x8"):
        masks.composite_edit(gray(8, 8), gray(8, 8), torch.ones(1, 8, 9))
    with pytest.raises(ValueError, match="mask 'mask' has NaN"):
        masks.composite_edit(gray(8, 8), gray(8, 8), torch.full((1, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="'mask' holds 2 pictures and 'after' holds 3"):
        masks.composite_edit(gray(8, 8), gray(8, 8, batch=3), torch.ones(2, 8, 8))


def test_a_cropped_edit_is_put_back_into_the_whole_picture() -> None:
    before = torch.rand(1, 30, 50, 3, generator=torch.Generator().manual_seed(0))
    after = gray(16, 16, 0.2)  # the 30x30 pixels in the middle
    assert torch.equal(masks.fit_before(before, gray(30, 30), "crop"), before[:, :, 10:40])
    placed, mask = masks.fit_edit(before, after, torch.ones(1, 16, 16), "crop")
    assert mask.sum() == 30 * 30
    assert torch.equal(placed * (1 - mask[..., None]), before * (1 - mask[..., None]))
    assert torch.allclose(placed[:, :, 10:40], torch.full((), 0.2))
    with pytest.raises(UniWorldError, match="fit is 'pad'; it must be one of stretch, crop"):
        masks.fit_before(before, after, "pad")
