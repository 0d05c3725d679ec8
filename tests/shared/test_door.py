"""What a service takes from a socket: heads, bodies, and how long they may take."""

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from koa_shared import service
from koa_shared.config import ServiceConfig
from koa_shared.web import Producer, build_app

ARRIVAL = 0.6
ASK = b"GET /v1/short HTTP/1.1\r\nHost: x\r\n"
router = APIRouter(prefix="/v1")


class Body(BaseModel):
    """A message."""

    text: str


@router.get("/short")
async def short() -> str:
    return "short"


@router.post("/take")
async def take(body: Body, _: Producer) -> int:
    return len(body.text)


@router.get("/long")
async def long() -> StreamingResponse:
    async def lines() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield b"tick\n"
            await asyncio.sleep(ARRIVAL / 3)
        yield b"end"

    return StreamingResponse(lines())


@pytest.fixture
async def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """Run a server as services do, with little patience."""
    monkeypatch.setattr(service, "ARRIVAL", ARRIVAL)
    tokens = tmp_path / "tokens.toml"
    digest = hashlib.sha256(b"make").hexdigest()
    tokens.write_text(f'[[token]]\nname = "m"\nrole = "producer"\nsha256 = "{digest}"\n')
    app = build_app("monitor", ServiceConfig(port=8001, tokens_file=tokens), None, router)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", **service.DOOR))
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:  # noqa: ASYNC110 (uvicorn tells no other way)
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


Talk = Callable[..., Any]


@pytest.fixture
def talk(port: int) -> Talk:
    """Send pieces, one behind the other, and return the answer and how long it took."""

    async def talk_(*pieces: bytes, pause: float = 0.0) -> tuple[bytes, float]:
        start = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def send() -> None:
            with suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(pause)

        sending, answer = asyncio.create_task(send()), b""
        with suppress(ConnectionError):
            async with asyncio.timeout(10):
                while piece := await reader.read(1 << 16):
                    answer += piece
        sending.cancel()
        writer.close()
        return answer, time.monotonic() - start

    return talk_


async def test_a_request(talk: Talk) -> None:
    answer, _ = await talk(ASK + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b'"short"')


@pytest.mark.parametrize(
    "head",
    [
        ASK + b"X: " + b"y" * (17 << 10),
        b"GET /v1/short?" + b"q=1&" * (100 << 10) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        ASK + b"".join(b"X%d: y\r\n" % n for n in range(4000)),
        b"\0" * (20 << 10),
    ],
    ids=["header", "query", "headers", "nonsense"],
)
async def test_a_head_that_is_too_large_is_refused(talk: Talk, head: bytes) -> None:
    answer, seconds = await talk(head)
    assert answer.startswith(b"HTTP/1.1 400")
    assert seconds < ARRIVAL


async def test_a_head_has_its_time(talk: Talk) -> None:
    for pieces in ([b""], [bytes([byte]) for byte in ASK * 3], [ASK] * 9):
        answer, seconds = await talk(*pieces, pause=ARRIVAL / 10)
        assert answer == b""
        assert ARRIVAL * 0.9 < seconds < ARRIVAL * 2


def sending(size: int, token: str = "make") -> bytes:
    return (
        f"POST /v1/take HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {size}\r\n\r\n"
    ).encode()


async def test_a_body_has_its_time(talk: Talk) -> None:
    answer, _ = await talk(sending(14).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
                           b'{"text": ', b'"ab"}', pause=ARRIVAL / 3)  # fmt: skip
    assert answer.endswith(b"2")
    answer, seconds = await talk(sending(9_000), *[b"x"] * 100, pause=ARRIVAL / 10)
    assert answer == b""
    assert ARRIVAL * 0.9 < seconds < ARRIVAL * 2


async def test_a_body_that_is_refused_is_not_read_for_ever(talk: Talk) -> None:
    for token, size, status in (("make", 10**12, b"413"), ("wrong", 10**6, b"401")):
        answer, seconds = await talk(
            sending(size, token), *[b"x" * 1000] * 1000, pause=ARRIVAL / 50
        )
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert seconds < ARRIVAL * 2


async def test_an_answer_may_take_longer_and_a_connection_is_kept(talk: Talk) -> None:
    answer, _ = await talk(b"GET /v1/long HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.count(b"tick") == 6
    assert b"end" in answer
    again = ASK + b"Connection: close\r\n\r\n"
    answer, _ = await talk(ASK + b"\r\n", again, pause=ARRIVAL * 1.5)
    assert answer.count(b'"short"') == 2


async def test_no_socket_of_the_web_is_opened(talk: Talk) -> None:
    answer, _ = await talk(
        ASK + b"Connection: close, Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200")
