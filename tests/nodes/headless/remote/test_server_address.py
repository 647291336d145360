"""Addresses of servers, and the token."""

from __future__ import annotations

import pytest
from uniworld.nodes.headless.remote.address import (
    read_address,
    read_addresses,
    read_token,
    warn_of_exposed_token,
)
from uniworld.uniworld_core.errors import UniWorldError


@pytest.mark.parametrize(("text", "url", "loopback"), [
    ("http://127.0.0.1:8188", "http://127.0.0.1:8188", True), ("127.0.0.1:8188/", "http://127.0.0.1:8188", True),
    ("HTTP://LocalHost:8188", "http://localhost:8188", True), ("https://host.example/comfy/", "https://host.example/comfy", False),
    ("[::1]:8188", "http://[::1]:8188", True), ("http://192.168.1.20:80", "http://192.168.1.20", False),
    ("https://host.example:443", "https://host.example", False),
])  # fmt: skip
def test_an_address(text, url, loopback):
    address = read_address(text)
    assert (address.url, address.loopback) == (url, loopback)
    assert address.encrypted == url.startswith("https")


@pytest.mark.parametrize("text", [
    "", "http://", "ftp://host", "http://host:99999", "http://host:x", "http://a b", "http://host/?token=x", "http://host/#x",
    "http://user:secret@host", "http://[::1", "http://host\n:1",
])  # fmt: skip
def test_no_address(text):
    with pytest.raises(UniWorldError) as raised:
        read_address(text)
    assert "secret" not in str(raised.value)


def test_equal_addresses_are_one():
    assert [one.url for one in read_addresses(["a:1", "http://A:1/", "b:1"])] == ["http://a:1", "http://b:1"]


def test_the_token_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("UNIWORLD_TOKEN", raising=False)
    assert read_token() is None
    monkeypatch.setenv("UNIWORLD_TOKEN", " secret123\n")
    assert read_token() == "secret123"
    for wrong in ("a b", "a\nb", "gehêim"):
        monkeypatch.setenv("UNIWORLD_TOKEN", wrong)
        with pytest.raises(UniWorldError, match="UNIWORLD_TOKEN"):
            read_token()


def test_a_token_in_the_open_is_warned_of(capsys):
    addresses = read_addresses(["127.0.0.1:1", "https://host.example", "http://host.example:8188"])
    warn_of_exposed_token(addresses, None)
    assert capsys.readouterr().err == ""
    warn_of_exposed_token(addresses, "secret123")
    err = capsys.readouterr().err
    assert err.startswith("warning: the token of UNIWORLD_TOKEN is sent unencrypted to http://host.example:8188.")
    assert len(err.splitlines()) == 1
    assert "secret123" not in err
