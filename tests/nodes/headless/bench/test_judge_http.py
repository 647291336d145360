"""The client that sends requests to a judge uses the environment's certificates, but no proxy on this machine."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from uniworld.nodes.headless.bench.judging.http import http_client
from uniworld.uniworld_core.errors import UniWorldError

pytest.importorskip("openai")


async def _status(certificate: Path, key: Path) -> int:
    """Serve one response over HTTPS with a certificate that only the environment knows, and return its status."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server, http_client(local=True) as client:
        response = await client.get(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        return int(response.status_code)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_judge_on_this_machine_may_have_a_certificate_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=judge", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert asyncio.run(_status(certificate, key)) == 200
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(Exception, match=r"CERTIFICATE_VERIFY_FAILED"):
        asyncio.run(_status(certificate, key))


@pytest.mark.parametrize("local", [True, False])
def test_a_certificate_file_that_does_not_exist_is_named(
    local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(UniWorldError, match="SSL_CERT_FILE"):
        http_client(local)
