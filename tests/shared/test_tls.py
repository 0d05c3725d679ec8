"""A service with a certificate serves https, and https only."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from koa_ingestor.config import Config
from koa_shared.client import open_http

KOA_INGESTOR = Path(sys.executable).parent / "koa-ingestor"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=koa", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture(scope="module")
def port(certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an ingestor that has the certificate."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    cert, key = map(str, certificate)
    env = os.environ | {
        "KOA_DEV": "1", "KOA_PORT": str(port), "KOA_VAR": str(tmp_path_factory.mktemp("var")),
        "KOA_TLS_CERT_FILE": cert, "KOA_TLS_KEY_FILE": key,
    }  # fmt: skip
    subprocess.run([KOA_INGESTOR, "migrate"], env=env, check=True)
    process = subprocess.Popen([KOA_INGESTOR], env=env, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.05)
    yield port
    process.terminate()
    process.wait(15)


async def test_a_client_with_the_ca_reaches_it(port: int, certificate: tuple[Path, Path]) -> None:
    async with open_http(ca_file=certificate[0]) as http:
        answer = await http.get(f"https://127.0.0.1:{port}/readyz")
    assert answer.json() == {"ready": True, "dev": True}


async def test_a_client_without_it_does_not(port: int) -> None:
    async with open_http() as http:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await http.get(f"https://127.0.0.1:{port}/readyz")


async def test_nothing_is_served_in_clear(port: int) -> None:
    async with open_http() as http:
        with pytest.raises(httpx.TransportError):
            await http.get(f"http://127.0.0.1:{port}/readyz")


def test_a_certificate_needs_its_key(certificate: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="are given together"):
        Config(dev=True, tls_cert_file=certificate[0])
    with pytest.raises(ValueError, match="are given together"):
        Config(dev=True, tls_key_file=certificate[1])
