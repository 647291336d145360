"""Reading picture files that may be anything, and writing PNG files that are either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import struct
import time
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from .folders import NewPicture

# Above this many pixels, all frames together, a file is taken for a decompression bomb: 128 Mi pixels are 1.5 GiB as
# float32 RGB, and more than any camera makes.
MAX_FILE_PIXELS = 2**27

# ComfyUI gives a picture without transparency this empty mask.
_NO_MASK_SIDE = 64
# What Pillow raises for broken files, besides its own UnidentifiedImageError (an OSError).
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)


def load_picture(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a picture file as ComfyUI's LoadImage does.

    Returns:
        The frames (B, H, W, 3) in 0..1, turned upright by their EXIF data, and their transparency as masks (B, H, W):
        1 where nothing is seen; 64x64 zeros where a picture has no alpha channel.

    Raises:
        ValueError: the file is no picture, is damaged, or is too large.
    """
    frames: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []
    with _PictureFile(path) as (picture, guard):
        # A camera's MPO file holds previews of the same picture; only the first frame counts.
        single = picture.format == "MPO"
        for number, frame in enumerate(guard(ImageSequence.Iterator(picture))):
            if number and single:
                break
            if picture.width * picture.height * (number + 1) > MAX_FILE_PIXELS:
                raise ValueError(_too_large(path, f"{picture.width}x{picture.height} with more than {number} frames"))
            upright = guard.call(ImageOps.exif_transpose, frame)
            pixels = guard.call(_to_rgb, upright)
            if frames and frames[0].shape != pixels.shape:
                continue
            frames.append(pixels)
            masks.append(_transparency(upright))
    if len({mask.shape for mask in masks}) > 1:
        masks = [mask if mask.shape == frames[0].shape[:2] else torch.zeros(frames[0].shape[:2]) for mask in masks]
    return torch.stack(frames), torch.stack(masks)


def load_channel(path: Path, channel: str) -> torch.Tensor:
    """One channel ("alpha", "red", "green", "blue") of a picture file as a mask (1, H, W), as ComfyUI's LoadImageMask.

    Raises:
        ValueError: as `load_picture`.
    """
    with _PictureFile(path) as (picture, guard):
        upright = guard.call(ImageOps.exif_transpose, picture)
        if channel == "alpha":
            return _transparency(upright, opaque_size=True)[None]
        return guard.call(_to_rgb, upright)[..., ("red", "green", "blue").index(channel)][None]


def check_picture(path: Path) -> None:
    """Check that a picture file can be decoded, as far as that is cheap; what was found is kept.

    Raises:
        ValueError: as `load_picture`.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise ValueError(f"The picture '{path.name}' cannot be read: {error.strerror}. Check the file.") from error
    problem = _problem_of(path, state.st_mtime_ns, state.st_size)
    if problem:
        raise ValueError(problem)


@lru_cache(maxsize=4096)
def _problem_of(path: Path, *_state: int) -> str:
    try:
        with _PictureFile(path) as (picture, guard):
            if picture.format == "PNG":
                guard.call(picture.verify)  # reads the check sums, and inflates nothing
                return ""
            # A JPEG goes many times faster at an eighth of its size, and shows all the same whether it is whole.
            picture.draft("L", (max(1, picture.width // 8), max(1, picture.height // 8)))
            guard.call(picture.load)
    except ValueError as error:
        return str(error)
    return ""


def _to_rgb(picture: Image.Image) -> torch.Tensor:
    if picture.mode == "F" or picture.mode.startswith("I"):
        # Deep grays, which Pillow would clip at 255 on the way to RGB. Integers carry 16 bits, however dark they are;
        # floats are 0..1 or 0..255.
        gray = np.asarray(picture).astype(np.float32)
        if not np.isfinite(gray).all():
            raise ValueError("it holds NaN or infinite values")
        top = 65535.0 if picture.mode != "F" else 1.0 if gray.max(initial=0) <= 1.0 else 255.0
        return torch.from_numpy((gray / top).clip(0.0, 1.0))[..., None].expand(-1, -1, 3).clone()
    if picture.mode == "RGBa":  # alpha already multiplied in, which Pillow converts to nothing else
        picture = picture.convert("RGBA")
    return torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255.0)


def _transparency(picture: Image.Image, opaque_size: bool = False) -> torch.Tensor:
    # With `opaque_size`, as in LoadImageMask, an opaque picture has a mask of its own size.
    if "A" in picture.getbands():
        alpha = picture.getchannel("A")
    elif "transparency" in picture.info and (picture.mode == "P" or opaque_size):
        alpha = picture.convert("RGBA").getchannel("A")
    else:
        size = (picture.height, picture.width) if opaque_size else (_NO_MASK_SIDE, _NO_MASK_SIDE)
        return torch.zeros(size)
    return 1.0 - torch.from_numpy(np.asarray(alpha).astype(np.float32) / 255.0)


class _Guard:
    """Turns whatever Pillow raises about a file into one sentence; errors of ours pass."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, frames: ImageSequence.Iterator) -> Any:
        iterator = iter(frames)
        while True:
            try:
                frame = next(iterator)
                frame.load()
            except StopIteration:
                return
            except _BROKEN as error:
                raise self.sentence(error) from error
            yield frame

    def call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except _BROKEN as error:
            raise self.sentence(error) from error

    def sentence(self, error: BaseException) -> ValueError:
        if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            return ValueError(_too_large(self.path, str(error)))
        if isinstance(error, UnidentifiedImageError):
            return ValueError(f"The file '{self.path.name}' is no picture this can read. Use PNG, JPEG or WebP.")
        return ValueError(f"The picture '{self.path.name}' is damaged or cut short ({error}). Get a whole copy of it.")


class _PictureFile:
    """Opens a picture file, checks its size before a pixel is decoded, and closes it."""

    def __init__(self, path: Path) -> None:
        self.guard = _Guard(path)

    def __enter__(self) -> tuple[Image.Image, _Guard]:
        path = self.guard.path
        with warnings.catch_warnings():
            # Our own limit, checked below, lies under Pillow's error and says what to do.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            self.picture = self.guard.call(Image.open, path)
        if self.picture.width * self.picture.height > MAX_FILE_PIXELS:
            self.picture.close()
            raise ValueError(_too_large(path, f"{self.picture.width}x{self.picture.height}"))
        return self.picture, self.guard

    def __exit__(self, *_: object) -> None:
        self.picture.close()


def _too_large(path: Path, what: str) -> str:
    return f"The picture '{path.name}' is too large ({what}); at most {MAX_FILE_PIXELS} pixels are read. Scale it down."


def to_pil(image: torch.Tensor) -> Image.Image:
    """One image (H, W, 3 or 4) in 0..1 as an 8-bit picture; values outside are clipped, NaN becomes 0."""
    pixels = torch.nan_to_num(image.detach().float().cpu()) * 255.0
    return Image.fromarray(pixels.clamp(0, 255).to(torch.uint8).numpy())


def png_text(prompt: Any, extra: Mapping[str, Any] | None) -> PngInfo:
    """The text chunks that carry the workflow in a picture: `prompt` in API form, and `workflow` in editor form."""
    chunks = PngInfo()
    if prompt is not None:
        chunks.add_text("prompt", json.dumps(prompt))
    for key, value in (extra or {}).items():
        chunks.add_text(key, json.dumps(value))
    return chunks


def write_png(
    picture: Image.Image, place: NewPicture, batch_number: int, text: PngInfo, compress_level: int = 4
) -> Path:
    """Write a PNG under the next free counter and return its path.

    The file gets its name only when it is whole, and never replaces another one.

    Raises:
        OSError: the folder cannot be written to.
    """
    stem = place.stem.replace("%batch_num%", str(batch_number))
    numbered = NewPicture(place.folder, place.subfolder, stem)
    part = place.folder / f".{secrets.token_hex(8)}.part"
    try:
        with part.open("xb") as file:
            picture.save(file, format="PNG", pnginfo=text, compress_level=compress_level)
        while True:
            target = place.folder / f"{stem}_{numbered.next_counter():05}_.png"
            try:
                _rename_new(part, target)
            except FileExistsError:
                continue  # another process took the number between the look and the rename
            return target
    finally:
        part.unlink(missing_ok=True)


_PART_NAME = re.compile(r"\.[0-9a-f]{16}\.part")
_DAY = 24 * 60 * 60.0


def sweep_parts(folder: Path) -> None:
    """Remove what saves of a killed process left in a folder; younger than a day, it may be a save at work."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if _PART_NAME.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > _DAY:
                entry.unlink(missing_ok=True)


def _rename_new(source: Path, target: Path) -> None:
    """Rename, raising FileExistsError where `target` exists."""
    if os.name == "nt":
        source.rename(target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(str(target)) from None
        source.rename(target)
