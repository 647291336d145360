"""Texts of tasks: descriptions of single objects, captions, and several wordings of every instruction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....uniworld_core.perception.tasks import TASKS as PERCEPTION
from ..world.scene import Ground, Object, Scene, pick

WORDINGS: dict[str, tuple[str, ...]] = {
    "text_to_image": ("{caption}.", "Draw {caption}.", "A picture of {caption}.", "Generate an image of {caption}."),
    "add": (
        "Add {new} at the {place}.",
        "Put {new} at the {place}.",
        "Draw {new} at the {place} of the picture.",
        "Place {new} at the {place}.",
    ),
    "remove": ("Remove the {subject}.", "Delete the {subject}.", "Take away the {subject}.", "Erase the {subject}."),
    "replace": (
        "Replace the {subject} with {new}.",
        "Turn the {subject} into {new}.",
        "Change the {subject} into {new}.",
        "Swap the {subject} for {new}.",
    ),
    "recolour": (
        "Make the {subject} {color}.",
        "Change the color of the {subject} to {color}.",
        "Paint the {subject} {color}.",
        "Recolor the {subject} to {color}.",
    ),
    "background": (
        "Change the background to {ground}.",
        "Make the background {ground}.",
        "Replace the background with {ground}.",
        "Put everything on a {ground} background.",
    ),
    "extract": (
        "Extract the {subject} on a white background.",
        "Cut out the {subject} on white.",
        "Show only the {subject} on a plain white background.",
        "Isolate the {subject} on a white background.",
    ),
    "style_invert": ("Invert the colors.", "Make a negative of this picture.", "Invert all colors of the image."),
    "style_outline": (
        "Turn this into a line drawing.",
        "Redraw this as black outlines on white.",
        "Make an outline drawing of this picture.",
    ),
    "compose": (
        "Put the {subject} from the second picture at the {place} of the first picture.",
        "Add the {subject} of the second image at the {place} of the first image.",
        "Take the {subject} from image 2 and place it at the {place} of image 1.",
        "Insert the {subject} from the second picture into the first picture at the {place}.",
    ),
    "reconstruct": ("Reconstruct this picture.", "Repeat this image exactly.", "Copy the picture without changes."),
    "edge": (PERCEPTION["canny"].template, "Draw the edges of this picture.", "Show the edge map of this image."),
    "depth": (PERCEPTION["depth"].template, "Make a depth map of this picture.", "Show how near each object is."),
    "segmentation": (
        PERCEPTION["segmentation"].template,
        "Segment the {subject}.",
        "Highlight the {subject}.",
    ),
    "detection": (
        PERCEPTION["detection"].template,
        "Draw a box around the {subject}.",
        "Detect the {subject}.",
    ),
    "hed": (PERCEPTION["hed"].template, "Draw the soft edges of this picture.", "Show the HED edges of this image."),
    "mlsd": (PERCEPTION["mlsd"].template, "Draw the straight lines of this picture.", "Show only the straight lines."),
    "normal": (PERCEPTION["normal"].template, "Make a normal map of this picture.", "Show the surface normals."),
    "sketch": (PERCEPTION["sketch"].template, "Sketch this picture with charcoal.", "Make a charcoal sketch of this."),
    "openpose": (PERCEPTION["openpose"].template, "Draw the pose as a skeleton.", "Show the skeletons of the people."),
}
CASUAL_SHARE = 0.2  # fraction of prompts in lower case and without a full stop


@dataclass(frozen=True)
class Description:
    """Some properties of an object. Empty ones are not mentioned."""

    shape: str = ""
    color: str = ""
    size: str = ""
    place: str = ""

    def matches(self, thing: Object) -> bool:
        return all(
            not said or said == holds
            for said, holds in (
                (self.shape, thing.shape),
                (self.color, thing.color),
                (self.size, thing.size),
                (self.place, thing.place),
            )
        )

    def words(self) -> str:
        """Return words such as "small red circle at the top left"."""
        noun = " ".join(word for word in (self.size, self.color, self.shape or "object") if word)
        return f"{noun} at the {self.place}" if self.place else noun


def describe(rng: np.random.Generator, thing: Object, scene: Scene, say_color: bool = True) -> Description:
    """Return a description that matches only this object of the scene, usually as short as people would choose it.

    Args:
        say_color: whether to mention the color; False for questions that ask for it.
    """
    color = thing.color if say_color else ""
    short = [
        Description(thing.shape, color),
        Description(thing.shape),
        Description(thing.shape, color, thing.size),
        Description(thing.shape, color, place=thing.place),
    ]
    if rng.random() < 0.3:
        rng.shuffle(short)  # type: ignore[arg-type]
    return next(said for said in (*short, Description(thing.shape, place=thing.place)) if names_one(said, scene))


def names_one(said: Description, scene: Scene) -> bool:
    """Whether exactly one object of the scene matches the description."""
    return sum(said.matches(thing) for thing in scene.objects) == 1


def with_article(words: str) -> str:
    """Prepend the indefinite article: "an orange star", "a red star"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def ground_words(ground: Ground) -> str:
    """Describe a ground: "gray", or "gray on the left and teal on the right"."""
    if ground.split == "left and right":
        return f"{ground.first} on the left and {ground.second} on the right"
    if ground.split == "top and bottom":
        return f"{ground.first} at the top and {ground.second} at the bottom"
    return ground.first


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene, without capitals or a full stop.

    Lists all objects in random order with size, color, shape and place, then people with their poses, then the ground.
    """
    order = rng.permutation(len(scene.objects))
    named = [
        with_article(Description(thing.shape, thing.color, thing.size, thing.place).words())
        for thing in (scene.objects[number] for number in order)
    ]
    named += [with_article(person.words()) for person in scene.figures]
    things = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named) or "nothing"
    if scene.ground.second:
        return f"{things} on a background that is {ground_words(scene.ground)}"
    return f"{things} on {with_article(scene.ground.first)} background"


def say(rng: np.random.Generator, wording: str, **words: str) -> str:
    """Return a prompt in a random wording of a task, with these words filled in."""
    prompt = pick(rng, WORDINGS[wording]).format(**words)
    if rng.random() < CASUAL_SHARE:
        return prompt.lower().rstrip(".")
    return prompt[0].upper() + prompt[1:]
