"""References: a picture together with its SigLIP features, so that VLM and DiT see the same pictures in the same order."""

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
    """One reference picture. Compared by identity, so that conversations can be compared and hashed.

    Attributes:
        picture: 8-bit RGB.
        features: SigLIP features (tokens, width), or None for a picture seen only by the VLM.
    """

    picture: Image.Image
    features: torch.Tensor | None = None


References: TypeAlias = "Sequence[Reference]"


class PictureEncoder(Protocol):
    """An encoder of pictures, such as `SigLIP`."""

    def features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return features (B, tokens, width) of RGB pictures."""
        ...


def make_references(pictures: Sequence[Picture], siglip: PictureEncoder | None) -> list[Reference]:
    """Make references from pictures of any sizes, in order. SigLIP features are computed in one batch.

    Args:
        siglip: the encoder; None for references without features.

    Raises:
        UniWorldError: a picture is invalid (see `pictures.to_rgb`).
    """
    images = [to_rgb(picture) for picture in pictures]
    if siglip is None or not images:
        return [Reference(image) for image in images]
    return [Reference(image, features) for image, features in zip(images, siglip.features(images))]


def native_references(image_BHWC: torch.Tensor, features_BTD: torch.Tensor) -> list[Reference]:
    """Make references from existing features, such as `last_hidden_state` of ComfyUI's CLIP_VISION_OUTPUT.

    Raises:
        UniWorldError: the number of features does not match the number of pictures, or a picture is invalid.
    """
    if features_BTD.ndim != 3 or features_BTD.shape[0] != len(image_BHWC):
        raise UniWorldError(
            f"There are {len(image_BHWC)} pictures and vision features of shape {list(features_BTD.shape)}: "
            "encode the same batch of pictures, (pictures, tokens, width)."
        )
    return [Reference(to_rgb(picture), features) for picture, features in zip(image_BHWC, features_BTD)]
