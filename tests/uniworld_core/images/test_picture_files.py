"""Picture files of any kind: within limits, cancellable, and decoded where ComfyUI decodes them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from uniworld.uniworld_core.images.picture_files import BadPicture, Limits, PictureFile, TooMuch, TooSlow, deadline

from .drawn import encoded, gradient


def opened(data: bytes, **options: Any) -> PictureFile:
    return PictureFile(io.BytesIO(data), "p", **options)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_picture_without_its_last_bytes_is_decoded_and_says_so() -> None:
    whole = encoded(gradient(256, 256), "JPEG", quality=95)
    for missing in (2, 200):
        with opened(whole[:-missing]) as file:
            picture = file.first()
            assert "'p' is truncated or damaged" in file.warning
            assert "truncated" in file.damage
        assert np.abs(pixels(picture)[:200] - pixels(gradient(256, 256))[:200]).max() < 30


def cut(kind: str, **options: Any) -> bytes:
    data = encoded(gradient(), kind, **options)
    return data[: len(data) * 2 // 3]


def with_chunk(kind: bytes, data: bytes) -> bytes:
    whole = encoded(gradient(), "PNG")
    return (
        whole[:33]
        + struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
        + whole[33:]
    )


def mpo(missing: int) -> bytes:
    data = encoded(gradient(), "MPO", save_all=True, append_images=[gradient(24, 16)])
    return data[:-missing]


# Name, file, and whether a pixel is missing.
DECODED = {
    "half a PNG": (cut("PNG"), True),
    "half a GIF": (cut("GIF"), True),
    "half a BMP": (cut("BMP"), True),
    "half a TIFF": (cut("TIFF")[:-1], True),
    "half a progressive JPEG": (cut("JPEG", progressive=True), True),
    "compressed text": (with_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 3_000_000)), False),
    "color profile": (with_chunk(b"iCCP", b"profile\0\0" + zlib.compress(os.urandom(1_200_000))), False),
}  # fmt: skip


@pytest.mark.parametrize("name", DECODED)
def test_what_comfyui_decodes_is_decoded_with_one_warning(name: str) -> None:
    data, damaged = DECODED[name]
    with opened(data) as file:
        assert file.first().size == (48, 32)
        assert file.warning.startswith("The picture 'p' ")
        assert bool(file.damage) == damaged
        if not damaged:
            assert np.array_equal(pixels(file.picture), pixels(gradient()))


@pytest.mark.parametrize("missing", [2, 300, 500])
def test_a_phones_mpo_whose_second_picture_is_cut_is_its_first(missing: int) -> None:
    with opened(mpo(missing)) as file:
        assert [frame.size for frame in file.frames()] == [(48, 32)]
        assert not file.damage


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "'p' is an empty file"),
        (b"<!DOCTYPE html><html>404</html>", "'p' is not a picture that can be read"),
        (encoded(gradient(), "PNG")[:20], "'p' is truncated or damaged"),
        (cut("WEBP"), "'p' is truncated or damaged"),
        (with_chunk(b"tEXt", b"workflow\0" + b"x" * (65 << 20)), "'p' has more metadata than can be read"),
    ],
    ids=["nothing", "a page", "a header", "half a WebP", "65 MiB of text"],
)  # fmt: skip
def test_what_cannot_be_decoded_is_one_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence), opened(data) as file:
        file.first()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_damaged_avif_is_one_sentence() -> None:
    data = bytearray(encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "AVIF"))
    start = data.index(b"mdat") + 8
    data[start:] = bytes(len(data) - start)
    with pytest.raises(BadPicture, match="'p' is truncated or damaged"), opened(bytes(data)) as file:
        file.first()


class Odd(Exception):
    pass


@pytest.mark.parametrize("where", ["load", "seek"])
@pytest.mark.parametrize(
    "error", [RuntimeError, AssertionError, ZeroDivisionError, AttributeError, RecursionError, Odd]
)
def test_every_decoder_error_becomes_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], where: str
) -> None:
    with opened(encoded(gradient(), "PNG")) as file:
        monkeypatch.setattr(file.picture, where, raising(error))
        with pytest.raises(BadPicture, match=rf"'p' is truncated or damaged \({error.__name__}\)"):
            list(file.frames())


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_memory_errors_and_interrupts_are_not_reported_as_damage(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    with opened(encoded(gradient(), "PNG")) as file:
        monkeypatch.setattr(file.picture, "load", raising(error))
        with pytest.raises(error):
            file.first()


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TimeoutError, Odd])
def test_errors_of_the_check_are_raised_unchanged(error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        opened(encoded(gradient(), "PNG"), check=raising(error))
    assert type(caught.value) is error


def test_an_error_is_not_wrapped_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(encoded(gradient(), "PNG")) as file:
        monkeypatch.setattr(file.picture, "load", raising(RuntimeError))
        with pytest.raises(BadPicture) as error:
            file.guarded(lambda: file.first().convert("RGBA"))
    assert str(error.value).count("'p'") == 1


def raising(error: type[BaseException]) -> Callable[..., Any]:
    def act(*_: object) -> None:
        raise error

    return act


# --- limits and cancelling --------------------------------------------------------------------------------------------


def animated(kind: str, count: int, size: tuple[int, int] = (1, 1)) -> bytes:
    frames = [Image.new("RGB", size, (number * 60 % 256, number % 256, 9)) for number in range(count)]
    return encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_frames_are_limited_in_number_and_together(kind: str) -> None:
    data = animated(kind, 12, (4, 4))
    with opened(data, limits=Limits(frames=12)) as file:
        assert len(list(file.frames())) == 12
    with pytest.raises(TooMuch, match=r"too many frames; at most 11 are read\. Split it"):
        list(opened(data, limits=Limits(frames=11)).frames())
    with pytest.raises(TooMuch, match=r"first 6 frames have 96 pixels together\); at most 95 pixels are read\. Scale"):
        list(opened(data, limits=Limits(pixels=95)).frames())


def test_a_large_picture_is_refused_before_a_pixel_is_decoded() -> None:
    with pytest.raises(TooMuch, match=r"too large \(48x32\); at most 1000 pixels are read"):
        opened(encoded(gradient(), "PNG"), limits=Limits(pixels=1000))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "JPEG"])
def test_decoding_can_be_cancelled_at_any_read(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "noise"
    Image.fromarray(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(path, kind)
    reads: list[int] = []

    class Cancelled(Exception):
        pass

    def check() -> None:
        reads.append(1)
        if len(reads) == stop:
            raise Cancelled

    stop = 0
    with PictureFile(path, "p", check=check) as file:
        file.first()
    stop, total = len(reads), len(reads)
    assert total > 10
    reads.clear()
    with pytest.raises(Cancelled), PictureFile(path, "p", check=check) as file:
        file.first()


def test_frames_end_at_the_deadline() -> None:
    with pytest.raises(TooSlow), opened(animated("GIF", 3), check=deadline(-1.0)) as file:
        list(file.frames())
