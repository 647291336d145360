"""Pillow's tolerance of damaged files, for one thread."""

from __future__ import annotations

import threading

import pytest
from PIL import ImageFile
from uniworld.uniworld_core.images.tolerance import tolerant


def test_tolerance_applies_only_to_the_current_thread_and_is_restored() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    seen: list[bool] = []
    with tolerant():
        assert ImageFile.LOAD_TRUNCATED_IMAGES
        other = threading.Thread(target=lambda: seen.append(bool(ImageFile.LOAD_TRUNCATED_IMAGES)))
        other.start()
        other.join()
        # As other code does it, which may begin and end at any time.
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    assert seen == [False]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_what_others_set_the_switch_to_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with tolerant():
        assert ImageFile.LOAD_TRUNCATED_IMAGES
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
