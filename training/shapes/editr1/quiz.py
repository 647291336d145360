"""Questions about a painted picture whose answers follow from its task, as nano's VLM has learned them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....uniworld_core.errors import UniWorldError, shown
from ...editr1.reward.known_answers import KnownQuestion
from ...editr1.reward.protocol import RewardFailure, RewardItem
from ...editr1.reward.question import Question
from ..tasks.prompts import Description, with_article
from ..tasks.questions import ASKED, DESCRIBE, listed_objects
from ..tasks.tasks import KINDS, ShapesTask
from ..world.scene import GROUNDS, SHAPES, Object, Scene

# The kinds whose correct picture is a scene. The VLM never learned to answer questions about maps, marks and drawings.
QUIZ_KINDS = (
    "text_to_image",
    "add",
    "remove",
    "replace",
    "recolour",
    "background",
    "extract",
    "compose",
    "reconstruct",
)
_YES_NO = ("no", "yes")
# Extracted objects are on white.
_GROUNDS = tuple(f" {name}" for name in (*GROUNDS, "white"))
# What follows the first color of a ground in a description: the end, or "on the left and", or "at the top and".
_AFTER_FIRST = {"plain": "<|im_end|>", "left and right": " on", "top and bottom": " at"}
_BETWEEN = {"left and right": " on the left and", "top and bottom": " at the top and"}


@dataclass(frozen=True)
class QuizQuestion:
    """A question about the correct picture of a task.

    Attributes:
        text: the question.
        answers: the possible answers.
        right: the correct one of them.
        begun: start of the answer, which `right` continues.
    """

    text: str
    answers: tuple[str, ...]
    right: str
    begun: str = ""


def ask_quiz(item: RewardItem) -> list[KnownQuestion] | RewardFailure:
    """Return the questions about an item of the world of shapes, or why there are none."""
    if not isinstance(item.task, ShapesTask) or item.task.kind not in QUIZ_KINDS:
        what = f"tasks of the kind {item.task.kind}" if isinstance(item.task, ShapesTask) else "other data than shapes"
        return RewardFailure(f"there are no questions about {what}")
    return [
        KnownQuestion(Question(one.text, (item.picture,), one.begun), one.answers, one.right) for one in quiz(item.task)
    ]


def quiz(task: ShapesTask) -> list[QuizQuestion]:
    """Return the questions about a task's correct picture.

    They ask which shape is at each object's place, whether each object is there by color and shape, the same for objects
    that must be gone, and for the background. The VLM has learned about backgrounds only at the end of descriptions, so the
    judge continues one. Nothing asks for sizes. Neither does a question ask how many objects there are: the VLM counts too
    badly to help.

    Raises:
        UniWorldError: the kind of the task is not one of `QUIZ_KINDS`.
    """
    scene = task.after
    if scene is None or task.kind not in QUIZ_KINDS:
        raise UniWorldError(f"There are no questions about tasks of the kind {shown(task.kind)}.")
    before = task.before[0].objects if task.before else ()
    gone = [thing for thing in before if thing not in scene.objects]
    shapes = [QuizQuestion(ASKED["shape"][0].format(thing.place), SHAPES, thing.shape) for thing in _seen(scene)]
    present = [_presence(thing, scene) for thing in (*scene.objects, *gone)]
    return list(dict.fromkeys([*shapes, *present, *_ground(scene)]))


def check_quiz_kinds(kinds: Sequence[str]) -> None:
    """Raise UniWorldError unless there are questions about tasks of all these kinds."""
    unknown = dict.fromkeys(kind for kind in kinds if kind in KINDS and kind not in QUIZ_KINDS)
    if unknown or not kinds:
        raise UniWorldError(
            f"The reward 'questions' cannot judge {', '.join(unknown) or 'other data than shapes'}: set data.shapes to some of "
            f"{', '.join(QUIZ_KINDS)}, or choose another reward."
        )


def _seen(scene: Scene) -> list[Object]:
    """Return the objects that are alone at their place."""
    places = [thing.place for thing in scene.objects]
    return [thing for thing in scene.objects if places.count(thing.place) == 1]


def _presence(thing: Object, scene: Scene) -> QuizQuestion:
    said = Description(thing.shape, thing.color)
    right = "yes" if any(said.matches(other) for other in scene.objects) else "no"
    return QuizQuestion(ASKED["presence"][0].format(with_article(said.words())), _YES_NO, right)


def _ground(scene: Scene) -> list[QuizQuestion]:
    """Return the questions about the ground: its first color, whether it is split, and its second color."""
    ground, begun = scene.ground, f"{listed_objects(scene)} on"
    steps = [(_GROUNDS, f" {ground.first}"), (tuple(_AFTER_FIRST.values()), _AFTER_FIRST[ground.split])]
    begins = [begun, f"{begun} {ground.first}"]
    if ground.second:
        steps.append((_GROUNDS, f" {ground.second}"))
        begins.append(f"{begun} {ground.first}{_BETWEEN[ground.split]}")
    return [QuizQuestion(DESCRIBE[0], answers, right, start) for (answers, right), start in zip(steps, begins)]
