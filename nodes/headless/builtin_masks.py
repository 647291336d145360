"""Built-in nodes for masks, under ComfyUI's own class names and inputs."""

from __future__ import annotations

from typing import Any

import torch

from ...uniworld_core.errors import UniWorldError


class MaskToImage:
    CATEGORY = "mask"
    DESCRIPTION = "Turns a mask into a gray picture."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "mask_to_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def mask_to_image(self, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (mask.reshape(-1, *mask.shape[-2:], 1).expand(-1, -1, -1, 3),)


class ImageToMask:
    CATEGORY = "mask"
    DESCRIPTION = "Takes one channel of a picture as a mask."
    RETURN_TYPES = ("MASK",)
    FUNCTION = "image_to_mask"
    CHANNELS = ["red", "green", "blue", "alpha"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "channel": (cls.CHANNELS,)}}

    def image_to_mask(self, image: torch.Tensor, channel: str) -> tuple[torch.Tensor]:
        index = self.CHANNELS.index(channel)
        if index >= image.shape[-1]:
            raise UniWorldError(
                f"The picture has no {channel} channel, only {image.shape[-1]} channels. Choose another."
            )
        return (image[..., index],)


class InvertMask:
    CATEGORY = "mask"
    DESCRIPTION = "Swaps what a mask marks and what it leaves."
    RETURN_TYPES = ("MASK",)
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def invert(self, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (1.0 - mask,)
