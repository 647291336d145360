"""UniWorld Read Text (OCR), with a fake OCR that finds one line as wide as the image."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from PIL import Image
from uniworld import NODE_CLASS_MAPPINGS
from uniworld.nodes import host
from uniworld.uniworld_core.perception import ocr
from uniworld.uniworld_core.prompts.reference import Reference


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    done: list[int] = []
    host.install(host.PlainHost(progress_hook=lambda value, total, preview: done.append(value)))
    monkeypatch.setattr(ocr, "read_text", lambda one: [ocr.TextLine(f"{one.width} wide", 0.95, 0.5, 0.1)])
    yield done
    host.install(None)


def read(prompt: str = "Make it red.", min_confidence: float = 0.9, **inputs: object) -> tuple[str, str]:
    return NODE_CLASS_MAPPINGS["UniWorldReadText"]().execute(prompt, min_confidence, **inputs)


def test_what_is_read_comes_behind_the_prompt_references_first(seen: list[int]) -> None:
    references = [Reference(Image.new("RGB", (10, 10))), Reference(Image.new("RGB", (20, 10)))]
    prompt, text = read(references=references, image=torch.zeros(1, 8, 30, 3))
    assert text.splitlines() == [
        'Text in image 1: "10 wide" at the top center.',
        'Text in image 2: "20 wide" at the top center.',
        'Text in image 3: "30 wide" at the top center.',
    ]
    assert prompt == f"Make it red.\n{text}"
    assert seen == [1, 2, 3]


def test_where_nothing_is_read_the_prompt_stays_as_it_is() -> None:
    assert read() == ("Make it red.", "")
    assert read(image=torch.zeros(1, 8, 30, 3), min_confidence=0.95) == ("Make it red.", "")


def test_it_stops_when_the_user_asks_to() -> None:
    here = host.current()
    assert isinstance(here, host.PlainHost)
    here.interrupted.set()
    with pytest.raises(host.Interrupted):
        read(image=torch.zeros(1, 8, 30, 3))
