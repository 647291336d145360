"""The judges of edges, depth, straight lines, normals, sketches and poses: wrong maps of all sorts fail.

That correct maps pass, even degraded ones, and that references, empty pictures and noise fail is tested in test_oracle.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter
from uniworld.training.shapes.judge.judge import judge
from uniworld.training.shapes.judge.verdict import Verdict
from uniworld.training.shapes.tasks.tasks import ShapesTask, make_task
from uniworld.training.shapes.world import draw, maps
from uniworld.training.shapes.world.draw_figure import skeletons
from uniworld.training.shapes.world.figure import ARMS, LEGS, Figure
from uniworld.training.shapes.world.scene import PLACES, SHAPES, Object, Scene, fits

LINES = ("edge", "hed", "mlsd", "sketch")
OF_OBJECTS = (*LINES, "normal", "depth")


def tasks(kind: str, count: int = 20) -> list[ShapesTask]:
    rng = np.random.default_rng(11)
    return [make_task(kind, rng, "test" if number % 2 else "train") for number in range(count)]


def verdict_on(task: ShapesTask, painted: np.ndarray) -> Verdict:
    return judge(task, Image.fromarray(painted.clip(0, 255).astype(np.uint8)))


def wrong(task: ShapesTask, painted: np.ndarray) -> Verdict:
    verdict = verdict_on(task, painted)
    assert not verdict.right, (task.prompt, task.before)
    assert verdict.reasons
    return verdict


def scene_of(task: ShapesTask) -> Scene:
    return task.before[0]


def round_things(scene: Scene) -> list[Object]:
    return [thing for thing in scene.objects if thing.shape == "circle"]


@pytest.mark.parametrize("kind", OF_OBJECTS)
class TestMapsOfObjects:
    @pytest.mark.parametrize("other", OF_OBJECTS)
    def test_the_map_of_another_task_is_wrong_sharp_or_soft(self, kind: str, other: str) -> None:
        for task in tasks(kind):
            # Without circles, hard edges are straight lines.
            same = kind == other or ({kind, other} == {"mlsd", "edge"} and not round_things(scene_of(task)))
            painted = Image.fromarray(maps.map_of(other, scene_of(task)))
            for picture in (painted, painted.filter(ImageFilter.GaussianBlur(0.9))):
                assert judge(task, picture).right == same

    def test_the_outline_drawing_is_wrong(self, kind: str) -> None:
        for task in tasks(kind):
            wrong(task, draw.outline_drawing(scene_of(task)))

    def test_the_inverted_map_is_wrong(self, kind: str) -> None:
        for task in tasks(kind):
            wrong(task, 255 - np.asarray(task.target))

    def test_a_map_with_a_missing_or_extra_object_is_wrong(self, kind: str) -> None:
        for task in tasks(kind):
            scene = scene_of(task)
            if scene.objects[0].shape != "circle" or kind != "mlsd":
                wrong(task, maps.map_of(kind, scene.without(scene.objects[0])))
            extras = [Object("square", "green", "small", place) for place in PLACES]
            extra = next((extra for extra in extras if fits(scene, extra)), None)
            if extra is not None:
                wrong(task, maps.map_of(kind, scene.with_object(extra)))

    def test_a_map_of_other_shapes_is_wrong(self, kind: str) -> None:
        for task in tasks(kind):
            scene, thing = scene_of(task), scene_of(task).objects[-1]
            painted = maps.map_of(kind, scene.swapped(thing, replace(thing, shape=_unlike(thing.shape))))
            wrong(task, painted)

    def test_a_map_of_other_sizes_is_wrong(self, kind: str) -> None:
        for task in tasks(kind):
            scene, thing = scene_of(task), scene_of(task).objects[-1]
            painted = maps.map_of(kind, scene.swapped(thing, replace(thing, size=_OTHER_SIZE[thing.size])))
            # Maps of straight lines omit circles.
            if (thing.shape, kind) != ("circle", "mlsd"):
                wrong(task, painted)

    def test_a_shifted_map_is_wrong(self, kind: str) -> None:
        for task in tasks(kind):
            wrong(task, np.roll(np.asarray(task.target), 5, axis=(0, 1)))


_OTHER_SIZE = {"small": "large", "large": "small"}


def _unlike(shape: str) -> str:
    """Return a shape whose outline differs almost everywhere."""
    return {"square": "star", "circle": "star", "diamond": "square", "triangle": "cross"}.get(shape, "square")


class TestLines:
    @pytest.mark.parametrize("kind", LINES)
    def test_f1_is_1_for_the_exact_map_and_decreases_with_missing_lines(self, kind: str) -> None:
        for task in tasks(kind, 5):
            truth = np.asarray(task.target)
            assert verdict_on(task, truth).edge_f1 == 1
            half = truth.copy()
            half[:, scene_of(task).objects[0].center[0] :] = np.median(truth)
            assert (verdict_on(task, half).edge_f1 or 0) < 1
            assert (verdict_on(task, np.full_like(truth, np.median(truth))).edge_f1 or 0) < 0.1

    @pytest.mark.parametrize("kind", LINES)
    def test_a_colored_map_is_wrong(self, kind: str) -> None:
        for task in tasks(kind, 5):
            wrong(task, np.asarray(task.target) * np.array([0, 1, 1], np.uint8))

    def test_straight_lines_with_a_circle_among_them_are_wrong(self) -> None:
        for task in [task for task in tasks("mlsd", 40) if round_things(scene_of(task))]:
            squares = scene_of(task)
            outlined = np.maximum(np.asarray(task.target), draw.edge_map(squares))
            assert any("circle is outlined" in reason for reason in wrong(task, outlined).reasons)


class TestNormals:
    @pytest.mark.parametrize("axis", [0, 1])
    def test_rims_tilted_the_other_way_are_wrong(self, axis: int) -> None:
        for task in tasks("normal"):
            painted = np.asarray(task.target).astype(int)
            painted[..., axis] = 255 - painted[..., axis]
            wrong(task, painted)

    def test_a_flat_map_and_a_completely_tilted_one_are_wrong(self) -> None:
        for task in tasks("normal", 5):
            flat = np.full((64, 64, 3), (128, 128, 255))
            wrong(task, flat)
            wrong(task, np.asarray(task.target).astype(int) + np.array([60, 0, -20]))

    def test_the_angle_is_small_for_the_exact_map_and_large_for_a_flat_one(self) -> None:
        for task in tasks("normal", 10):
            right = verdict_on(task, np.asarray(task.target)).angle
            flat = verdict_on(task, np.full((64, 64, 3), (128, 128, 255))).angle
            assert right is not None
            assert flat is not None
            assert right < 10 < flat

    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_other_shape_is_worse_than_the_correct_one(self, shape: str) -> None:
        for task in [task for task in tasks("normal", 10) if scene_of(task).objects[-1].shape != shape]:
            scene, thing = scene_of(task), scene_of(task).objects[-1]
            other = maps.map_of("normal", scene.swapped(thing, replace(thing, shape=shape)))
            truth = np.asarray(task.target)
            assert (verdict_on(task, other).angle or 0) > (verdict_on(task, truth).angle or 0)


def people_of(task: ShapesTask) -> tuple[Figure, ...]:
    return scene_of(task).figures


class TestPoses:
    def test_another_pose_is_wrong(self) -> None:
        for task in tasks("openpose"):
            person, *others = people_of(task)
            for arms in ARMS:
                for legs in LEGS:
                    if (arms, legs) != (person.arms, person.legs):
                        posed = replace(person, arms=arms, legs=legs)
                        wrong(task, skeletons((posed, *others), 64))

    def test_a_missing_extra_or_misplaced_person_is_wrong(self) -> None:
        for task in tasks("openpose"):
            person, *others = people_of(task)
            assert (wrong(task, skeletons(tuple(others), 64)).joints or 0) <= 0.5
            far = replace(person, x=person.x + (26 if person.x < 32 else -26))
            wrong(task, skeletons((far, *others), 64))
            if not others:
                wrong(task, skeletons((person, far), 64))

    def test_swapped_left_and_right_is_wrong(self) -> None:
        for task in [task for task in tasks("openpose", 40) if len(people_of(task)) == 1]:
            x = people_of(task)[0].x
            flipped = np.roll(np.asarray(task.target)[:, ::-1], 2 * x - 64, axis=1)
            wrong(task, flipped)

    def test_a_skeleton_without_its_joints_colors_is_wrong(self) -> None:
        for task in tasks("openpose", 10):
            truth = np.asarray(task.target)
            wrong(task, np.repeat(truth.max(-1, keepdims=True), 3, axis=-1))
            wrong(task, truth[..., ::-1])
            wrong(task, truth // 2)

    def test_a_skeleton_over_the_picture_is_wrong(self) -> None:
        for task in tasks("openpose", 10):
            truth, source = np.asarray(task.target), np.asarray(task.references[0])
            wrong(task, np.where(truth.max(-1, keepdims=True) > 30, truth, source))

    def test_joints_is_the_fraction_that_is_found(self) -> None:
        task = next(task for task in tasks("openpose") if len(people_of(task)) == 1)
        assert verdict_on(task, np.asarray(task.target)).joints == 1
        above = np.asarray(task.target).copy()
        above[people_of(task)[0].y + 26 :] = 0
        assert verdict_on(task, above).joints == pytest.approx(10 / 14)
