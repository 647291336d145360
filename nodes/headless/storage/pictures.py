"""Read untrusted picture files, and write PNG files atomically."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import rename_new, temporary_file
from ....uniworld_core.images.picture_files import BadPicture, PictureFile, TooSlow, deadline
from ....uniworld_core.json_text import dumps
from .folders import NewPicture

# Side of the empty mask that ComfyUI returns for a picture without transparency.
_NO_MASK_SIDE = 64
# Time limit of the check before a run. A slower picture is decoded only when its node runs, where the user can interrupt.
_CHECK_SECONDS = 5.0


@dataclass(frozen=True)
class LoadedPicture:
    """Frames (B, H, W, 3) in 0..1 and masks (B, H, W) of a picture file, and a warning, "" if the file is intact."""

    image: torch.Tensor
    mask: torch.Tensor
    warning: str


def load_picture(path: Path, check: Callable[[], None] | None = None) -> LoadedPicture:
    """Read a picture file as ComfyUI's LoadImage does.

    Frames are rotated according to their EXIF data. Their transparency becomes masks: 1 where a frame is transparent,
    or 64x64 zeros if the picture has no alpha channel. Frames with another size than the first are skipped.

    Args:
        check: called between reads; an exception that it raises, such as an interrupt, stops the decoding.

    Raises:
        UniWorldError: the file is not a picture, is too damaged to decode, or is too large.
    """
    frames: list[np.ndarray] = []
    alphas: list[np.ndarray | None] = []
    with PictureFile(path, path.name, check=check) as file:
        for frame in file.frames():
            pixels = file.guarded(lambda frame=frame: _to_rgb(frame))  # type: ignore[misc]
            if frames and frames[0].shape != pixels.shape:
                continue
            frames.append(pixels)
            alphas.append(file.guarded(lambda frame=frame: _alpha(frame)))  # type: ignore[misc]
        return LoadedPicture(_stacked(frames), _masks(alphas, frames[0].shape[:2]), file.warning)


def load_channel(path: Path, channel: str, check: Callable[[], None] | None = None) -> tuple[torch.Tensor, str]:
    """Read one channel of a picture file as a mask (1, H, W), as ComfyUI's LoadImageMask does.

    Args:
        channel: "alpha", "red", "green" or "blue".
        check: as for `load_picture`.

    Returns:
        The mask, and a warning, "" if the file is intact.

    Raises:
        UniWorldError: as for `load_picture`.
    """
    with PictureFile(path, path.name, check=check) as file:
        picture = file.first()
        if channel == "alpha":
            alpha = file.guarded(lambda: _alpha(picture, of_colors=True))
            if alpha is None:
                return torch.zeros(1, picture.height, picture.width), file.warning
            return 1.0 - _unit(alpha)[None], file.warning
        pixels = file.guarded(lambda: _to_rgb(picture))
        return _unit(pixels[..., ("red", "green", "blue").index(channel)])[None], file.warning


def check_picture(path: Path) -> None:
    """Check that a picture file can be decoded, as far as that is cheap. The result is cached until the file changes.

    Raises:
        UniWorldError: as for `load_picture`.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise UniWorldError(f"The picture '{path.name}' cannot be read: {error.strerror}. Check the file.") from error
    problem = _problem_of(path, state.st_mtime_ns, state.st_size)
    if problem:
        raise UniWorldError(problem)


@lru_cache(maxsize=4096)
def _problem_of(path: Path, *_state: int) -> str:
    check = deadline(_CHECK_SECONDS)
    try:
        with PictureFile(path, path.name, check=check) as file, contextlib.suppress(BadPicture):
            if file.picture.format == "PNG":
                file.guarded(file.picture.verify)  # checks the CRCs without decompressing
                return ""
        with PictureFile(path, path.name, check=check) as file:
            # A JPEG decodes many times faster at an eighth of its size, and damage is found just the same.
            size = (max(1, file.picture.width // 8), max(1, file.picture.height // 8))
            file.guarded(lambda: file.picture.draft("L", size))
            file.first()
    except TooSlow:
        return ""
    except UniWorldError as error:
        return str(error)
    return ""


def _to_rgb(picture: Image.Image) -> np.ndarray:
    """Return the pixels (H, W, 3): uint8, or float32 in 0..1 for grayscale of more than 8 bits."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        # Pillow would clip these at 255 when converting to RGB. Integers have 16 bits, even if all values are small;
        # floats are in 0..1 or 0..255.
        gray = np.asarray(picture).astype(np.float32)
        if not np.isfinite(gray).all():
            raise UniWorldError("it contains NaN or infinite values")
        top = 65535.0 if picture.mode != "F" else 1.0 if gray.max(initial=0) <= 1.0 else 255.0
        return np.broadcast_to((gray / top).clip(0.0, 1.0)[..., None], (*gray.shape, 3))
    if picture.mode == "RGBa":  # premultiplied alpha, which Pillow converts only to RGBA
        picture = picture.convert("RGBA")
    return np.asarray(picture.convert("RGB"))


def _alpha(picture: Image.Image, of_colors: bool = False) -> np.ndarray | None:
    """Return the opacity of a picture, uint8 (H, W), or None if it has no transparency.

    Args:
        of_colors: also use the transparent color of an RGB or gray picture, as LoadImageMask does.
    """
    if "A" in picture.getbands() and picture.mode != "LAB":
        return np.asarray(picture.getchannel("A"))
    if "transparency" in picture.info and (picture.mode == "P" or of_colors):
        return np.asarray(picture.convert("RGBA").getchannel("A"))
    return None


def _unit(pixels: np.ndarray) -> torch.Tensor:
    """Convert pixels to float32 in 0..1."""
    return _stacked([pixels])[0]


def _stacked(frames: list[np.ndarray]) -> torch.Tensor:
    """Stack frames of the same shape into one tensor, float32 in 0..1."""
    stack = np.empty((len(frames), *frames[0].shape), np.float32)
    for number, frame in enumerate(frames):
        if frame.dtype == np.uint8:
            np.divide(frame, 255.0, out=stack[number], dtype=np.float32)
        else:
            stack[number] = frame
    return torch.from_numpy(stack)


def _masks(alphas: list[np.ndarray | None], size: tuple[int, int]) -> torch.Tensor:
    """Return the masks of frames: of the frames' size if any frame has transparency, else small empty ones."""
    if all(alpha is None for alpha in alphas):
        return torch.zeros(len(alphas), _NO_MASK_SIDE, _NO_MASK_SIDE)
    masks = torch.zeros(len(alphas), *size)
    for mask, alpha in zip(masks, alphas):
        if alpha is not None:
            mask.copy_(1.0 - _unit(alpha))
    return masks


def to_pil(image: torch.Tensor) -> Image.Image:
    """Convert an image (H, W, 1, 3 or 4 channels) in 0..1 to an 8-bit picture; values are clipped, NaN becomes 0."""
    pixels = torch.nan_to_num(image.detach().float().cpu()) * 255.0
    array = pixels.clamp(0, 255).to(torch.uint8).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def png_text(prompt: object, extra: Mapping[str, object] | None) -> PngInfo:
    """Return the text chunks that store the workflow in a picture: `prompt` in API form, `workflow` in editor form."""
    chunks = PngInfo()
    if prompt is not None:
        chunks.add_text("prompt", dumps(prompt))
    for key, value in (extra or {}).items():
        chunks.add_text(key, dumps(value))
    return chunks


def write_png(
    picture: Image.Image, place: NewPicture, batch_number: int, text: PngInfo, compress_level: int = 4
) -> Path:
    """Write a PNG under the next free counter and return its path.

    The file appears atomically and never replaces another one.

    Raises:
        OSError: the folder is not writable.
    """
    stem = place.stem.replace("%batch_num%", str(batch_number))
    numbered = NewPicture(place.folder, place.subfolder, stem)
    with temporary_file(place.folder) as file:
        picture.save(file, format="PNG", pnginfo=text, compress_level=compress_level)
        while True:
            target = place.folder / f"{stem}_{numbered.next_counter():05}_.png"
            # Fails if another process has taken the number in the meantime.
            if rename_new(file, target):
                return target
