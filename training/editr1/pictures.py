"""The published preparation of reference pictures: a centre crop to a square, resized with Lanczos."""

from __future__ import annotations

from PIL import Image


def square_crop(picture: Image.Image, side: int) -> Image.Image:
    """Crop the central square and resize it to `side` pixels (scripts/train_nft_kontext.py, dataset)."""
    picture = picture.convert("RGB")
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    return picture.crop((left, top, left + short, top + short)).resize((side, side), Image.Resampling.LANCZOS)
