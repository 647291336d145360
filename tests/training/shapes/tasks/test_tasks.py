"""The tasks: their instructions are correct and unambiguous, and training never contains held-out combinations."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from uniworld.training.shapes.tasks.prompts import Description, caption, with_article
from uniworld.training.shapes.tasks.questions import QUESTION_KINDS, question, questions
from uniworld.training.shapes.tasks.split import holds_held_out, is_held_out
from uniworld.training.shapes.tasks.tasks import EDITS, KIND_WEIGHTS, KINDS, ShapesTask, any_kind, make_task
from uniworld.training.shapes.world.draw import paint
from uniworld.training.shapes.world.scene import COLORS, GROUNDS, PLACES, SHAPES, SIZES, Ground, Object, Scene

each_kind = pytest.mark.parametrize("kind", KINDS)
NAMED = ("remove", "replace", "recolour", "extract", "segmentation", "detection", "compose")


def tasks(kind: str, count: int = 100, split: str = "train", side: int = 64) -> list[ShapesTask]:
    rng = np.random.default_rng(3)
    return [make_task(kind, rng, split, side) for _ in range(count)]


def scenes_of(task: ShapesTask) -> list[Scene]:
    return [*task.before, *([task.after] if task.after else [])]


def first_named(prompt: str) -> Description:
    """Return the first object that a prompt names; words like "object" match any shape."""
    sizes, colors, shapes = ("|".join(words) for words in (SIZES, COLORS, SHAPES))
    places = "|".join(sorted(PLACES, key=len, reverse=True))
    found = re.search(
        rf"(?:({sizes}) )?(?:({colors}) )?({shapes})(?: at the ({places})(?! of the first))?", prompt.lower()
    )
    assert found is not None, prompt
    size, color, shape, place = (found.group(number) or "" for number in range(1, 5))
    return Description(shape, color, size, place)


@each_kind
class TestEveryKind:
    def test_the_same_seed_makes_the_same_tasks(self, kind: str) -> None:
        assert tasks(kind, 10) == tasks(kind, 10)

    def test_training_never_contains_a_held_out_combination(self, kind: str) -> None:
        assert not any(holds_held_out(scene) for task in tasks(kind, 200) for scene in scenes_of(task))

    def test_every_test_task_is_about_a_held_out_combination(self, kind: str) -> None:
        for task in tasks(kind, 100, "test"):
            named = [thing for thing in (task.subject, task.result) if thing is not None]
            assert any(map(is_held_out, named)) if named else any(map(holds_held_out, scenes_of(task)))

    def test_it_has_its_references_and_target(self, kind: str) -> None:
        for task in tasks(kind, 5, side=96):
            assert len(task.references) == {"text_to_image": 0, "compose": 2}.get(kind, 1)
            assert (task.target is None) == (kind == "question") == (task.answer is not None)
            pictures = [*task.references, *([task.target] if task.target else [])]
            assert {(picture.size, picture.mode) for picture in pictures} == {((96, 96), "RGB")}

    def test_only_edits_are_weighted(self, kind: str) -> None:
        for task in tasks(kind, 20):
            nothing_new = kind == "compose" and task.subject == task.result
            assert task.weighted == (kind in EDITS and not nothing_new)

    def test_it_has_several_wordings(self, kind: str) -> None:
        patterns = {re.sub("|".join((*COLORS, *SHAPES, *PLACES, *GROUNDS)), "_", task.prompt) for task in tasks(kind)}
        assert len(patterns) >= 3
        assert all(prompt.prompt == prompt.prompt.strip() and "{" not in prompt.prompt for prompt in tasks(kind))


@pytest.mark.parametrize("kind", NAMED)
def test_a_prompt_names_exactly_one_object_and_it_is_the_subject(kind: str) -> None:
    for split in ("train", "test"):
        for task in tasks(kind, 200, split):
            scene = task.before[-1]
            prompt = task.prompt
            if kind == "compose":
                prompt = re.sub(rf"at the ({'|'.join(PLACES)})", "", prompt)
            said = first_named(prompt)
            assert [thing for thing in scene.objects if said.matches(thing)] == [task.subject], task.prompt


class TestTheEdits:
    def test_adding_names_all_properties_of_the_new_object(self) -> None:
        for task in tasks("add"):
            assert task.result is not None
            new = task.result
            words = f"{with_article(f'{new.size} {new.color} {new.shape}')} at the {new.place}"
            assert words in task.prompt.lower()
            assert task.after == task.before[0].with_object(new)

    def test_removing_leaves_the_others_where_they_were(self) -> None:
        for task in tasks("remove"):
            assert task.after is not None
            assert Counter(task.before[0].objects) - Counter(task.after.objects) == Counter([task.subject])
            assert task.after.ground == task.before[0].ground

    @pytest.mark.parametrize(("kind", "changes"), [("recolour", {"color"}), ("replace", {"shape", "color"})])
    def test_a_change_affects_only_the_subject(self, kind: str, changes: set[str]) -> None:
        for task in tasks(kind):
            assert task.after is not None
            pairs = [(old, new) for old, new in zip(task.before[0].objects, task.after.objects) if old != new]
            assert pairs == [(task.subject, task.result)]
            old, new = pairs[0]
            assert {name for name in vars(old) if getattr(old, name) != getattr(new, name)} <= changes

    def test_another_background_keeps_the_objects(self) -> None:
        for task in tasks("background"):
            assert task.after is not None
            assert task.after.objects == task.before[0].objects
            assert task.after.ground != task.before[0].ground
            assert task.after.ground.first in task.prompt

    def test_an_extracted_object_is_alone_on_white(self) -> None:
        for task in tasks("extract"):
            assert task.after is not None
            assert task.after.objects == (task.subject,)
            assert task.after.ground == Ground("white")
            assert task.subject is not None
            assert task.subject.color != "white"

    def test_composing_adds_the_second_pictures_object_to_the_first(self) -> None:
        for task in tasks("compose"):
            first, second = task.before
            assert task.result is not None
            assert task.subject in second.objects
            assert task.after == first.with_object(task.result)
            assert f"at the {task.result.place}" in task.prompt

    def test_inverting_twice_gives_the_reference_back(self) -> None:
        task = next(task for task in tasks("style") if task.detail == "invert")
        assert np.array_equal(255 - np.asarray(task.target), np.asarray(task.references[0]))

    def test_a_reconstruction_is_its_reference(self) -> None:
        for task in tasks("reconstruct", 10):
            assert np.array_equal(np.asarray(task.target), np.asarray(task.references[0]))


class TestWords:
    SCENE = Scene(
        (Object("star", "orange", "small", "top left"), Object("star", "red", "large", "center")),
        Ground("navy", "pink", "top and bottom"),
    )

    def test_a_caption_names_all_properties_of_every_object_and_the_ground(self) -> None:
        said = {caption(self.SCENE, np.random.default_rng(seed)) for seed in range(20)}
        things = ("a small orange star at the top left", "a large red star at the center")
        ground = "on a background that is navy at the top and pink at the bottom"
        assert said == {f"{' and '.join(order)} {ground}" for order in (things, things[::-1])}

    def test_an_empty_scene_has_a_caption(self) -> None:
        assert caption(Scene((), Ground("gray")), np.random.default_rng(0)) == "nothing on a gray background"

    def test_questions_of_every_kind_have_the_correct_answer(self) -> None:
        rng = np.random.default_rng(0)
        answers = {kind: set() for kind in QUESTION_KINDS}
        for _ in range(200):
            for asked in questions(self.SCENE, rng):
                answers[asked.kind].add(asked.answer)
        assert answers["colour"] == {"orange", "red"}
        assert answers["position"] == {"top left", "center"}
        assert answers["presence"] == {"yes", "no"}
        assert answers["shape"] == {"star"}
        assert answers["count"] == {"0", "1", "2"}

    def test_a_count_matches_the_objects_that_it_names(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(200):
            asked = question("count", self.SCENE, rng)
            assert asked is not None
            if "star" in asked.prompt or "objects are" in asked.prompt:
                color = next((color for color in COLORS if color in asked.prompt), None)
                assert asked.answer == ("2" if color is None else asked.answer)

    def test_presence_answers_are_correct(self) -> None:
        rng = np.random.default_rng(0)
        for task in [make_task("question", rng, "train") for _ in range(400)]:
            if task.detail == "presence":
                said = first_named(task.prompt)
                there = any(said.matches(thing) for thing in task.before[0].objects)
                assert task.answer == ("yes" if there else "no")

    def test_yes_and_no_are_equally_frequent(self) -> None:
        rng = np.random.default_rng(0)
        answers = [task.answer for task in (make_task("question", rng, "train") for _ in range(2000))]
        assert 0.35 <= answers.count("yes") / (answers.count("yes") + answers.count("no")) <= 0.65


def test_kinds_are_distributed_by_their_weights() -> None:
    rng = np.random.default_rng(0)
    often = Counter(any_kind(rng) for _ in range(20_000))
    total = sum(KIND_WEIGHTS.values())
    assert set(KIND_WEIGHTS) == set(KINDS)
    assert all(abs(often[kind] / 20_000 - weight / total) < 0.01 for kind, weight in KIND_WEIGHTS.items())


@pytest.mark.parametrize(
    ("kind", "split", "side", "message"),
    [
        ("dance", "train", 64, "Unknown kind of task 'dance'; choose one of text_to_image"),
        ("add", "exam", 64, "Unknown split 'exam'; choose train or test"),
        ("add", "test", 50, "is 50; it must be a multiple of 16"),
    ],
)
def test_unknown_values_are_rejected_with_the_known_ones(kind: str, split: str, side: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(kind, np.random.default_rng(0), split, side)


def test_a_scene_does_not_depend_on_the_side() -> None:
    small, large = tasks("add", 5, side=64), tasks("add", 5, side=128)
    for one, other in zip(small, large):
        assert one.prompt == other.prompt
        halved = paint(other.before[0]).reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(halved - paint(one.before[0])).mean() < 2


class TestACompositionAtTheSamePlace:
    def test_is_not_weighted_because_its_edit_mask_would_be_specks(self) -> None:
        found = [task for task in tasks("compose", 200) if task.subject == task.result]
        assert len(found) > 5
        for task in found:
            differs = [(np.asarray(task.target) != np.asarray(one)).any(-1) for one in task.references]
            # Only where the outline blends with another ground.
            assert (differs[0] & differs[1]).mean() < 0.02
            assert not task.weighted
