"""The exact maps of the perception tasks, as the core's heads read them at 64 pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from uniworld.training.shapes.judge.morphology import grow, overlap
from uniworld.training.shapes.tasks.prompts import WORDINGS
from uniworld.training.shapes.tasks.tasks import PERCEPTIONS, ShapesTask, make_task
from uniworld.training.shapes.world import draw, maps
from uniworld.training.shapes.world.scene import Ground, Object, Scene
from uniworld.uniworld_core.perception.tasks import TASKS, PerceptionResult, instruction, read_map

# The core's names.
PRODUCT = {task: "edge" if task == "canny" else task for task in TASKS}


def tasks(kind: str, count: int = 30, side: int = 64) -> list[ShapesTask]:
    rng = np.random.default_rng(7)
    return [make_task(kind, rng, "train", side) for _ in range(count)]


def read(task: str, picture: np.ndarray) -> PerceptionResult:
    return read_map(task, torch.tensor(picture[None] / 255).float())


def lines(result: PerceptionResult) -> np.ndarray:
    return result.mask[0].numpy() > 0.5


def one(shape: str, color: str = "red") -> Scene:
    return Scene((Object(shape, color, "large", "center"),), Ground("gray"))


def test_every_perception_task_of_the_core_has_its_kind() -> None:
    assert set(PRODUCT.values()) == set(PERCEPTIONS)


@pytest.mark.parametrize("task", TASKS)
def test_the_instructions_of_the_core_are_among_the_wordings(task: str) -> None:
    wordings = [wording.replace("{subject}", "red star") for wording in WORDINGS[PRODUCT[task]]]
    assert instruction(task, "red star") in wordings


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("task", ["canny", "hed", "mlsd", "sketch"])
def test_the_core_reads_lines_where_they_are(task: str, side: int) -> None:
    for made in tasks(PRODUCT[task], side=side):
        scene = made.before[0]
        wanted = draw.edges(scene)
        if task == "mlsd":
            wanted = maps.straight_lines(scene)[..., 0] >= 128
        seen = lines(read(task, np.asarray(made.target)))
        slack = side // 64
        assert not (seen & ~grow(wanted, 2 * slack)).any()
        assert not (wanted & ~grow(seen, slack)).any()


class TestSoftEdges:
    def test_are_white_on_the_border_with_soft_sides(self) -> None:
        row = maps.soft_edges(Scene((), Ground("gray", "navy", "left and right")))[10, :, 0].astype(int)
        assert (row == row[::-1]).all()
        assert row[31] >= 250
        assert (np.diff(row[25:32]) > 0).all()
        assert row[20] == 0

    def test_are_twice_as_wide_as_hard_ones(self) -> None:
        for task in tasks("hed", 10):
            wide = (np.asarray(task.target)[..., 0] >= 128).sum()
            assert wide > 1.5 * draw.edges(task.before[0]).sum()


class TestStraightLines:
    def test_a_circle_has_none_and_every_polygon_has(self) -> None:
        assert not maps.straight_lines(one("circle")).any()
        for shape in ("square", "triangle", "diamond", "star", "cross"):
            seen = maps.straight_lines(one(shape))[..., 0] >= 128
            assert not (seen & ~grow(draw.edges(one(shape)))).any()
            assert not (draw.edges(one(shape)) & ~grow(seen)).any()

    def test_the_visible_border_of_two_grounds_is_a_line(self) -> None:
        ground = Ground("gray", "navy", "top and bottom")
        seen = maps.straight_lines(Scene(one("circle").objects, ground))[..., 0] >= 128
        rows, columns = np.nonzero(seen)
        assert set(rows.tolist()) == {31, 32}
        assert set(columns.tolist()) == {*range(22), *range(42, 64)}

    def test_every_map_has_a_line_and_half_of_the_scenes_a_circle(self) -> None:
        some = tasks("mlsd", 100)
        assert all((np.asarray(task.target) > 200).any() for task in some)
        round_ones = [any(thing.shape == "circle" for thing in task.before[0].objects) for task in some]
        assert 35 <= sum(round_ones) <= 65


class TestNormals:
    def test_have_length_one_and_face_the_viewer_on_the_ground(self) -> None:
        for task in tasks("normal"):
            scene = task.before[0]
            found = maps.normals(scene)
            assert np.abs(np.linalg.norm(found, axis=-1) - 1).max() < 1e-5
            assert (found[..., 2] > 0.2).all()
            bare = ~draw.visible_masks(scene).any(0)
            assert (found[bare] == (0, 0, 1)).all()
            assert (np.asarray(task.target)[bare] == (128, 128, 255)).all()

    def test_rims_face_outwards(self) -> None:
        found = maps.normals(one("square"))
        left, right, top, bottom = found[32, 23], found[32, 40], found[23, 32], found[40, 32]
        assert left[0] < -0.5
        assert right[0] > 0.5
        assert top[1] > 0.5
        assert bottom[1] < -0.5
        assert found[31, 31, 2] > 0.95

    def test_are_read_by_the_core(self) -> None:
        for task in tasks("normal", 10):
            result = read("normal", np.asarray(task.target))
            assert result.mask.min() == 1
            wanted = torch.tensor((maps.normals(task.before[0]) + 1) / 2)
            assert (result.map[0] - wanted).abs().max() < 0.01


class TestSketches:
    def test_darker_colors_have_darker_tones_and_none_counts_as_a_line(self) -> None:
        tones = [maps.sketch(one("square", color))[32, 32, 0] for color in ("white", "yellow", "red", "black")]
        assert tones == sorted(tones, reverse=True)
        assert len(set(tones)) == 4
        assert min(tones) > (255 + maps.INK) / 2

    def test_are_dark_on_white(self) -> None:
        for task in tasks("sketch", 10):
            picture = np.asarray(task.target)
            assert np.median(picture) == 255
            assert "painted dark on light" in read("sketch", picture).text


class TestPoses:
    @pytest.mark.parametrize("side", [64, 128])
    def test_the_core_reads_every_joint_back(self, side: int) -> None:
        for task in tasks("openpose", side=side):
            wanted = [
                (name, x * side / 64, y * side / 64)
                for person in task.before[0].figures
                for name, (x, y) in person.joints().items()
            ]
            boxes = read("openpose", np.asarray(task.target)).boxes[0]
            assert len(boxes) == len(wanted)
            for name, x, y in wanted:
                middles = [
                    (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes if box["joint"] == name
                ]
                assert min(abs(left - x) + abs(top - y) for left, top in middles) <= side / 64

    def test_the_skeleton_lies_on_the_person_and_the_rest_is_black(self) -> None:
        for task in tasks("openpose"):
            person = draw.labels(task.before[0]) <= -2
            lit = np.asarray(task.target).max(-1) > 100
            assert not (lit & ~grow(person, 2)).any()
            assert overlap(lit, person) > 0.2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dance", "'dance' has no map; choose edge, depth, hed"),
        ("segmentation", "'segmentation' needs a subject: pass one of"),
    ],
)
def test_an_invalid_kind_or_subject_is_rejected(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maps.map_of(kind, one("star"))
