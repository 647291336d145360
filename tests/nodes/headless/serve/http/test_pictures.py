"""Re-encoded pictures are upright, and no file blocks the others."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from uniworld.nodes.headless.serve.http import decoding, images
from uniworld.nodes.headless.serve.http.decoding import DecoderProcess, decoded
from uniworld.uniworld_core.images.picture_files import LIMITS, deadline


def quarters(width: int = 32, height: int = 48) -> Image.Image:
    """Four colors, so that every rotation and reflection is distinguishable."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (255, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 255, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 255)
    return Image.fromarray(picture)


TURNS = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def photo(orientation: int, kind: str = "JPEG", size: tuple[int, int] = (32, 48)) -> bytes:
    """A picture as cameras store it: rotated, with an EXIF orientation."""
    exif, turn = Image.Exif(), TURNS[orientation]
    exif[0x0112] = orientation
    lying = quarters(*size) if turn is None else quarters(*size).transpose(turn)
    data = io.BytesIO()
    lying.save(data, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    return data.getvalue()


def opened(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body))


def assert_shows_quarters(picture: Image.Image, size: tuple[int, int] = (32, 48)) -> None:
    assert picture.size == size
    assert picture.getexif().get(0x0112, 1) == 1
    off = np.asarray(picture.convert("RGB")).astype(int) - np.asarray(quarters(*size)).astype(int)
    assert np.abs(off).mean() < 12


# --- upright ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 48), (32, 32)])
@pytest.mark.parametrize("orientation", TURNS)
def test_previews_channels_and_masks_of_photographs_are_upright(live, orientation, size):
    name = f"p{orientation}.jpg"
    (live.config.input / name).write_bytes(photo(orientation, size=size))
    for wanted in ("preview=webp", "preview=jpeg;90", "channel=rgb", "preview=webp&channel=rgb"):
        assert_shows_quarters(opened(live.get(f"/view?filename={name}&type=input&{wanted}").body), size)
    assert opened(live.get(f"/view?filename={name}&type=input&channel=a").body).size == size
    mask = np.full((size[1], size[0], 4), 255, np.uint8)
    mask[: size[1] // 2, :, 3] = 0
    data = io.BytesIO()
    Image.fromarray(mask).save(data, "PNG")
    ref = json.dumps({"filename": name, "type": "input", "subfolder": ""})
    reply = live.upload(f"m{orientation}.png", data.getvalue(), "/upload/mask", original_ref=ref, subfolder="clipspace")
    kept = Image.open(live.config.input / "clipspace" / reply.json["name"])
    assert_shows_quarters(kept, size)
    assert np.array_equal(np.asarray(kept)[..., 3], mask[..., 3])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_photographs_in_other_formats_are_upright_too(live, kind):
    (live.config.input / f"p.{kind.lower()}").write_bytes(photo(6, kind))
    reply = live.get(f"/view?filename=p.{kind.lower()}&type=input&preview=webp")
    assert_shows_quarters(opened(reply.body))


def test_a_masked_picture_keeps_its_workflow_and_no_orientation_in_text(live):
    data, info = io.BytesIO(), PngInfo()
    info.add_text("workflow", "{}")
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
    quarters().transpose(TURNS[6]).save(data, "PNG", pnginfo=info)
    (live.config.input / "p.png").write_bytes(data.getvalue())
    mask = io.BytesIO()
    Image.new("RGBA", (32, 48)).save(mask, "PNG")
    ref = json.dumps({"filename": "p.png", "type": "input"})
    live.upload("m.png", mask.getvalue(), "/upload/mask", original_ref=ref)
    kept = Image.open(live.config.input / "m.png")
    assert kept.text == {"workflow": "{}"}
    assert_shows_quarters(kept)


def test_a_large_photograph_is_scaled_down_and_upright(live):
    (live.config.output / "p.jpg").write_bytes(photo(8, size=(4200, 60)))
    shown = opened(live.get("/view?filename=p.jpg&preview=webp").body)
    assert shown.size == (4096, 59)
    assert np.asarray(shown.convert("RGB"))[2, 2].argmax() == 0


def test_a_truncated_picture_is_accepted_and_shown(live):
    name = live.upload("p.jpg", photo(1)[:-20]).json["name"]
    assert live.get(f"/view?filename={name}&type=input&preview=webp").status == 200


# --- cost of decoding -------------------------------------------------------------------------------------------------


def animated(kind: str, count: int, size: tuple[int, int]) -> bytes:
    frames = [Image.new("L", size, number % 256) for number in range(count)]
    data = io.BytesIO()
    frames[0].save(data, kind, save_all=True, append_images=frames[1:])
    return data.getvalue()


def many_frames(count: int) -> bytes:
    frame = bytes.fromhex("2c0000000001000100000202440100")
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * count + b";"


def flat_png(width: int, height: int) -> bytes:
    """A picture with many pixels in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes((width + 1) * height), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_preview_decodes_only_the_first_frame(live):
    (live.config.output / "many.gif").write_bytes(many_frames(100_000))
    begun = time.monotonic()
    assert opened(live.get("/view?filename=many.gif&preview=webp").body).size == (1, 1)
    assert time.monotonic() - begun < 2


def test_an_upload_with_too_many_frames_is_rejected_with_the_limit(live):
    reply = live.upload("many.gif", many_frames(400_000))
    assert reply.status == 400
    assert "'many.gif' has too many frames; at most 4096 are read" in reply.json["error"]["message"]
    assert not (live.config.input / "many.gif").exists()


def test_a_picture_beyond_the_small_budget_is_decoded_in_a_process(live, monkeypatch):
    started: list[str] = []
    run = DecoderProcess.run

    def counted(self: DecoderProcess, work: str, *arguments: Any) -> Any:
        started.append(work)
        return run(self, work, *arguments)

    monkeypatch.setattr(DecoderProcess, "run", counted)
    assert live.upload("large.png", flat_png(5000, 5000)).status == 200
    assert live.upload("frames.gif", animated("GIF", 70, (8, 8))).status == 200
    assert started == ["check_picture", "check_picture"]
    assert opened(live.get("/view?filename=large.png&type=input&preview=webp").body).size == (4096, 4096)
    mask = flat_png(5000, 5000)
    ref = json.dumps({"filename": "large.png", "type": "input"})
    assert live.upload("masked.png", mask, "/upload/mask", original_ref=ref).status == 200
    assert live.get("/view?filename=frames.gif&type=input&preview=webp").status == 200
    assert started[2:] == ["preview_of", "check_picture", "with_alpha_of"]


def test_thread_and_process_return_the_same_bytes(tmp_path):
    path = tmp_path / "p.jpg"
    path.write_bytes(photo(6))
    budget = images.Budget(LIMITS, lambda: None)
    for work, arguments in (("preview_of", (path, "webp;80", "")), ("channel_of", (path, "rgb"))):
        here = getattr(images, work)(*arguments, budget)
        assert DecoderProcess().run(work, arguments) == here
    mask = io.BytesIO(flat_png(32, 48))
    assert DecoderProcess().run("with_alpha_of", (path, mask)) == images.with_alpha_of(path, mask, budget)
    with pytest.raises(ValueError, match="not a picture that can be read"):
        DecoderProcess().run("check_picture", (io.BytesIO(b"x"), "p.png"))


def test_a_process_that_takes_too_long_is_killed(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(flat_png(11_000, 11_000))
    process = DecoderProcess()
    with pytest.raises(ValueError, match=r"takes longer than 0\.2 seconds"):
        process.run("preview_of", (path, "webp", ""), 0.2)
    assert process._process is not None
    assert process._process.poll() is not None


def test_a_cancelled_request_kills_its_process(tmp_path, monkeypatch):
    path = tmp_path / "p.png"
    path.write_bytes(flat_png(11_000, 11_000))
    made: list[DecoderProcess] = []

    class Kept(DecoderProcess):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(decoding, "DecoderProcess", Kept)

    async def leave() -> None:
        task = asyncio.ensure_future(decoded(images.preview_of, path, "webp", ""))
        while not made or made[0]._process is None:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert made[0]._process is not None
    assert made[0]._process.poll() is not None


def test_two_malicious_uploads_do_not_block_a_preview(live, monkeypatch):
    monkeypatch.setattr(decoding, "PROCESS_SECONDS", 5.0)
    (live.config.output / "p.png").write_bytes(photo(1, "PNG"))
    heavy = flat_png(11_000, 11_000)
    uploads = [threading.Thread(target=live.upload, args=(f"h{n}.png", heavy)) for n in range(4)]
    uploads += [threading.Thread(target=live.upload, args=(f"g{n}.gif", many_frames(400_000))) for n in range(2)]
    for upload in uploads:
        upload.start()
    slowest = 0.0
    while any(upload.is_alive() for upload in uploads):
        begun = time.monotonic()
        assert live.get("/view?filename=p.png&preview=webp").status == 200
        slowest = max(slowest, time.monotonic() - begun)
    assert slowest < 2


def test_the_small_budget_stops_long_decoding(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(photo(1, "PNG"))
    with pytest.raises(Exception, match="seconds"):
        images.preview_of(path, "webp", "", images.Budget(LIMITS, deadline(-1.0)))
