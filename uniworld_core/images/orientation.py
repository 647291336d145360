"""EXIF orientation: pictures are turned upright, as in viewers. This module does not import torch."""

from __future__ import annotations

from PIL import ExifTags, Image

# The operation that turns a picture of each EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Metadata that may store an orientation. They must not be copied to a picture that has been turned upright.
ORIENTED_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1")


def upright(picture: Image.Image) -> Image.Image:
    """Turn a picture upright by its EXIF orientation. Without a readable orientation it is returned unchanged, as in viewers.

    The metadata that store the orientation are removed from a turned picture.
    """
    turn = _TURNS.get(orientation(picture))
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    for key in ORIENTED_METADATA:
        turned.info.pop(key, None)
    return turned


def orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8: 1 is upright, and 5 to 8 swap width and height. 1 if none can be read."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # for damaged EXIF data Pillow raises exceptions of any type; the picture itself is intact
        return 1
    return value if value in range(1, 9) else 1


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Return width and height of the picture once upright, from its header."""
    width, height = picture.size
    if picture.format == "TIFF" and hasattr(picture, "tag_v2"):
        # Newer versions of Pillow report the upright size of a TIFF, older ones the size in its tags.
        width, height = picture.tag_v2.get(ExifTags.Base.ImageWidth), picture.tag_v2.get(ExifTags.Base.ImageLength)
    return (height, width) if orientation(picture) >= 5 else (width, height)
