"""LoadImage gives the pixels that the model's own reading of a picture gives, and finds what does not decode early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from uniworld.nodes.headless import pictures
from uniworld.nodes.headless.builtin_images import LoadImage, LoadImageMask
from uniworld.nodes.headless.validate import validate_prompt
from uniworld.uniworld_core.pictures import to_bytes, to_rgb


def noise(*shape: int, top: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(16, 24, 3)).save(path, exif=exif)


KINDS: dict[str, Callable[[Path], Any]] = {
    "exif.jpg": rotated,
    "cmyk.jpg": lambda path: Image.fromarray(noise(8, 8, 4), "CMYK").save(path),
    "gray.png": lambda path: Image.fromarray(noise(8, 8)).save(path),
    "bits.png": lambda path: Image.fromarray(noise(8, 8)).convert("1").save(path),
    "palette.png": lambda path: Image.fromarray(noise(8, 8, 3)).quantize(16).save(path),
    "deep.png": lambda path: Image.fromarray(noise(8, 8, top=65536, dtype=np.uint16)).save(path),
    "dark_deep.png": lambda path: Image.fromarray(noise(8, 8, top=200, dtype=np.uint16)).save(path),
    "deep.tiff": lambda path: Image.fromarray(noise(8, 8, top=65536, dtype=np.int32)).save(path),
    "unit.tiff": lambda path: Image.fromarray(noise(8, 8).astype(np.float32) / 256).save(path),
    "float.tiff": lambda path: Image.fromarray(noise(8, 8).astype(np.float32)).save(path),
}


@pytest.mark.parametrize("name", KINDS)
def test_pixels_are_those_of_the_models_own_reading(place, name):
    KINDS[name](place.input / name)
    image, _ = LoadImage().load_image(name)
    with Image.open(place.input / name) as picture:
        expected = np.asarray(to_rgb(ImageOps.exif_transpose(picture)))
    assert np.array_equal(to_bytes(image[0]).numpy(), expected)


def test_floats_of_0_to_1_are_not_near_black(place):
    Image.new("F", (3, 2), 0.5).save(place.input / "p.tiff")
    assert torch.allclose(LoadImage().load_image("p.tiff")[0], torch.tensor(0.5))
    assert torch.allclose(LoadImageMask().load_image("p.tiff", "red")[0], torch.tensor(0.5))


def test_a_dark_16_bit_picture_stays_dark(place):
    Image.new("I;16", (3, 2), 200).save(place.input / "p.png")
    assert torch.allclose(LoadImage().load_image("p.png")[0], torch.tensor(200 / 65535))


def test_nan_in_a_picture_is_a_sentence(place):
    Image.new("F", (3, 2), float("nan")).save(place.input / "p.tiff")
    with pytest.raises(ValueError, match=r"'p\.tiff' is damaged .*NaN"):
        LoadImage().load_image("p.tiff")


def problems(registry, name: Any, class_type: str = "LoadImage") -> list[str]:
    inputs = {"image": name} if class_type == "LoadImage" else {"image": name, "channel": "red"}
    prompt = {
        "1": {"class_type": class_type, "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    return validate_prompt(prompt, registry).sentences


@pytest.mark.parametrize("class_type", ["LoadImage", "LoadImageMask"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
def test_a_picture_cut_short_is_found_without_running(registry, place, suffix, class_type):
    path = place.input / f"p.{suffix}"
    Image.fromarray(noise(64, 64, 3)).save(path)
    assert problems(registry, path.name, class_type) == []
    path.write_bytes(path.read_bytes()[:-2000] if suffix != "gif" else path.read_bytes()[:1500])
    [sentence] = problems(registry, path.name, class_type)
    assert f"'{path.name}' is damaged or cut short" in sentence


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (1, 900), (4000, 3)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_of_any_size_passes(registry, place, size, suffix):
    Image.new("RGB", size).save(place.input / f"p.{suffix}")
    assert problems(registry, f"p.{suffix}") == []


def test_text_and_bombs_are_found_without_running(registry, place, monkeypatch):
    (place.input / "text.png").write_text("no picture")
    assert "is no picture this can read" in problems(registry, "text.png")[0]
    Image.new("RGB", (30, 30)).save(place.input / "large.png")
    monkeypatch.setattr(pictures, "MAX_FILE_PIXELS", 100)
    assert "is too large" in problems(registry, "large.png")[0]


@pytest.mark.parametrize("value", [None, 5, {"a": 1}, True])
def test_what_is_no_name_is_a_sentence(registry, value):
    [sentence] = problems(registry, value)
    assert "Error" not in sentence


def test_a_linked_name_is_looked_at_when_it_runs(place):
    assert LoadImage.VALIDATE_INPUTS(image=None) is True
    with pytest.raises(ValueError, match=r"There is no picture 'none\.png'"):
        LoadImage().load_image("none.png")
