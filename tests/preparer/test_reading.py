"""Raw files: read whole, or rebuilt from the archive."""

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from koa_preparer.errors import RawGone
from koa_preparer.pipeline import frame as make
from koa_preparer.worker.reading import Reader, read_file
from koa_shared.config import PathMap
from koa_shared.contracts import utcnow
from koa_shared.disks import Pulse
from koa_shared.errors import FrameFault, NotYet
from koa_shared.fits import edit_header, read_structure
from koa_shared.objects import ObjectMissing

KOAID = "NR.20190615.12571.36"


class Archive:
    """Holds versions of one frame, as the ingestor laid them down."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def keep(self, version: int, raw: bytes) -> None:
        """Archive a version, with one keyword more in its header."""
        hdu = read_structure(raw).hdus[0]
        head = edit_header(raw, hdu, [("KOAID", KOAID, "")])
        prefix = f"NIRES/20190615/lev0/{KOAID}/v{version}/{KOAID}"
        self.objects[f"{prefix}.fits"] = head + raw[hdu.data_start :]
        self.objects[f"{prefix}.raw_header"] = raw[: hdu.data_start]

    async def names(self, bucket: str, prefix: str) -> list[str]:
        return [key for key in self.objects if key.startswith(prefix)]

    async def get(self, bucket: str, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(key)
        return self.objects[key]


async def at_once(path: str, group: str, function: Callable[[], Any], **more: Any) -> Any:
    return function()


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def reader(tmp_path: Path, archive: Archive) -> Any:
    fakes: Any = SimpleNamespace(
        config=SimpleNamespace(
            archive_bucket="archive", bytes_in_flight=1 << 20, missing_seconds=120
        ),
        db=SimpleNamespace(), store=SimpleNamespace(seen=None),
        disks=SimpleNamespace(map=PathMap(f"/={tmp_path}/"), run=at_once), objects=archive,
        instruments={"NIRES": SimpleNamespace(roots=(), min_hdus=())},
    )  # fmt: skip
    return Reader(**vars(fakes))


def row_of(raw: bytes) -> Any:
    """Return a frame that is prepared again; its file was read at 5 ns."""
    return SimpleNamespace(
        path="/f.fits", instrument="NIRES", size=len(raw), mtime_ns=3, generation=2, level=0,
        raw_sha256=make.digests(raw).sha256, koaid=KOAID, read_mtime_ns=5,
    )  # fmt: skip


async def test_the_same_bytes_come_from_the_disk_or_the_archive(
    tmp_path: Path, reader: Any, archive: Archive, make_file: Any
) -> None:
    raw, other = make_file({"OBJECT": "one"}), make_file({"OBJECT": "two"})
    (tmp_path / "f.fits").write_bytes(raw)
    assert (await reader.read(row_of(raw), None)).data == raw
    archive.keep(1, other)
    archive.keep(2, raw)
    for change in (lambda f: f.write_bytes(other), Path.unlink):
        change(tmp_path / "f.fits")
        found = await reader.read(row_of(raw), None)
        assert (found.data, found.mtime_ns, len(found.structure.hdus)) == (raw, 5, 1)
    with pytest.raises(RawGone):
        await reader.read(row_of(make_file({"OBJECT": "three"})), None)


@pytest.mark.parametrize("damage", [None, b"", b"nonsense" * 720, 0, 100])
async def test_a_damaged_version_does_not_hide_a_good_one(
    reader: Any, archive: Archive, make_file: Any, damage: Any
) -> None:
    raw = make_file({"OBJECT": "one"})
    archive.keep(1, raw)
    archive.keep(2, raw)
    key = f"NIRES/20190615/lev0/{KOAID}/v1/{KOAID}.fits"
    if damage is None:
        del archive.objects[key]
    elif isinstance(damage, bytes):
        archive.objects[key] = damage
    else:
        good = archive.objects[key]
        archive.objects[key] = good[:damage] + b"\0" + good[damage + 1 :]
    assert (await reader.read(row_of(raw), None)).data == raw


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FrameFault, match="not a regular file"):
        read_file(str(tmp_path / "fifo"), 100, Pulse())


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "f.fits"
    file.write_bytes(bytes(100))
    assert len(read_file(str(file), 100, Pulse())[0]) == 100
    os.truncate(file, 10**13)  # a hole; no memory holds it
    with pytest.raises(FrameFault, match="10000000000000 bytes; at most 100") as caught:
        read_file(str(file), 100, Pulse())
    assert caught.value.code == "FILE_TOO_LARGE"


@pytest.mark.parametrize(
    ("error", "reason"),
    [(FileNotFoundError, "there is no file /f.fits"), (PermissionError, "/f.fits can't be read")],
)
async def test_what_can_not_be_read_is_waited_for_and_then_at_fault(
    reader: Any, make_file: Any, error: type[OSError], reason: str
) -> None:
    """An instrument may set a file's rights after it wrote it: no attempt is lost by that."""
    row, since = row_of(b""), utcnow()
    row.generation = 1

    async def fail(path: str, group: str, function: Any, **_: Any) -> Any:
        raise error(13, "no")

    async def seen(*_: object) -> datetime:
        return since

    reader.disks.run, reader.db.write = fail, seen
    with pytest.raises(NotYet, match=reason):
        await reader.read(row, None)
    since -= timedelta(seconds=121)
    with pytest.raises(FrameFault, match=reason) as fault:
        await reader.read(row, None)
    assert fault.value.code == "FITS_NOT_FOUND"


async def test_only_reduced_files_may_lie_below_reduced_roots(reader: Any, tmp_path: Path) -> None:
    home = tmp_path / "data_drp"
    home.mkdir()
    (home / "x.fits").write_bytes(b"x")
    reader.disks.map = PathMap()
    reader.instruments["KPF"] = SimpleNamespace(roots=(), reduced_roots=(str(home),))
    row = SimpleNamespace(path=str(home), instrument="KPF", level=2)
    assert (await reader.bytes(row, "/x.fits"))[0] == b"x"
    row.level = 0
    with pytest.raises(FrameFault, match="outside the data roots"):
        await reader.bytes(row, "/x.fits")
    row.level = 1
    with pytest.raises(FrameFault, match="outside the data roots"):
        await reader.bytes(row, "/../other")
