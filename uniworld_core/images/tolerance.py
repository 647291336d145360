"""Pillow's tolerance of damaged files, for one thread. This module does not import torch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from PIL import ImageFile

_thread = threading.local()
_flag_lock = threading.Lock()
_flag_users = 0


class _ThreadsFlag:
    """Replaces `ImageFile.LOAD_TRUNCATED_IMAGES`: true in threads inside `tolerant`, and the previous value in others."""

    def __init__(self, elsewhere: Any) -> None:
        self.elsewhere = elsewhere

    def __bool__(self) -> bool:
        return getattr(_thread, "tolerant", False) or bool(self.elsewhere)


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Let Pillow decode damaged files in this thread.

    Pillow's switch is global to the process, and other code may read or set it at the same time. Other threads keep seeing
    the previous value, and the switch is restored when the last thread leaves the block.
    """
    global _flag_users
    with _flag_lock:
        _flag_users += 1
        if not isinstance(ImageFile.LOAD_TRUNCATED_IMAGES, _ThreadsFlag):
            ImageFile.LOAD_TRUNCATED_IMAGES = _ThreadsFlag(ImageFile.LOAD_TRUNCATED_IMAGES)  # type: ignore[assignment]
    _thread.tolerant = True
    try:
        yield
    finally:
        _thread.tolerant = False
        with _flag_lock:
            _flag_users -= 1
            flag = ImageFile.LOAD_TRUNCATED_IMAGES
            if not _flag_users and isinstance(flag, _ThreadsFlag):
                ImageFile.LOAD_TRUNCATED_IMAGES = flag.elsewhere
