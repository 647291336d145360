"""The perception tasks: their instructions, and conversion of the painted maps to data.

    prompt = instruction("segmentation", "giraffe")
    ...                                               # the model paints `painted` from `source`
    result = read_map("segmentation", painted, source)

Shapes: B items, H rows, W columns, C channels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import UniWorldError
from ..images.batches import resize_image, rgb_batch, same_batch
from .heads import PerceptionResult, read_depth, read_edges, read_normals, read_pose
from .overlays import read_detection, read_segmentation

__all__ = ["TASKS", "PerceptionResult", "Task", "find_task", "instruction", "read_map"]

_SUBJECT = "{subject}"


@dataclass(frozen=True)
class Task:
    """One perception task.

    Attributes:
        name: identifier of the task.
        display_name: name shown to users.
        template: the instruction, with the placeholder `{subject}` for the object's name.
        head: what the painted map represents.
    """

    name: str
    display_name: str
    template: str
    head: Literal["edges", "depth", "normals", "pose", "mask", "boxes"]

    @property
    def needs_subject(self) -> bool:
        return _SUBJECT in self.template

    @property
    def needs_source(self) -> bool:
        """Whether the map is read by comparison with the source picture. Maps on a plain background need no source."""
        return self.head in ("mask", "boxes")


# The published wording, on which the model was trained: the examples of app.py, and for openpose and detection the validation
# prompts of scripts/denoiser/flux_qwen2p5vl_7b_vlm_stage2_512.yaml.
TASKS = {
    task.name: task
    for task in (
        Task("canny", "Canny edges", "Generate a Canny edge map for this image.", "edges"),
        Task(
            "hed",
            "HED soft edges",
            "Produce a holistically-nested boundary probability map of this image.",
            "edges",
        ),
        Task("mlsd", "Straight lines (MLSD)", "Render an MLSD detection overlay for this input image.", "edges"),
        Task("depth", "Depth", "Estimate depth with a focus on background structure.", "depth"),
        Task("normal", "Surface normals", "Convert the input texture into a tangent-space normal map.", "normals"),
        Task("openpose", "Human pose (OpenPose)", "Create a pose map using OpenPose.", "pose"),
        Task("sketch", "Sketch", "Transform this image into a hand-drawn charcoal sketch.", "edges"),
        Task("segmentation", "Segmentation", "Segment the {subject} from the background.", "mask"),
        Task("detection", "Detection", "Please detect the {subject} accurately", "boxes"),
    )
}


def find_task(name: str) -> Task:
    """Return the task of that name. If there is none, the UniWorldError lists all tasks."""
    if name not in TASKS:
        raise UniWorldError(f"The perception task '{name}' is not known; choose one of {', '.join(TASKS)}.")
    return TASKS[name]


def instruction(task: str, subject: str = "") -> str:
    """Return the instruction that makes the model paint a task's map.

    Args:
        task: a name in `TASKS`.
        subject: what to segment or detect, such as "giraffe"; a leading "the", "a" or "an" is dropped. Other tasks
            ignore it.

    Raises:
        UniWorldError: the task is unknown, or needs a subject and none was given.
    """
    known = find_task(task)
    words = re.sub(r"^(the|an?)\s+", "", " ".join(subject.split()), flags=re.IGNORECASE)
    if known.needs_subject and not words:
        raise UniWorldError(
            f"The task '{task}' needs a subject, but it is empty: name what to look for, for example 'giraffe'."
        )
    return known.template.replace(_SUBJECT, words)


def read_map(task: str, painted: Tensor, source: Tensor | None = None) -> PerceptionResult:
    """Convert a painted map to data.

    Args:
        task: a name in `TASKS`.
        painted: the painted map, IMAGE (B, H, W, C) in 0..1.
        source: the picture that the map was painted from, of any size; it is resized to the map (bicubic). A batch of one
            serves every item. Only segmentation and detection use it, and need it unless the background is plain.

    Raises:
        UniWorldError: the task is unknown, images are invalid, batches do not match, or the source is missing.
    """
    head = find_task(task).head
    painted_BHW3 = rgb_batch("painted map", painted).clamp(0, 1)
    if head == "edges":
        return read_edges(painted_BHW3)
    if head == "depth":
        return read_depth(painted_BHW3)
    if head == "normals":
        return read_normals(painted_BHW3)
    if head == "pose":
        return read_pose(painted_BHW3)
    source_BHW3 = None
    if source is not None:
        fitted_BHW3 = resize_image(rgb_batch("source", source).clamp(0, 1), painted.shape[1], painted.shape[2])
        painted_BHW3, source_BHW3 = same_batch(**{"painted map": painted_BHW3, "source": fitted_BHW3})
    return (read_segmentation if head == "mask" else read_detection)(painted_BHW3, source_BHW3)
