"""Built-in nodes for masks, under ComfyUI's own class names and inputs."""

from __future__ import annotations

import torch

from ....uniworld_core.errors import UniWorldError
from ...declare import Input, Inputs, Node, Output


class MaskToImage(Node):
    ID = "MaskToImage"
    DISPLAY_NAME = "Convert Mask to Image"
    CATEGORY = "mask"
    DESCRIPTION = "Converts a mask to a gray image."
    OUTPUTS = (Output("IMAGE", "IMAGE"),)

    @classmethod
    def inputs(cls) -> Inputs:
        return (Input.wire("mask", "MASK"),)

    def execute(self, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (mask.reshape(-1, *mask.shape[-2:], 1).expand(-1, -1, -1, 3),)


class ImageToMask(Node):
    ID = "ImageToMask"
    DISPLAY_NAME = "Convert Image to Mask"
    CATEGORY = "mask"
    DESCRIPTION = "Converts one channel of an image to a mask."
    CHANNELS = ["red", "green", "blue", "alpha"]
    OUTPUTS = (Output("MASK", "MASK"),)

    @classmethod
    def inputs(cls) -> Inputs:
        return Input.wire("image", "IMAGE"), Input.choice("channel", cls.CHANNELS)

    def execute(self, image: torch.Tensor, channel: str) -> tuple[torch.Tensor]:
        index = self.CHANNELS.index(channel)
        if index >= image.shape[-1]:
            raise UniWorldError(
                f"The picture has {image.shape[-1]} channels and no {channel} channel. Choose another channel."
            )
        return (image[..., index],)


class InvertMask(Node):
    ID = "InvertMask"
    DISPLAY_NAME = "InvertMask"
    CATEGORY = "mask"
    DESCRIPTION = "Inverts a mask."
    OUTPUTS = (Output("MASK", "MASK"),)

    @classmethod
    def inputs(cls) -> Inputs:
        return (Input.wire("mask", "MASK"),)

    def execute(self, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (1.0 - mask,)
