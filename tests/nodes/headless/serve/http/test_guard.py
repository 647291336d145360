"""Access control by host name, origin and token, and the form of error responses."""

from __future__ import annotations

import re
import socket

import pytest
from uniworld.nodes.headless.serve.config import is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:80", "127.9.9.9", "app.localhost"])
def test_names_of_this_machine_are_accepted(live, host):
    assert live.get("/prompt", Host=host).status == 200


NAME = socket.gethostname().lower()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8188", "localhost", "[::1]:8188", "192.168.1.5:8188", "10.0.0.1", "[fe80::1]", NAME, f"{NAME.upper()}.:8188",
     f"{NAME.partition('.')[0]}.local", "my.machine", "MY.machine.:1"],
)  # fmt: skip
def test_on_the_network_without_a_token_addresses_and_own_names_are_accepted(open_to_all, host):
    assert open_to_all.get("/prompt", Host=host).status == 200
    if host == host.lower() and not host.endswith("."):
        assert open_to_all.get("/prompt", Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8188", "1.2.3.4.evil.example", "localhost.evil.example", f"{NAME.partition('.')[0]}.evil.example",
     "my.machine.evil.example", "", "[", "a:b:c", "0x7f.1.evil", "other.machine", "evil.example@localhost",
     "localhost/evil.example", "localhost?evil", "localhost#evil"],
)  # fmt: skip
def test_on_the_network_without_a_token_other_names_are_rejected(open_to_all, host):
    reply = open_to_all.get("/prompt", Host=host)
    assert (reply.status, reply.error) == (403, "forbidden")
    assert "--allow-host" in reply.json["error"]["message"] or not host


@pytest.fixture
def open_to_all(start):
    return start(listen="0.0.0.0", token=None, hosts=("my.machine",))


def test_a_name_can_be_allowed_on_loopback(start):
    live = start(hosts=("proxy.example",))
    assert live.get("/prompt", Host="proxy.example").status == 200
    assert live.get("/prompt", Host="evil.example").status == 403


@pytest.mark.parametrize(
    ("host", "origin", "proto", "status"),
    [
        ("127.0.0.1", "http://127.0.0.1", None, 200), ("127.0.0.1", "https://127.0.0.1", None, 403),
        ("127.0.0.1:443", "https://127.0.0.1", None, 403), ("127.0.0.1:8188", "https://127.0.0.1:8188", None, 403),
        ("127.0.0.1:8188", "ws://127.0.0.1:8188", None, 403), ("127.0.0.1", "https://127.0.0.1", "https", 200),
        ("127.0.0.1:80", "http://127.0.0.1", "http", 200), ("127.0.0.1", "http://127.0.0.1", "https", 403),
        ("127.0.0.1", "https://127.0.0.1", "https, http", 200), ("127.0.0.1", "https://127.0.0.1", "gopher", 403),
    ],
)  # fmt: skip
def test_the_origin_is_compared_with_its_scheme(live, host, origin, proto, status):
    headers = {"Host": host, "Origin": origin} | ({"X-Forwarded-Proto": proto} if proto else {})
    assert live.get("/prompt", **headers).status == status


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8188", "localhost.evil.example", "10.0.0.1", "", "[", "a:b:c"]
)
def test_other_names_are_rejected_on_loopback(live, host):
    reply = live.get("/prompt", Host=host)
    assert (reply.status, reply.error) == (403, "forbidden")


def test_a_page_of_another_site_is_rejected(live):
    mine = f"127.0.0.1:{live.port}"
    assert live.get("/prompt", Origin=f"http://{mine}", Host=mine).status == 200
    for origin in (
        "http://evil.example", "null", f"http://localhost:{live.port}", "http://127.0.0.1", f"http://127.0.0.1:{live.port + 1}",
        "http://[", "", "file://", f"http://{mine}.evil.example",
    ):  # fmt: skip
        for method, path in (("POST", "/prompt"), ("GET", "/object_info"), ("GET", "/ws"), ("DELETE", "/userdata/x")):
            reply = live.ask(method, path, headers={"Origin": origin, "Host": mine})
            assert reply.status == 403, origin


def test_pictures_in_pages_of_other_sites_are_rejected(live):
    assert live.get("/view?filename=cat.jpg&type=input", **{"Sec-Fetch-Site": "cross-site"}).status == 403
    assert live.get("/", **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status == 200
    assert live.get("/prompt", **{"Sec-Fetch-Site": "same-origin"}).status == 200


def test_no_cors_header_is_sent(live):
    reply = live.get("/prompt")
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert "connect-src 'self'" in reply.headers["content-security-policy"]
    assert live.ask("OPTIONS", "/prompt").status == 405


@pytest.fixture
def locked(start):
    return start(token="correct horse")


def test_the_token_is_required_everywhere(locked):
    for path in ("/", "/prompt", "/api/view", "/ws", "/metrics", "/openapi.json", "/assets/index-1.js"):
        reply = locked.get(path)
        assert (reply.status, reply.error) == (401, "token_needed")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert "correct horse" not in str(reply)


def test_the_token_in_the_header_or_the_url(locked):
    assert locked.get("/prompt", Authorization="Bearer correct horse").status == 200
    assert locked.get("/prompt?token=correct+horse").status == 200
    for wrong in ("Bearer wrong", "Bearer", "Basic correct horse", "correct horse", "Bearer é"):
        assert locked.get("/prompt", Authorization=wrong).status == 401
    assert locked.get("/prompt?token=wrong").status == 401
    assert locked.get("/prompt?token=%ff").status == 401


def test_the_page_gets_the_token_as_a_cookie(locked):
    reply = locked.get("/?token=correct+horse&template=edit")
    assert (reply.status, reply.headers["location"]) == (303, "/?template=edit")
    cookie = reply.headers["set-cookie"]
    assert re.search("HttpOnly", cookie)
    assert re.search("SameSite=Lax", cookie)
    shown = cookie.partition(";")[0]
    assert shown.startswith(f"uniworld_token_{locked.port}=")
    assert locked.get("/prompt", Cookie=shown).status == 200
    assert locked.get("/prompt", Cookie=shown.partition("=")[0] + "=wrong").status == 401


def test_the_token_is_never_revealed(locked):
    headers = {"Authorization": "Bearer correct horse"}
    for path in ("/system_stats", "/features", "/openapi.json", "/metrics", "/internal/logs", "/settings"):
        assert b"correct" not in locked.get(path, **headers).body


def test_with_a_token_any_name_is_accepted_on_the_network(start):
    assert (
        start(listen="0.0.0.0", token="correct horse").get("/prompt?token=correct+horse", Host="my.machine").status
        == 200
    )


def test_error_responses_are_json(live):
    wrong = [("GET", "/nothing", 404), ("POST", "/nothing", 404), ("GET", "/api/nothing", 404), ("PUT", "/prompt", 405)]
    for method, path, status in [*wrong, ("GET", "/interrupt", 405), ("POST", "/", 405)]:
        reply = live.ask(method, path)
        assert reply.status == status
        assert reply.json["error"]["message"]
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_bug_is_a_500_without_a_traceback(live, monkeypatch, capsys):
    monkeypatch.setattr(live.server.registry, "info", lambda name: 1 / 0)
    reply = live.get("/object_info/SaveImage")
    assert (reply.status, reply.error) == (500, "server_error")
    assert "Traceback" not in reply.body.decode()


@pytest.mark.parametrize(
    "path", ["/assets/..%2F..%2Fx", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/assets"]
)
def test_static_files_do_not_leave_their_folder(live, path):
    assert live.get(path).status in (400, 403, 404)


@pytest.mark.parametrize(
    ("host", "answer"), [("::1", True), ("127.0.0.2", True), ("0.0.0.0", False), ("example.org", False)]
)
def test_loopback_addresses(host, answer):
    assert is_loopback(host) is answer


@pytest.mark.parametrize("path", ["/prompt", "/settings", "/history"])
def test_a_body_that_cannot_be_decoded_is_a_400(live, path):
    reply = live.ask("POST", path, body=b"no deflate", headers={"Content-Encoding": "deflate"})
    assert (reply.status, reply.error) == (400, "invalid_body")
