"""The built-in nodes behave like ComfyUI's nodes of the same names, and bad pictures are a clear error."""

from __future__ import annotations

import json
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from uniworld.nodes.headless.builtin import images as builtin_images
from uniworld.nodes.headless.builtin.images import (
    ImageBatch,
    ImageScale,
    LoadImage,
    LoadImageMask,
    RebatchImages,
    SaveImage,
)
from uniworld.nodes.headless.registry.registry import load_registry
from uniworld.nodes.headless.storage import pictures
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.images import picture_files


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def load(place, picture: Image.Image, name: str = "p.png", **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    picture.save(place.input / name, **how)
    return LoadImage().execute(name)


@pytest.mark.parametrize(
    ("name", "widget", "kind"), [("PrimitiveBoolean", "value", "BOOLEAN"), ("PreviewAny", "source", "*")]
)
def test_inputs_without_options_have_an_empty_dict_as_in_comfyui(name: str, widget: str, kind: str) -> None:
    assert load_registry().info(name)["input"]["required"][widget] == [kind, {}]


def test_a_picture_is_floats_in_0_to_1_with_an_empty_mask(place):
    image, mask = load(place, Image.new("RGB", (5, 3), (255, 0, 51)))
    assert image.shape == (1, 3, 5, 3)
    assert image.dtype == torch.float32
    assert torch.equal(image[0, 0, 0], torch.tensor([255, 0, 51]) / 255)
    assert mask.shape == (1, 64, 64)
    assert not mask.any()


def test_the_mask_marks_transparency(place):
    picture = Image.new("RGBA", (2, 1), (9, 9, 9, 255))
    picture.putpixel((0, 0), (9, 9, 9, 0))
    _, mask = load(place, picture)
    assert mask.tolist() == [[[1.0, 0.0]]]
    _, mask = load(place, picture.convert("P"), transparency=0)
    assert mask.shape == (1, 1, 2)


def test_exif_orientation_is_applied(place):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image, _ = load(place, Image.new("RGB", (8, 4)), "p.jpg", exif=exif)
    assert image.shape == (1, 8, 4, 3)


def test_frames_become_a_batch(place):
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 128, 255)]
    image, mask = load(place, frames[0], "p.png", save_all=True, append_images=frames[1:])
    assert image.shape == (3, 4, 4, 3)
    assert mask.shape[0] == 3


@pytest.mark.parametrize(("mode", "value", "expected"), [
    ("L", 51, 0.2), ("1", 1, 1.0), ("I;16", 13107, 0.2), ("CMYK", (0, 0, 0, 255), 0.0), ("LA", (51, 255), 0.2), ("I", 65535, 1.0),
])  # fmt: skip
def test_every_mode_becomes_rgb(place, mode, value, expected):
    name = "p.tiff" if mode in ("CMYK", "I") else "p.png"
    image, _ = load(place, Image.new(mode, (3, 2), value), name)
    assert image.shape == (1, 2, 3, 3)
    assert torch.allclose(image, torch.tensor(expected), atol=1e-3)


def test_one_pixel_and_a_long_strip_are_valid_pictures(place):
    assert load(place, Image.new("RGB", (1, 1)))[0].shape == (1, 1, 1, 3)
    assert load(place, Image.new("RGB", (400, 20)))[0].shape == (1, 20, 400, 3)


def test_a_channel_is_a_mask(place):
    Image.new("RGB", (3, 2), (51, 0, 255)).save(place.input / "p.png")
    assert LoadImageMask().execute("p.png", "red")[0].allclose(torch.full((1, 2, 3), 0.2))
    assert not LoadImageMask().execute("p.png", "alpha")[0].any()
    Image.new("RGBA", (3, 2), (0, 0, 0, 0)).save(place.input / "p.png")
    assert LoadImageMask().execute("p.png", "alpha")[0].equal(torch.ones(1, 2, 3))


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def bad_pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    whole: dict[str, bytes] = {}
    for kind in ("PNG", "WEBP"):
        import io

        file = io.BytesIO()
        noise.save(file, kind)
        whole[kind] = file.getvalue()
    return {
        "empty": b"",
        "text": b"this is not a picture",
        "bomb": png_header(60_000, 60_000),
        "large": png_header(20_000, 20_000),
        "zero": png_header(0, 0),
        "cut WEBP": whole["WEBP"][: len(whole["WEBP"]) // 2],
        "header only": whole["PNG"][:40],
    }


@pytest.mark.parametrize("name", bad_pictures())
def test_a_bad_picture_is_a_clear_error(place, name):
    (place.input / "bad.png").write_bytes(bad_pictures()[name])
    with pytest.raises(
        ValueError,
        match=r"^The (picture|file) 'bad\.png' is (too large|truncated or damaged|an empty file|not a picture)",
    ) as caught:
        LoadImage().execute("bad.png")
    assert len(str(caught.value)) < 300


def test_the_pixel_limit_applies_to_all_frames_together(place, monkeypatch):
    monkeypatch.setattr(picture_files, "LIMITS", picture_files.Limits(pixels=40))
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 128, 255)]
    with pytest.raises(ValueError, match="the first 3 frames have 48 pixels together"):
        load(place, frames[0], save_all=True, append_images=frames[1:])


def test_a_changed_file_is_loaded_again(run, place):
    prompt = {"1": node("LoadImage", image="p.png"), "2": node("PreviewAny", source=["1", 0])}
    seen = []
    for shade in (0, 0, 255):
        Image.new("L", (1, 1), shade).save(place.input / "p.png")
        events: list[Any] = []
        result = run(prompt, events)
        seen.append((result.ui["2"]["text"][0], "executing" in dict(events)))
    assert [ran for _, ran in seen] == [True, False, True]
    assert seen[0][0] == seen[1][0] != seen[2][0]


def test_a_saved_picture_contains_its_workflow(run, place):
    prompt = {
        "1": node("NoiseImage"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="sub/%width%_%NoiseImage.height%"),
    }
    prompt["1"]["inputs"] = {"width": 8, "height": 6}
    graph = {"nodes": [], "links": [], "version": 0.4, "extra": {"title": "é ü 猫"}}
    result = run(prompt, extra_pnginfo={"workflow": graph})
    assert result.ui["2"]["images"] == [{"filename": "8_6_00001_.png", "subfolder": "sub", "type": "output"}]
    with Image.open(place.output / "sub" / "8_6_00001_.png") as picture:
        assert json.loads(picture.text["prompt"]) == prompt
        assert json.loads(picture.text["workflow"]) == graph
        assert picture.size == (8, 6)


def test_a_saved_picture_loads_with_the_same_values(place):
    image = torch.randint(0, 256, (2, 5, 4, 3)).float() / 255
    saved = SaveImage().execute(image, "p")["ui"]["images"]
    assert [entry["filename"] for entry in saved] == ["p_00001_.png", "p_00002_.png"]
    for entry, expected in zip(saved, image):
        again, _ = LoadImage().execute(f"{entry['filename']} [output]")
        assert torch.allclose(again[0], expected, atol=1e-6)


def test_no_saved_picture_is_ever_replaced(place, monkeypatch):
    # Simulates another process that takes the same number at the same time.
    numbers = iter([1, 1, 2])
    monkeypatch.setattr(pictures.NewPicture, "next_counter", lambda self: next(numbers))
    image = torch.zeros(2, 4, 4, 3)
    SaveImage().execute(image, "p")
    assert sorted(path.name for path in place.output.iterdir()) == ["p_00001_.png", "p_00002_.png"]


def test_an_interrupted_save_leaves_no_files(place, monkeypatch):
    def half(self, file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(KeyboardInterrupt):
        SaveImage().execute(torch.zeros(1, 4, 4, 3), "p")
    assert list(place.output.iterdir()) == []


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (4, 4, 3), (1, 4, 4, 5), (1, 0, 4, 3)])
def test_a_tensor_of_another_shape_is_not_saved(place, shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        SaveImage().execute(torch.zeros(shape), "p")


@pytest.mark.parametrize("prefix", ["../p", "/p", "a/../../p"])
def test_a_linked_prefix_that_leads_out_fails_the_run(run, place, prefix):
    prompt = {
        "1": node("NoiseImage", width=4, height=4),
        "2": node("PrimitiveString", value=prefix),
        "3": node("SaveImage", images=["1", 0], filename_prefix=["2", 0]),
    }
    assert "file name prefix" in run(prompt).sentence
    assert not list(place.output.parent.glob("**/*.png"))


def test_a_preview_goes_to_the_temp_folder(run, place):
    result = run({"1": node("NoiseImage", width=4, height=4), "2": node("PreviewImage", images=["1", 0])})
    [entry] = result.ui["2"]["images"]
    assert entry["type"] == "temp"
    assert (place.temp / entry["filename"]).is_file()


@pytest.mark.parametrize("method", builtin_images.RESIZE_METHODS)
def test_every_method_resizes(method):
    image = torch.full((2, 10, 20, 3), 0.4)
    (resized,) = ImageScale().execute(image, method, 7, 5, "disabled")
    assert resized.shape == (2, 5, 7, 3)
    assert torch.allclose(resized, torch.tensor(0.4), atol=0.01)


def test_a_side_of_zero_is_computed_from_the_other():
    image = torch.zeros(1, 10, 20, 3)
    sizes = [(8, 0, (4, 8)), (0, 5, (5, 10)), (0, 0, (10, 20))]
    for width, height, expected in sizes:
        assert ImageScale().execute(image, "bilinear", width, height, "disabled")[0].shape[1:3] == expected


def test_center_crops_the_sides():
    image = torch.zeros(1, 10, 20, 3)
    image[:, :, :5] = image[:, :, 15:] = 1.0
    assert not ImageScale().execute(image, "area", 10, 10, "center")[0].any()


@pytest.mark.parametrize("method", builtin_images.RESIZE_METHODS)
@pytest.mark.parametrize(("rows", "columns"), [(2000, 1), (1, 2000), (2, 1999)])
def test_a_thin_strip_is_cropped_to_its_middle(method, rows, columns):
    image = torch.rand(1, rows, columns, 3)
    (scaled,) = ImageScale().execute(image, method, 8, 8, "center")
    assert scaled.shape == (1, 8, 8, 3)
    middle = image[0, (rows - 1) // 2 : rows // 2 + 1, (columns - 1) // 2 : columns // 2 + 1]
    assert middle.min() - 0.2 <= scaled.mean() <= middle.max() + 0.2


@pytest.mark.parametrize("method", ["lanczos", "bilinear"])
def test_a_tensor_that_is_not_a_batch_is_not_resized(method):
    for shape in ((0, 4, 4, 3), (4, 4, 3)):
        with pytest.raises(UniWorldError, match=r"have shape \[.*\]; expected \(batch, height, width, channels\)"):
            ImageScale().execute(torch.zeros(shape), method, 2, 2, "center")
    assert ImageScale().execute(torch.ones(2, 4, 4, 1), method, 3, 2, "disabled")[0].shape == (2, 2, 3, 1)


def test_pictures_with_and_without_transparency_cannot_be_joined():
    with pytest.raises(UniWorldError, match="have 3 and 4 channels"):
        ImageBatch().execute(torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 4))
    with pytest.raises(UniWorldError, match=r"have shape \[0, 4, 4, 3\]"):
        ImageBatch().execute(torch.zeros(0, 4, 4, 3), torch.zeros(1, 4, 4, 3))


def test_a_batch_has_the_size_of_its_first_picture():
    (batch,) = ImageBatch().execute(torch.zeros(1, 4, 6, 3), torch.ones(2, 9, 9, 3))
    assert batch.shape == (3, 4, 6, 3)


def test_images_are_rebatched_across_batches():
    batches = [torch.full((count, 2, 2, 3), value) for count, value in ((3, 0.0), (2, 1.0))]
    (found,) = RebatchImages().execute(batches, [2])
    assert [batch[:, 0, 0, 0].tolist() for batch in found] == [[0, 0], [0, 1], [1]]
    (found,) = RebatchImages().execute([*batches, torch.zeros(1, 4, 4, 3)], [5])
    assert [len(batch) for batch in found] == [5, 1]
    with pytest.raises(UniWorldError, match=r"shapes \[2, 2, 3\] and \[4, 4, 3\]"):
        RebatchImages().execute([*batches, torch.zeros(1, 4, 4, 3)], [6])


def test_nodes_run_once_for_each_rebatched_batch(run, place):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    frames[0].save(place.input / "three.gif", save_all=True, append_images=frames[1:])
    result = run({
        "1": node("LoadImage", image="three.gif"),
        "2": node("RebatchImages", images=["1", 0], batch_size=2),
        "3": node("GetImageSize", image=["2", 0]),
        "4": node("PreviewAny", source=["3", 2]),
    })  # fmt: skip
    assert result.ui["4"]["text"] == ["2", "1"]


@pytest.mark.parametrize(("value", "text"), [
    ("a", "a"), (5, "5"), (True, "True"), (None, "None"), ([1, {"a": 2}], '[1, {"a": 2}]'),
])  # fmt: skip
def test_preview_any_formats_a_value_as_comfyui_does(registry, value, text):
    assert registry.classes["PreviewAny"]().execute(value) == {"ui": {"text": (text,)}}


def test_masks_and_images_are_converted_to_each_other(registry):
    mask = torch.rand(2, 3, 4)
    (image,) = registry.classes["MaskToImage"]().execute(mask)
    assert image.shape == (2, 3, 4, 3)
    assert torch.equal(registry.classes["ImageToMask"]().execute(image, "green")[0], mask)
    assert torch.equal(registry.classes["InvertMask"]().execute(mask)[0], 1 - mask)
    with pytest.raises(ValueError, match="no alpha channel"):
        registry.classes["ImageToMask"]().execute(image, "alpha")


def test_object_info_is_json_with_comfyuis_keys(registry):
    info = json.loads(json.dumps(registry.infos()))
    assert set(info["LoadImage"]) == {
        "input", "input_order", "output", "output_is_list", "output_name", "name", "display_name", "description",
        "python_module", "category", "output_node", "output_tooltips",
    }  # fmt: skip
    assert info["LoadImage"]["input"]["required"]["image"][1] == {"image_upload": True}
    assert info["GetImageSize"]["output_name"] == ["width", "height", "batch_size"]
    assert info["SaveImage"]["output_node"] is True
    assert info["SaveImage"]["input_order"]["required"] == ["images", "filename_prefix"]
