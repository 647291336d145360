"""Names of the shared workflows: file name, title and description of each template card.

ComfyUI shows a pack's templates by file name; `uniworld serve` shows titles and descriptions. The key is the short name
for command lines and URLs, which is also stored in the workflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One workflow.

    Attributes:
        needs_comfyui: whether it has nodes that only ComfyUI has.
        needs_model: the folder in models/diffusers or models/unipic that it is for; "" if it runs with a model that ships.
        place: the number before the title in the file name, which sorts the templates. Perception maps share one number.
    """

    place: int
    title: str
    description: str
    tags: tuple[str, ...]
    needs_comfyui: bool = False
    needs_model: str = ""

    @property
    def file(self) -> str:
        """File name without the suffix."""
        return f"{self.place} {self.title}"

    def about(self, name: str) -> dict[str, Any]:
        """Metadata that is stored in the workflow."""
        about = {"name": name, "title": self.title, "description": self.description, "tags": list(self.tags)}
        about |= {"needs_comfyui": True} if self.needs_comfyui else {}
        return about | ({"needs_model": self.needs_model} if self.needs_model else {})


def _map(title: str, description: str) -> Entry:
    return Entry(8, title, description, ("Perception",))


def _of_family(title: str, description: str, model: str) -> Entry:
    return Entry(9, title, description, ("Edit",), needs_model=model)


def _unipic(title: str, description: str, tag: str) -> Entry:
    return Entry(9, title, f"{description} You download UniPic yourself.", (tag,), needs_model="Skywork-UniPic-1.5B")


def _native(title: str, description: str) -> Entry:
    return Entry(9, title, description, ("ComfyUI",), needs_comfyui=True)


CATALOG = {
    "edit": Entry(
        1, "Edit a picture", "Change an image with an instruction. Everything else stays the same.", ("Edit",)
    ),
    "text_to_image": Entry(
        2, "Text to image", "Generate an image from a description, at any aspect ratio.", ("Paint",)
    ),
    "multi_reference": Entry(
        3, "Combine pictures", "Insert an object from one image into another, or combine several images.", ("Edit",)
    ),
    "edit_with_mask": Entry(
        4,
        "Edit and keep the rest",
        "Detect what the edit changed, and keep the original bit for bit everywhere else.",
        ("Edit",),
    ),
    "understand": Entry(
        5, "Ask about a picture", "Ask a question about an image and get an answer in text.", ("Answer",)
    ),
    "chat": Entry(
        6,
        "Have a conversation",
        "Edit an image, then ask about the result, in one conversation.",
        ("Edit", "Answer"),
    ),
    "auto_route": Entry(
        7,
        "Paint or answer",
        "The model decides between an image and an answer in text. Only that branch runs.",
        ("Edit", "Answer"),
    ),
    "perception_canny": _map("Canny edge map", "Paint thin, hard edges and convert them to a mask."),
    "perception_hed": _map("HED edge map", "Paint soft edges and convert them to a mask."),
    "perception_mlsd": _map("Straight line map", "Paint straight lines (M-LSD) and convert them to a mask."),
    "perception_depth": _map("Depth map", "Paint the depth of the scene and convert it to values from 0 to 1."),
    "perception_normal": _map("Normal map", "Paint surface normals and convert them to unit vectors."),
    "perception_openpose": _map("Pose map", "Paint skeletons of people (OpenPose) and get their joints."),
    "perception_sketch": _map("Sketch map", "Paint a line drawing of the image."),
    "perception_segmentation": _map("Segmentation map", "Mark the object that you name and get its mask."),
    "perception_detection": _map("Detection map", "Paint boxes around the objects that you name and get them as data."),
    "kontext_edit": _of_family(
        "Kontext edit", "Change a photograph with FLUX.1 Kontext, which you download yourself.", "FLUX.1-Kontext-dev"
    ),
    "qwen_edit": _of_family(
        "Qwen edit", "Change a photograph with Qwen-Image-Edit, which you download yourself.", "Qwen-Image-Edit-2509"
    ),
    "qwen_multi_reference": _of_family(
        "Qwen multi reference", "Combine several photographs with Qwen-Image-Edit-2509.", "Qwen-Image-Edit-2509"
    ),
    "unipic_text_to_image": _unipic("UniPic text to image", "Generate a square image from a description.", "Paint"),
    "unipic_edit": _unipic(
        "UniPic edit", "Edit the middle of an image, and put the result back into the whole.", "Edit"
    ),
    "unipic_understand": _unipic("UniPic question", "Ask a question about an image.", "Answer"),
    "native_edit": _native("Native edit", "Edit an image with ComfyUI's own loaders and KSampler."),
    "native_multi_reference": _native(
        "Native multi reference", "Combine several images with ComfyUI's own loaders and KSampler."
    ),
    "native_lora": _native("Native LoRA", "Apply a LoRA to nano with ComfyUI's own nodes."),
}
