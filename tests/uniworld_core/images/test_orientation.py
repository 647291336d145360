"""Pictures of every EXIF orientation are turned upright."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from uniworld.uniworld_core.images.orientation import upright, upright_size
from uniworld.uniworld_core.images.picture_files import PictureFile

from .drawn import encoded, gradient

# How a camera stores an upright picture under each orientation.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
KINDS = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


def stored(orientation: int, kind: str, size: tuple[int, int] = (48, 32)) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = np.ascontiguousarray(STORED[orientation](np.asarray(gradient(*size))))
    return encoded(Image.fromarray(lying), kind, exif=exif, **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_of_every_format_is_upright(kind: str, orientation: int) -> None:
    with PictureFile(io.BytesIO(stored(orientation, kind)), "p") as file:
        assert upright_size(file.picture) == (48, 32)
        picture = file.first()
    assert picture.size == (48, 32)
    assert np.abs(pixels(picture) - pixels(gradient())).max() <= (6 if kind == "JPEG" else 0)
    assert upright(picture).tobytes() == picture.tobytes()
    again = Image.open(io.BytesIO(encoded(picture, "PNG")))
    assert again.getexif().get(0x0112, 1) == 1
