"""Archived objects to a caller: whole or in part, straight from the store."""

import hashlib
import re
from collections.abc import AsyncIterator
from mimetypes import guess_type
from pathlib import PurePath
from typing import Any

from fastapi.responses import StreamingResponse

from koa_shared.objects import ObjectMissing

from .errors import NotArchived, ObjectDamaged, RangeNotSatisfiable
from .pipeline import archive_key

TYPES = {".fits": "application/fits", ".table": "text/plain", ".tbl": "text/plain"}
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return (first byte, length) of a Range header, None for the whole.

    Several ranges, another unit or nonsense are answered with the whole (RFC 9110 14.2).
    Raises RangeNotSatisfiable when the range lies outside.
    """
    match = _RANGE.match(header or "")
    first, last = match.groups() if match else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        return None
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise RangeNotSatisfiable(f"{header} of {size} bytes")
    return start, end - start


def media_type(name: str) -> str:
    """Return the media type of a product by its name."""
    return TYPES.get(PurePath(name).suffix) or guess_type(name)[0] or "application/octet-stream"


async def checked(
    context: Any, held: Any, product: dict[str, Any], chunks: AsyncIterator[bytes], *, whole: bool
) -> AsyncIterator[bytes]:
    """Yield an object's bytes; the last of a whole one only if it is what was archived.

    So wrong bytes make a client's download fail, by an answer or by a connection that ends
    too early.  Raises ObjectDamaged, and has the object read again, which marks it.
    """
    digest, last, what = hashlib.sha256(), b"", ""
    try:
        async for chunk in chunks:
            if last:
                yield last
            digest.update(chunk)
            last = chunk
        if whole and digest.hexdigest() != product["sha256"]:
            what = f"its SHA-256 is {digest.hexdigest()}, not {product['sha256']}"
    except ObjectMissing:
        what = "it is missing in the store"
    if what:
        await context.db.write(context.store.suspect, held.koaid)
        raise ObjectDamaged(held.koaid, product["name"], what)
    yield last


async def send(
    context: Any, archived: tuple[Any, Any], wanted: tuple[str, str], range_: str | None = None
) -> StreamingResponse:
    """Stream the first product that is `wanted`: ("name", ...) or ("role", ...)."""
    (frame, held), (key, value) = archived, wanted
    product = next((p for p in held.products if p[key] == value), None)
    if product is None:
        raise NotArchived(f"{held.koaid} has no product with the {key} {value!r}")
    name, size = product["name"], product["size"]
    where = archive_key((frame.instrument, frame.level, held.koaid, held.version), name)
    part = byte_range(range_, size)
    start, length = part or (0, size)
    if mark := await context.db.read(context.store.damage, held, name):
        raise ObjectDamaged(held.koaid, name, mark.found)
    chunks = context.objects.stream(context.config.archive_bucket, where, start, length)
    chunks = checked(context, held, product, chunks, whole=length == size)
    first = await anext(chunks, b"")  # what is wrong at once has an answer of its own

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(length),
        "ETag": f'"{product["sha256"]}"',
        "Content-Disposition": f'attachment; filename="{name}"',
        "X-Content-Type-Options": "nosniff",
    }
    if part:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
    return StreamingResponse(body(), 206 if part else 200, headers, media_type(name))
