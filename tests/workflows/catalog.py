"""What the shared workflows are called: the file that people see, the title and the description of its card.

ComfyUI shows a pack's templates by the names of their files; `uniworld serve` shows titles and descriptions. The key is
the short name, for command lines and addresses, which the workflow itself carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One workflow.

    Attributes:
        place: the number before the title in the name of the file; entries of one place stand together.
    """

    place: int
    title: str
    description: str
    tags: tuple[str, ...]

    @property
    def file(self) -> str:
        """The name of the file, without its suffix."""
        return f"{self.place} {self.title}"

    def about(self, name: str) -> dict[str, Any]:
        """What the workflow's file says of it."""
        return {"name": name, "title": self.title, "description": self.description, "tags": list(self.tags)}


def _map(title: str, description: str) -> Entry:
    return Entry(8, title, description, ("Perception",))


CATALOG = {
    "edit": Entry(1, "Edit a picture", "Choose a picture and say what to change; the rest stays as it is.", ("Edit",)),
    "text_to_image": Entry(2, "Text to image", "Say what to paint, and choose the shape of the picture.", ("Paint",)),
    "multi_reference": Entry(
        3, "Combine pictures", "Put something from one picture into another, or make one picture of both.", ("Edit",)
    ),
    "edit_with_mask": Entry(
        4,
        "Edit and keep the rest",
        "Find what the edit changed, and keep the original everywhere else, bit for bit.",
        ("Edit",),
    ),
    "understand": Entry(
        5, "Ask about a picture", "Ask a question about a picture and get the answer in words.", ("Answer",)
    ),
    "chat": Entry(
        6,
        "Have a conversation",
        "Edit a picture, then ask about what was painted, in one conversation.",
        ("Edit", "Answer"),
    ),
    "auto_route": Entry(
        7,
        "Paint or answer",
        "The model decides whether to paint or to answer in words, and only that part runs.",
        ("Edit", "Answer"),
    ),
    "perception_canny": _map("Canny edge map", "Paint thin, hard edges and read them as a mask."),
    "perception_hed": _map("HED edge map", "Paint soft edges and read them as a mask."),
    "perception_mlsd": _map("Straight line map", "Paint the straight lines (M-LSD) and read them as a mask."),
    "perception_depth": _map("Depth map", "Paint how near everything is and read it as depth from 0 to 1."),
    "perception_normal": _map("Normal map", "Paint which way surfaces face and read unit normals."),
    "perception_openpose": _map("Pose map", "Paint people's skeletons (OpenPose) and read the joints."),
    "perception_sketch": _map("Sketch map", "Paint a line drawing of the picture."),
    "perception_segmentation": _map("Segmentation map", "Paint the object that you name and read its mask."),
    "perception_detection": _map(
        "Detection map", "Paint boxes around the objects that you name and read them as data."
    ),
}
