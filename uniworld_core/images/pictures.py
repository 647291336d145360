"""Pictures of any kind to plain 8-bit RGB, and between PIL and ComfyUI's IMAGE tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from ..errors import UniWorldError
from .picture_files import upright

Picture: TypeAlias = "Image.Image | torch.Tensor"

# Qwen2.5-VL's own limit (image_processing_qwen2_vl.py, smart_resize): a picture narrower than this cannot be read.
MAX_ASPECT = 200


def to_rgb(picture: Picture) -> Image.Image:
    """A picture as 8-bit RGB.

    Transparent pictures are composited on white, as the published programs do (qwen_vl_utils' `to_rgb`);
    photographs are turned upright by their EXIF orientation; deep grays are scaled to 8 bits, integers as 16-bit numbers
    and floats as 0..1 (or 0..255 where any is above 1); CMYK, palettes and grays are converted by Pillow.

    Args:
        picture: a PIL picture, or a tensor (H, W, C) or (1, H, W, C) of C = 1, 3 or 4 channels, float in 0..1 or uint8.

    Raises:
        UniWorldError: the tensor's shape or values are no picture's, the file is damaged, or it is longer than 200:1.
    """
    image = _from_tensor(picture) if isinstance(picture, torch.Tensor) else _from_pil(picture)
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UniWorldError(
            f"The picture is {width}x{height} pixels, longer than {MAX_ASPECT}:1, which the vision encoder cannot take: "
            "crop or pad it."
        )
    return image


def to_image(pictures: Iterable[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as an IMAGE: float32 (B, H, W, 3) in 0..1."""
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.uint8) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).float() / 255.0


def to_bytes(image_BHWC: torch.Tensor) -> torch.Tensor:
    """An IMAGE as uint8 (B, H, W, C), rounded to the nearest of 255 steps, as pictures are saved and compared."""
    return (image_BHWC.clamp(0, 1) * 255.0).round().to(torch.uint8)


def on_white(image_BHWC: torch.Tensor, transparent_BHW: torch.Tensor) -> torch.Tensor:
    """An IMAGE whose transparent part is white, as the published programs see transparent pictures.

    Args:
        transparent_BHW: 1 where nothing is to be seen, as ComfyUI's Load Image gives it: of the picture's size, or of any
            size and all 0 for a picture without transparency. One serves a batch.

    Raises:
        UniWorldError: the mask is of another size, or of another number of pictures.
    """
    if not bool(transparent_BHW.any()):
        return image_BHWC
    if transparent_BHW.shape[-2:] != image_BHWC.shape[1:3] or len(transparent_BHW) not in (1, len(image_BHWC)):
        raise UniWorldError(
            f"The mask has shape {list(transparent_BHW.shape)} and the picture {list(image_BHWC.shape)}: "
            "wire both from the same Load Image."
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
            raise UniWorldError("A picture tensor holds NaN or infinite values: look at what made it.")
        # A little above 1 is what bicubic resizing gives; far above are pictures of 0..255.
        if float(picture.max()) > 2.0:
            raise UniWorldError(
                f"A float picture tensor holds values up to {float(picture.max()):.0f}; expected 0..1: divide it by 255."
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
        raise UniWorldError(f"{name} cannot be decoded ({error}): it is cut short or damaged.") from error
    picture = upright(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _eight_bit(picture)
    elif picture.mode in ("RGBa", "La"):  # alpha already multiplied in, which Pillow converts to nothing else
        picture = picture.convert(picture.mode.upper())
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    # Pillow clips deep grays at 255 instead of scaling them.
    values = np.asarray(picture, dtype=np.float64)
    if not np.isfinite(values).all():
        raise UniWorldError("A picture of floats holds NaN or infinite values: look at what made it.")
    top = 65535.0 if picture.mode.startswith("I") else 255.0 if values.max(initial=0) > 1.0 else 1.0
    return Image.fromarray(np.clip(np.round(values / top * 255.0), 0, 255).astype(np.uint8))
