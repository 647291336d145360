"""Questions about a scene, with short answers, and descriptions of scenes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..world.scene import COLORS, PLACES, SHAPES, Object, Scene, pick
from .prompts import Description, describe, ground_words, with_article

QUESTION_KINDS = ("count", "colour", "position", "presence", "shape")
# {kind of question: its wordings}
ASKED: dict[str, tuple[str, ...]] = {
    "count": ("How many {} are there?", "Count the {}.", "How many {} are in the picture?"),
    "colour": ("What color is the {}?", "What is the color of the {}?", "Which color has the {}?"),
    "position": ("Where is the {}?", "What is the position of the {}?", "In which place is the {}?"),
    "presence": ("Is there {}?", "Is there {} in the picture?", "Can you see {}?"),
    "shape": ("What shape is at the {}?", "What is the shape of the object at the {}?"),
}

DESCRIBE = ("Describe the picture.", "What is in the picture?", "Describe this image.")


@dataclass(frozen=True)
class ShapesQuestion:
    """A question about a picture.

    Attributes:
        kind: one of `QUESTION_KINDS`.
        answer: such as "2", "red", "top left", "yes" or "star".
        subject: the object that the question is about, if any.
    """

    kind: str
    prompt: str
    answer: str
    subject: Object | None = None


def questions(scene: Scene, rng: np.random.Generator) -> list[ShapesQuestion]:
    """Return one question of each kind that is possible for the scene."""
    asked = (question(kind, scene, rng) for kind in QUESTION_KINDS)
    return [one for one in asked if one is not None]


def question(kind: str, scene: Scene, rng: np.random.Generator) -> ShapesQuestion | None:
    """Return a question of this kind; None if the scene does not allow one."""
    if kind == "count":
        return _count(scene, rng)
    if kind == "presence":
        return _presence(scene, rng)
    if not scene.objects:
        return None
    subject = pick(rng, scene.objects)
    if kind == "colour":
        words = describe(rng, subject, scene, say_color=False).words()
        wording = pick(rng, ASKED[kind])
        return ShapesQuestion(kind, wording.format(words), subject.color, subject)
    if kind == "position":
        said = Description(subject.shape, subject.color)
        if sum(said.matches(thing) for thing in scene.objects) != 1:
            return None
        wording = pick(rng, ASKED[kind])
        return ShapesQuestion(kind, wording.format(said.words()), subject.place, subject)
    place = subject.place
    wording = pick(rng, ASKED[kind])
    return ShapesQuestion(kind, wording.format(place), subject.shape, subject)


def _count(scene: Scene, rng: np.random.Generator) -> ShapesQuestion:
    wording = pick(rng, ASKED["count"])
    # 70 % of the counts by shape or color use that of an existing object: otherwise most answers would be 0.
    there = pick(rng, scene.objects) if scene.objects and rng.random() < 0.7 else None
    which = rng.random()
    if which < 0.5:
        return ShapesQuestion("count", wording.format("objects"), str(len(scene.objects)))
    if which < 0.75:
        said = Description(shape=there.shape if there else pick(rng, SHAPES))
        words = f"{said.shape}es" if said.shape == "cross" else f"{said.shape}s"
    else:
        said = Description(color=there.color if there else pick(rng, tuple(COLORS)))
        words = f"{said.color} objects"
    return ShapesQuestion("count", wording.format(words), str(sum(said.matches(thing) for thing in scene.objects)))


def _presence(scene: Scene, rng: np.random.Generator) -> ShapesQuestion:
    wording = pick(rng, ASKED["presence"])
    if scene.objects and rng.random() < 0.5:
        subject = pick(rng, scene.objects)
        words = with_article(Description(subject.shape, subject.color).words())
        return ShapesQuestion("presence", wording.format(words), "yes", subject)
    # Half of the absent objects are near misses, with the shape or color of an existing one.
    shape, color = pick(rng, SHAPES), pick(rng, tuple(COLORS))
    if scene.objects and rng.random() < 0.5:
        near = pick(rng, scene.objects)
        shape, color = (near.shape, color) if rng.random() < 0.5 else (shape, near.color)
    said = Description(shape, color)
    there = any(said.matches(thing) for thing in scene.objects)
    return ShapesQuestion("presence", wording.format(with_article(said.words())), "yes" if there else "no")


def listing(scene: Scene) -> str:
    """List all objects of a scene in order of places, so that there is only one correct answer to learn."""
    return f"{listed_objects(scene)} on {ground_words(scene.ground)}"


def listed_objects(scene: Scene) -> str:
    """Return the part of `listing` before the ground."""
    things = sorted(scene.objects, key=lambda thing: PLACES.index(thing.place))
    return ", ".join(f"{thing.size} {thing.color} {thing.shape} {thing.place}" for thing in things) or "nothing"
