"""The object store: the plain S3 API through the `minio` client (design 8).

The client blocks, so its calls run in a few threads.  Faults of the store are
DependencyDown; an object that is not there is ObjectMissing.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from . import faults
from .config import S3Config
from .errors import DependencyDown

T = TypeVar("T")
CHUNK = 1 << 20
PART = 5 << 20  # three go at once, one waits; as fast as 8 MB: 38 MB in 0.18 s, 140 in 0.66
THREADS = 12


class ObjectMissing(Exception):
    """There is no such object; of a frame it is one that staging should hold."""

    finding = "STAGING_MISSING"


class Parts:
    """Several buffers read as one stream, never copied together as a whole."""

    def __init__(self, *buffers: bytes | memoryview) -> None:
        self._views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        self.size = sum(map(len, self._views))

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes of what is left, never from two buffers at once."""
        head = self._views.pop(0) if self._views else memoryview(b"")
        if len(head) > size:
            self._views.insert(0, head[size:])
        return bytes(head[:size])


class ObjectStore:
    """Objects by bucket and key; async in front, threads behind."""

    def __init__(
        self, config: S3Config, ca_file: Path | None = None,
        timer: Callable[[str], Any] = nullcontext,
    ) -> None:  # fmt: skip
        self.timer = timer
        endpoint = urlsplit(config.s3_endpoint)
        # The longest step is a 140 MB copy (2 s here); 60 s is a hung store.
        # `connect` also bounds each write of a body: a busy store stalls one.
        patience = urllib3.Timeout(connect=20, read=60)
        certificates = str(ca_file) if ca_file else None
        self._client = Minio(
            endpoint=endpoint.netloc,
            access_key=config.s3_access_key.get_secret_value(),
            secret_key=config.s3_secret_key.get_secret_value(),
            region=config.s3_region,
            secure=endpoint.scheme == "https",
            http_client=urllib3.PoolManager(
                maxsize=THREADS, timeout=patience, retries=False, ca_certs=certificates
            ),
        )
        self._pool = ThreadPoolExecutor(THREADS, "s3")

    async def _call(self, name: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        def call() -> T:
            try:
                with faults.around("s3", function):
                    return function(*args, **kwargs)
            except S3Error as error:
                if error.code in ("NoSuchKey", "NoSuchObject"):
                    raise ObjectMissing(error.object_name or str(args)) from error
                raise DependencyDown("s3", f"{error.code}: {error.message}") from error
            except (MinioException, urllib3.exceptions.HTTPError, OSError, ParseError) as error:
                raise DependencyDown("s3", repr(error)) from error

        with self.timer(name):
            return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def insist_on(self, bucket: str) -> None:
        """Make the bucket if it is not there; tries until the store answers."""
        while True:
            with suppress(DependencyDown):
                if not await self._call("bucket", self._client.bucket_exists, bucket):
                    await self._call("bucket", self._client.make_bucket, bucket)
                return
            await asyncio.sleep(1)

    async def put(self, bucket: str, key: str, *buffers: bytes | memoryview) -> None:
        """Store the buffers, one behind the other, as one object."""
        data, put = Parts(*buffers), self._client.put_object
        await self._call("put", put, bucket, key, data, data.size, part_size=PART)

    async def copy(self, source: tuple[str, str], target: tuple[str, str]) -> None:
        """Copy within the store; the bytes do not pass through here."""
        await self._call("copy", self._client.copy_object, *target, CopySource(*source))

    async def digest(self, bucket: str, key: str) -> tuple[int, str]:
        """Read an object back and return its size and SHA-256."""

        def read() -> tuple[int, str]:
            sha, size = hashlib.sha256(), 0
            for chunk in self._chunks(bucket, key):
                sha.update(chunk)
                size += len(chunk)
            return size, sha.hexdigest()

        return await self._call("digest", read)

    async def size(self, bucket: str, key: str) -> int:
        """Return how large an object is."""
        return (await self._call("stat", self._client.stat_object, bucket, key)).size or 0

    def _chunks(self, *where: Any) -> Generator[bytes, None, None]:
        response = self._client.get_object(*where)
        try:
            yield from response.stream(CHUNK)
        finally:
            response.close()
            response.release_conn()

    async def get(self, bucket: str, key: str) -> bytes:
        """Return an object whole."""
        return await self._call("get", lambda: b"".join(self._chunks(bucket, key)))

    async def stream(
        self, bucket: str, key: str, offset: int = 0, length: int = 0
    ) -> AsyncIterator[bytes]:
        """Yield an object's bytes, or `length` of them from `offset`."""
        chunks = self._chunks(bucket, key, offset, length)
        try:
            while chunk := await self._call("stream", next, chunks, b""):
                yield chunk
        finally:
            await self._call("stream", chunks.close)

    async def remove(self, bucket: str, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are no fault."""
        doomed = [DeleteObject(key) for key in keys]
        remove = self._client.remove_objects
        if kept := await self._call("remove", lambda: list(remove(bucket, doomed))):
            raise DependencyDown("s3", f"{kept[0].name} was not deleted: {kept[0].message}")

    async def names(self, bucket: str, prefix: str) -> dict[str, datetime]:
        """Return the keys under a prefix, and when each was written."""
        find = self._client.list_objects
        found = await self._call("list", lambda: list(find(bucket, prefix, recursive=True)))
        return {str(item.object_name): cast("datetime", item.last_modified) for item in found}

    async def folders(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the prefixes that end with the next `/` behind a prefix."""
        found = await self._call("list", lambda: list(self._client.list_objects(bucket, prefix)))
        return [str(item.object_name) for item in found if item.is_dir]
