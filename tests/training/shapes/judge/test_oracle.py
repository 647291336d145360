"""The oracle passes correct pictures, even slightly degraded ones, and rejects wrong ones of all sorts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter
from uniworld.training.shapes.judge.judge import compare, judge, judge_answer
from uniworld.training.shapes.judge.oracle import find, pixels
from uniworld.training.shapes.judge.verdict import Verdict
from uniworld.training.shapes.tasks.tasks import KINDS, ShapesTask, make_task
from uniworld.training.shapes.world import draw
from uniworld.training.shapes.world.scene import COLORS, GROUNDS, PLACES, SHAPES, Ground, Object, Scene, fits

PAINTED = tuple(kind for kind in KINDS if kind != "question")
SCENES = ("text_to_image", "add", "remove", "replace", "recolour", "background", "extract", "compose", "reconstruct")
each_kind = pytest.mark.parametrize("kind", PAINTED)


def tasks(kind: str, count: int, seed: int = 0) -> list[ShapesTask]:
    """Return tasks of both splits."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    return [make_task(kind, rng, "test" if number % 2 else "train") for number in range(count)]


def target(task: ShapesTask) -> Image.Image:
    assert task.target is not None
    return task.target


# --- degradations by a decoder -----------------------------------------------------------------------------------------


def blurred(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(0.9))


def noisy(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    noise = rng.normal(0, 10, (picture.height, picture.width, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def tinted(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray((np.asarray(picture) + rng.integers(-12, 13, 3)).clip(0, 255).astype(np.uint8))


def displaced(picture: Image.Image, rng: np.random.Generator, most: int = 1) -> Image.Image:
    down, right = rng.integers(-most, most + 1, 2)
    wide = np.pad(np.asarray(picture), ((most, most), (most, most), (0, 0)), mode="edge")
    return Image.fromarray(wide[most + down :, most + right :][: picture.height, : picture.width])


def all_at_once(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return noisy(blurred(tinted(picture, rng), rng), rng)


DAMAGES = (blurred, noisy, tinted, displaced, all_at_once)


def passed(kind: str, count: int, damage: Callable[[Image.Image, np.random.Generator], Image.Image]) -> float:
    """Return the fraction of correct pictures with this degradation that the oracle passes."""
    rng = np.random.default_rng(1)
    return sum(judge(task, damage(target(task), rng)).right for task in tasks(kind, count)) / count


@each_kind
class TestRightPictures:
    def test_the_true_target_passes(self, kind: str) -> None:
        # In one of hundreds of stacked scenes, a shape is hidden so that it is ambiguous.
        assert passed(kind, 40, lambda picture, _: picture) >= 0.97

    def test_a_soft_noisy_and_tinted_one_passes_too(self, kind: str) -> None:
        assert passed(kind, 20, all_at_once) >= 0.95

    def test_each_degradation_passes(self, kind: str) -> None:
        assert sum(passed(kind, 8, damage) for damage in DAMAGES[:-1]) / len(DAMAGES[:-1]) >= 0.96

    @pytest.mark.acceptance
    def test_99_of_100_pass_exact_and_under_every_degradation(self, kind: str) -> None:
        assert passed(kind, 100, lambda picture, _: picture) >= 0.99
        for damage in DAMAGES:
            assert passed(kind, 40, damage) >= 0.97, damage.__name__

    def test_larger_pictures_are_judged(self, kind: str) -> None:
        rng = np.random.default_rng(2)
        some = [make_task(kind, rng, "train", side=128) for _ in range(8)]
        assert sum(judge(task, target(task)).right for task in some) >= 7


@pytest.mark.parametrize("kind", SCENES)
def test_objects_may_be_off_by_two_pixels(kind: str) -> None:
    assert passed(kind, 20, lambda picture, rng: displaced(picture, rng, 2)) >= 0.95


# --- wrong pictures ---------------------------------------------------------------------------------------------------


def wrong(task: ShapesTask, scene: Scene) -> Verdict:
    """Return the verdict on a picture of another scene, which must be wrong."""
    verdict = judge(task, draw.draw(scene))
    assert not verdict.right, (task.prompt, scene)
    assert verdict.reasons
    return verdict


def changed(task: ShapesTask) -> tuple[Scene, Object]:
    """Return the scene of a task that adds or changes an object, and that object."""
    assert task.after is not None
    thing = task.result or task.after.objects[0]
    return task.after, thing


def other(options: tuple[str, ...] | dict[str, object], this: str) -> list[str]:
    return [option for option in options if option != this]


class TestWrongPictures:
    @pytest.mark.parametrize("kind", [kind for kind in PAINTED if kind not in ("text_to_image", "reconstruct")])
    def test_the_unchanged_reference_is_wrong(self, kind: str) -> None:
        assert not any(judge(task, picture).right for task in tasks(kind, 16) for picture in task.references)

    @each_kind
    def test_another_tasks_picture_is_wrong(self, kind: str) -> None:
        some = tasks(kind, 12)
        pairs = [(task, target(some[number - 1])) for number, task in enumerate(some)]
        different = [(task, picture) for task, picture in pairs if picture.tobytes() != target(task).tobytes()]
        assert not any(judge(task, picture).right for task, picture in different)

    @each_kind
    @pytest.mark.parametrize("level", [0, 128, 255])
    def test_an_empty_picture_is_wrong(self, kind: str, level: int) -> None:
        blank = Image.new("RGB", (64, 64), (level, level, level))
        bare = [task for task in tasks(kind, 12) if target(task).tobytes() != blank.tobytes()]
        assert not any(judge(task, blank).right for task in bare)

    @each_kind
    def test_noise_is_wrong(self, kind: str) -> None:
        rng = np.random.default_rng(0)
        noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        assert not any(judge(task, noise).right for task in tasks(kind, 6))

    @pytest.mark.parametrize("kind", ["text_to_image", "add", "replace", "recolour", "compose", "extract"])
    class TestOfOneObject:
        def test_another_color(self, kind: str) -> None:
            for task in tasks(kind, 6):
                scene, thing = changed(task)
                for color in other(COLORS, thing.color):
                    if color not in scene.ground.colors:
                        wrong(task, scene.swapped(thing, replace(thing, color=color)))

        def test_another_shape(self, kind: str) -> None:
            for task in tasks(kind, 6):
                scene, thing = changed(task)
                for shape in other(SHAPES, thing.shape):
                    wrong(task, scene.swapped(thing, replace(thing, shape=shape)))

        def test_another_size(self, kind: str) -> None:
            for task in tasks(kind, 10):
                scene, thing = changed(task)
                wrong(task, scene.swapped(thing, replace(thing, size="large" if thing.size == "small" else "small")))

        def test_another_place(self, kind: str) -> None:
            for task in tasks(kind, 6):
                scene, thing = changed(task)
                for place in other(PLACES, thing.place):
                    moved = replace(thing, place=place)
                    if fits(scene.without(thing), moved):
                        wrong(task, scene.swapped(thing, moved))

        def test_none_at_all(self, kind: str) -> None:
            for task in tasks(kind, 10):
                scene, thing = changed(task)
                wrong(task, scene.without(thing))

    @pytest.mark.parametrize("kind", SCENES)
    def test_an_extra_object_is_wrong(self, kind: str) -> None:
        for task in tasks(kind, 10):
            assert task.after is not None
            extras = [Object("circle", "green", "small", place) for place in PLACES]
            extra = next(extra for extra in extras if fits(task.after, extra))
            verdict = wrong(task, task.after.with_object(extra))
            assert any("should not be there" in reason for reason in verdict.reasons)

    @pytest.mark.parametrize("kind", [kind for kind in SCENES if kind not in ("text_to_image", "extract")])
    def test_a_missing_object_is_wrong_and_counted_as_not_kept(self, kind: str) -> None:
        for task in tasks(kind, 12):
            assert task.after is not None
            staying = [thing for thing in task.after.objects if thing in task.before[0].objects]
            if len(staying) > 1:
                verdict = wrong(task, task.after.without(staying[0]))
                assert verdict.kept == pytest.approx(1 - 1 / len(staying))

    @pytest.mark.parametrize("kind", SCENES)
    def test_another_ground_is_wrong(self, kind: str) -> None:
        for task in tasks(kind, 6):
            assert task.after is not None
            for name in other(GROUNDS, task.after.ground.first):
                wrong(task, replace(task.after, ground=Ground(name)))

    def test_two_grounds_instead_of_one_are_wrong(self) -> None:
        for task in tasks("background", 10):
            assert task.after is not None
            first = task.after.ground.first
            second = other(GROUNDS, first)[0]
            wrong(task, replace(task.after, ground=Ground(first, second, "left and right")))

    def test_removing_another_object_is_wrong(self) -> None:
        for task in tasks("remove", 12):
            scene = task.before[0]
            for thing in scene.objects:
                if thing != task.subject:
                    wrong(task, scene.without(thing))

    def test_an_object_half_erased_is_wrong(self) -> None:
        for task in tasks("remove", 16):
            mixed = Image.blend(task.references[0], target(task), 0.5)
            assert not judge(task, mixed).right

    def test_half_an_object_is_wrong(self) -> None:
        for task in tasks("add", 16):
            assert task.result is not None
            picture, bare = np.asarray(target(task)).copy(), np.asarray(task.references[0])
            x, _ = task.result.center
            picture[:, x:] = bare[:, x:]
            assert not judge(task, Image.fromarray(picture)).right

    def test_the_other_object_of_the_second_picture_is_wrong(self) -> None:
        for task in tasks("compose", 16):
            assert task.result is not None
            for thing in task.before[1].objects:
                if thing != task.subject:
                    wrong(task, task.before[0].with_object(replace(thing, place=task.result.place)))

    def test_an_object_behind_instead_of_in_front_is_wrong(self) -> None:
        for pile in [task.before[0] for task in tasks("depth", 16)]:
            turned = replace(pile, objects=(*pile.objects[:-2], pile.objects[-1], pile.objects[-2]))
            verdict = compare(pile, pixels(draw.draw(turned)))
            assert verdict.order_right is False
            assert not verdict.right
            assert compare(pile, pixels(draw.draw(pile))).order_right

    def test_the_other_style_is_wrong(self) -> None:
        for task in tasks("style", 10):
            painted = (draw.outline_drawing if task.detail == "invert" else draw.inverted)(task.before[0])
            assert not judge(task, Image.fromarray(painted)).right


class TestMaps:
    @pytest.mark.parametrize("change", ["lost", "added", "filled", "shifted", "colored"])
    def test_edges_of_something_else_are_wrong(self, change: str) -> None:
        for task in tasks("edge", 12):
            scene = task.before[0]
            truth = draw.edge_map(scene)
            if change == "lost":
                painted = draw.edge_map(scene.without(scene.objects[0]))
            elif change == "added":
                extras = [Object("circle", "green", "small", place) for place in PLACES]
                painted = draw.edge_map(scene.with_object(next(extra for extra in extras if fits(scene, extra))))
            elif change == "filled":
                painted = np.maximum(truth, (255 * draw.visible_masks(scene).any(0)).astype(np.uint8)[..., None])
            elif change == "shifted":
                painted = np.roll(truth, 5, axis=(0, 1))
            else:
                painted = truth * np.array([0, 1, 1], np.uint8)
            assert not judge(task, Image.fromarray(painted)).right, (change, scene)

    def test_an_outline_drawing_of_another_shape_is_wrong(self) -> None:
        for task in [task for task in tasks("style", 16) if task.detail == "outline"]:
            scene, thing = task.before[0], task.before[0].objects[-1]
            for shape in other(SHAPES, thing.shape):
                painted = draw.outline_drawing(scene.swapped(thing, replace(thing, shape=shape)))
                assert not judge(task, Image.fromarray(painted)).right, (thing, shape)

    def test_edge_f1_is_1_for_the_exact_map_and_decreases_with_missing_lines(self) -> None:
        task = tasks("edge", 1)[0]
        assert judge(task, target(task)).edge_f1 == 1
        half = np.asarray(target(task)).copy()
        half[:, 32:] = 0
        assert (judge(task, Image.fromarray(half)).edge_f1 or 0) < 1

    def test_depth_with_a_wrong_or_no_order_is_wrong(self) -> None:
        for task in tasks("depth", 16):
            scene = task.before[0]
            turned = replace(scene, objects=(*scene.objects[:-2], scene.objects[-1], scene.objects[-2]))
            flat = np.where(draw.depth(scene) > 0, 200, 0).astype(np.uint8)
            for picture in (draw.depth(turned), flat, 255 - draw.depth(scene)):
                verdict = judge(task, Image.fromarray(picture))
                assert not verdict.right
                assert verdict.order_right is False
            lost = draw.depth(scene.without(scene.objects[0]))
            assert not judge(task, Image.fromarray(lost)).right

    @pytest.mark.parametrize("kind", ["segmentation", "detection"])
    def test_a_mark_on_another_object_or_on_all_objects_is_wrong(self, kind: str) -> None:
        mark = draw.segmented if kind == "segmentation" else draw.detected
        for task in tasks(kind, 16):
            scene = task.before[0]
            for thing in scene.objects:
                if thing != task.subject:
                    verdict = judge(task, Image.fromarray(mark(scene, thing)))
                    assert not verdict.right
                    assert (verdict.iou or 0) < 0.5
            source = np.asarray(task.references[0]).astype(int)
            everywhere = Image.fromarray(((source + np.array(draw.MARK)) // 2).astype(np.uint8))
            assert not judge(task, everywhere).right

    def test_two_segments_are_wrong(self) -> None:
        for task in [task for task in tasks("segmentation", 25) if len(task.before[0].objects) > 1]:
            scene, painted = task.before[0], np.asarray(target(task)).copy()
            second = next(thing for thing in scene.objects if thing != task.subject)
            where = draw.full_mask(second, 64)
            painted[where] = draw.segmented(scene, second)[where]
            verdict = judge(task, Image.fromarray(painted))
            assert not verdict.right
            assert (verdict.iou or 0) < 0.85

    def test_a_segment_without_a_third_of_the_subject_is_wrong(self) -> None:
        for task in tasks("segmentation", 16):
            scene, painted = task.before[0], np.asarray(target(task)).copy()
            assert task.subject is not None
            rows = np.nonzero(draw.visible_masks(scene)[scene.objects.index(task.subject)].any(1))[0]
            cut = round(rows[0] + 0.6 * (rows[-1] - rows[0]))
            painted[cut:] = np.asarray(task.references[0])[cut:]
            assert not judge(task, Image.fromarray(painted)).right

    def test_a_filled_box_and_two_boxes_are_wrong(self) -> None:
        for task in [task for task in tasks("detection", 25) if len(task.before[0].objects) > 1]:
            scene, painted = task.before[0], np.asarray(target(task)).copy()
            assert task.subject is not None
            left, top, right, bottom = draw.box_around(scene, task.subject)
            filled = painted.copy()
            filled[top:bottom, left:right] = draw.MARK
            assert not judge(task, Image.fromarray(filled)).right
            second = next(thing for thing in scene.objects if thing != task.subject)
            both = np.where((draw.detected(scene, second) == draw.MARK).all(-1)[..., None], draw.MARK, painted)
            assert not judge(task, Image.fromarray(both.astype(np.uint8))).right

    @pytest.mark.parametrize("kind", ["segmentation", "detection"])
    def test_a_mark_on_a_changed_picture_is_wrong(self, kind: str) -> None:
        for task in [task for task in tasks(kind, 25) if len(task.before[0].objects) > 1]:
            scene = task.before[0]
            assert task.subject is not None
            lost = scene.without(next(thing for thing in scene.objects if thing != task.subject))
            painted = (draw.segmented if kind == "segmentation" else draw.detected)(lost, task.subject)
            verdict = judge(task, Image.fromarray(painted))
            assert not verdict.right
            assert verdict.kept is not None
            assert verdict.kept < 1


class TestNumbers:
    def test_psnr_is_measured_where_nothing_may_change(self) -> None:
        task = tasks("recolour", 1)[0]
        assert judge(task, target(task)).psnr == 99
        # A wrong color of the object does not count, a drift of everything else does.
        assert judge(task, task.references[0]).psnr == 99
        drifted = Image.fromarray((np.asarray(target(task)).astype(int) + 10).clip(0, 255).astype(np.uint8))
        assert judge(task, drifted).psnr == pytest.approx(20 * np.log10(25.5), abs=1.5)

    @pytest.mark.parametrize("kind", ["add", "compose"])
    def test_a_new_object_anywhere_at_its_place_does_not_lower_the_psnr(self, kind: str) -> None:
        for task in tasks(kind, 6):
            assert task.after is not None
            assert task.result is not None
            x, y = task.result.dx, task.result.dy
            moved = replace(task.result, dx=x - 3 if x > 0 else x + 3, dy=y - 3 if y > 0 else y + 3)
            verdict = judge(task, draw.draw(task.after.swapped(task.result, moved)))
            assert verdict.right
            assert verdict.psnr is not None
            assert verdict.psnr > 35

    def test_the_iou_of_the_exact_picture_is_1(self) -> None:
        for kind in ("segmentation", "detection"):
            assert min(judge(task, target(task)).iou or 0 for task in tasks(kind, 10)) == 1

    def test_detected_objects_have_all_properties(self) -> None:
        scene = Scene((Object("star", "red", "large", "top left", 1, 0),), Ground("teal", "pink", "left and right"))
        found = find(draw.draw(scene))
        assert found.ground == scene.ground
        assert found.unexplained == 0
        (thing,) = found.objects
        assert thing.words() == "large red star at the top left"
        assert (thing.x, thing.y) == scene.objects[0].center
        assert thing.fit > 0.95


class TestAnswers:
    @pytest.mark.parametrize("said", ["top left", "Top left", " top left.", "TOP LEFT"])
    def test_case_spaces_and_a_full_stop_do_not_matter(self, said: str) -> None:
        assert judge_answer(self.asked("top left"), said)

    @pytest.mark.parametrize("said", ["top", "left", "", "top right", "the top left"])
    def test_other_words_do(self, said: str) -> None:
        assert not judge_answer(self.asked("top left"), said)

    def test_a_question_cannot_be_judged_by_a_picture(self) -> None:
        with pytest.raises(ValueError, match="A question has no picture"):
            judge(self.asked("red"), Image.new("RGB", (64, 64)))

    @staticmethod
    def asked(answer: str) -> ShapesTask:
        return ShapesTask("question", "Where is the star?", (Scene((), Ground("gray")),), None, answer=answer)
