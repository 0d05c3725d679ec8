"""The object store: the plain S3 API through the `minio` client (design 8).

The client blocks, so its calls run in a few threads.  Faults of the store are
DependencyDown; an object that is not there is ObjectMissing.
"""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from .config import S3Config
from .errors import DependencyDown

__all__ = ["Digest", "ObjectMissing", "ObjectStore", "Parts"]

T = TypeVar("T")

CHUNK = 1 << 20
# One request for most frames; a larger part would only be copied once more.
PART = 64 << 20
THREADS = 12


class ObjectMissing(Exception):
    """There is no such object."""


@dataclass(frozen=True, slots=True)
class Digest:
    """What reading an object back gave."""

    size: int
    sha256: str


class Parts(io.RawIOBase):
    """Several buffers read as one stream, none of them copied together."""

    def __init__(self, *buffers: bytes | bytearray | memoryview) -> None:
        super().__init__()
        self._views = [memoryview(b) for b in buffers if len(b)]
        self.size = sum(len(v) for v in self._views)

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, all that is left if negative."""
        out, wanted = [], self.size if size < 0 else size
        while wanted > 0 and self._views:
            head = self._views[0]
            out.append(head[:wanted])
            wanted -= len(out[-1])
            if len(out[-1]) == len(head):
                self._views.pop(0)
            else:
                self._views[0] = head[len(out[-1]) :]
        return b"".join(out)


class ObjectStore:
    """Objects by bucket and key; async in front, threads behind."""

    def __init__(self, config: S3Config, ca_file: str | None = None) -> None:
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
                timeout=urllib3.Timeout(connect=3, read=60),
                retries=False,
                cert_reqs="CERT_REQUIRED",
                ca_certs=ca_file,
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
        await self._call(
            self._client.put_object,
            bucket, key, stream, stream.size, part_size=PART,
        )  # fmt: skip

    async def copy(self, source: tuple[str, str], target: tuple[str, str]) -> None:
        """Copy within the store; the bytes do not pass through here."""
        await self._call(self._client.copy_object, *target, CopySource(*source))

    async def digest(self, bucket: str, key: str) -> Digest:
        """Read an object back and return its size and SHA-256."""
        return await self._call(self._digest, bucket, key)

    def _digest(self, bucket: str, key: str) -> Digest:
        sha, size = hashlib.sha256(), 0
        for chunk in self._chunks(bucket, key, 0, 0):
            sha.update(chunk)
            size += len(chunk)
        return Digest(size, sha.hexdigest())

    def _chunks(
        self, bucket: str, key: str, offset: int, length: int
    ) -> Iterator[bytes]:
        response = self._client.get_object(bucket, key, offset=offset, length=length)
        try:
            yield from response.stream(CHUNK)
        finally:
            response.close()
            response.release_conn()

    async def get(self, bucket: str, key: str) -> bytes:
        """Return a small object whole."""
        return await self._call(lambda: b"".join(self._chunks(bucket, key, 0, 0)))

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
        return await self._call(
            lambda: [
                str(o.object_name)
                for o in self._client.list_objects(bucket, prefix, recursive=True)
            ]
        )

    def close(self) -> None:
        """Give the threads back."""
        self._pool.shutdown()
