"""The object store: the plain S3 API through the `minio` client (design 8).

The client blocks, so its calls run in a few threads.  Faults of the store are
DependencyDown; an object that is not there is ObjectMissing.
"""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from .config import S3Config
from .errors import DependencyDown

T = TypeVar("T")
CHUNK = 1 << 20
PART = 8 << 20  # three go at once: 38 MB in 231 ms, 140 MB in 776 (one request: 1148)
THREADS = 12


class ObjectMissing(Exception):
    """There is no such object."""


class Digest(NamedTuple):
    """What reading an object back gave: bytes, and SHA-256 in hex."""

    size: int
    sha256: str


class Parts(io.RawIOBase):
    """Several buffers read as one stream, never copied together as a whole."""

    def __init__(self, *buffers: bytes | memoryview) -> None:
        super().__init__()
        self._views = [memoryview(b) for b in buffers if len(b)]
        self.size = sum(map(len, self._views))

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, all that is left if negative."""
        out, wanted = [], self.size if size < 0 else size
        while wanted > 0 and self._views:
            head = self._views.pop(0)
            out.append(head[:wanted])
            if len(head) > wanted:
                self._views.insert(0, head[wanted:])
            wanted -= len(out[-1])
        return b"".join(out)


class ObjectStore:
    """Objects by bucket and key; async in front, threads behind."""

    def __init__(self, config: S3Config, ca_file: object = None) -> None:
        parts = urlsplit(config.s3_endpoint)
        self._client = Minio(
            endpoint=parts.netloc,
            access_key=config.s3_access_key.get_secret_value(),
            secret_key=config.s3_secret_key.get_secret_value(),
            region=config.s3_region,
            secure=parts.scheme == "https",
            http_client=urllib3.PoolManager(
                maxsize=THREADS,
                # The longest step is a 140 MB copy (2 s here); 60 s is a hung store.
                # `connect` also bounds each write of a body: a busy store stalls one.
                timeout=urllib3.Timeout(connect=20, read=60),
                retries=False,
                ca_certs=str(ca_file) if ca_file else None,
            ),
        )
        self._pool = ThreadPoolExecutor(THREADS, "s3")

    async def _call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        def call() -> T:
            try:
                return function(*args, **kwargs)
            except S3Error as error:
                if error.code in ("NoSuchKey", "NoSuchObject"):
                    raise ObjectMissing(error.object_name or str(args)) from error
                raise DependencyDown("s3", f"{error.code}: {error.message}") from error
            except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
                raise DependencyDown("s3", repr(error)) from error

        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def insist_on(self, bucket: str) -> None:
        """Make the bucket if it is not there; tries until the store answers."""
        while True:
            try:
                if not await self._call(self._client.bucket_exists, bucket):
                    await self._call(self._client.make_bucket, bucket)
            except DependencyDown:
                await asyncio.sleep(1)
            else:
                return

    async def put(self, bucket: str, key: str, *buffers: bytes | memoryview) -> None:
        """Store the buffers, one behind the other, as one object."""
        stream = Parts(*buffers)
        put = self._client.put_object
        await self._call(put, bucket, key, stream, stream.size, part_size=PART)

    async def copy(self, source: tuple[str, str], target: tuple[str, str]) -> None:
        """Copy within the store; the bytes do not pass through here."""
        await self._call(self._client.copy_object, *target, CopySource(*source))

    async def digest(self, bucket: str, key: str) -> Digest:
        """Read an object back and return its size and SHA-256."""

        def read() -> Digest:
            sha, size = hashlib.sha256(), 0
            for chunk in self._chunks(bucket, key):
                sha.update(chunk)
                size += len(chunk)
            return Digest(size, sha.hexdigest())

        return await self._call(read)

    def _chunks(self, *where: Any) -> Iterator[bytes]:
        response = self._client.get_object(*where)
        try:
            yield from response.stream(CHUNK)
        finally:
            response.close()
            response.release_conn()

    async def get(self, bucket: str, key: str) -> bytes:
        """Return an object whole."""
        return await self._call(lambda: b"".join(self._chunks(bucket, key)))

    async def stream(
        self, bucket: str, key: str, offset: int = 0, length: int = 0
    ) -> AsyncIterator[bytes]:
        """Yield an object's bytes, or `length` of them from `offset`."""
        chunks = self._chunks(bucket, key, offset, length)
        try:
            while chunk := await self._call(next, chunks, b""):
                yield chunk
        finally:
            await self._call(chunks.close)  # type: ignore[attr-defined]

    async def remove(self, bucket: str, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are no fault."""
        doomed = [DeleteObject(key) for key in keys]
        await self._call(lambda: list(self._client.remove_objects(bucket, doomed)))

    async def names(self, bucket: str, prefix: str) -> list[str]:
        """Return the keys under a prefix."""
        find = self._client.list_objects
        found = await self._call(lambda: list(find(bucket, prefix, recursive=True)))
        return [str(item.object_name) for item in found]

    def close(self) -> None:
        """Give the threads back."""
        self._pool.shutdown()
