"""The world: its pictures and maps, and the held-out split."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from uniworld.training.shapes.tasks.split import (
    draw_triple,
    held_out_triples,
    holds_held_out,
    is_held_out,
    trained_triples,
)
from uniworld.training.shapes.tasks.tasks import make_task
from uniworld.training.shapes.world import draw
from uniworld.training.shapes.world import scene as world
from uniworld.training.shapes.world.scene import COLORS, GROUNDS, PLACES, SHAPES, Ground, Object, Scene


def any_triple(rng: np.random.Generator) -> tuple[str, str, str]:
    return draw_triple(rng, "train")


def scenes(count: int, side: int = 64) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [world.random_scene(rng, 1 + number % 4, any_triple, side) for number in range(count)]


def stacked(count: int) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [make_task("depth", rng, "train").before[0] for _ in range(count)]


def test_the_same_seed_gives_the_same_pictures() -> None:
    first, second = scenes(20), scenes(20)
    assert first == second
    assert all(np.array_equal(draw.paint(one), draw.paint(other)) for one, other in zip(first, second))


def test_another_seed_gives_other_scenes() -> None:
    rng = np.random.default_rng(1)
    assert [world.random_scene(rng, 3, any_triple) for _ in range(5)] != scenes(5)


def test_all_colors_of_objects_and_grounds_are_far_apart() -> None:
    colors = [np.array(rgb) for rgb in (*COLORS.values(), *GROUNDS.values())]
    assert min(float(np.linalg.norm(one - other)) for one, other in combinations(colors, 2)) >= 69


def test_objects_keep_a_gap_and_are_within_the_picture() -> None:
    for scene in scenes(200):
        masks = draw.visible_masks(scene)
        assert (masks.sum(0) <= 1).all()
        assert all(mask.sum() == draw.full_mask(thing, 64).sum() for thing, mask in zip(scene.objects, masks))
        assert all(world.apart(one, other) for one, other in combinations(scene.objects, 2))
        assert len({thing.place for thing in scene.objects}) == len(scene.objects)


def test_an_object_is_nearest_to_its_own_place() -> None:
    for scene in (*scenes(100), *stacked(100)):
        for thing in scene.objects:
            x, y = thing.center
            column, row = (int(np.argmin([abs(at - center) for center in world.CENTERS])) for at in (x, y))
            assert PLACES[3 * row + column] == thing.place


@pytest.mark.parametrize("side", [64, 96, 128, 256])
def test_masks_are_where_the_color_is_drawn(side: int) -> None:
    for scene in scenes(40, side):
        picture = draw.paint(scene).astype(int)
        for thing, mask in zip(scene.objects, draw.visible_masks(scene)):
            color = np.array(world.rgb(thing.color))
            away = np.abs(picture - color).sum(-1)
            bare = np.abs(draw.paint(Scene((), scene.ground, side)).astype(int) - color).sum(-1)
            # More than half of a marked pixel is the object's color, and less than half of any other pixel nearby.
            assert (away[mask] <= bare[mask] / 2 + 3).all()
            rows, columns = np.nonzero(mask)
            near = np.zeros_like(mask)
            near[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
            assert (away[near & ~mask] >= bare[near & ~mask] / 2 - 3).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_differ_at_the_small_size_and_fill_it(shape: str) -> None:
    masks = {other: draw.template(other, 14) >= 0.5 for other in SHAPES}
    for other in SHAPES:
        common = (masks[shape] & masks[other]).sum() / (masks[shape] | masks[other]).sum()
        assert (common == 1) == (shape == other)
        assert shape == other or common <= 0.82
    rows, columns = np.nonzero(masks[shape])
    assert min(np.ptp(rows), np.ptp(columns)) >= 10


def test_an_unknown_shape_is_rejected_with_the_list() -> None:
    with pytest.raises(ValueError, match="Unknown shape 'blob'; choose circle"):
        draw.template("blob", 14)


@pytest.mark.parametrize("side", [0, 60, 16])
def test_an_invalid_side_is_rejected(side: int) -> None:
    with pytest.raises(ValueError, match=f"is {side}; it must be a multiple of 16"):
        world.random_scene(np.random.default_rng(0), 1, any_triple, side)


class TestTheMaps:
    def test_edges_are_on_both_sides_of_every_border_and_nowhere_else(self) -> None:
        for scene in scenes(30):
            labels = np.pad(draw.labels(scene), 1, mode="edge")
            middle = labels[1:-1, 1:-1]
            sides = (labels[:-2, 1:-1], labels[2:, 1:-1], labels[1:-1, :-2], labels[1:-1, 2:])
            assert np.array_equal(draw.edges(scene), np.any([middle != side for side in sides], axis=0))

    def test_the_outline_drawing_is_the_inverted_edge_map(self) -> None:
        scene = scenes(4)[3]
        assert np.array_equal(draw.outline_drawing(scene), 255 - draw.edge_map(scene))

    def test_objects_in_front_are_brighter_and_the_ground_is_black(self) -> None:
        for scene in stacked(50):
            depth, heights = draw.depth(scene)[..., 0], draw.stacking(scene)
            seen = draw.visible_masks(scene)
            assert (depth[~seen.any(0)] == 0).all()
            assert all((depth[mask] == draw.DEPTH_LEVELS[height]).all() for height, mask in zip(heights, seen))
            assert max(heights) == 2

    def test_both_stacked_objects_are_visible(self) -> None:
        for scene in stacked(100):
            full = [draw.full_mask(thing, 64).sum() for thing in scene.objects]
            seen = [mask.sum() for mask in draw.visible_masks(scene)]
            shares = [part / whole for part, whole in zip(seen, full)]
            assert 0.5 <= min(shares) <= 0.9

    def test_a_segment_changes_only_the_subject(self) -> None:
        for scene in scenes(40):
            changed = (draw.segmented(scene, scene.objects[0]) != draw.paint(scene)).any(-1)
            assert np.array_equal(changed, draw.visible_masks(scene)[0])

    def test_a_box_surrounds_the_subject(self) -> None:
        for scene in scenes(40):
            left, top, right, bottom = draw.box_around(scene, scene.objects[0])
            rows, columns = np.nonzero(draw.visible_masks(scene)[0])
            assert left < columns.min()
            assert columns.max() < right - 1
            assert top < rows.min()
            assert rows.max() < bottom - 1
            changed = (draw.detected(scene, scene.objects[0]) != draw.paint(scene)).any(-1)
            outside = np.ones_like(changed)
            outside[top:bottom, left:right] = False
            assert not changed[outside].any()
            assert not changed[top + 2 : bottom - 2, left + 2 : right - 2].any()


class TestTheSplit:
    def test_a_tenth_of_the_combinations_is_held_out(self) -> None:
        everything = len(COLORS) * len(SHAPES) * len(PLACES)
        assert len(held_out_triples()) == round(everything / 10)
        assert set(held_out_triples()).isdisjoint(trained_triples())
        assert len(held_out_triples()) + len(trained_triples()) == everything

    def test_it_is_the_same_in_every_version(self) -> None:
        # Evaluations are invalid if a model was trained on another split.
        assert held_out_triples()[:3] == (
            ("purple", "diamond", "top right"),
            ("red", "circle", "top"),
            ("blue", "circle", "bottom left"),
        )

    def test_every_color_shape_and_place_is_in_both_parts(self) -> None:
        for part in (held_out_triples(), trained_triples()):
            colors, shapes, places = (set(column) for column in zip(*part))
            assert (colors, shapes, places) == (set(COLORS), set(SHAPES), set(PLACES))

    def test_the_split_does_not_depend_on_size_or_jitter(self) -> None:
        color, shape, place = held_out_triples()[0]
        things = [Object(shape, color, size, place, dx) for size in ("small", "large") for dx in (-1, 0)]
        assert all(map(is_held_out, things))
        assert holds_held_out(Scene((things[0],), Ground("gray")))
