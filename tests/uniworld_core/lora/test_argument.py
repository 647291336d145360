"""A LoRA on a command line: FILE or FILE:STRENGTH."""

from __future__ import annotations

from pathlib import Path

import pytest
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.lora.argument import LoraArgument, read_lora_argument


@pytest.mark.parametrize(
    ("text", "name", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1e-1", "a.safetensors", -0.1),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1.0),
        ("C:\\a.safetensors:2", "C:\\a.safetensors", 2.0),
        ("a.safetensors:", "a.safetensors:", 1.0),
        (":2", ":2", 1.0),
    ],
)
def test_a_number_after_the_last_colon_is_the_strength(text: str, name: str, strength: float) -> None:
    assert read_lora_argument(text) == LoraArgument(name, strength)


def test_an_existing_file_may_end_like_a_strength(tmp_path: Path) -> None:
    file = tmp_path / "epoch:10"
    assert read_lora_argument(f"{file}") == LoraArgument(str(tmp_path / "epoch"), 10.0)
    file.touch()
    assert read_lora_argument(f"{file}") == LoraArgument(str(file), 1.0)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
def test_a_strength_must_be_finite(number: str) -> None:
    with pytest.raises(UniWorldError, match="it must be a finite number"):
        read_lora_argument(f"a.safetensors:{number}")
