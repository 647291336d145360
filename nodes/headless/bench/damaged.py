"""Files of a download that cannot be used: what is wrong with them, and what to do."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ....uniworld_core.errors import UniWorldError, brief

_POINTER = b"version https://git-lfs."


def pointer_problem(path: Path) -> str | None:
    """Return what to do if a file is not downloaded yet: git leaves a pointer to a large file. None for other files."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) != _POINTER:
            return None
    return "is only a pointer of Git LFS. Install git-lfs, and run `git lfs pull` in the download."


def picture_problem(path: Path) -> str | None:
    """Return why a picture cannot be used; None if it can."""
    if not path.is_file():
        return "the file is missing"
    try:
        if (problem := pointer_problem(path)) is not None:
            return f"it {problem.rstrip('.')}"
        with Image.open(path) as picture:
            picture.verify()
            whole = picture.format == "PNG"  # verified with its checksums; other formats must be decoded
        if not whole:
            with Image.open(path) as picture:
                picture.draft("RGB", (1, 1))  # JPEG is decoded at an eighth of its size, which is faster
                picture.load()
    except Exception as error:  # whatever Pillow's decoders raise
        return f"the file is damaged ({brief(error)})"
    return None


def grid_problem(path: Path) -> str | None:
    """Return why a picture cannot be four pictures of the same size in two rows; None if it can."""
    with Image.open(path) as picture:
        width, height = picture.size
    if width % 2 == 0 and height % 2 == 0:
        return None
    return f"it has {width}x{height} pixels, so it is not a grid of four pictures of the same size"


def unreadable(path: Path, error: Exception) -> UniWorldError:
    """Return the error to raise for a file of a data set that cannot be read."""
    problem = pointer_problem(path) if path.is_file() else None
    reason = f"cannot be read: {brief(error).rstrip('.')}. Download it again." if problem is None else problem
    return UniWorldError(f"'{path}' {reason}")
