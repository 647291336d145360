"""Random requests to every route and to the socket: no 500, no hang, no change outside the folders.

`UNIWORLD_FUZZ=20` sends twenty times as many requests, with a new seed each time.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

MORE = int(os.environ.get("UNIWORLD_FUZZ", "1"))


def bounded(examples: int) -> Any:
    return settings(
        max_examples=examples * MORE,
        derandomize=MORE == 1,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


# --- requests --------------------------------------------------------------------------------------------------------

SANE = st.sampled_from(["x.png", "y.png", "workflows/a.json", "a"])
TRICKS = st.sampled_from(
    [ "workflows/a.json", "..", "../x", "../../x.png", "..\\x.png", "....//x", "%2e%2e", "%2e%2e%2fx.png", "/etc/passwd",
     "/tmp/x.png", "~/x", "nul", "aux.png", "a\0b", "a\nb", "ü", "x" * 300, "a/" * 2500 + "x.png", "a/" * 1200 + "x.png", "a b", "C:\\x", "\\\\h\\x",
     "tiny", "uniworld", "input", "cat.jpg", "x.png", "x.png [output]", "../x.png [temp]", "docs/UniWorldSampler.md", "edit.json",
     "SaveImage", "", "\ud800", "%", "a%2Fb", "index", "uniworld.sqlite3", "../uniworld.sqlite3", ".", "a/./b", "a//b", "link/x.png", "link"]
)  # fmt: skip
NAMES = SANE | TRICKS | TRICKS | st.text(max_size=20)
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**31, -(2**63), 2**64, 10**400, 1e308, -0.0])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(), max_size=10) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NODES = st.dictionaries(
    st.sampled_from(["1", "2", "3", "6:2", ""]),
    JSON
    | st.fixed_dictionaries(
        {
            "class_type": st.sampled_from(["Paint", "Show", "Number", "Add", "Record", "LoadImage", "Nothing"]) | JSON,
            "inputs": st.dictionaries(
                st.sampled_from(["value", "a", "b", "seed", "image", "images", "filename_prefix", "text"]),
                JSON | NAMES | st.tuples(st.sampled_from(["1", "2", "3"]), st.integers(-2, 3)).map(list),
            )
            | JSON,
        }
    ),
    max_size=4,
)
SAVED = NAMES.map(
    lambda name: {
        "1": {"class_type": "NoiseImage", "inputs": {"width": 8, "height": 8}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": name}},
    }
)
GRAPH_ID = NAMES.map(lambda name: {"extra_pnginfo": {"workflow": {"id": name}}})
IDS = st.lists(st.sampled_from(["a", "\ud800", "", "x" * 300]), max_size=3) | JSON
BODIES = {
    "prompt": NODES | SAVED, "client_id": NAMES | JSON, "prompt_id": NAMES | JSON, "front": JSON, "number": JSON, "extra_data": GRAPH_ID | JSON, "delete": IDS,
    "clear": JSON, "job_ids": IDS, "partial_execution_targets": JSON, "clientId": JSON, "enabled": JSON, "free_memory": JSON,
}  # fmt: skip
# Around the recursion limit of Python's JSON parser, and far beyond.
DEEP = st.tuples(
    st.sampled_from(['{"prompt": %s}', '{"prompt": {}, "extra_data": {"a": %s}}', '{"extra_data": %s}', "%s", '{"delete": %s}',
                     '{"prompt": {"1": {"class_type": "Show", "inputs": {"value": %s}}}}']),
    st.sampled_from([100, 190, 200, 400, 900, 5000, 100_000]) | st.integers(450, 1000),
    st.sampled_from([("[", "]"), ('{"a":', "}")]),
).map(lambda drawn: (drawn[0] % (drawn[2][0] * drawn[1] + "1" + drawn[2][1] * drawn[1])).encode())  # fmt: skip
ODD_JSON = st.sampled_from(
    [b"", b"\xff\xfe", b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"), b'{"a": NaN}', b"NaN", b"1e999", b"9" * 5000,
     b'{"number": 1e999, "prompt": {}}', b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"{" * 70_000, b'{"prompt": {"1": {"class_type": "Number", '
     b'"inputs": {"value": 1e999}}, "2": {"class_type": "Show", "inputs": {"value": ["1", 0]}}}}', b"null", b"[]", b'""', b"-"]
)  # fmt: skip
WHOLE = (
    st.fixed_dictionaries({}, optional=BODIES) | st.fixed_dictionaries({"prompt": SAVED | NODES}, optional={"extra_data": GRAPH_ID})
).map(lambda data: json.dumps(data).encode())  # fmt: skip
BODY = st.binary(max_size=40) | WHOLE | WHOLE | JSON.map(lambda data: json.dumps(data).encode()) | DEEP | ODD_JSON
TYPES = st.sampled_from(
    ["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain", "a", ""]
)


def picture(kind: str, mode: str = "RGB", side: int = 4) -> bytes:
    data = io.BytesIO()
    Image.new(mode, (side, side)).save(data, kind)
    return data.getvalue()


PNG = picture("PNG", "RGBA")
BOMB = PNG[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + PNG[24:]
CONTENTS = (
    st.just(PNG) | st.sampled_from([picture("JPEG"), picture("GIF", "P"), PNG[:40], PNG + b"x", BOMB, b"", b"<svg/>", b"GIF89a"])
    | st.binary(max_size=30)
)  # fmt: skip
FIELDS = {
    "subfolder": st.just("") | NAMES,
    "type": st.sampled_from(["input", "output", "temp", "temp", "user", ".."]),
    "overwrite": st.sampled_from(["true", "1", "x"]),
    "image": NAMES,
}
REFS = (
    NAMES.map(lambda name: json.dumps({"filename": name, "type": "input"})) | JSON.map(json.dumps)
    | NAMES.map(lambda name: json.dumps({"filename": "x.png", "subfolder": name, "type": "output"}))
)  # fmt: skip
PART_HEADERS = st.sampled_from([
    "Content-Type: image/png", "Content-Type: text/plain; charset=no-such", "Content-Type: multipart/mixed; boundary=x",
    "Content-Transfer-Encoding: base64", "Content-Transfer-Encoding: strange", "Content-Encoding: gzip",
    "Content-Encoding: strange", "Content-Length: -1", "Content-Length: 5", "\0", "A" * 9000,
])  # fmt: skip


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    """A multipart form with a picture, or with something similar."""
    parts = []
    fields = draw(st.fixed_dictionaries({"original_ref": REFS}, optional=FIELDS))
    for name, value in fields.items():
        parts.append(f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode(errors="surrogatepass"))
    name = draw(SANE | NAMES).replace('"', "%22").replace("\r", "").replace("\n", "")
    head = f'Content-Disposition: form-data; name="image"; filename="{name}"'
    if draw(st.integers(0, 9)) == 7:
        head += "\r\n" + draw(PART_HEADERS)
    parts.append(head.encode(errors="surrogatepass") + b"\r\n\r\n" + draw(CONTENTS))
    whole = b"".join(b"--x\r\n" + part + b"\r\n" for part in draw(st.permutations(parts))) + b"--x--\r\n"
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.integers(0, 9)) == 7 else whole


@st.composite
def requests(draw: st.DrawFn, description: dict[str, Any]) -> tuple[str, str, str, bytes | None, dict[str, str]]:
    """A method, a path of the OpenAPI description, the actual path, and a body with headers."""
    paths = sorted(set(description["paths"]) - {"/ws", "/api/ws"})
    changing = [path for path in paths if "post" in description["paths"][path]]
    path = draw(st.sampled_from(changing) | st.sampled_from(paths))
    method = draw(st.sampled_from(sorted(description["paths"][path])))
    operation = description["paths"][path][method]
    asked, query = path, []
    for one in operation.get("parameters", ()):
        if one["in"] == "path":
            asked = asked.replace("{" + one["name"] + "}", _quoted(draw(NAMES)))
        elif draw(st.booleans()):
            known = st.sampled_from(one["schema"].get("enum", ["1"]))
            query.append(f"{one['name']}={_quoted(draw(known | NAMES | NUMBERS.map(lambda n: str(n)[:100])), '/')}")
    body, headers = None, {}
    if "requestBody" in operation:
        form = "multipart/form-data" in operation["requestBody"]["content"] and draw(st.integers(0, 4)) != 3
        body = draw(forms() if form else BODY)
        headers["Content-Type"] = "multipart/form-data; boundary=x" if form else draw(TYPES)
    if draw(st.integers(0, 19)) == 13:
        method = draw(st.sampled_from(["put", "patch", "delete", "options", "head", "trace"]))
    return method, path, asked + ("?" + "&".join(query) if query else ""), body, headers


def _quoted(text: str, safe: str = "") -> str:
    return quote(text.encode(errors="surrogatepass"), safe=safe)


# --- the server -------------------------------------------------------------------------------------------------------

FOLDERS = ("input", "output", "temp", "user")


@pytest.fixture
def deep(start, tmp_path):
    """A server with deeply nested folders, which contain symlinks that lead out of them."""
    inner = tmp_path / "a" / "b"
    for name in FOLDERS:
        (inner / name).mkdir(parents=True)
        (inner / name / "x.png").write_bytes(PNG)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x.png").write_bytes(PNG)
    if os.name != "nt":
        for name in FOLDERS[:3]:
            (inner / name / "link").symlink_to(tmp_path / "secret")
    return start(**{name: inner / name for name in FOLDERS})


def outside(root: Path) -> dict[str, bytes | None]:
    """Return the files outside the folders that requests may change, with their contents."""
    inside = [root / "a" / "b" / name for name in FOLDERS]
    found = (path for path in root.rglob("*") if not any(path.is_relative_to(folder) for folder in inside))
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


@pytest.mark.slow
@pytest.mark.parametrize("count", [800, pytest.param(4000, marks=pytest.mark.acceptance)])
@pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader")
def test_no_request_breaks_the_server(deep, tmp_path, count):
    description, before = deep.get("/openapi.json").json, outside(tmp_path)

    @bounded(count)
    @given(requests(description))
    def ask(request: tuple[str, str, str, bytes | None, dict[str, str]]) -> None:
        method, path, asked, body, headers = request
        reply = deep.ask(method.upper(), asked, body=body, headers=headers)
        assert reply.status < 500, reply.body
        # A name that is empty or has a slash makes another path; paths beyond 8 KiB are rejected before routing.
        described = description["paths"][path].get("get" if method == "head" else method, {}).get("responses", {})
        assert str(reply.status) in {*described, "303", "404", "405"} or (
            len(asked) > 8000 and reply.status == 400
        ), (reply.status, reply.body)  # fmt: skip
        if reply.status >= 400 and method != "head" and len(asked) < 8000:
            assert reply.json["error"]["message"]

    ask()
    assert deep.get("/prompt").status == 200
    assert outside(tmp_path) == before
    assert {path.name for path in deep.config.user.iterdir() if "sqlite3" not in path.name} <= {"default", "x.png"}
    assert deep.run({"1": {"class_type": "Paint", "inputs": {"steps": 1, "seed": 7}}})["status"]["completed"] is True


# --- the connection and the socket -----------------------------------------------------------------------------------

KEY = base64.b64encode(b"0123456789abcdef").decode()
HANDSHAKE = (
    "GET /ws?clientId=fuzz HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
).encode()


def frame(first: int, payload: bytes, masked: bool, claimed: int | None) -> bytes:
    """A WebSocket frame, possibly with a wrong length."""
    length = len(payload) if claimed is None else claimed
    flag = 0x80 if masked else 0
    if length < 126:
        head = struct.pack("!BB", first, flag | length)
    elif length < 2**16:
        head = struct.pack("!BBH", first, flag | 126, length)
    else:
        head = struct.pack("!BBQ", first, flag | 127, length)
    return head + (b"\0\0\0\0" if masked else b"") + payload


PAYLOADS = (
    st.binary(max_size=200)
    | JSON.map(lambda data: json.dumps(data).encode())
    | st.fixed_dictionaries({"type": st.just("feature_flags") | JSON, "data": JSON}).map(lambda d: json.dumps(d).encode())
    | DEEP
    | st.sampled_from([b"x" * 70_000, b"\xff\xfe", b'{"type": "feature_flags", "data": {"supports_preview_metadata": true}}'])
)  # fmt: skip
FRAMES = st.builds(
    frame,
    st.sampled_from([0x81, 0x82, 0x81, 0x88, 0x89, 0x8A, 0x01, 0x80]) | st.integers(0, 255),
    PAYLOADS,
    st.sampled_from([True, True, True, False]),
    st.none() | st.none() | st.sampled_from([0, 1, 125, 2**16, 2**31, 2**63, 2**64 - 1]),
)


def talk(port: int, sent: list[bytes], hard: bool) -> bytes:
    """Return what the server sends on a raw connection until it closes; `hard` resets the connection at once."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            for piece in sent:
                connection.sendall(piece)
            if hard:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return b""
            connection.shutdown(socket.SHUT_WR)
            found = b""
            while piece := connection.recv(1 << 16):
                found += piece
            return found
        except TimeoutError:
            raise AssertionError("the server neither answers nor closes") from None
        except OSError:  # already closed by the server
            return b""


@pytest.mark.slow
def test_no_frame_breaks_the_socket(deep, caplog):
    troubles: list[dict[str, Any]] = []
    deep.loop.call_soon_threadsafe(deep.loop.set_exception_handler, lambda _, context: troubles.append(context))

    @bounded(400)
    @given(st.lists(FRAMES, max_size=4), st.booleans())
    @example([frame(0x81, b"x" * 200_000, True, None)], False)
    @example([], True)
    def ask(frames: list[bytes], hard: bool) -> None:
        back = talk(deep.port, [HANDSHAKE, *frames], hard)
        assert not back or back.startswith(b"HTTP/1.1 101")

    with caplog.at_level(logging.ERROR):
        ask()
    assert [record.getMessage() for record in caplog.records] == []
    assert troubles == []
    # No socket is left open, and another client is served.
    one = deep.connect("fuzz")
    assert one.receive()[0] == "status"
    deep.wait(deep.queue({"1": {"class_type": "Paint", "inputs": {"steps": 1, "seed": 8}}}, client_id="fuzz"))
    assert one.until_done()
    one.close()
    deep.sockets.remove(one)
    end = time.monotonic() + 10
    while len(deep.server.clients):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_no_raw_bytes_break_the_server(deep):
    @bounded(200)
    @given(
        st.lists(
            st.binary(max_size=60)
            | st.sampled_from([b"GET ", b"/view?filename=..%2f..%2fsecret%2fx.png", b" HTTP/1.1\r\n", b"Host: localhost\r\n", b"\r\n", b"POST ",
             b"/prompt", b"Content-Length: 99999999999\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"ffffffff\r\n", b"A" * 9000,
             b"/a/../../../etc/passwd", b"//etc/passwd", b"http://elsewhere/view", b"Expect: 100-continue\r\n", b"\0"]),
            max_size=8,
        ), st.booleans()
    )  # fmt: skip
    def ask(pieces: list[bytes], hard: bool) -> None:
        back = talk(deep.port, [b"".join(pieces)], hard)
        assert not back.startswith(b"HTTP/1.1 5")
        assert b"root:" not in back

    ask()
    assert deep.get("/prompt").status == 200
