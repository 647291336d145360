"""UniWorld Perception and UniWorld Perception Head: request a map of an image from the model, and decode that map."""

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
    """Write the instruction for a perception task."""

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
        "Writes the instruction with which UniWorld-V1 paints a map of the image: edges, lines, depth, surface normals, "
        "poses, a sketch, a segmentation or a detection. Connect prompt to UniWorld Condition, and image to UniWorld "
        "Reference."
    )
    OUTPUTS = (
        Output("prompt", "STRING", "The instruction, in the published wording, for UniWorld Condition."),
        Output(
            "image",
            "IMAGE",
            "The image, unchanged, for UniWorld Reference and for source of UniWorld Perception Head.",
        ),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            _task("The kind of map."),
            Input.wire("image", "IMAGE", "The image to analyze."),
            Input.text(
                "subject",
                "The object to find, for example giraffe. Required for segmentation and detection; other tasks ignore it.",
            ),
        )

    @classmethod
    def VALIDATE_INPUTS(cls, task: str | None = None, subject: str | None = None) -> bool | str:
        from ...uniworld_core.perception.tasks import instruction

        # Prompts in API form may have numbers or lists here. As text they are invalid names, not crashes of the check.
        return validation_result(lambda *words: instruction(*map(str, words)), task, subject)

    def execute(self, task: str, image: Tensor, subject: str) -> tuple[str, Tensor]:
        from ...uniworld_core.perception.tasks import instruction

        return instruction(task, subject), image


class PerceptionHead(Node):
    """Decode a painted map."""

    ID = "UniWorldPerceptionHead"
    DISPLAY_NAME = "UniWorld Perception Head"
    SEARCH_ALIASES = ["map to data", "boxes", "bounding box", "skeleton", "mask", "depth map"]
    CATEGORY = "UniWorld/perception"
    DESCRIPTION = (
        "Converts the map that the model painted to data: clean edges, depth from 0 to 1, unit normals, a skeleton with its "
        "joints, a segmentation mask, or detection boxes."
    )
    OUTPUTS = (
        Output(
            "map",
            "IMAGE",
            "The cleaned map: white edges on black, grayscale depth, unit normals as colors, the skeleton, the mask or the "
            "boxes.",
        ),
        Output("mask", "MASK", "Edges, depth, valid normals, skeleton, segmented object, or filled boxes."),
        Output(
            "boxes",
            "STRING",
            "JSON: for each image a list of {x, y, width, height} in pixels of the map, with the score of a detection or "
            "the name of a joint. The lists are empty for edges, depth and normals.",
        ),
        Output("text", "STRING", "A one-line summary of what was found."),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            _task("The task for which the map was painted."),
            Input.wire("painted", "IMAGE", "The painted map, as decoded by the VAE."),
            Input.wire(
                "source",
                "IMAGE",
                "The image that the map was painted from. Segmentation and detection compare the two, unless the map has "
                "a plain black or white background. Other tasks do not need it.",
                optional=True,
            ),
        )

    def execute(self, task: str, painted: Tensor, source: Tensor | None = None) -> tuple[Tensor, Tensor, str, str]:
        from ...uniworld_core.perception.tasks import read_map

        result = read_map(task, painted, source)
        return result.map, result.mask, json.dumps(result.boxes), result.text


NODES = by_id(Perception, PerceptionHead)
