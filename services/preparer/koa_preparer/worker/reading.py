"""Raw files: read once, whole and unchanging; or rebuilt from the archive."""

import asyncio
import ctypes
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from koa_shared import fits
from koa_shared.contracts import utcnow
from koa_shared.db import Database
from koa_shared.disks import Disks, Pulse, contained
from koa_shared.errors import FrameFault, NotYet
from koa_shared.instruments import Instrument
from koa_shared.jobs.queue import Job
from koa_shared.objects import ObjectMissing, ObjectStore

from ..config import Config
from ..errors import RawGone
from ..pipeline import frame as make
from ..pipeline.instruments import structure_of
from ..store import File, Store

T = TypeVar("T")
CHUNK = 4 << 20  # bytes between two signs of life
LARGE = 32 << 20  # bytes of a file before which memory is tidied up, some ms
think = asyncio.to_thread  # runs what computes; disks, S3 and databases have own threads


class Raw(NamedTuple):
    """A file as it was read."""

    data: memoryview
    mtime_ns: int
    structure: fits.Structure


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the raw files of all instruments."""

    config: Config
    db: Database
    store: Store
    disks: Disks
    objects: ObjectStore
    instruments: dict[str, Instrument]

    async def read(self, row: File, job: Job) -> Raw:
        """Return the file, complete.

        Raises NotYet while it is missing or grows, FrameFault when it stays so.
        """
        fault, size = FrameFault("FITS_NOT_FOUND", f"there is no file {row.path}"), -1
        if (row.size, row.mtime_ns) == (0, 0):
            raise fault
        if row.generation > 1 and row.raw_sha256 and row.koaid:
            return await self._same_bytes(row)
        try:
            data, mtime_ns = await self.bytes(row)
            size = len(data)
            return Raw(data, mtime_ns, await self._examine(row, data))
        except FileNotFoundError:
            pass
        except PermissionError:  # set by the instrument when it is done, or by an operator
            fault = FrameFault("FITS_NOT_FOUND", f"{row.path} can't be read: permission denied")
        except fits.Incomplete as error:
            fault = FrameFault(error.code, str(error), error.step)  # without its traceback
            fault.data = error.data
        raise await self.look_again(job, size, fault)

    async def look_again(self, job: Job, size: int, fault: FrameFault) -> Exception:
        """Return what to raise: NotYet, or the fault once nothing has changed for long.

        `size` is what was seen in bytes, -1 if there was nothing.
        """
        since = await self.db.write(self.store.seen, job, size)
        waited = (utcnow() - since).total_seconds()
        if waited >= self.config.missing_seconds:
            return fault
        return NotYet(str(fault), min(max(waited / 2, 0.05), 5.0))

    async def bytes(self, row: File, name: str = "") -> tuple[memoryview, int]:
        """Return what the file (of a set: this one of it) holds now, and its mtime in ns."""
        most = self.config.bytes_in_flight
        read = lambda local, pulse: read_file(local, most, pulse)  # noqa: E731
        return await self.at(row.path + name, row.instrument, read, reduced=bool(row.level))

    async def at(
        self, path: str, name: str, work: Callable[[str, Pulse], T], *, reduced: bool = True
    ) -> T:
        """Do what works on an announced path of an instrument: its disk's threads do it."""
        instrument, local, pulse = self.instruments[name], self.disks.map.local(path), Pulse()
        own = ["/s", *instrument.roots, *(instrument.reduced_roots if reduced else ())]
        roots = self.disks.map.targets or own
        call = lambda: work(contained(local, roots), pulse)  # noqa: E731
        return await self.disks.run(path, name, call, pulse=pulse)

    async def _examine(self, row: File, data: memoryview) -> fits.Structure:
        try:
            return await think(structure_of, self.instruments[row.instrument], data)
        except FrameFault as fault:
            fault.data = data
            raise

    async def _same_bytes(self, row: File) -> Raw:
        """Return the recorded bytes again: from the disk, else from the archive."""
        try:
            data, _ = await self.bytes(row)
        except (OSError, FrameFault, NotYet):  # it is gone, or another file's by now
            data = memoryview(b"")
        if (await think(make.digests, data)).sha256 != row.raw_sha256:
            data = await self._from_archive(row)
        return Raw(data, row.read_mtime_ns or row.mtime_ns, await self._examine(row, data))

    async def _from_archive(self, row: File) -> memoryview:
        """Return raw_header + rest of the archived version that is these raw bytes."""
        bucket, koaid = self.config.archive_bucket, row.koaid or ""
        prefix = f"{row.instrument}/{koaid.split('.')[1]}/lev{row.level}/{koaid}/"
        for key in await self.objects.names(bucket, prefix):
            if key.endswith(".raw_header"):
                with suppress(ObjectMissing, fits.FitsError):  # another version may be whole
                    header = await self.objects.get(bucket, key)
                    file = await self.objects.get(bucket, f"{key.removesuffix('raw_header')}fits")
                    start = fits.read_structure(file).hdus[0].data_start
                    data = memoryview(header + file[start:])
                    if (await think(make.digests, data)).sha256 == row.raw_sha256:
                        return data
        raise RawGone(f"neither {row.path} nor the archive holds {row.raw_sha256}")


def read_file(path: str, most: int, pulse: Pulse) -> tuple[memoryview, int]:
    """Return a regular file's bytes and mtime in ns; raises NotYet if it changes."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            raise FrameFault("FITS_FILE_TYPE_ERROR", "this is not a regular file")
        if before.st_size > most:
            raise FrameFault("FILE_TOO_LARGE", f"{before.st_size} bytes; at most {most} are taken")
        if before.st_size > LARGE:
            # Give the system back what is free in this process: glibc keeps it, in small pieces.
            with suppress(AttributeError, OSError):
                ctypes.CDLL(None).malloc_trim(0)
        view, at = memoryview(bytearray(before.st_size)), 0
        while at < len(view) and (n := os.readv(handle, [view[at : at + CHUNK]])):
            at += n
            pulse.beat()
        after = os.fstat(handle)
    finally:
        os.close(handle)
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if at != len(view) or not same:
        raise NotYet("the file changed while it was read", 0.05)
    return view.toreadonly(), after.st_mtime_ns
