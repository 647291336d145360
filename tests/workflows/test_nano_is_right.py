"""nano's results in the shared workflows are correct: images according to the oracle, and answers word by word."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from uniworld.training.shapes.judge.judge import judge, judge_answer
from uniworld.training.shapes.judge.morphology import overlap
from uniworld.training.shapes.tasks.tasks import ShapesTask
from uniworld.training.shapes.world import draw
from uniworld.training.shapes.world.scene import UNITS
from workflows.samples import SAMPLES, SIDE

Run = Callable[..., Any]
PAINTED = ("text_to_image", "edit", "multi_reference", "chat", "auto_route", "edit_with_mask")
MAPS = tuple(name for name in SAMPLES if name.startswith("perception"))
# Tasks for which the cleaned map of the head is a valid map of the same kind.
SAME_KIND = {
    "perception_canny": "edge",
    "perception_hed": "hed",
    "perception_mlsd": "mlsd",
    "perception_sketch": "edge",
    "perception_normal": "normal",
}


def right(task: ShapesTask, file: Path) -> None:
    """Assert that the image is what the task asks for."""
    with Image.open(file) as picture:
        assert picture.size == (SIDE, SIDE)
        verdict = judge(task, picture.convert("RGB"))
    assert verdict.right, (task.prompt, verdict.reasons)


def gray(file: Path) -> np.ndarray:
    """Load a grayscale image (H, W) in 0..1."""
    with Image.open(file) as picture:
        return np.asarray(picture.convert("L"), np.float32) / 255


@pytest.mark.parametrize("name", PAINTED)
def test_the_picture_is_right(name: str, run_shared: Run) -> None:
    right(SAMPLES[name].task, run_shared(name).images[0])


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_in_it_is_unknown_to_nano(name: str, run_shared: Run) -> None:
    assert [one for one in run_shared(name).warnings if "only single instructions" not in one] == []


def test_a_photograph_and_unknown_words_get_one_warning(run_shared: Run) -> None:
    (warning,) = run_shared(
        "understand", "Picture.image=cat.jpg", "UniWorldUnderstand.prompt=Which animal is in the picture?"
    ).warnings
    assert "'animal' or the picture" in warning
    assert "Where the weights go" in warning


def test_the_answer_is_right(run_shared: Run) -> None:
    task = SAMPLES["understand"].task
    assert judge_answer(task, answer := run_shared("understand").texts["Answer"]), answer


def test_the_answer_of_the_next_turn_is_about_the_painted_picture(run_shared: Run) -> None:
    chat = SAMPLES["chat"]
    assert chat.then is not None
    assert chat.task.subject is not None
    assert chat.then.answer != chat.task.subject.color, "or the first picture would do"
    ran = run_shared("chat")
    assert judge_answer(chat.then, answer := ran.texts["Answer"]), answer
    assert ["only single instructions" in one for one in ran.warnings] == [True], "it is right by luck, and says so"


def test_the_route_is_taken_that_the_prompt_asks_for(run_shared: Run) -> None:
    painted = run_shared("auto_route")
    assert float(painted.texts["Probability of painting"]) > 0.9
    assert "Answer" not in painted.texts
    answered = run_shared("auto_route", "Prompt.value=How many objects are there?")
    assert answered.texts["Answer"].strip(" .") == str(len(SAMPLES["auto_route"].task.before[0].objects))
    assert float(answered.texts["Probability of painting"]) < 0.1
    assert answered.images == []


def test_the_composite_keeps_what_the_edit_left(run_shared: Run) -> None:
    ran, task = run_shared("edit_with_mask"), SAMPLES["edit_with_mask"].task
    marked_HW = gray(ran.previews["Edited area"]) > 0.5
    changed_HW = draw.full_mask(task.subject, SIDE)
    assert marked_HW[changed_HW].mean() > 0.9
    assert marked_HW[~changed_HW].mean() < 0.25
    with Image.open(ran.images[0]) as picture:
        shown = np.asarray(picture.convert("RGB"))
    assert (shown[~marked_HW] == np.asarray(task.references[0])[~marked_HW]).all()


@pytest.mark.parametrize("name", MAPS)
def test_the_painted_map_is_right(name: str, run_shared: Run) -> None:
    right(SAMPLES[name].task, run_shared(name).previews["Painted map"])


@pytest.mark.parametrize("name", SAME_KIND)
def test_the_map_that_the_head_gives_is_right(name: str, run_shared: Run) -> None:
    right(replace(SAMPLES[name].task, kind=SAME_KIND[name]), run_shared(name).images[0])


def test_the_head_tells_which_object_is_nearer(run_shared: Run) -> None:
    scene = SAMPLES["perception_depth"].task.before[0]
    depth_HW = gray(run_shared("perception_depth").images[0])
    ground = float(np.median(depth_HW[draw.labels(scene) == 0]))
    levels = [float(np.median(depth_HW[mask_HW])) for mask_HW in draw.visible_masks(scene)]
    by_height = {height: level for level, height in zip(levels, draw.stacking(scene))}
    assert ground + 0.2 < by_height[1] < by_height[2] - 0.1


def test_the_head_masks_the_subject(run_shared: Run) -> None:
    task = SAMPLES["perception_segmentation"].task
    mask_HW = gray(run_shared("perception_segmentation").images[0]) > 0.5
    assert overlap(mask_HW, draw.visible_masks(task.before[0])[task.before[0].objects.index(task.subject)]) > 0.8


def test_the_head_boxes_the_subject(run_shared: Run) -> None:
    task = SAMPLES["perception_detection"].task
    left, top, right_end, bottom = draw.box_around(task.before[0], task.subject)
    ((box,),) = json.loads(run_shared("perception_detection").texts["Boxes"])
    found = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
    assert found == pytest.approx((left, top, right_end, bottom), abs=3 * SIDE / UNITS)
