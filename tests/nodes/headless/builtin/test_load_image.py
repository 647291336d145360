"""LoadImage returns the same pixels as the library's own reader, and finds undecodable files before a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from uniworld.nodes.headless.builtin.images import LoadImage, LoadImageMask
from uniworld.nodes.headless.check.validate import validate_prompt
from uniworld.nodes.headless.storage import pictures
from uniworld.nodes.host import Interrupted
from uniworld.uniworld_core.images import picture_files
from uniworld.uniworld_core.images.pictures import to_bytes, to_rgb


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
def test_pixels_equal_those_of_the_library(place, name):
    KINDS[name](place.input / name)
    image, _ = LoadImage().execute(name)
    with Image.open(place.input / name) as picture:
        expected = np.asarray(to_rgb(ImageOps.exif_transpose(picture)))
    assert np.array_equal(to_bytes(image[0]).numpy(), expected)


def test_floats_in_0_to_1_are_not_divided_by_255(place):
    Image.new("F", (3, 2), 0.5).save(place.input / "p.tiff")
    assert torch.allclose(LoadImage().execute("p.tiff")[0], torch.tensor(0.5))
    assert torch.allclose(LoadImageMask().execute("p.tiff", "red")[0], torch.tensor(0.5))


def test_a_dark_16_bit_picture_stays_dark(place):
    Image.new("I;16", (3, 2), 200).save(place.input / "p.png")
    assert torch.allclose(LoadImage().execute("p.png")[0], torch.tensor(200 / 65535))


def test_nan_in_a_picture_is_a_clear_error(place):
    Image.new("F", (3, 2), float("nan")).save(place.input / "p.tiff")
    with pytest.raises(ValueError, match=r"'p\.tiff' is truncated or damaged .*NaN"):
        LoadImage().execute("p.tiff")


def problems(registry, name: Any, class_type: str = "LoadImage") -> list[str]:
    inputs = {"image": name} if class_type == "LoadImage" else {"image": name, "channel": "red"}
    prompt = {
        "1": {"class_type": class_type, "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    return validate_prompt(prompt, registry).sentences


@pytest.mark.parametrize("class_type", ["LoadImage", "LoadImageMask"])
def test_an_undecodable_file_is_found_before_a_run(registry, place, class_type):
    path = place.input / "p.webp"
    Image.fromarray(noise(64, 64, 3)).save(path)
    assert problems(registry, path.name, class_type) == []
    path.write_bytes(path.read_bytes()[:-2000])
    [sentence] = problems(registry, path.name, class_type)
    assert "'p.webp' is truncated or damaged" in sentence


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (1, 900), (4000, 3)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_of_any_size_passes(registry, place, size, suffix):
    Image.new("RGB", size).save(place.input / f"p.{suffix}")
    assert problems(registry, f"p.{suffix}") == []


def test_text_files_and_decompression_bombs_are_found_before_a_run(registry, place, monkeypatch):
    (place.input / "text.png").write_text("no picture")
    assert "is not a picture that can be read" in problems(registry, "text.png")[0]
    Image.new("RGB", (30, 30)).save(place.input / "large.png")
    monkeypatch.setattr(picture_files, "LIMITS", picture_files.Limits(pixels=100))
    assert "is too large" in problems(registry, "large.png")[0]


@pytest.mark.parametrize("value", [None, 5, {"a": 1}, True])
def test_an_invalid_picture_name_is_a_clear_error(registry, value):
    [sentence] = problems(registry, value)
    assert "Error" not in sentence


def test_a_linked_name_is_checked_when_the_node_runs(place):
    assert LoadImage.VALIDATE_INPUTS(image=None) is True
    with pytest.raises(ValueError, match=r"There is no picture 'none\.png'"):
        LoadImage().execute("none.png")


# --- damage, frames and interrupts ------------------------------------------------------------------------------------


def graph(name: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def test_a_jpeg_without_its_end_loads_with_one_warning_that_names_it(run, place):
    Image.fromarray(noise(64, 64, 3)).save(place.input / "p.jpg")
    data = (place.input / "p.jpg").read_bytes()
    (place.input / "p.jpg").write_bytes(data[:-100])
    first, second = run(graph("p.jpg")), run(graph("p.jpg"))
    assert first.status == "success"
    [warning] = first.warnings
    assert "'p.jpg' is truncated or damaged" in warning
    assert second.warnings == [warning]  # a cached result repeats its warning
    assert LoadImageMask().execute("p.jpg", "red")[0].shape == (1, 64, 64)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_frames_become_a_batch_with_small_masks_without_transparency(place, suffix):
    frames = [Image.new("RGB", (6, 4), (shade, 0, 0)) for shade in (0, 90, 255)]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(place.input / f"p.{suffix}", save_all=True, append_images=frames[1:], **lossless)
    image, mask = LoadImage().execute(f"p.{suffix}")
    assert image.shape == (3, 4, 6, 3)
    assert to_bytes(image[:, 0, 0, 0]).tolist() == [0, 90, 255]
    assert mask.shape == (3, 64, 64)
    assert not mask.any()


def test_masks_have_the_size_of_the_picture_if_any_frame_has_transparency(place):
    clear = Image.new("RGBA", (6, 4), (9, 9, 9, 0))
    Image.new("RGBA", (6, 4), (9, 9, 9, 255)).save(
        place.input / "p.png", save_all=True, append_images=[clear], disposal=1, blend=0
    )
    image, mask = LoadImage().execute("p.png")
    assert image.shape == (2, 4, 6, 3)
    assert mask.amin(dim=(1, 2)).tolist() == [0, 1]


def many_frames(count: int) -> bytes:
    frame = bytes.fromhex("2c0000000001000100000202440100")
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * count + b";"


def test_a_small_file_with_many_frames_is_rejected_at_once(place):
    (place.input / "p.gif").write_bytes(many_frames(100_000))
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"'p\.gif' has too many frames; at most 4096 are read"):
        LoadImage().execute("p.gif")
    assert time.monotonic() - start < 10


def test_an_interrupt_stops_the_decoding_of_a_picture(place, plain):
    (place.input / "p.gif").write_bytes(many_frames(3000))
    plain.interrupted.set()
    with pytest.raises(Interrupted):
        LoadImage().execute("p.gif")


def test_a_slow_picture_is_decoded_only_when_its_node_runs(registry, place, monkeypatch):
    monkeypatch.setattr(pictures, "_CHECK_SECONDS", -1.0)
    Image.fromarray(noise(64, 64, 3)).save(place.input / "p.jpg")
    assert problems(registry, "p.jpg") == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_rotated_with_their_pictures(place, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(noise(16, 24, 4))
    picture.save(place.input / "p.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(place.input / "p.png")))
    image, mask = LoadImage().execute("p.png")
    assert np.array_equal(to_bytes(image[0]).numpy(), expected[..., :3])
    assert np.array_equal(255 - to_bytes(mask[0]).numpy(), expected[..., 3])
    [alpha] = LoadImageMask().execute("p.png", "alpha")
    assert torch.equal(alpha, mask)
