"""TLS sockets: calls over TLS, certificates renewed under a living connection."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ari_ha.adapters.certificates import Certificates
from ari_ha.adapters.sip import SipSockets
from ari_ha.core.ports.sip import SipBytes, SipFlowClosed
from ari_ha.sip.flow import Flow

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def certificate(directory: Path, name: str) -> Path:
    directory.mkdir(exist_ok=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem"), "-days", "2",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return directory


def of(directory: Path, ca: Path) -> Certificates:
    return Certificates(str(directory / "cert.pem"), str(directory / "key.pem"), str(ca))


async def until(check: Any) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.01)


def names(writer: asyncio.StreamWriter) -> bytes:
    return writer.get_extra_info("ssl_object").getpeercert(binary_form=True)


async def test_tls_both_ways_and_a_renewed_certificate(tmp_path: Path) -> None:
    ours, theirs = certificate(tmp_path / "a", "edge.example"), certificate(tmp_path / "b", "carrier.example")
    heard: list[Any] = []
    told: list[Any] = []
    edge, carrier = SipSockets(heard.append), SipSockets(told.append)
    certificates = of(ours, theirs / "cert.pem")
    await edge.listen_tls("public-tls", "127.0.0.1", 0, certificates)
    await carrier.listen_tls("l", "127.0.0.1", 0, of(theirs, ours / "cert.pem"))
    port, far = (s._doors[0].port for s in (edge, carrier))
    try:
        # we call a carrier: its name is checked
        edge.send(b"hello\r\n\r\n", Flow("public-tls", "tls", "127.0.0.1", far), "carrier.example")
        await until(lambda: any(isinstance(e, SipBytes) for e in told))
        edge.send(b"x", Flow("public-tls", "tls", "127.0.0.1", far + 1 if far < 65_535 else far - 1), "")
        await until(lambda: any(isinstance(e, SipFlowClosed) and e.refused for e in heard))
        # a phone calls us, and stays while the certificate is renewed
        client = ssl.create_default_context(cafile=str(ours / "cert.pem"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client,
                                                       server_hostname="edge.example")  # fmt: skip
        first = names(writer)
        assert certificates.reload() is False
        certificate(ours, "edge.example")
        assert certificates.reload() is True
        writer.write(b"still here\r\n\r\n")
        await until(lambda: any(isinstance(e, SipBytes) and b"still" in e.data for e in heard))
        flow = next(e.flow for e in heard if isinstance(e, SipBytes) and b"still" in e.data)
        edge.send(b"answer", flow)
        assert await reader.readexactly(6) == b"answer"
        client = ssl.create_default_context(cafile=str(ours / "cert.pem"))
        _, second = await asyncio.open_connection("127.0.0.1", port, ssl=client,
                                                  server_hostname="edge.example")  # fmt: skip
        assert names(second) != first
        # halves of two pairs are not taken
        (ours / "key.pem").write_text((theirs / "key.pem").read_text())
        with pytest.raises(ssl.SSLError):
            certificates.reload()
        writer.close()
        second.close()
    finally:
        edge.close()
        carrier.close()


async def test_a_carrier_with_another_name_is_not_called(tmp_path: Path) -> None:
    ours, theirs = certificate(tmp_path / "a", "edge.example"), certificate(tmp_path / "b", "carrier.example")
    heard: list[Any] = []
    told: list[Any] = []
    edge, carrier = SipSockets(heard.append), SipSockets(told.append)
    await edge.listen_tls("public-tls", "127.0.0.1", 0, of(ours, theirs / "cert.pem"))
    await carrier.listen_tls("l", "127.0.0.1", 0, of(theirs, ours / "cert.pem"))
    far = carrier._doors[0].port
    try:
        edge.send(b"INVITE secret", Flow("public-tls", "tls", "127.0.0.1", far), "other.example")
        await until(lambda: any(isinstance(e, SipFlowClosed) and e.refused for e in heard))
        assert not any(isinstance(e, SipBytes) for e in told)
    finally:
        edge.close()
        carrier.close()
