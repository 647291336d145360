"""A reference: one picture and what SigLIP sees in it, together, so that VLM and DiT see the same pictures in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from PIL import Image

from ..errors import UniWorldError
from ..images.pictures import Picture, to_rgb


@dataclass(frozen=True, eq=False)
class Reference:
    """One reference picture; equal to itself alone, so that conversations can be compared and hashed.

    Attributes:
        picture: 8-bit RGB.
        features: SigLIP features (tokens, width), or None for a picture that only the VLM is to see.
    """

    picture: Image.Image
    features: torch.Tensor | None = None


References: TypeAlias = "Sequence[Reference]"


class PictureEncoder(Protocol):
    """What sees pictures, as `SigLIP`."""

    def features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Features (B, tokens, width) of RGB pictures."""
        ...


def make_references(pictures: Sequence[Picture], siglip: PictureEncoder | None) -> list[Reference]:
    """References for pictures of any mix of sizes, in order, their SigLIP features computed in one batch.

    Raises:
        UniWorldError: a picture cannot be used (`pictures.to_rgb` says why).
    """
    images = [to_rgb(picture) for picture in pictures]
    if siglip is None or not images:
        return [Reference(image) for image in images]
    return [Reference(image, features) for image, features in zip(images, siglip.features(images))]


def native_references(image_BHWC: torch.Tensor, features_BTD: torch.Tensor) -> list[Reference]:
    """References whose features were made elsewhere (ComfyUI's CLIP_VISION_OUTPUT, `last_hidden_state`).

    Raises:
        UniWorldError: there are not as many features as pictures, or a picture cannot be used.
    """
    if features_BTD.ndim != 3 or features_BTD.shape[0] != len(image_BHWC):
        raise UniWorldError(
            f"There are {len(image_BHWC)} pictures and vision features of shape {list(features_BTD.shape)}: "
            "encode the same batch of pictures, (pictures, tokens, width)."
        )
    return [Reference(to_rgb(picture), features) for picture, features in zip(image_BHWC, features_BTD)]
