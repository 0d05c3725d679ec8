"""Talk with the running observatory: JSON lines over a port of the loopback.

The port stands in a file, `control.json`, from when the keywords are served.  A client
sends one `Shoot`; it gets an `Entry` for each exposure taken, then `{"done": true}`,
or `{"error": "..."}` and nothing more.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field

from .dome import Dome, Order, Put
from .ledger import Entry

__all__ = ["NotRunning", "Refused", "Shoot", "serve", "shoot"]

logger = structlog.get_logger("koa_simulator")

LIMIT = 2**20  # bytes of one line


class NotRunning(Exception):
    """No simulated observatory answers."""


class Refused(Exception):
    """The observatory can't do that; the text says why."""


class Shoot(BaseModel):
    """So many exposures of one source, `interval` seconds apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instrument: str
    source: str | None = None
    n: int = Field(default=1, ge=1)
    interval: float = Field(default=0, ge=0)
    order: dict[str, Any] = Field(default={}, description="of Order, but the source")


@asynccontextmanager
async def serve(dome: Dome, put: Put, file: Path) -> AsyncIterator[None]:
    """Obey on a free port, told in `file`, while the context is open."""

    async def obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = Shoot.model_validate_json(await reader.readline())
            async for entry in _take(dome, put, request):
                await _say(writer, entry.model_dump_json())
            await _say(writer, json.dumps({"done": True}))
        except ConnectionError:
            logger.warning("Whoever asked for exposures is gone")
        except (ValueError, OSError) as error:
            await _say(writer, json.dumps({"error": str(error)}))
        finally:
            writer.close()

    server = await asyncio.start_server(obey, "127.0.0.1", 0, limit=LIMIT)
    _tell(file, server.sockets[0].getsockname()[1])
    try:
        yield
    finally:
        server.close()
        _forget(file)


def _tell(file: Path, port: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps({"port": port, "pid": os.getpid()}) + "\n")
    draft.replace(file)


def _forget(file: Path) -> None:
    if file.exists() and json.loads(file.read_text())["pid"] == os.getpid():
        file.unlink()


async def _say(writer: asyncio.StreamWriter, line: str) -> None:
    writer.write(line.encode() + b"\n")
    await writer.drain()


async def _take(dome: Dome, put: Put, request: Shoot) -> AsyncIterator[Entry]:
    name = dome.source_of(request.instrument.upper(), request.source)
    order = Order.model_validate({**request.order, "source": name})
    dome.check(order)
    for number in range(request.n):
        if number:
            await asyncio.sleep(request.interval)
        yield await dome.expose(order, put)


def _port(file: Path) -> int:
    port: int = json.loads(file.read_text())["port"]
    return port


async def shoot(file: Path, request: Shoot) -> AsyncIterator[Entry]:
    """Yield each exposure as it is taken; raises NotRunning or Refused."""
    try:
        port = _port(file)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LIMIT)
    except (OSError, ValueError, KeyError) as error:
        raise NotRunning(f"no observatory runs here ({file}: {error})") from error
    try:
        await _say(writer, request.model_dump_json())
        while (line := json.loads(await reader.readline() or b"{}")) != {"done": True}:
            if not line:
                raise NotRunning("the observatory ended meanwhile")
            if "error" in line:
                raise Refused(line["error"])
            yield Entry.model_validate(line)
    except ConnectionError as error:
        raise NotRunning("the observatory ended meanwhile") from error
    finally:
        writer.close()
