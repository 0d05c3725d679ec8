"""A proxy in front of the object store that does to requests what sick stores do."""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

Head = dict[str, str]
CHUNK = 1 << 16
ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>planted</Message></Error>'
# What is answered in the store's stead: status line and S3 code.
ANSWERS = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Slow Down", "SlowDown"),
    "full": ("507 Insufficient Storage", "XMinioStorageFull"),
    "revoked": ("403 Forbidden", "InvalidAccessKeyId"),
}
# Faults that only one kind of request can meet.
ONLY = {"full": "PUT", "wrong": "GET", "lost": "PUT", "cut": ""}


@dataclass
class Request:
    """The head of a request as it came."""

    line: str
    head: Head
    raw: bytes

    @property
    def method(self) -> str:
        return self.line.partition(" ")[0]

    @property
    def length(self) -> int:
        return int(self.head.get("content-length", 0))

    @property
    def is_upload(self) -> bool:
        """Whether it carries an object's bytes: neither a copy nor a bucket."""
        return self.method == "PUT" and self.length > 0


class Proxy:
    """Listens on `port`; `fault` is what happens to the requests that `meets` is true of."""

    def __init__(self, port: int, upstream: int) -> None:
        self.port, self.upstream = port, upstream
        self.fault, self.hits = "", 0
        self.meets: Callable[[Request], bool] = lambda _: True
        self._loop, self._tasks = asyncio.new_event_loop(), set[asyncio.Task[None]]()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait(5)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", self.port))
        started.set()
        self._loop.run_forever()

    def close(self) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)  # the loop alone would not keep it
        task.add_done_callback(self._tasks.discard)
        await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            raw = await reader.readuntil(b"\r\n\r\n")
            line, *fields = raw.decode("latin-1").strip().split("\r\n")
            pairs = (field.partition(":") for field in fields)
            request = Request(line, {k.lower(): v.strip() for k, _, v in pairs}, raw)
            fault = self._fault_for(request)
            self.hits += bool(fault)
            await self._answer(request, fault, reader, writer)
        writer.close()

    def _fault_for(self, request: Request) -> str:
        fault = self.fault
        if not fault or not self.meets(request):
            return ""
        if ONLY.get(fault, "") not in ("", request.method):
            return ""
        return "" if fault == "lost" and not request.is_upload else fault

    async def _answer(
        self, request: Request, fault: str,
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        if fault == "refuse":
            writer.transport.abort()
        elif fault in ANSWERS or fault == "lost":
            body = await reader.readexactly(request.length)
            writer.write(lie(body) if fault == "lost" else answer(*ANSWERS[fault]))
            await writer.drain()
        else:
            if fault == "slow":
                await asyncio.sleep(1.5)
            await self._pass(request, fault, reader, writer)

    async def _pass(
        self, request: Request, fault: str,
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        back, there = await asyncio.open_connection("127.0.0.1", self.upstream)
        # One request a connection: the answer ends where the connection does.
        there.write(request.raw[:-2] + b"Connection: close\r\n\r\n")
        left = request.length // 2 if fault == "cut" else request.length
        while left:
            chunk = await reader.read(min(CHUNK, left))
            left -= len(chunk)
            there.write(chunk)
            await there.drain()
        if fault == "cut" and request.length:
            there.transport.abort()
            writer.transport.abort()
            return
        head = await back.readuntil(b"\r\n\r\n")
        writer.write(head[:-2] + b"Connection: close\r\n\r\n")
        first = True
        while chunk := await back.read(CHUNK):
            if first and fault == "wrong" and head.startswith(b"HTTP/1.1 20"):
                chunk = bytes([chunk[0] ^ 1]) + chunk[1:]
            writer.write(chunk[: len(chunk) // 2] if fault == "cut" else chunk)
            first = False
            await writer.drain()
            if fault == "cut":
                break
        if fault == "cut":
            writer.transport.abort()
        there.close()


class Wire(Proxy):
    """Stands before a database's socket and passes every piece on `delay` seconds late."""

    def __init__(self, port: int, socket: str) -> None:
        self.socket, self.delay = socket, 0.0
        super().__init__(port, 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_unix_connection(self.socket)
        await asyncio.gather(self._pump(reader, there), self._pump(back, writer))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(CHUNK):
                self.hits += bool(self.delay)
                await asyncio.sleep(self.delay)
                sink.write(chunk)
                await sink.drain()
        sink.close()


def answer(status: str, code: str) -> bytes:
    """Return an S3 error document with its head."""
    body = ERROR.format(code=code).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def lie(body: bytes) -> bytes:
    """Return the answer of a store that says that it has what it threw away."""
    etag = hashlib.md5(body).hexdigest()
    head = f'HTTP/1.1 200 OK\r\nETag: "{etag}"\r\nConnection: close\r\n'
    return f"{head}Content-Length: 0\r\n\r\n".encode()
