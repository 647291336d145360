"""The sample scenes of the shared workflows, and the task that nano performs in each workflow.

The sample images, the prompts in the workflows and the expected results in the tests all come from these two tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from uniworld.training.shapes.tasks.tasks import ShapesTask
from uniworld.training.shapes.world.figure import Figure
from uniworld.training.shapes.world.scene import SIDE, Ground, Object, Scene
from uniworld.uniworld_core.perception.tasks import instruction

CIRCLE = Object("circle", "red", "large", "top left")
SQUARE = Object("square", "blue", "large", "top right")
TRIANGLE = Object("triangle", "green", "large", "bottom left")
STAR = Object("star", "purple", "large", "center")

SHAPES = Scene((CIRCLE, SQUARE, TRIANGLE), Ground("gray"), SIDE)
MORE_SHAPES = Scene((STAR, Object("diamond", "orange", "small", "top left")), Ground("beige"), SIDE)
STACK = Scene(
    (
        Object("star", "green", "large", "top right"),
        Object("square", "orange", "large", "left", dx=4),
        Object("circle", "blue", "large", "center", dx=-4),
    ),
    Ground("beige"),
    SIDE,
)
PERSON = Scene((), Ground("teal"), SIDE, figures=(Figure("yellow", "up", "apart", 32, 16),))

# The images in workflows/input that are drawn from scenes.
PICTURES = {"shapes.png": SHAPES, "more_shapes.png": MORE_SHAPES, "stack.png": STACK, "person.png": PERSON}


@dataclass(frozen=True)
class Sample:
    """The settings of a workflow.

    Attributes:
        task: the prompt, the scenes of the images, and the expected result.
        seed: seed of the sampler.
        subject: the object that a segmentation or a detection marks.
        then: the next turn of a conversation: a question about the generated image.
    """

    task: ShapesTask
    seed: int = 0
    subject: str = ""
    then: ShapesTask | None = None

    @property
    def pictures(self) -> tuple[str, ...]:
        """Names of the images in workflows/input."""
        return tuple(next(name for name, scene in PICTURES.items() if scene == seen) for seen in self.task.before)


def _swap(kind: str, prompt: str, old: Object, **new: str) -> ShapesTask:
    made = replace(old, **new)
    return ShapesTask(kind, prompt, (SHAPES,), SHAPES.swapped(old, made), old, made)


def _compose(prompt: str, subject: Object, place: str) -> ShapesTask:
    made = replace(subject, place=place)
    return ShapesTask("compose", prompt, (SHAPES, MORE_SHAPES), SHAPES.with_object(made), subject, made)


def _map(name: str, kind: str, seed: int = 0, scene: Scene = SHAPES, subject: Object | None = None) -> Sample:
    words = f"{subject.color} {subject.shape}" if subject else ""
    return Sample(ShapesTask(kind, instruction(name, words), (scene,), None, subject), seed, words)


PAIR = Scene(
    (Object("star", "yellow", "large", "top"), Object("circle", "blue", "large", "bottom")), Ground("navy"), SIDE
)
# By the workflow's name. The words are those that nano was trained on (training/shapes/tasks/prompts.py, questions.py).
SAMPLES = {
    "text_to_image": Sample(
        ShapesTask(
            "text_to_image",
            "A picture of a large yellow star at the top and a large blue circle at the bottom on a navy background.",
            (),
            PAIR,
        ),
    ),
    "edit": Sample(
        _swap("replace", "Replace the red circle with an orange square.", CIRCLE, shape="square", color="orange"),
    ),
    "multi_reference": Sample(
        _compose(
            "Put the purple star from the second picture at the bottom right of the first picture.",
            STAR,
            "bottom right",
        ),
    ),
    "understand": Sample(
        ShapesTask(
            "question", "Where is the green triangle?", (SHAPES,), None, TRIANGLE, None, "bottom left", "position"
        )
    ),
    "chat": Sample(
        _swap("recolour", "Make the red circle purple.", CIRCLE, color="purple"),
        then=ShapesTask(
            "question",
            "What color is the circle?",
            (SHAPES.swapped(CIRCLE, replace(CIRCLE, color="purple")),),
            None,
            replace(CIRCLE, color="purple"),
            None,
            "purple",
            "colour",
        ),
    ),
    "auto_route": Sample(
        ShapesTask("remove", "Remove the green triangle.", (SHAPES,), SHAPES.without(TRIANGLE), TRIANGLE),
    ),
    "edit_with_mask": Sample(_swap("recolour", "Make the green triangle yellow.", TRIANGLE, color="yellow")),
    "perception_canny": _map("canny", "edge"),
    "perception_hed": _map("hed", "hed"),
    "perception_mlsd": _map("mlsd", "mlsd"),
    "perception_depth": _map("depth", "depth", 1, STACK),
    "perception_normal": _map("normal", "normal"),
    "perception_openpose": _map("openpose", "openpose", scene=PERSON),
    "perception_sketch": _map("sketch", "sketch"),
    "perception_segmentation": _map("segmentation", "segmentation", subject=TRIANGLE),
    "perception_detection": _map("detection", "detection", subject=TRIANGLE),
}
