"""No client can lock others out: idle, slow and stalled connections are closed, and make room when all are in use."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

try:
    from uniworld.nodes.headless.serve.config import ServerConfig
    from uniworld.nodes.headless.serve.http import connections
    from uniworld.nodes.headless.serve.http.connections import ConnectionTimeouts, connection_limit
except ImportError:  # the server is an extra
    pytest.skip("aiohttp is not installed", allow_module_level=True)


class Short(ConnectionTimeouts):
    """Timeouts that a test can wait for."""

    first_request = keep_alive = request_head = 0.4
    request_body = stalled_response = 0.6
    linger = 0.2
    sweep_interval = 0.05


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    made: list[socket.socket] = []
    yield made
    for one in made:
        one.close()


def connect(live: Any, opened: list[socket.socket], sent: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", live.port), timeout=10)
    opened.append(made)
    if sent:
        made.sendall(sent)
    return made


def ended_after(one: socket.socket, seconds: float = 10.0, trickle: bytes = b"") -> float:
    """Return the seconds until the server closes a connection on which `trickle` is sent byte by byte."""
    start = time.monotonic()
    one.settimeout(0.05)
    while time.monotonic() - start < seconds:
        try:
            if trickle:
                one.sendall(trickle)
            if not one.recv(1 << 16):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - start


HEAD = b"GET /prompt HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST /settings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
CHUNKED = b"POST /settings HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "trickle"),
    [
        (b"", b""), (HEAD, b""), (HEAD, b"X-More: x\r\n"), (HEAD + b"\r\n", b""), (POST, b""), (POST, b"x"), (CHUNKED, b""),
        (CHUNKED, b"1\r\nx\r\n"), (HEAD + b"\r\n" + HEAD, b"X-More: x\r\n"),
    ],
    ids=["silent", "half a head", "a head bit by bit", "idle", "no body", "a body bit by bit", "no chunk",
         "chunks bit by bit", "a second head bit by bit"],
)  # fmt: skip
def test_a_client_that_keeps_the_server_waiting_is_disconnected(start, opened, sent, trickle):
    live = start(timeouts=Short)
    assert ended_after(connect(live, opened, sent), trickle=trickle) < 5
    assert live.get("/prompt").status == 200


def test_only_a_response_that_is_not_read_times_out(start, opened):
    live = start(timeouts=Short)
    (live.config.output / "big.txt").write_bytes(b"x" * 30_000_000)
    unread = connect(live, opened, b"GET /view?filename=big.txt HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    time.sleep(2)
    read = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    read.request("GET", "/view?filename=big.txt")
    reply = read.getresponse()
    size = 0
    while piece := reply.read(1_000_000):  # slowly, and for longer than the timeout of an unread response
        size += len(piece)
        time.sleep(0.05)
    assert size == 30_000_000
    read.close()
    got = 0
    with contextlib.suppress(OSError):
        while piece := unread.recv(1 << 20):
            got += len(piece)
    assert got < 30_000_000


def test_running_requests_sockets_and_steady_bodies_are_not_closed(start, opened):
    live = start(timeouts=Short)
    client = live.connect("me")
    body = json.dumps({"x": "y" * 20_000}).encode()
    slow = connect(live, opened, POST.replace(b"100000", str(len(body)).encode()))
    for first in range(0, len(body), 800):
        slow.sendall(body[first : first + 800])
        time.sleep(0.05)
    assert slow.recv(100).startswith(b"HTTP/1.1 200")
    live.queue({"1": {"class_type": "Record", "inputs": {"text": "x", "milliseconds": 1500}}}, client_id="me")
    client.until_done()


def test_idle_connections_make_room(start, opened, capsys):
    live = start(limit=20)
    client = live.connect("me")
    for _ in range(150):
        connect(live, opened, HEAD if len(opened) % 2 else b"")
    assert live.get("/prompt").status == 200
    assert len(live.site.connections) <= 20
    live.queue({"1": {"class_type": "Record", "inputs": {"text": "x"}}}, client_id="me")
    client.until_done()  # a connection with a running request is not closed to make room
    err = capsys.readouterr().err
    assert err.count("idle ones are closed") == 1


def test_unfinished_bodies_make_room(start, opened):
    live = start(limit=20)
    for _ in range(60):
        connect(live, opened, POST)
    assert live.get("/prompt").status == 200


def test_if_all_connections_are_busy_new_ones_get_a_503(start, opened):
    live = start(limit=8)
    live.server.clients.limit = 8
    for number in range(8):
        live.connect(str(number))
    refused = connect(live, opened, HEAD + b"\r\n")
    assert refused.recv(100).startswith(b"HTTP/1.1 503")
    live.sockets.pop().close()
    assert live.get("/prompt").status == 200


def test_sockets_use_at_most_half_of_the_connections(start):
    live = start(limit=20)
    assert live.server.clients.limit == 10
    for number in range(10):
        live.connect(str(number))
    assert (
        live.get(
            "/ws",
            Upgrade="websocket",
            Connection="Upgrade",
            **{"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "A" * 22 + "=="},
        ).status
        == 503
    )
    assert live.get("/prompt").status == 200


@pytest.mark.parametrize(
    ("soft", "hard", "low", "high"),
    [(1024, 1024, 400, 512), (256, 256, 50, 128), (1024, 1 << 20, 1000, 1000), (40, 40, 8, 20)],
)
def test_the_connection_limit_leaves_open_files_for_everything_else(monkeypatch, soft, hard, low, high):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(connections, "_open_files", lambda: 40)
    assert low <= connection_limit() <= high


@pytest.mark.parametrize(
    ("path", "size"), [("/settings", 40_000_000), ("/userdata/x.txt", 40_000_000), ("/upload/image", 200_000_000), ("/free", 40_000_000)]
)  # fmt: skip
@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
def test_a_content_length_over_the_limit_is_rejected_before_reading(live, opened, path, size, expect):
    kind = b"Content-Type: multipart/form-data; boundary=x\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n".encode()
    one = connect(live, opened, head + kind + expect + b"\r\n")
    assert one.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("path", ["/settings", "/userdata/x.txt"])
def test_a_chunked_body_is_rejected_when_it_exceeds_the_limit(start, opened, path):

    live = start(limits=replace(ServerConfig().limits, json_bytes=100_000))
    one = connect(live, opened, CHUNKED.replace(b"/settings", path.encode()))
    piece, sent = b"8000\r\n" + b"x" * 0x8000 + b"\r\n", 0
    one.settimeout(0.05)
    with contextlib.suppress(ConnectionError):
        while sent < 10_000_000:
            one.sendall(piece)
            sent += len(piece)
            with contextlib.suppress(TimeoutError):
                assert one.recv(100).startswith(b"HTTP/1.1 413")
                break
    assert sent < 1_000_000


def test_100_continue_is_sent_only_for_an_acceptable_body(live, opened):
    head = b"POST /settings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    one = connect(live, opened, head)
    assert one.recv(100).startswith(b"HTTP/1.1 100")
    one.sendall(b"{}")
    assert one.recv(100).startswith(b"HTTP/1.1 200")


def test_server_errors_are_logged_once_with_their_traceback(live, monkeypatch, capsys):
    monkeypatch.setattr(live.server.registry, "info", lambda name: 1 / 0)
    for _ in range(20):
        assert live.get("/object_info/SaveImage").status == 500
    err = capsys.readouterr().err
    assert err.count("GET /object_info/SaveImage failed: ZeroDivisionError") == 1
    assert err.count("Traceback") == 1


def test_skipped_log_lines_are_counted(live, monkeypatch, capsys):
    clock = [1000.0]
    monkeypatch.setattr("uniworld.nodes.headless.serve.queue.terminal.time.monotonic", lambda: clock[0])
    said = [live.server.terminal.say_throttled("a", "It happens.") for _ in range(5)]
    clock[0] += 61
    said += [
        live.server.terminal.say_throttled("a", "It happens."),
        live.server.terminal.say_throttled("b", "Something else."),
    ]
    assert said == [True, False, False, False, False, True, True]
    err = capsys.readouterr().err.splitlines()
    assert err == ["It happens.", "It happens. (4 similar messages were skipped.)", "Something else."]


def test_errors_that_clients_cause_are_logged_once(live, opened, capsys):
    for _ in range(30):
        connect(live, opened, b"\x16\x03\x01 no HTTP at all\r\n\r\n").recv(1000)
    live.loop.call_soon_threadsafe(
        lambda: [
            live.loop.call_exception_handler({"message": "socket.accept() out of system resource"}) for _ in range(500)
        ]
    )
    assert live.get("/prompt").status == 200
    assert len(capsys.readouterr().err.splitlines()) < 10
