"""The tasks: an instruction or question, its reference pictures, and the correct result.

task = make_task("remove", np.random.default_rng(0), "train")
task.prompt, task.references, task.target
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from PIL import Image

from ....uniworld_core.errors import UniWorldError
from ..world import draw
from ..world import scene as world
from ..world.maps import map_of
from ..world.scene import COLORS, PLACES, SHAPES, UNITS, Ground, Object, Scene, check_side, fits, pick
from .prompts import caption, describe, ground_words, say, with_article
from .questions import QUESTION_KINDS, question
from .split import Split, check_split, draw_combination, draw_triple, holds_held_out, is_held_out

EDITS = ("add", "remove", "replace", "recolour", "background", "extract", "style", "compose")
PERCEPTIONS = ("edge", "depth", "segmentation", "detection", "hed", "mlsd", "normal", "sketch", "openpose")
# New kinds are appended: a kind's index is part of the seed of its evaluation.
KINDS = ("text_to_image", *EDITS, "reconstruct", *PERCEPTIONS[:4], "question", *PERCEPTIONS[4:])
# All but the kind that is answered in text.
PAINTED_KINDS = tuple(kind for kind in KINDS if kind != "question")
# Relative frequency of each kind in training. Kinds that change only a small part of a picture take longest to learn.
KIND_WEIGHTS = {
    "text_to_image": 3.0,
    "add": 2.0,
    "remove": 2.0,
    "replace": 2.0,
    "recolour": 2.0,
    "background": 1.5,
    "extract": 1.5,
    "style": 1.0,
    "compose": 2.5,
    "reconstruct": 1.0,
    "edge": 1.0,
    "depth": 1.0,
    "segmentation": 1.5,
    "detection": 1.5,
    "question": 2.0,
    **dict.fromkeys(("hed", "mlsd", "normal", "sketch", "openpose"), 0.7),
}
_TRIES = 20000


@dataclass(frozen=True)
class ShapesTask:
    """One task. Its pictures are rendered on first access.

    Attributes:
        kind: one of `KINDS`.
        prompt: the instruction or question.
        before: scenes of the reference pictures, in order.
        after: scene of the target picture; None if the target is a map, or for a question.
        subject: the object that is changed, removed, marked, composed or asked about, as in `before`.
        result: the object that the subject becomes, or that is added.
        answer: the answer to a question.
        detail: the style, the kind of question, or the people's poses.
    """

    kind: str
    prompt: str
    before: tuple[Scene, ...]
    after: Scene | None
    subject: Object | None = None
    result: Object | None = None
    answer: str | None = None
    detail: str = ""

    @property
    def weighted(self) -> bool:
        """Whether the loss is weighted by the edited area (the published `need_weight`).

        Not if an object is composed at the same place that it has in the second picture: only its outline then differs
        from both references, so that the published edit mask consists of isolated specks.
        """
        return self.kind in EDITS and not (self.kind == "compose" and self.subject == self.result)

    @property
    def side(self) -> int:
        """The side of the pictures in pixels."""
        return (*self.before, *([self.after] if self.after else []))[0].side

    @cached_property
    def references(self) -> tuple[Image.Image, ...]:
        return tuple(draw.draw(scene) for scene in self.before)

    @cached_property
    def target(self) -> Image.Image | None:
        """The correct picture; None for a question."""
        if self.after is not None:
            return draw.draw(self.after)
        if self.kind == "question":
            return None
        scene = self.before[0]
        if self.kind == "style":
            return Image.fromarray(draw.inverted(scene) if self.detail == "invert" else draw.outline_drawing(scene))
        return Image.fromarray(map_of(self.kind, scene, self.subject))


@dataclass(frozen=True)
class _Maker:
    """The random generator and settings from which the functions of the kinds make a task."""

    rng: np.random.Generator
    split: Split
    side: int

    def triple(self, rng: np.random.Generator) -> tuple[str, str, str]:
        return draw_triple(rng, self.split)

    def scene(self, least: int = 1, most: int = 4) -> Scene:
        return world.random_scene(self.rng, int(self.rng.integers(least, most + 1)), self.triple, self.side)

    def stacked(self) -> Scene:
        while not draw.is_stacked(
            scene := world.stacked_scene(self.rng, int(self.rng.integers(2, 5)), self.triple, self.side)
        ):
            pass
        return scene

    def subject(self, scene: Scene) -> tuple[Object, str]:
        """Return a random object, and words that match only this one."""
        subject = pick(self.rng, scene.objects)
        return subject, describe(self.rng, subject, scene).words()


def make_task(kind: str, rng: np.random.Generator, split: Split, side: int = UNITS) -> ShapesTask:
    """Make a task of this kind.

    Args:
        split: a "train" task has no held-out combination in any scene. In a "test" task, the subject or result is one; if
            there is neither, an object of its scenes is.
        side: side of the pictures in pixels, a multiple of 16.

    Raises:
        UniWorldError: the kind, split or side is invalid.
    """
    if kind not in _MAKERS:
        raise UniWorldError(f"Unknown kind of task '{kind}'; choose one of {', '.join(KINDS)}.")
    check_split(split)
    check_side(side)
    maker = _Maker(rng, split, side)
    for _ in range(_TRIES):
        task = _MAKERS[kind](maker)
        if task is not None and _allowed(task, split):
            return task
    raise AssertionError(f"No valid task of kind {kind} in {_TRIES} tries.")


def any_kind(rng: np.random.Generator, kinds: tuple[str, ...] = KINDS) -> str:
    """Return a random kind of task, distributed by `KIND_WEIGHTS`."""
    weights = np.array([KIND_WEIGHTS[kind] for kind in kinds])
    return kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]


def _allowed(task: ShapesTask, split: Split) -> bool:
    scenes = (*task.before, *([task.after] if task.after else []))
    if split == "train":
        return not any(holds_held_out(scene) for scene in scenes)
    named = [thing for thing in (task.subject, task.result) if thing is not None]
    return any(map(is_held_out, named)) if named else any(map(holds_held_out, scenes))


def _text_to_image(make: _Maker) -> ShapesTask:
    scene = make.scene(1, 3)
    return ShapesTask("text_to_image", say(make.rng, "text_to_image", caption=caption(scene, make.rng)), (), scene)


def _add(make: _Maker) -> ShapesTask | None:
    scene, new = make.scene(1, 3), world.random_object(make.rng, make.triple(make.rng))
    if not fits(scene, new):
        return None
    words = with_article(f"{new.size} {new.color} {new.shape}")
    return ShapesTask(
        "add", say(make.rng, "add", new=words, place=new.place), (scene,), scene.with_object(new), None, new
    )


def _remove(make: _Maker) -> ShapesTask:
    scene = make.scene()
    subject, words = make.subject(scene)
    return ShapesTask("remove", say(make.rng, "remove", subject=words), (scene,), scene.without(subject), subject)


def _replace(make: _Maker) -> ShapesTask:
    scene = make.scene()
    subject, words = make.subject(scene)
    shape = pick(make.rng, [shape for shape in SHAPES if shape != subject.shape])
    new = replace(subject, shape=shape, color=pick(make.rng, tuple(COLORS)))
    prompt = say(make.rng, "replace", subject=words, new=with_article(f"{new.color} {new.shape}"))
    return ShapesTask("replace", prompt, (scene,), scene.swapped(subject, new), subject, new)


def _recolour(make: _Maker) -> ShapesTask:
    scene = make.scene()
    subject, words = make.subject(scene)
    new = replace(subject, color=pick(make.rng, [color for color in COLORS if color != subject.color]))
    prompt = say(make.rng, "recolour", subject=words, color=new.color)
    return ShapesTask("recolour", prompt, (scene,), scene.swapped(subject, new), subject, new)


def _background(make: _Maker) -> ShapesTask | None:
    scene, ground = make.scene(), Ground(world.random_ground(make.rng).first)
    if ground == scene.ground:
        return None
    prompt = say(make.rng, "background", ground=ground_words(ground))
    return ShapesTask("background", prompt, (scene,), replace(scene, ground=ground))


def _extract(make: _Maker) -> ShapesTask | None:
    scene = make.scene()
    subject, words = make.subject(scene)
    if subject.color == "white":
        return None
    after = Scene((subject,), Ground("white"), scene.side)
    return ShapesTask("extract", say(make.rng, "extract", subject=words), (scene,), after, subject)


def _style(make: _Maker) -> ShapesTask:
    scene, detail = make.scene(), pick(make.rng, ("invert", "outline"))
    return ShapesTask("style", say(make.rng, f"style_{detail}"), (scene,), None, detail=detail)


def _compose(make: _Maker) -> ShapesTask | None:
    first, second = make.scene(1, 3), make.scene(1, 2)
    subject, words = make.subject(second)
    new = replace(subject, place=pick(make.rng, PLACES))
    # Skip descriptions such as "star at the top": the place would be ambiguous with the destination.
    if " at the " in words or not fits(first, new):
        return None
    prompt = say(make.rng, "compose", subject=words, place=new.place)
    return ShapesTask("compose", prompt, (first, second), first.with_object(new), subject, new)


def _reconstruct(make: _Maker) -> ShapesTask:
    scene = make.stacked() if make.rng.random() < 0.2 else make.scene()
    return ShapesTask("reconstruct", say(make.rng, "reconstruct"), (scene,), scene)


def _mapping(make: _Maker, kind: str) -> ShapesTask:
    scene = make.stacked() if make.rng.random() < 0.2 else make.scene()
    return ShapesTask(kind, say(make.rng, kind), (scene,), None)


def _mlsd(make: _Maker) -> ShapesTask | None:
    # Half of the scenes contain a circle, which the map must omit; all contain a shape with straight sides.
    with_circle = make.rng.random() < 0.5
    task = _mapping(make, "mlsd")
    shapes = {thing.shape for thing in task.before[0].objects}
    return task if shapes - {"circle"} and ("circle" in shapes) == with_circle else None


def _openpose(make: _Maker) -> ShapesTask | None:
    count = 2 if make.rng.random() < 0.2 else 1
    scene = world.figure_scene(make.rng, count, partial(draw_combination, split=make.split), make.triple, make.side)
    if make.split == "test" and not any(map(is_held_out, scene.figures)):
        return None
    detail = f"openpose: {', '.join(person.words() for person in scene.figures)}"
    return ShapesTask("openpose", say(make.rng, "openpose"), (scene,), None, detail=detail)


def _depth(make: _Maker) -> ShapesTask:
    return ShapesTask("depth", say(make.rng, "depth"), (make.stacked(),), None)


def _marking(make: _Maker, kind: str) -> ShapesTask:
    scene = make.scene()
    subject, words = make.subject(scene)
    return ShapesTask(kind, say(make.rng, kind, subject=words), (scene,), None, subject)


def _question(make: _Maker) -> ShapesTask | None:
    scene = make.scene()
    asked = question(pick(make.rng, QUESTION_KINDS), scene, make.rng)
    if asked is None:
        return None
    return ShapesTask("question", asked.prompt, (scene,), None, asked.subject, None, asked.answer, asked.kind)


_MAKERS: dict[str, Callable[[_Maker], ShapesTask | None]] = {
    "text_to_image": _text_to_image,
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "recolour": _recolour,
    "background": _background,
    "extract": _extract,
    "style": _style,
    "compose": _compose,
    "reconstruct": _reconstruct,
    "edge": partial(_mapping, kind="edge"),
    "depth": _depth,
    "segmentation": partial(_marking, kind="segmentation"),
    "detection": partial(_marking, kind="detection"),
    "question": _question,
    "hed": partial(_mapping, kind="hed"),
    "mlsd": _mlsd,
    "normal": partial(_mapping, kind="normal"),
    "sketch": partial(_mapping, kind="sketch"),
    "openpose": _openpose,
}
