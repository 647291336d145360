"""Perception tasks: their instructions, and heads on maps drawn here, clean, noisy and through JPEG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch.nn import functional as F
from uniworld.uniworld_core.perception import tasks as perception
from uniworld.uniworld_core.perception.heads import JOINTS

SIZE = (256, 192)  # width, height
EDGE_TASKS = ("canny", "hed", "mlsd", "sketch")


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).float()[None] / 255


def canvas(color: object = "black", size: tuple[int, int] = SIZE) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", size, color)
    return image, ImageDraw.Draw(image)


def as_is(image: Image.Image) -> torch.Tensor:
    return tensor(image)


def noisy(image: Image.Image) -> torch.Tensor:
    clean = tensor(image)
    return (clean + 0.03 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def jpeg(image: Image.Image) -> torch.Tensor:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return tensor(Image.open(buffer))


disturbed = pytest.mark.parametrize("disturb", [as_is, noisy, jpeg])


def photo(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """Something like a photograph: smooth ground, shapes and grain."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(40, 215, (6, 8, 3), dtype=np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    draw.ellipse([30, 40, 110, 150], fill=(150, 110, 70))
    draw.rectangle([150, 20, 180, 170], fill=(70, 80, 90))
    grain = rng.normal(0, 3, (size[1], size[0], 3))
    grained = np.clip(np.array(image) + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(grained).filter(ImageFilter.GaussianBlur(0.5))


def iou(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found > 0.5, expected > 0.5
    return float((found & expected).sum() / (found | expected).sum())


def corners(boxes: list[dict]) -> set[tuple[int, int, int, int]]:
    return {(box["x"], box["y"], box["width"], box["height"]) for box in boxes}


def near(boxes: list[dict], expected: list[tuple[int, int, int, int]], tolerance: int) -> bool:
    """Whether the boxes are the expected ones (x, y, width, height) within some pixels, in any order."""
    left = sorted(corners(boxes))
    close = [all(abs(a - b) <= tolerance for a, b in zip(*pair)) for pair in zip(left, sorted(expected))]
    return len(left) == len(expected) and all(close)


# --- instructions ---------------------------------------------------------------------------------------------------


def test_every_task_is_known_by_name() -> None:
    names = ["canny", "hed", "mlsd", "depth", "normal", "openpose", "sketch", "segmentation", "detection"]
    assert list(perception.TASKS) == names
    for name, task in perception.TASKS.items():
        assert task.name == name
        assert task.display_name
        assert "{" not in perception.instruction(name, "cat")


def test_only_segmentation_and_detection_need_a_subject() -> None:
    needing = {name for name, task in perception.TASKS.items() if task.needs_subject}
    assert needing == {"segmentation", "detection"}
    assert needing == {name for name, task in perception.TASKS.items() if task.needs_source}
    for name in perception.TASKS.keys() - needing:
        assert perception.instruction(name) == perception.instruction(name, "ignored")


@pytest.mark.parametrize("subject", ["giraffe", "the giraffe", "  A\n giraffe "])
def test_subject_is_set_in_without_article_or_stray_space(subject: str) -> None:
    assert perception.instruction("segmentation", subject) == "Segment the giraffe from the background."


@pytest.mark.parametrize("subject", ["", "  ", "\n"])
def test_missing_subject_gets_a_sentence(subject: str) -> None:
    with pytest.raises(ValueError, match="'detection' needs a subject"):
        perception.instruction("detection", subject)


def test_unknown_task_gets_a_sentence_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'canney' is not known; choose one of canny, hed"):
        perception.instruction("canney")
    with pytest.raises(ValueError, match="is not known"):
        perception.read_map("", torch.zeros(1, 8, 8, 3))


# --- edges ----------------------------------------------------------------------------------------------------------


def line_drawing(paper: str, ink: str) -> Image.Image:
    image, draw = canvas(paper)
    draw.line([20, 20, 230, 60], fill=ink, width=3)
    draw.rectangle([60, 80, 140, 160], outline=ink, width=3)
    draw.ellipse([160, 90, 230, 170], outline=ink, width=2)
    return image


@disturbed
@pytest.mark.parametrize("task", EDGE_TASKS)
@pytest.mark.parametrize(("paper", "ink"), [("black", "white"), ("white", "black"), ("#101018", "#d0d0d0")])
def test_edges_are_white_on_black_for_every_painting(
    task: str, paper: str, ink: str, disturb: Callable[[Image.Image], torch.Tensor]
) -> None:
    expected = tensor(line_drawing("black", "white"))[..., 0]
    result = perception.read_map(task, disturb(line_drawing(paper, ink)))
    assert iou(result.mask, expected) > 0.9
    assert set(result.map.unique().tolist()) == {0, 1}
    assert torch.equal(result.map[..., 1], result.mask)
    assert result.boxes == [[]]
    assert ("dark on light" if paper == "white" else "light on dark") in result.text


@disturbed
@pytest.mark.parametrize("ground", ["black", "white", "gray"])
def test_a_blank_map_has_no_edges(ground: str, disturb: Callable[[Image.Image], torch.Tensor]) -> None:
    result = perception.read_map("canny", disturb(canvas(ground)[0]))
    assert not result.mask.any()
    assert result.text == "no edges"


# --- depth and normals ----------------------------------------------------------------------------------------------


@disturbed
def test_depth_is_one_channel_from_0_to_1(disturb: Callable[[Image.Image], torch.Tensor]) -> None:
    ramp = np.linspace(60, 200, SIZE[0])[None].repeat(SIZE[1], 0).astype(np.uint8)
    result = perception.read_map("depth", disturb(Image.fromarray(ramp)))
    assert result.mask.min() == 0
    assert result.mask.max() == 1
    assert torch.equal(result.map, result.mask[..., None].expand(-1, -1, -1, 3))
    middle = result.mask[0].mean(dim=0)
    assert (middle - torch.linspace(0, 1, SIZE[0])).abs().max() < 0.15


def test_flat_depth_is_zero() -> None:
    assert not perception.read_map("depth", torch.full((2, 8, 8, 3), 0.4)).mask.any()


def test_each_depth_of_a_batch_is_stretched_on_its_own() -> None:
    ramp = torch.linspace(0, 1, 32)[None, None, :, None].expand(1, 16, 32, 3)
    both = perception.read_map("depth", torch.cat([ramp * 0.2, ramp * 0.5 + 0.5]))
    torch.testing.assert_close(both.mask[0], both.mask[1], rtol=0, atol=1e-6)
    assert both.text.startswith("picture 1: depth")
    assert "; picture 2: " in both.text
    assert "\n" not in both.text


def test_normals_are_unit_vectors_in_the_painted_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.nn.functional.normalize(torch.randn(2, 20, 30, 3, generator=generator), dim=-1)
    painted = ((true + 1) / 2 * 255).round() / 255 + 0.01 * torch.randn(true.shape, generator=generator)
    result = perception.read_map("normal", painted.clamp(0, 1))
    normals = result.map * 2 - 1
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(2, 20, 30), rtol=0, atol=1e-5)
    assert ((normals * true).sum(dim=-1) > 0.99).all()
    assert result.mask.all()


def test_flat_ground_has_no_normals() -> None:
    image, draw = canvas("black")
    draw.rectangle([0, 0, 127, 191], fill=(128, 128, 255))
    result = perception.read_map("normal", tensor(image))
    assert result.mask[0, :, :128].all()
    assert not result.mask[0, :, 128:].any()
    gray = perception.read_map("normal", torch.full((1, 4, 4, 3), 128 / 255))
    assert not gray.mask.any()
    assert torch.equal(gray.map[0, 0, 0], torch.tensor([0.5, 0.5, 1.0]))


# --- poses ----------------------------------------------------------------------------------------------------------


def hue(joint: int) -> tuple[int, int, int]:
    import colorsys

    return tuple(round(255 * value) for value in colorsys.hsv_to_rgb(joint / len(JOINTS), 1, 1))


def skeleton(spots: dict[int, tuple[int, int]], limbs: list[tuple[int, int]]) -> Image.Image:
    image, draw = canvas("black")
    for number, (one, other) in enumerate(limbs):
        dim = tuple(round(0.6 * value) for value in hue(number))
        draw.line([spots[one], spots[other]], fill=dim, width=5)
    for joint, (x, y) in spots.items():
        draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill=hue(joint))
    return image


@disturbed
def test_joints_are_identified_by_their_color(disturb: Callable[[Image.Image], torch.Tensor]) -> None:
    spots = {joint: (40 + 30 * (joint % 6), 40 + 50 * (joint // 6)) for joint in range(len(JOINTS))}
    limbs = [(joint, joint + 1) for joint in range(17) if joint % 6 != 5]
    result = perception.read_map("openpose", disturb(skeleton(spots, limbs)))
    found = {box["joint"]: (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in result.boxes[0]}
    assert set(found) == set(JOINTS)
    assert len(result.boxes[0]) == len(JOINTS)
    for joint, (x, y) in spots.items():
        assert math.dist(found[JOINTS[joint]], (x + 0.5, y + 0.5)) < 2.5
    assert iou(result.mask, tensor(skeleton(spots, limbs)).amax(dim=-1).gt(0).float()) > 0.75
    assert not result.map[result.mask == 0].any()
    assert result.text.startswith("18 joints: nose, neck")


@disturbed
def test_no_pose_has_no_joints(disturb: Callable[[Image.Image], torch.Tensor]) -> None:
    result = perception.read_map("openpose", disturb(canvas()[0]))
    assert result.boxes == [[]]
    assert not result.mask.any()
    assert result.text == "no joints"


# --- segmentation ---------------------------------------------------------------------------------------------------


def overlay(source: Image.Image, shape: Image.Image, color: tuple[int, int, int], strength: float) -> Image.Image:
    tinted = Image.blend(source, Image.new("RGB", source.size, color), strength)
    return Image.composite(tinted, source, shape)


def blob(size: tuple[int, int] = SIZE) -> Image.Image:
    shape = Image.new("L", size, 0)
    draw = ImageDraw.Draw(shape)
    draw.ellipse([30, 40, 110, 150], fill=255)
    draw.polygon([(150, 160), (200, 60), (240, 160)], fill=255)
    return shape


@disturbed
@pytest.mark.parametrize("color", [(60, 255, 80), (255, 40, 40), (20, 20, 230)])
def test_segmentation_is_read_from_a_translucent_overlay(
    color: tuple[int, int, int], disturb: Callable[[Image.Image], torch.Tensor]
) -> None:
    source = photo()
    result = perception.read_map("segmentation", disturb(overlay(source, blob(), color, 0.5)), tensor(source))
    assert iou(result.mask, tensor(blob())[..., 0]) > 0.93
    assert near(result.boxes[0], [(30, 40, 81, 111), (150, 60, 91, 101)], 4)
    assert torch.equal(result.map[..., 0], result.mask)
    assert "in 2 parts" in result.text


@disturbed
@pytest.mark.parametrize("with_source", [False, True])
@pytest.mark.parametrize("color", ["white", "lime"])
def test_segmentation_is_read_from_a_plain_mask(
    with_source: bool, color: str, disturb: Callable[[Image.Image], torch.Tensor]
) -> None:
    plain = Image.composite(Image.new("RGB", SIZE, color), Image.new("RGB", SIZE), blob())
    result = perception.read_map("segmentation", disturb(plain), tensor(photo()) if with_source else None)
    assert iou(result.mask, tensor(blob())[..., 0]) > 0.97


def test_a_white_mask_may_cover_most_of_the_picture() -> None:
    image, draw = canvas("white")
    draw.rectangle([0, 0, 40, 40], fill="black")
    result = perception.read_map("segmentation", tensor(image))
    assert result.mask.mean() > 0.9
    assert result.mask[0, 20, 20] == 0


@disturbed
def test_an_overlay_may_cover_most_of_the_picture(disturb: Callable[[Image.Image], torch.Tensor]) -> None:
    source, shape = photo(), Image.new("L", SIZE, 0)
    ImageDraw.Draw(shape).rectangle([20, 10, 240, 180], fill=255)
    result = perception.read_map("segmentation", disturb(overlay(source, shape, (60, 255, 80), 0.6)), tensor(source))
    assert iou(result.mask, tensor(shape)[..., 0]) > 0.93


@disturbed
def test_an_unchanged_picture_has_no_mask(disturb: Callable[[Image.Image], torch.Tensor]) -> None:
    source = photo()
    result = perception.read_map("segmentation", disturb(source), tensor(source))
    assert not result.mask.any()
    assert result.boxes == [[]]
    assert result.text == "nothing painted"


def test_a_slight_drift_of_the_whole_picture_is_not_paint() -> None:
    source = tensor(photo())
    drifted = (tensor(overlay(photo(), blob(), (60, 255, 80), 0.5)) * 0.98 + 0.05).clamp(0, 1)
    assert iou(perception.read_map("segmentation", drifted, source).mask, tensor(blob())[..., 0]) > 0.93


def test_source_of_another_size_is_fitted_to_the_map() -> None:
    source = photo()
    large = source.resize((640, 480), Image.Resampling.BICUBIC)
    result = perception.read_map("segmentation", tensor(overlay(source, blob(), (60, 255, 80), 0.5)), tensor(large))
    assert result.mask.shape == (1, SIZE[1], SIZE[0])
    assert iou(result.mask, tensor(blob())[..., 0]) > 0.93


def test_one_source_serves_a_batch_of_maps() -> None:
    source = photo()
    maps = torch.cat([tensor(overlay(source, blob(), (60, 255, 80), 0.5)), tensor(source)])
    result = perception.read_map("segmentation", maps, tensor(source))
    assert result.mask[0].any()
    assert not result.mask[1].any()
    with pytest.raises(ValueError, match="'painted map' holds 2 pictures and 'source' holds 3"):
        perception.read_map("segmentation", maps, tensor(source).expand(3, -1, -1, -1))


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_an_overlay_without_its_source_gets_a_sentence(task: str) -> None:
    with pytest.raises(ValueError, match="give the source picture too"):
        perception.read_map(task, tensor(photo()))


# --- detection ------------------------------------------------------------------------------------------------------


def with_rectangles(
    image: Image.Image, boxes: list[tuple[int, int, int, int]], color: object = (30, 230, 240), width: int = 3
) -> Image.Image:
    drawn = image.copy()
    for x, y, w, h in boxes:
        ImageDraw.Draw(drawn).rectangle([x, y, x + w - 1, y + h - 1], outline=color, width=width)
    return drawn


LAYOUTS = {
    "one": [(40, 30, 120, 100)],
    "apart": [(10, 20, 60, 80), (120, 50, 90, 110)],
    "nested": [(20, 20, 200, 150), (80, 60, 60, 50)],
    "crossing": [(20, 20, 120, 90), (90, 70, 130, 100)],
    "stacked": [(60, 15, 100, 60), (60, 90, 100, 70)],
    "at the border": [(0, 0, 100, 80)],
    "small": [(100, 100, 14, 12)],
}


@disturbed
@pytest.mark.parametrize("layout", LAYOUTS)
def test_boxes_are_the_drawn_rectangles(layout: str, disturb: Callable[[Image.Image], torch.Tensor]) -> None:
    source = photo()
    result = perception.read_map("detection", disturb(with_rectangles(source, LAYOUTS[layout])), tensor(source))
    assert near(result.boxes[0], LAYOUTS[layout], 3), result.boxes
    assert all(0.8 <= box["score"] <= 1 for box in result.boxes[0])
    filled = torch.zeros(1, SIZE[1], SIZE[0])
    for x, y, w, h in LAYOUTS[layout]:
        filled[:, y : y + h, x : x + w] = 1
    assert iou(result.mask, filled) > (0.6 if layout == "small" else 0.9)
    assert set(result.map.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("ground", ["black", "white"])
def test_rectangles_on_plain_ground_need_no_source(ground: str) -> None:
    for layout in LAYOUTS.values():
        result = perception.read_map("detection", jpeg(with_rectangles(canvas(ground)[0], layout, "red")))
        assert near(result.boxes[0], layout, 2)


def test_exact_rectangles_give_exact_boxes_at_full_size() -> None:
    boxes = [(100, 120, 500, 700), (400, 300, 580, 300)]
    source = photo(1, (1024, 1024))
    result = perception.read_map("detection", tensor(with_rectangles(source, boxes, "magenta", 5)), tensor(source))
    assert near(result.boxes[0], boxes, 1)


@disturbed
def test_an_unchanged_picture_has_no_boxes(disturb: Callable[[Image.Image], torch.Tensor]) -> None:
    source = photo()
    result = perception.read_map("detection", disturb(source), tensor(source))
    assert result.boxes == [[]]
    assert not result.map.any()
    assert result.text == "no rectangles"


def test_each_picture_of_a_batch_has_its_own_boxes() -> None:
    source = photo()
    maps = torch.cat([tensor(with_rectangles(source, LAYOUTS[name])) for name in ("one", "nested")])
    result = perception.read_map("detection", maps, tensor(source))
    assert [len(boxes) for boxes in result.boxes] == [1, 2]
    assert result.text.startswith("picture 1: 1 rectangle around")


# --- odd pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", perception.TASKS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 400), (400, 20), (13, 7)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_size_and_channel_count_can_be_read(task: str, height: int, width: int, channels: int) -> None:
    painted = torch.rand(2, height, width, channels, generator=torch.Generator().manual_seed(0))
    result = perception.read_map(task, painted, torch.full((1, height, width, 3), 0.5))
    assert result.map.shape == (2, height, width, 3)
    assert result.mask.shape == (2, height, width)
    assert result.map.dtype == result.mask.dtype == torch.float32
    for values in (result.map, result.mask):
        assert 0 <= values.min() <= values.max() <= 1
    assert len(result.boxes) == 2
    assert "\n" not in result.text


@pytest.mark.parametrize("task", perception.TASKS)
def test_nan_and_wrong_ranks_get_a_sentence(task: str) -> None:
    with pytest.raises(ValueError, match="'painted map' has NaN"):
        perception.read_map(task, torch.full((1, 8, 8, 3), float("nan")))
    with pytest.raises(ValueError, match=r"'painted map' has shape \[8, 8, 3\]"):
        perception.read_map(task, torch.zeros(8, 8, 3))


def test_a_segmentation_takes_no_soft_outline_of_another_object_for_paint() -> None:
    source = torch.full((1, 64, 64, 3), 0.5)
    source[:, 4:28, 4:28] = torch.tensor([0.9, 0.1, 0.1])
    source[:, 36:60, 36:60] = torch.tensor([0.1, 0.7, 0.2])
    # As a decoder paints it: every edge softer than it was.
    painted = F.avg_pool2d(source.movedim(-1, 1), 3, 1, 1, count_include_pad=False).movedim(1, -1)
    painted[:, 36:60, 36:60] = torch.tensor([0.6, 0.3, 0.6])
    mask_HW = perception.read_map("segmentation", painted, source).mask[0] > 0.5
    wanted_HW = torch.zeros(64, 64, dtype=torch.bool)
    wanted_HW[36:60, 36:60] = True
    assert int((mask_HW & wanted_HW).sum()) == int(wanted_HW.sum())
    assert not mask_HW[:32, :32].any()
    assert int((mask_HW & ~wanted_HW).sum()) <= 4 * 26  # its own rim
