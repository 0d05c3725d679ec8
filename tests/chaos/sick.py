"""A FUSE pass-through that hangs or fails on demand: `sick.py BACKING MOUNT FLAG`.

FLAG holds the sickness: nothing, `hang`, or the name of an errno.
"""

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import mfusepy as fuse

BACKING, MOUNT, FLAG = sys.argv[1:4]


def be_sick(*well: str) -> None:
    """Hang while FLAG says so, or fail as it says, unless that is among `well`."""
    while (mode := Path(FLAG).read_text() if Path(FLAG).exists() else "") == "hang":
        time.sleep(0.1)
    if mode and mode not in well:
        raise fuse.FuseOSError(getattr(errno, mode))


class Passthrough(fuse.Operations):  # type: ignore[misc]
    """What the monitor and the preparer need of a disk."""

    def real(self, path: str) -> str:
        return BACKING + path

    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        be_sick("EACCES")  # may be seen and not read
        try:
            found = os.lstat(self.real(path))
        except OSError as error:
            raise fuse.FuseOSError(error.errno) from error
        names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size")
        times = {f"st_{k}time": getattr(found, f"st_{k}time_ns") for k in "amc"}
        return {name: getattr(found, name) for name in names} | times

    def readdir(self, path: str, fh: Any) -> list[str]:
        be_sick("EACCES")
        return [".", "..", *(item.name for item in Path(self.real(path)).iterdir())]

    def open(self, path: str, flags: int) -> int:
        be_sick()
        return os.open(self.real(path), flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        be_sick()
        return os.pread(fh, size, offset)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self.real(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)

    def mkdir(self, path: str, mode: int) -> None:
        Path(self.real(path)).mkdir(mode)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: Any = None) -> None:
        os.truncate(self.real(path), length)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    use_ns = True


fuse.FUSE(Passthrough(), MOUNT, foreground=True, attr_timeout=0, entry_timeout=0)
