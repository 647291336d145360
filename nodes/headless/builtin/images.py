"""Built-in nodes that load, save and resize pictures, under ComfyUI's own class names and inputs."""

from __future__ import annotations

import random
import string
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import remove_stale_parts, sha256_file
from ... import host
from ...declare import Input, Inputs, Node, Output, validation_result
from ..problems import node_title
from ..storage import folders
from ..storage.output_folder import unwritable
from ..storage.pictures import check_picture, load_channel, load_picture, png_text, to_pil, write_png

if TYPE_CHECKING:
    from PIL import Image

MAX_RESOLUTION = 16384  # ComfyUI's limit for every width and height
_DAY = 24 * 60 * 60.0  # a younger temporary file may belong to a process that is still saving
RESIZE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]


class _FromFile(Node):
    """Base of the nodes that load an input picture; they run again when the file's content changes."""

    @classmethod
    def IS_CHANGED(cls, image: str, **_: object) -> str:
        return sha256_file(folders.current().find_picture(image))

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None) -> bool | str:
        return validation_result(lambda name: check_picture(folders.current().find_picture(name)), image)


def _picture() -> Input:
    return Input("image", tuple(folders.current().list_inputs()), options={"image_upload": True})


def _warn(text: str) -> None:
    if text:
        host.current().warn(text)


class LoadImage(_FromFile):
    ID = "LoadImage"
    DISPLAY_NAME = "Load Image"
    CATEGORY = "image"
    DESCRIPTION = "Loads an image from the input folder."
    OUTPUTS = (
        Output("IMAGE", "IMAGE", "The image; the frames of an animation become a batch."),
        Output("MASK", "MASK", "1 where the image is transparent."),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        return (_picture(),)

    def execute(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        loaded = load_picture(folders.current().find_picture(image), host.current().check_interrupt)
        _warn(loaded.warning)
        return loaded.image, loaded.mask


class LoadImageMask(_FromFile):
    ID = "LoadImageMask"
    DISPLAY_NAME = "Load Image (as Mask)"
    CATEGORY = "mask"
    DESCRIPTION = "Loads one channel of an image from the input folder as a mask."
    CHANNELS = ["alpha", "red", "green", "blue"]
    OUTPUTS = (Output("MASK", "MASK"),)

    @classmethod
    def inputs(cls) -> Inputs:
        return _picture(), Input.choice("channel", cls.CHANNELS)

    def execute(self, image: str, channel: str) -> tuple[torch.Tensor]:
        mask, warning = load_channel(folders.current().find_picture(image), channel, host.current().check_interrupt)
        _warn(warning)
        return (mask,)


class SaveImage(Node):
    ID = "SaveImage"
    DISPLAY_NAME = "Save Image"
    CATEGORY = "image"
    DESCRIPTION = "Saves images as PNG files, with the workflow in their metadata."
    HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
    OUTPUT_NODE = True
    KIND, COMPRESS_LEVEL = "output", 4
    suffix = ""

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            Input.wire("images", "IMAGE", "The images to save."),
            Input.text(
                "filename_prefix",
                "Start of the file names. Tokens such as %date:yyyy-MM-dd%, %width% or %Sampler.seed% are replaced; a "
                "slash creates a folder.",
                default="ComfyUI",
            ),
        )

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        # The prefix is None for PreviewImage, which has no such input.
        return validation_result(folders.current().check_prefix, cls.KIND, filename_prefix)

    def execute(
        self,
        images: torch.Tensor,
        filename_prefix: str = "ComfyUI",
        prompt: dict[str, object] | None = None,
        extra_pnginfo: dict[str, object] | None = None,
    ) -> dict[str, object]:
        if images.ndim != 4 or images.shape[-1] not in (3, 4) or 0 in images.shape:
            raise UniWorldError(f"Images of shape {tuple(images.shape)} cannot be saved; expected (B, H, W, 3 or 4).")
        text = png_text(prompt, extra_pnginfo)
        try:
            place = folders.current().new_picture(
                self.KIND,
                filename_prefix + self.suffix,
                lambda token: _widget_value(token, prompt or {}),
                width=images.shape[2],
                height=images.shape[1],
            )
            remove_stale_parts(place.folder, age=_DAY)
            paths = [write_png(to_pil(image), place, n, text, self.COMPRESS_LEVEL) for n, image in enumerate(images)]
        except OSError as error:
            raise unwritable(folders.current().of_kind(self.KIND), error) from error
        saved = [{"filename": path.name, "subfolder": place.subfolder, "type": self.KIND} for path in paths]
        return {"ui": {"images": saved}}


def _widget_value(token: str, prompt: dict[str, Any]) -> str | None:
    """Return the value of `Node.widget`, where Node is a title or a class name; None if there is no such widget."""
    node_name, dot, widget = token.rpartition(".")
    for node in prompt.values() if dot else ():
        if node_name in (node_title(node), node["class_type"]):
            value = node.get("inputs", {}).get(widget)
            return None if value is None or isinstance(value, (list, dict)) else str(value)
    return None


class PreviewImage(SaveImage):
    ID = "PreviewImage"
    DISPLAY_NAME = "Preview Image"
    DESCRIPTION = "Shows images. They are stored only in the temporary folder."
    KIND, COMPRESS_LEVEL = "temp", 1

    def __init__(self) -> None:
        self.suffix = "_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))

    @classmethod
    def inputs(cls) -> Inputs:
        return (Input.wire("images", "IMAGE", "The images to show."),)


class ImageScale(Node):
    ID = "ImageScale"
    DISPLAY_NAME = "Upscale Image"
    CATEGORY = "image/upscaling"
    DESCRIPTION = "Resizes images. A width or height of 0 is computed from the other one and the aspect ratio."
    OUTPUTS = (Output("IMAGE", "IMAGE"),)

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            Input.wire("image", "IMAGE"),
            Input.choice("upscale_method", RESIZE_METHODS),
            Input.integer("width", default=512, min=0, max=MAX_RESOLUTION, step=1),
            Input.integer("height", default=512, min=0, max=MAX_RESOLUTION, step=1),
            Input.choice("crop", ("disabled", "center")),
        )

    def execute(
        self, image: torch.Tensor, upscale_method: str, width: int, height: int, crop: str
    ) -> tuple[torch.Tensor]:
        rows, columns = image.shape[1:3]
        if width == 0 and height == 0:
            return (image,)
        width = width or max(1, round(columns * height / rows))
        height = height or max(1, round(rows * width / columns))
        return (resize(image, width, height, upscale_method, crop == "center"),)


class ImageBatch(Node):
    ID = "ImageBatch"
    DISPLAY_NAME = "Batch Images"
    CATEGORY = "image"
    DESCRIPTION = "Joins two batches of images; the second is resized to the first."
    OUTPUTS = (Output("IMAGE", "IMAGE"),)

    @classmethod
    def inputs(cls) -> Inputs:
        return Input.wire("image1", "IMAGE"), Input.wire("image2", "IMAGE")

    def execute(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[torch.Tensor]:
        if image1.shape[-1:] != image2.shape[-1:]:
            raise UniWorldError(
                f"The pictures have {image1.shape[-1]} and {image2.shape[-1]} channels. Join only pictures with the same "
                "number of channels: all with transparency, or all without."
            )
        _check_batch(image1)
        if image1.shape[1:] != image2.shape[1:]:
            image2 = resize(image2, image1.shape[2], image1.shape[1], "bilinear", center=True)
        return (torch.cat((image1, image2)),)


class RebatchImages(Node):
    ID = "RebatchImages"
    DISPLAY_NAME = "Rebatch Images"
    CATEGORY = "image/batch"
    DESCRIPTION = "Splits and joins batches of images into batches of another size; the last one may be smaller."
    OUTPUTS = (Output("IMAGE", "IMAGE", "A list of batches: the nodes behind it run once for each."),)
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def inputs(cls) -> Inputs:
        return Input.wire("images", "IMAGE"), Input.integer("batch_size", default=1, min=1, max=4096)

    def execute(self, images: list[torch.Tensor], batch_size: list[int]) -> tuple[list[torch.Tensor]]:
        for batch in images:
            _check_batch(batch)
        every = [image for batch in images for image in batch.split(1)]
        size = batch_size[0]
        return ([_joined(every[start : start + size]) for start in range(0, len(every), size)],)


def _joined(images: list[torch.Tensor]) -> torch.Tensor:
    for image in images:
        if image.shape != images[0].shape:
            raise UniWorldError(
                f"A batch would have images of the shapes {list(images[0].shape[1:])} and {list(image.shape[1:])}. Scale "
                "them to the same size, or set batch_size to 1."
            )
    return torch.cat(images)


class GetImageSize(Node):
    ID = "GetImageSize"
    DISPLAY_NAME = "Get Image Size"
    CATEGORY = "image"
    DESCRIPTION = "Returns the width, the height and the number of images of a batch."
    OUTPUTS = (Output("width", "INT"), Output("height", "INT"), Output("batch_size", "INT"))

    @classmethod
    def inputs(cls) -> Inputs:
        return (Input.wire("image", "IMAGE"),)

    def execute(self, image: torch.Tensor) -> tuple[int, int, int]:
        return image.shape[2], image.shape[1], image.shape[0]


def resize(image: torch.Tensor, width: int, height: int, method: str, center: bool = False) -> torch.Tensor:
    """Resize images (B, H, W, C).

    Args:
        method: one of `RESIZE_METHODS`.
        center: first crop the center of the images to the new aspect ratio.

    Raises:
        UniWorldError: the tensor is not a batch of pictures.
    """
    _check_batch(image)
    if center:
        image = _crop_to_aspect(image, width / height)
    if method == "lanczos":
        from PIL import Image

        resized = [to_pil(item).resize((width, height), Image.Resampling.LANCZOS) for item in image]
        return torch.stack([_from_pil(item) for item in resized]).to(image).reshape(-1, height, width, image.shape[-1])
    return F.interpolate(image.movedim(-1, 1), size=(height, width), mode=method).movedim(1, -1)


def _check_batch(image: torch.Tensor) -> None:
    if image.ndim != 4 or 0 in image.shape:
        raise UniWorldError(f"The pictures have shape {list(image.shape)}; expected (batch, height, width, channels).")


def _crop_to_aspect(image: torch.Tensor, aspect: float) -> torch.Tensor:
    rows, columns = image.shape[1:3]
    # At least one row and column of a thin strip must remain.
    x = min(round((columns - rows * aspect) / 2), (columns - 1) // 2) if columns / rows > aspect else 0
    y = min(round((rows - columns / aspect) / 2), (rows - 1) // 2) if columns / rows < aspect else 0
    return image[:, y : rows - y, x : columns - x]


def _from_pil(picture: Image.Image) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255.0)
