"""Conversion of any picture to 8-bit RGB, and between PIL and ComfyUI's IMAGE tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from ..errors import UniWorldError
from .orientation import upright

Picture: TypeAlias = "Image.Image | torch.Tensor"

# Limit of Qwen2.5-VL's image processor on width / height (image_processing_qwen2_vl.py, smart_resize).
MAX_ASPECT = 200


def to_rgb(picture: Picture) -> Image.Image:
    """Convert a picture to 8-bit RGB.

    - Transparent pictures are composited on white, as in the published programs (qwen_vl_utils' `to_rgb`).
    - Photographs are rotated upright by their EXIF orientation.
    - Gray pictures of more than 8 bits are scaled: integers from 0..65535, floats from 0..1, or from 0..255 if a value
      exceeds 1.
    - CMYK, palettes and 8-bit grays are converted by Pillow.

    Args:
        picture: a PIL picture, or a tensor (H, W, C) or (1, H, W, C) with C = 1, 3 or 4, float in 0..1 or uint8.

    Raises:
        UniWorldError: the tensor's shape or values are invalid, the file is damaged, or the aspect ratio exceeds 200:1.
    """
    image = _from_tensor(picture) if isinstance(picture, torch.Tensor) else _from_pil(picture)
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UniWorldError(
            f"The picture is {width}x{height} pixels. The vision encoder takes aspect ratios up to {MAX_ASPECT}:1: "
            "crop or pad the picture."
        )
    return image


def to_image(pictures: Iterable[Image.Image]) -> torch.Tensor:
    """Convert RGB pictures of the same size to an IMAGE: float32 (B, H, W, 3) in 0..1."""
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.uint8) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).float() / 255.0


def to_bytes(image_BHWC: torch.Tensor) -> torch.Tensor:
    """Convert an IMAGE to uint8 (B, H, W, C) by rounding, the form in which pictures are saved and compared."""
    return (image_BHWC.clamp(0, 1) * 255.0).round().to(torch.uint8)


def on_white(image_BHWC: torch.Tensor, transparent_BHW: torch.Tensor) -> torch.Tensor:
    """Composite an IMAGE on white, as the published programs do with transparent pictures.

    Args:
        image_BHWC: the picture, without its alpha channel.
        transparent_BHW: ComfyUI's Load Image mask, 1 where the picture is transparent. It has the picture's size. For a
            picture without transparency it is all 0 and may have any size. One mask may serve a batch.

    Raises:
        UniWorldError: size or batch size of the mask and the picture do not match.
    """
    if not bool(transparent_BHW.any()):
        return image_BHWC
    if transparent_BHW.shape[-2:] != image_BHWC.shape[1:3] or len(transparent_BHW) not in (1, len(image_BHWC)):
        raise UniWorldError(
            f"The mask has shape {list(transparent_BHW.shape)} and the picture {list(image_BHWC.shape)}: "
            "connect both to the same Load Image node."
        )
    return torch.lerp(image_BHWC, torch.ones_like(image_BHWC), transparent_BHW.to(image_BHWC)[..., None])


def _from_tensor(picture: torch.Tensor) -> Image.Image:
    if picture.ndim == 4 and picture.shape[0] == 1:
        picture = picture[0]
    if picture.ndim != 3 or picture.shape[-1] not in (1, 3, 4) or 0 in picture.shape:
        raise UniWorldError(
            f"A picture tensor has shape {list(picture.shape)}; expected (height, width, channels) with 1, 3 or 4 channels."
        )
    if picture.is_floating_point():
        picture = picture.detach()
        if not torch.isfinite(picture).all():
            raise UniWorldError("A picture tensor has NaN or infinite values: check the step that produced it.")
        # Bicubic resizing overshoots 1 a little. Values far above 1 mean a picture in 0..255.
        if float(picture.max()) > 2.0:
            raise UniWorldError(
                f"A float picture tensor has values up to {float(picture.max()):.0f}; expected 0..1: divide it by 255."
            )
        picture = to_bytes(picture.float())
    elif picture.dtype != torch.uint8:
        raise UniWorldError(f"A picture tensor has dtype {picture.dtype}; expected float in 0..1 or uint8 in 0..255.")
    array = picture.detach().cpu().numpy()
    return _from_pil(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array))


def _from_pil(picture: Image.Image) -> Image.Image:
    if not isinstance(picture, Image.Image):
        raise UniWorldError(f"A picture is a {type(picture).__name__}; give a PIL picture or a tensor.")
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        name = getattr(picture, "filename", "") or "The picture"
        raise UniWorldError(f"{name} cannot be decoded ({error}): it is truncated or damaged.") from error
    picture = upright(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _eight_bit(picture)
    elif picture.mode in ("RGBa", "La"):  # premultiplied alpha, which Pillow converts only to RGBA and LA
        picture = picture.convert(picture.mode.upper())
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    # `convert` clips these modes at 255 instead of scaling them.
    values = np.asarray(picture, dtype=np.float64)
    if not np.isfinite(values).all():
        raise UniWorldError("A float picture has NaN or infinite values: check the step that produced it.")
    top = 65535.0 if picture.mode.startswith("I") else 255.0 if values.max(initial=0) > 1.0 else 1.0
    return Image.fromarray(np.clip(np.round(values / top * 255.0), 0, 255).astype(np.uint8))
