"""Every picture a person may bring works through reference and encode, or gives one clear sentence."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.images.pictures import MAX_ASPECT, to_bytes, to_image, to_rgb


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = columns * 255 // max(1, width - 1), rows * 255 // max(1, height - 1)
    return Image.fromarray(np.stack([red, green, 255 - red], axis=-1).astype(np.uint8))


def pixel(picture: Any) -> tuple[int, int, int]:
    return to_rgb(picture).getpixel((0, 0))


def assert_usable(model: UniWorld, picture: Any) -> None:
    refs = model.reference([picture])
    condition = model.encode("Describe it.", refs=refs, use_t5=False)
    assert refs[0].picture.mode == "RGB"
    assert torch.isfinite(refs[0].features).all()
    assert torch.isfinite(condition.tokens).all()


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 3), (3, 1), (1, 200), (400, 20), (20, 400), (1000, 700)])
def test_pictures_of_any_shape_reach_the_condition(model: UniWorld, size: tuple[int, int]) -> None:
    assert_usable(model, gradient(*size))


def test_square_picture_is_seen_at_448_pixels_or_the_checkpoints_own_limit(model: UniWorld) -> None:
    grids = model.vlm.inputs(["x"], [[gradient(50, 50)]]).grids
    side = int((model.vlm.processor.size["shortest_edge"]) ** 0.5) // 28 * 2
    assert grids.tolist() == [[1, side, side]]


@pytest.mark.parametrize("size", [(201, 1), (1, 1000), (2010, 10)])
def test_picture_longer_than_200_to_1_is_one_sentence(model: UniWorld, size: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=f"{size[0]}x{size[1]} pixels. The vision encoder takes aspect ratios up to {MAX_ASPECT}:1"
    ):
        model.reference([gradient(*size)])


def test_references_of_any_mix_of_sizes_keep_their_order(model: UniWorld) -> None:
    refs = model.reference([gradient(10, 90), gradient(64, 64), gradient(1, 1)])
    assert [ref.picture.size for ref in refs] == [(10, 90), (64, 64), (1, 1)]
    for ref in refs:
        torch.testing.assert_close(ref.features, model.siglip.features([ref.picture])[0], rtol=0, atol=2e-5)


# --- modes ------------------------------------------------------------------------------------------------------------


def of_mode(mode: str) -> Image.Image:
    picture = gradient()
    if mode.startswith("I") or mode == "F":
        values = np.asarray(picture.convert("L"))
        kinds = {"I;16": ("<u2", 257), "I;16B": (">u2", 257), "I": (np.int32, 257), "F": (np.float32, 1)}
        kind, factor = kinds[mode]
        return Image.frombytes(mode, picture.size, (values.astype(np.int64) * factor).astype(kind).tobytes())
    if mode in ("RGBa", "La"):
        return picture.convert({"RGBa": "RGBA", "La": "LA"}[mode]).convert(mode)
    if mode == "PA":
        return picture.convert("P").convert("PA")
    if mode == "LAB":
        return Image.new("LAB", picture.size, (128, 128, 128))
    return picture.convert(mode)


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]


@pytest.mark.parametrize("mode", [*MODES, "I;16", "I;16B", "I", "F"])
def test_every_mode_of_picture_reaches_the_condition(model: UniWorld, mode: str) -> None:
    picture = of_mode(mode)
    assert picture.mode == mode
    assert_usable(model, picture)


def test_gray_is_gray_on_all_channels() -> None:
    assert pixel(Image.new("L", (2, 2), 77)) == (77, 77, 77)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_grays_are_scaled_and_not_clipped(mode: str) -> None:
    found = np.asarray(to_rgb(of_mode(mode)).convert("L"), dtype=int)
    assert np.abs(found - np.asarray(gradient().convert("L"), dtype=int)).max() <= 1
    assert 0 < found.mean() < 255


def test_float_grays_of_either_range_are_scaled() -> None:
    assert pixel(Image.new("F", (2, 2), 0.5)) in ((127,) * 3, (128,) * 3)
    assert pixel(Image.new("F", (2, 2), 128.0)) == (128,) * 3


def test_float_gray_with_nan_or_infinity_is_one_sentence() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            to_rgb(Image.fromarray(np.full((2, 2), value, dtype=np.float32)))


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("RGBA", (2, 2), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (200, 10, 0, 255)), (200, 10, 0)),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 51)).convert("RGBa"), (204, 204, 204)),
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("LA", (2, 2), (10, 255)), (10, 10, 10)),
    ],
    ids=["clear", "opaque", "between", "multiplied in", "clear gray", "opaque gray"],
)
def test_transparent_pictures_lie_on_white(picture: Image.Image, expected: tuple[int, int, int]) -> None:
    assert pixel(picture) == expected


def saved(picture: Image.Image, kind: str, **options: Any) -> Image.Image:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return Image.open(io.BytesIO(data.getvalue()))


def test_a_palette_with_a_transparent_color_is_composited_on_white(model: UniWorld) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    palette.putpixel((1, 1), 0)
    opened = saved(palette, "PNG", transparency=1)
    assert opened.mode == "P"
    rgb = to_rgb(opened)
    assert rgb.getpixel((0, 0)) == (255, 255, 255)
    assert rgb.getpixel((1, 1)) == (0, 0, 0)
    assert_usable(model, opened)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *[("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
        *[("JPEG", mode) for mode in ("L", "RGB", "CMYK")],
        *[("TIFF", mode) for mode in ("CMYK", "I;16", "F", "LAB", "RGBA")],
        ("GIF", "P"),
        ("WEBP", "RGBA"),
        ("BMP", "RGB"),
    ],
)
def test_files_of_every_kind_look_like_the_picture_in_them(kind: str, mode: str) -> None:
    found = np.asarray(to_rgb(saved(of_mode(mode), kind)).convert("L"), dtype=float)
    expected = np.asarray(to_rgb(of_mode(mode)).convert("L"), dtype=float)
    assert np.abs(found - expected).mean() < 12  # JPEG's and the palette's own losses


# --- files truncated or damaged ---------------------------------------------------------------------------------------

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")


@pytest.mark.parametrize("kind", FORMATS)
def test_file_cut_short_is_one_sentence_that_names_it(model: UniWorld, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"holiday.{kind.lower()}"
    gradient(300, 200).save(file, kind)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    try:
        picture = Image.open(file)
    except OSError:
        return  # cut so short that it cannot even be opened: Pillow names the file itself
    with pytest.raises(ValueError, match=r"holiday\.\w+ cannot be decoded .* truncated or damaged"):
        model.reference([picture])


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_give_a_picture_or_one_sentence(tmp_path: Path, kind: str) -> None:
    file, chance = tmp_path / f"holiday.{kind.lower()}", random.Random(0)
    gradient(64, 48).save(file, kind)
    whole, sentences = file.read_bytes(), []
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        file.write_bytes(data)
        try:
            picture = Image.open(file)
        except Exception:
            continue
        try:
            rgb = to_rgb(picture)
        except ValueError as error:
            sentences.append(str(error))
        else:
            assert rgb.mode == "RGB"
    assert all(sentence.endswith(("damaged.", "pad it.")) for sentence in sentences)


# --- tensors ----------------------------------------------------------------------------------------------------------


def tensor_of(picture: Image.Image) -> torch.Tensor:
    return to_image([picture])[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda rgb: rgb,
        lambda rgb: rgb[None],
        lambda rgb: rgb[..., :1],
        lambda rgb: torch.cat([rgb, torch.ones_like(rgb[..., :1])], dim=-1),
        lambda rgb: (rgb * 255).round().to(torch.uint8),
        lambda rgb: rgb.half(),
        lambda rgb: rgb.bfloat16(),
        lambda rgb: rgb.double(),
        lambda rgb: rgb.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        lambda rgb: rgb.clone().requires_grad_(),
        lambda rgb: rgb * 3 - 1,
    ],
    ids=["hwc", "1hwc", "gray", "rgba", "bytes", "half", "bfloat16", "double", "strided", "with grad", "out of range"],
)
def test_tensors_of_every_form_reach_the_condition(model: UniWorld, make: Any) -> None:
    assert_usable(model, make(tensor_of(gradient())))


def test_tensor_and_picture_are_one_and_the_same() -> None:
    picture = gradient()
    for tensor in (tensor_of(picture), tensor_of(picture)[None], to_bytes(tensor_of(picture))):
        assert to_rgb(tensor).tobytes() == picture.tobytes()


def test_four_channel_tensors_are_composited_on_white() -> None:
    assert pixel(torch.zeros(2, 2, 4)) == (255, 255, 255)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tensor_that_is_not_finite_is_one_sentence(model: UniWorld, bad: float) -> None:
    tensor = tensor_of(gradient())
    tensor[3, 2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite values"):
        model.reference([tensor])


@pytest.mark.parametrize(
    "shape", [(8, 8), (8, 8, 2), (8, 8, 5), (0, 8, 3), (8, 0, 3), (2, 8, 8, 3), (3,), (1, 1, 8, 8, 3)]
)
def test_tensor_of_another_shape_is_one_sentence(model: UniWorld, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(height, width, channels\)") as error:
        model.reference([torch.zeros(shape)])
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int8])
def test_tensor_of_another_type_is_one_sentence(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"expected float in 0..1 or uint8"):
        to_rgb(torch.zeros(4, 4, 3, dtype=dtype))


@pytest.mark.parametrize("thing", ["cat.png", b"bytes", None, 3, np.zeros((4, 4, 3))], ids=lambda it: type(it).__name__)
def test_values_of_other_types_are_refused_in_one_sentence(model: UniWorld, thing: Any) -> None:
    with pytest.raises(ValueError, match=f"A picture is a {type(thing).__name__}"):
        model.reference([thing])


def test_an_empty_list_gives_no_references(model: UniWorld) -> None:
    assert model.reference([]) == []


# --- EXIF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_rotated_as_pillow_rotates_them(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    gradient().save(buffer, "PNG", exif=exif)
    picture = Image.open(buffer)
    assert np.array_equal(np.asarray(to_rgb(picture)), np.asarray(ImageOps.exif_transpose(picture)))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_with_damaged_exif_is_not_rotated(kind: str, exif: bytes) -> None:
    buffer = io.BytesIO()
    gradient().save(buffer, kind, exif=exif, lossless=True)
    assert np.array_equal(np.asarray(to_rgb(Image.open(buffer))), np.asarray(gradient()))
