"""People: positions, rendering, descriptions, and the held-out split."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from uniworld.training.shapes.tasks.prompts import caption
from uniworld.training.shapes.tasks.split import held_out_combinations, is_held_out, trained_combinations
from uniworld.training.shapes.tasks.tasks import KINDS, make_task
from uniworld.training.shapes.world import draw
from uniworld.training.shapes.world import scene as world
from uniworld.training.shapes.world.draw_figure import person_cover
from uniworld.training.shapes.world.figure import ARMS, LEGS, SPOTS, Figure, joints_of
from uniworld.training.shapes.world.scene import COLORS, Ground, Object, Scene
from uniworld.uniworld_core.perception.heads import JOINTS

POSES = tuple(product(ARMS, LEGS))
each_pose = pytest.mark.parametrize(("arms", "legs"), POSES)


def scenes(count: int = 100, split: str = "train") -> list[Scene]:
    rng = np.random.default_rng(0)
    return [make_task("openpose", rng, split).before[0] for _ in range(count)]


@each_pose
class TestAFigure:
    def test_is_large_and_within_the_picture(self, arms: str, legs: str) -> None:
        for x in (23, 41):
            cover = person_cover(Figure("red", arms, legs, x, 16), 64)
            rows, columns = np.nonzero(cover > 0)
            assert np.ptp(rows) >= 40
            assert rows.min() > 0
            assert rows.max() < 63
            # Only the wrists of outstretched arms may be near the picture's edge.
            assert arms == "out" or (columns.min() > 0 and columns.max() < 63)

    def test_covers_its_own_joints_and_stays_in_its_boxes(self, arms: str, legs: str) -> None:
        person = Figure("red", arms, legs, 32, 16)
        cover = person_cover(person, 64)
        assert all(cover[y, x] > 0.5 for x, y in person.joints().values())
        boxed = np.zeros_like(cover, bool)
        for left, top, right, bottom in person.boxes:
            boxed[top:bottom, left:right] = True
        assert not cover[~boxed].any()

    def test_is_the_same_from_both_sides(self, arms: str, legs: str) -> None:
        at = joints_of(arms, legs)
        pairs = [name for name in at if name.startswith("left")]
        assert len(pairs) == 6
        assert all(at[name.replace("left", "right")] == (-at[name][0], at[name][1]) for name in pairs)
        assert set(at) <= set(JOINTS)

    def test_differs_from_every_other_pose(self, arms: str, legs: str) -> None:
        this = person_cover(Figure("red", arms, legs, 32, 16), 64)
        for other in POSES:
            that = person_cover(Figure("red", *other, 32, 16), 64)
            assert (np.abs(this - that).sum() > 60) == (other != (arms, legs))


class TestTheirScenes:
    def test_nothing_overlaps_a_person(self) -> None:
        for scene in scenes():
            covers = [person_cover(person, 64) > 0 for person in scene.figures]
            covers += [draw.full_mask(thing, 64) for thing in scene.objects]
            assert np.sum(covers, axis=0).max() == 1

    def test_a_scene_has_one_or_two_people_and_at_most_one_object(self) -> None:
        some = scenes(200)
        assert {(len(scene.figures), len(scene.objects)) for scene in some} == {(1, 0), (1, 1), (2, 0)}

    def test_every_pose_color_and_spot_occurs(self) -> None:
        people = [person for scene in scenes(400) for person in scene.figures]
        assert {(person.arms, person.legs) for person in people} == set(POSES)
        assert {person.color for person in people} == set(COLORS)
        assert {person.spot for person in people} == set(SPOTS)

    def test_the_picture_shows_the_persons_color(self) -> None:
        for scene in scenes(30):
            picture = draw.paint(scene)
            for person in scene.figures:
                inside = person_cover(person, 64) == 1
                assert (picture[inside] == COLORS[person.color]).all()

    def test_masks_and_depth_ignore_people(self) -> None:
        for scene in scenes(30):
            labels = draw.labels(scene)
            assert {-2 - number for number in range(len(scene.figures))} <= set(np.unique(labels).tolist())
            assert len(draw.visible_masks(scene)) == len(scene.objects)
            assert (draw.depth(scene)[labels <= -2] == 0).all()

    def test_they_do_not_depend_on_the_side(self) -> None:
        small = scenes(1)[0]
        large = draw.paint(Scene(small.objects, small.ground, 128, small.figures))
        assert np.abs(large.reshape(64, 2, 64, 2, 3).mean((1, 3)) - draw.paint(small)).mean() < 2

    def test_no_other_kind_contains_people(self) -> None:
        rng = np.random.default_rng(0)
        for kind in KINDS:
            if kind != "openpose":
                assert not any(scene.figures for scene in make_task(kind, rng, "train").before)

    def test_an_invalid_side_is_rejected(self) -> None:
        with pytest.raises(ValueError, match="is 60; it must be a multiple of 16"):
            make_task("openpose", np.random.default_rng(0), "train", 60)


class TestWords:
    def test_a_caption_names_people_with_spot_and_pose(self) -> None:
        people = (Figure("orange", "up", "apart", 32, 16), Figure("red", "down", "together", 48, 16))
        scene = Scene((Object("star", "red", "small", "top left"),), Ground("teal"), 64, people)
        assert caption(scene, np.random.default_rng(0)) == (
            "a small red star at the top left, an orange person in the center with arms up and legs apart and a red "
            "person on the right with arms down and legs together on a teal background"
        )

    def test_the_task_describes_the_poses(self) -> None:
        task = make_task("openpose", np.random.default_rng(0), "train")
        assert all(person.words() in task.detail for person in task.before[0].figures)

    def test_an_unknown_pose_is_rejected_with_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match="arms crossed, legs apart'; arms can be up, out, down"):
            joints_of("crossed", "apart")


class TestTheSplit:
    def test_a_tenth_of_the_combinations_is_held_out(self) -> None:
        everything = len(COLORS) * len(POSES) * len(SPOTS)
        assert len(held_out_combinations()) == round(everything / 10)
        assert len(held_out_combinations()) + len(trained_combinations()) == everything

    def test_it_is_the_same_in_every_version(self) -> None:
        assert held_out_combinations()[:2] == (
            ("down apart", "right", "yellow"),
            ("out apart", "right", "blue"),
        )

    def test_training_never_contains_one_and_every_test_task_does(self) -> None:
        assert not any(is_held_out(person) for scene in scenes(300) for person in scene.figures)
        assert all(any(map(is_held_out, scene.figures)) for scene in scenes(50, "test"))

    def test_every_pose_color_and_spot_is_in_both_parts(self) -> None:
        for part in (held_out_combinations(), trained_combinations()):
            poses, spots, colors = (set(column) for column in zip(*part))
            assert (len(poses), spots, colors) == (len(POSES), set(SPOTS), set(COLORS))


def test_a_person_keeps_a_gap_to_an_object() -> None:
    person = Figure("red", "down", "together", 24, 16)
    assert world.clear_of(person, Object("star", "red", "large", "right"))
    assert not world.clear_of(person, Object("star", "red", "small", "top"))
