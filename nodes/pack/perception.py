"""UniWorld Perception and UniWorld Perception Head: ask the model for a map of what it sees, and read that map."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..declare import Input, Inputs, Node, Output, by_id, validation_result

if TYPE_CHECKING:
    from torch import Tensor


def _task(tooltip: str) -> Input:
    from ...uniworld_core.perception.tasks import TASKS

    return Input.choice("task", TASKS, tooltip, default="canny")


class Perception(Node):
    """The instruction for a perception task."""

    ID = "UniWorldPerception"
    DISPLAY_NAME = "UniWorld Perception"
    SEARCH_ALIASES = [
        "canny",
        "depth",
        "normal",
        "openpose",
        "HED",
        "MLSD",
        "sketch",
        "segmentation",
        "detection",
        "preprocessor",
    ]
    CATEGORY = "UniWorld/perception"
    DESCRIPTION = (
        "Writes the instruction that makes UniWorld-V1 paint a map of the picture: edges, lines, depth, surface normals, "
        "poses, a sketch, a segmentation or a detection. Feed it to UniWorld Condition, with the picture as reference."
    )
    OUTPUTS = (
        Output("prompt", "STRING", "The instruction, in the published wording."),
        Output(
            "image",
            "IMAGE",
            "The picture, unchanged: for UniWorld Reference, and as the source of UniWorld Perception Head.",
        ),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            _task("What to see in the picture."),
            Input.wire("image", "IMAGE", "The picture to look at."),
            Input.text(
                "subject",
                "What to look for, for example giraffe. Segmentation and detection need it, the other tasks take no notice "
                "of it.",
            ),
        )

    @classmethod
    def VALIDATE_INPUTS(cls, task: str | None = None, subject: str | None = None) -> bool | str:
        from ...uniworld_core.perception.tasks import instruction

        # Numbers and lists from a prompt in API form are no task, and must not be a fault of the check.
        return validation_result(lambda *words: instruction(*map(str, words)), task, subject)

    def execute(self, task: str, image: Tensor, subject: str) -> tuple[str, Tensor]:
        from ...uniworld_core.perception.tasks import instruction

        return instruction(task, subject), image


class PerceptionHead(Node):
    """Read a painted map."""

    ID = "UniWorldPerceptionHead"
    DISPLAY_NAME = "UniWorld Perception Head"
    SEARCH_ALIASES = ["map to data", "boxes", "bounding box", "skeleton", "mask", "depth map"]
    CATEGORY = "UniWorld/perception"
    DESCRIPTION = (
        "Turns the map that the model painted back into data: clean edges, depth from 0 to 1, unit normals, a skeleton "
        "with its joints, the mask of a segmentation, the boxes of a detection."
    )
    OUTPUTS = (
        Output(
            "map",
            "IMAGE",
            "The cleaned map: white edges on black, gray depth, unit normals as colours, the skeleton, the mask, or the "
            "boxes.",
        ),
        Output("mask", "MASK", "Edges, depth, valid normals, skeleton, segmented object, or filled boxes."),
        Output(
            "boxes",
            "STRING",
            "JSON: for each picture a list of {x, y, width, height} in pixels of the map, with the score of a detection or "
            "the name of a joint. Empty lists for edges, depth and normals.",
        ),
        Output("text", "STRING", "One line that says what was found."),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            _task("The task the map was painted for."),
            Input.wire("painted", "IMAGE", "The map, as it came from the VAE."),
            Input.wire(
                "source",
                "IMAGE",
                "The picture the map was painted from. Segmentation and detection compare the two, unless the map is on "
                "plain black or white; the other tasks do not need it.",
                optional=True,
            ),
        )

    def execute(self, task: str, painted: Tensor, source: Tensor | None = None) -> tuple[Tensor, Tensor, str, str]:
        from ...uniworld_core.perception.tasks import read_map

        result = read_map(task, painted, source)
        return result.map, result.mask, json.dumps(result.boxes), result.text


NODES = by_id(Perception, PerceptionHead)
