"""Uploads and downloads: what is saved, what is rejected, and that no name leads out of a folder."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import struct
import threading
import time
import zlib
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from uniworld.nodes.headless.serve.config import RequestLimits, ServerConfig
from uniworld.nodes.headless.serve.http import decoding
from uniworld.nodes.headless.serve.routes import files as routes_files
from uniworld.nodes.headless.serve.temp_folder import _MARKER, empty_temp

TRICKS = [
    "../secret.txt", "..\\secret.txt", "a/../../secret.txt", "/etc/passwd", "C:\\x.png", "%2e%2e/secret.txt", "a%00.png",
    "a\0.png", "link/secret.txt", "con.png", "nul", "COM1.txt", ".", "..", "~/x", "x\n.png", " x.png", "x./y",
    "....//secret.txt", "\\\\host\\share\\x.png",
]  # fmt: skip


def png(width: int = 4, height: int = 3, mode: str = "RGB", color: Any = (10, 20, 30), text: str = "") -> bytes:
    data, info = io.BytesIO(), PngInfo()
    if text:
        info.add_text("workflow", text)
    Image.new(mode, (width, height), color).save(data, format="PNG", pnginfo=info)
    return data.getvalue()


@pytest.fixture
def folders_with_secret(live, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    for name in ("input", "output", "temp", "user"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "link").symlink_to(tmp_path)
    return live


def opened(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body))


# --- /view -----------------------------------------------------------------------------------------------------------


def test_view_shows_pictures_in_all_forms(live):
    (live.config.output / "sub").mkdir()
    (live.config.output / "sub" / "a.png").write_bytes(png(8, 6, "RGBA", (10, 20, 30, 40)))
    reply = live.get("/view?filename=a.png&subfolder=sub&type=output")
    assert reply.status == 200
    assert reply.headers["content-type"] == "image/png"
    assert 'filename="a.png"' in reply.headers["content-disposition"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    view = "/api/view?filename=a.png&subfolder=sub"
    for wanted, kind, mode in (("webp;50", "WEBP", "RGBA"), ("jpeg", "JPEG", "RGB"), ("tiff;x", "WEBP", "RGBA")):
        shown = opened(live.get(f"{view}&preview={wanted}").body)
        assert (shown.format, shown.mode, shown.size) == (kind, mode, (8, 6))
    assert opened(live.get(f"{view}&channel=rgb").body).getpixel((0, 0)) == (10, 20, 30)
    assert opened(live.get(f"{view}&channel=a").body).getpixel((0, 0)) == (0, 0, 0, 40)
    assert live.get("/view?filename=sub/a.png").status == 200
    assert live.get("/view?filename=sub/a.png+[output]&type=input").status == 200


def test_view_finds_the_shipped_pictures(live):
    assert live.get("/view?filename=cat.jpg&type=input").status == 200


@pytest.mark.parametrize("query", ["", "filename=", "filename=nothing.png", "filename=link", "type=output"])
def test_view_of_a_missing_file_is_404(live, query):
    assert live.get(f"/view?{query}").status == 404


RISKY = [
    "page.html", "page.HTM", "x.xhtml", "script.js", "module.mjs", "picture.svg", "picture.svgz", "style.css", "data.xml",
    "x.xsl", "x.xslt", "y.rdf", "m.mml", "feed.atom", "feed.rss", "x.mht", "x.pdf", "x.swf", "x.xul", "x.wasm", "x.htc",
    "x.unknown", "none", "x.png.html", "x.shtml", "x.vtt", "x.webmanifest", "x.appcache", "x.txt.", "x.json5",
]  # fmt: skip


@pytest.mark.parametrize("name", RISKY)
def test_files_that_could_run_are_downloads(live, name):
    (live.config.output / name).write_text("<script>alert(1)</script>")
    assert live.post(f"/userdata/{name}", body=b"<script>alert(1)</script>").status in (200, 400, 403)
    for path in (f"/view?filename={name}", f"/api/view?filename={name}", f"/userdata/{name}"):
        reply = live.get(path)
        if reply.status == 200:  # a name with a trailing dot has no extension
            assert reply.headers["content-type"] == "application/octet-stream"
            assert reply.headers["content-disposition"].startswith("attachment; ")
            assert reply.headers["content-security-policy"] == "sandbox"
            assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.mp4", "a.wav", "a.json", "a.txt"])
def test_inline_files_are_sandboxed(live, name):
    (live.config.output / name).write_bytes(png())
    reply = live.get(f"/view?filename={name}")
    assert reply.headers["content-disposition"].startswith("inline; ")
    assert reply.headers["content-security-policy"] == "sandbox"
    if name == "a.png":
        for query in ("preview=webp", "channel=rgb", "channel=a"):
            assert live.get(f"/view?filename={name}&{query}").headers["content-security-policy"] == "sandbox"
            assert live.get(f"/view?filename={name}&{query}").headers["x-content-type-options"] == "nosniff"


def test_a_compressed_file_of_the_same_name_is_not_sent_instead(live):
    (live.config.output / "a.json").write_text('{"mine": 1}')
    (live.config.frontend / "b.js").write_text("export {}")
    for folder, name in ((live.config.output, "a.json"), (live.config.frontend, "b.js")):
        for suffix in (".gz", ".br"):
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(b"another file"))
    assert live.post("/userdata/a.json", body=b"{}").status == 200
    assert live.post("/userdata/a.json.gz", body=gzip.compress(b"another file")).status == 200
    for path, content in (
        ("/view?filename=a.json", b'{"mine": 1}'),
        ("/b.js", b"export {}"),
        ("/userdata/a.json", b"{}"),
    ):
        reply = live.get(path, **{"Accept-Encoding": "gzip, br"})
        assert (reply.body, reply.headers.get("content-encoding")) == (content, None)
    (live.config.frontend / "b.js").unlink()
    for suffix in (".gz", ".br"):
        (live.config.frontend / f"b.js{suffix}").unlink()


def test_ranges_and_conditional_requests(live):
    (live.config.output / "a.txt").write_bytes(bytes(range(256)) * 1000)
    whole = live.get("/view?filename=a.txt")
    tag, date = whole.headers["etag"], whole.headers["last-modified"]
    assert len(whole.body) == 256_000
    for wanted, start, stop in (
        ("0-9", 0, 10),
        ("255990-", 255_990, 256_000),
        ("-5", 255_995, 256_000),
        ("5-999999", 5, 256_000),
    ):
        reply = live.get("/view?filename=a.txt", Range=f"bytes={wanted}")
        assert (reply.status, reply.body) == (206, whole.body[start:stop])
        assert reply.headers["content-range"] == f"bytes {start}-{stop - 1}/256000"
    assert live.get("/view?filename=a.txt", Range="bytes=256000-").status == 416
    assert live.get("/view?filename=a.txt", Range="bytes=256000-").headers["content-range"] == "bytes */256000"
    assert live.get("/view?filename=a.txt", Range="bytes=0-1,4-5").body == whole.body
    assert live.get("/view?filename=a.txt", Range="bytes=0-1", **{"If-Range": tag}).status == 206
    assert live.get("/view?filename=a.txt", Range="bytes=0-1", **{"If-Range": '"another"'}).status == 200
    assert live.get("/view?filename=a.txt", **{"If-None-Match": tag}).status == 304
    assert live.get("/view?filename=a.txt", **{"If-Modified-Since": date}).status == 304
    assert live.get("/view?filename=a.txt", **{"If-Match": '"another"'}).status == 412
    head = live.ask("HEAD", "/view?filename=a.txt")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "256000")


def test_an_empty_file_and_a_path_that_is_not_a_file(live):
    (live.config.output / "empty.txt").touch()
    assert live.get("/view?filename=empty.txt").body == b""
    if hasattr(os, "mkfifo"):
        os.mkfifo(live.config.output / "pipe.txt")
        assert live.get("/view?filename=pipe.txt").status == 404


def test_a_name_cannot_add_headers(live):
    (live.config.output / 'a";x="é.txt').write_text("x")
    reply = live.get("/view?filename=" + quote('a";x="é.txt'))
    assert reply.headers["content-disposition"].startswith('inline; filename="a_;x=__.txt"; filename*=UTF-8')


@pytest.mark.parametrize("trick", TRICKS)
def test_view_does_not_leave_its_folder(folders_with_secret, trick):
    for query in (f"filename={quote(trick)}", f"filename=secret.txt&subfolder={quote(trick)}"):
        for kind in ("input", "output", "temp"):
            reply = folders_with_secret.get(f"/view?{query}&type={kind}")
            assert reply.status in (400, 404)
            assert reply.body != b"secret"
    assert folders_with_secret.get("/view?filename=x.png&type=user").status == 400


def test_a_preview_of_a_file_that_is_not_a_picture_is_rejected(live):
    (live.config.output / "a.png").write_text("no picture")
    assert live.get("/view?filename=a.png").status == 200
    assert live.get("/view?filename=a.png&preview=webp").error == "invalid_image"
    (live.config.output / "bomb.png").write_bytes(bomb())
    assert live.get("/view?filename=bomb.png&preview=webp").error == "invalid_image"


# --- uploads ---------------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """Return a small file that claims to have 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_an_upload_is_saved_under_a_free_name(live):
    assert live.upload("a.png", png()).json == {"name": "a.png", "subfolder": "", "type": "input"}
    assert live.upload("a.png", png()).json["name"] == "a.png"  # the same picture
    assert live.upload("a.png", png(5, 5)).json["name"] == "a (1).png"
    assert live.upload("a.png", png(6, 6), overwrite="true").json["name"] == "a.png"
    assert opened((live.config.input / "a.png").read_bytes()).size == (6, 6)
    moved = live.upload("b.png", png(), subfolder="pasted/x", type="temp")
    assert moved.json == {"name": "b.png", "subfolder": "pasted/x", "type": "temp"}
    assert (live.config.temp / "pasted" / "x" / "b.png").is_file()
    assert {"a.png", "a (1).png"} <= set(live.get("/internal/files/input").json)
    entry = live.run({"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
                      "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})  # fmt: skip
    assert entry["status"]["completed"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.png", b"no picture"), ("a.png", b""), ("a.png", png()[:40]), ("a", b"no picture"), ("a.svg", b"<svg/>"),
     ("", png()), ("a.png", bomb())],
)  # fmt: skip
def test_a_file_that_is_not_a_picture_is_rejected(live, name, content):
    reply = live.upload(name, content)
    assert reply.status == 400
    assert reply.json["error"]["message"]
    assert list(live.config.input.iterdir()) == []


def encoded(kind: str, color: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "kind", "kept"),
    [
        ("blob", "PNG", "blob.png"), ("blob", "JPEG", "blob.jpg"), ("blob", "WEBP", "blob.webp"), ("blob", "GIF", "blob.gif"),
        ("blob", "BMP", "blob.bmp"), ("blob", "TIFF", "blob.tiff"), ("frame.0001", "JPEG", "frame.0001.jpg"),
        ("page.html", "PNG", "page.html.png"), ("photo.heic", "JPEG", "photo.heic.jpg"), ("Cat.PNG", "PNG", "Cat.PNG"),
        ("a.png", "JPEG", "a.png"),
    ],
)  # fmt: skip
def test_a_picture_is_saved_under_a_name_that_nodes_accept(live, name, kind, kept):
    content = encoded(kind)
    assert live.upload(name, content).json["name"] == kept
    assert live.upload(name, content).json["name"] == kept  # the same picture
    assert (live.config.input / kept).read_bytes() == content
    stem, _, suffix = kept.rpartition(".")
    assert live.upload(name, encoded(kind, "blue")).json["name"] == f"{stem} (1).{suffix}"
    load = {"1": {"class_type": "LoadImage", "inputs": {"image": kept}}}
    entry = live.run({**load, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})
    assert entry["status"]["completed"]


def test_a_mask_without_an_extension_is_saved_as_png(live):
    (live.config.input / "a.png").write_bytes(png())
    ref = {"filename": "a.png", "type": "input", "subfolder": ""}
    mask = png(4, 3, "RGBA", (0, 0, 0, 77))
    for name in ("blob", "blob"):
        assert live.upload(name, mask, "/upload/mask", original_ref=json.dumps(ref)).json["name"] == "blob.png"
    assert opened((live.config.input / "blob.png").read_bytes()).format == "PNG"


def test_a_form_with_too_many_files_is_rejected(live):
    part = b'--x\r\nContent-Disposition: form-data; name="more"; filename="a.png"\r\n\r\nx\r\n'
    body = part * 5000 + b"--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert live.post("/upload/image", body=body, headers=headers).status == 400


@pytest.mark.parametrize("trick", TRICKS)
def test_an_upload_does_not_leave_its_folder(folders_with_secret, tmp_path, trick):
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    clean = trick.replace("\0", "").replace("\n", "")
    replies = [
        folders_with_secret.upload(f"{clean}/../x.png", png()),
        folders_with_secret.upload("x.png", png(), subfolder=trick + "/"),
    ]
    assert all(reply.status == 400 for reply in replies)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_uploads_have_a_limit(start):
    live = start(limits=dataclasses.replace(RequestLimits(), upload_bytes=1000))
    assert live.upload("a.png", b"x" * 3_000_000).status == 413


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data", "multipart/form-data; boundary=y", "application/json"]
)
def test_a_body_that_is_not_a_form_is_rejected(live, kind):
    assert live.post("/upload/image", body=b"x", headers={"Content-Type": kind}).status == 400


def test_a_mask_becomes_the_alpha_channel_and_the_workflow_is_kept(live):
    (live.config.input / "a.png").write_bytes(png(4, 3, text='{"nodes": []}'))
    mask, ref = png(4, 3, "RGBA", (0, 0, 0, 77)), {"filename": "a.png", "type": "input", "subfolder": ""}
    reply = live.upload("m.png", mask, "/upload/mask", original_ref=json.dumps(ref), subfolder="clipspace")
    assert reply.json == {"name": "m.png", "subfolder": "clipspace", "type": "input"}
    kept = Image.open(live.config.input / "clipspace" / "m.png")
    assert kept.getpixel((0, 0)) == (10, 20, 30, 77)
    assert kept.text == {"workflow": '{"nodes": []}'}


@pytest.mark.parametrize(
    "ref", ["", "{", "[]", "null", "{}", '{"filename": 5}', '{"filename": "../a.png"}', '{"filename": "none.png"}',
            '{"filename": "a.png", "type": "user"}', '{"filename": "a.png", "type": "input", "subfolder": ".."}',
            '{"filename": "a.png", "type": "input"}'],
)  # fmt: skip
def test_a_mask_for_the_wrong_picture_is_rejected(live, ref):
    (live.config.input / "a.png").write_bytes(png(9, 9))  # its size differs from the mask's
    assert live.upload("m.png", png(4, 3, "RGBA", (0, 0, 0, 7)), "/upload/mask", original_ref=ref).status == 400


def test_only_known_folders_are_listed(live):
    assert live.get("/internal/files/user").status == 400
    assert live.get("/internal/files/..%2Fuser").status == 400


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "I;16", "I", "F", "RGB", "RGBA", "CMYK"])
def test_a_preview_of_a_large_picture_is_scaled_down(live, mode):
    picture = Image.new(mode, (9000, 90))
    picture.save(live.config.output / "a.tif")
    shown = opened(live.get("/view?filename=a.tif&preview=webp").body)
    assert shown.size == (4096, 41)
    for channel in ("rgb", "a"):
        assert opened(live.get(f"/view?filename=a.tif&channel={channel}").body).size == (9000, 90)


def test_only_a_few_pictures_are_decoded_at_once(live, monkeypatch):
    (live.config.output / "a.png").write_bytes(png())
    lock, now, most = threading.Lock(), 0, 0

    def slow(*_: Any) -> tuple[bytes, str]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.1)
        with lock:
            now -= 1
        return b"", "image/webp"

    monkeypatch.setattr(routes_files, "preview_of", slow)
    asking = [threading.Thread(target=live.get, args=("/view?filename=a.png&preview=webp",)) for _ in range(8)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert most == decoding.THREADS


def config_with_previews(base) -> ServerConfig:
    (base / "temp" / "deep").mkdir(parents=True)
    (base / "kept").mkdir()
    for name in ("temp/a.png", "temp/deep/b.png", "kept/c.png"):
        (base / name).write_bytes(png())
    (base / "temp" / "link").symlink_to(base / "kept")
    (base / "temp" / "deep" / "link").symlink_to(base / "kept")
    return ServerConfig(
        input=base / "input", output=base / "output", temp=base / "temp", user=base / "user", models=base / "models"
    )


def test_old_previews_are_removed_but_not_through_symlinks(tmp_path):
    config = config_with_previews(tmp_path)
    (config.temp / _MARKER).touch()
    empty_temp(config)
    assert sorted(path.name for path in config.temp.iterdir()) == [_MARKER, "link"]
    assert (tmp_path / "kept" / "c.png").is_file()


def test_an_existing_temp_folder_is_not_emptied(tmp_path):
    config = config_with_previews(tmp_path)
    empty_temp(config)
    assert (config.temp / "deep" / "b.png").is_file()


def test_a_temp_folder_that_contains_another_folder_is_not_emptied(tmp_path):
    config = config_with_previews(tmp_path)
    (config.temp / _MARKER).touch()
    for other in (config.temp, config.temp / "output"):
        empty_temp(dataclasses.replace(config, output=other))
        assert (config.temp / "a.png").is_file()
