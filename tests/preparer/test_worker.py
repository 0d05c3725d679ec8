"""The preparer's work on whole files: what it ends, what it keeps of that, what it lets pass."""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from koa_preparer.app import Preparer
from koa_preparer.config import Config
from koa_preparer.store import File
from koa_preparer.worker.reading import read_file
from koa_shared.contracts import FilePrepared, FileWritten
from koa_shared.db import Database
from koa_shared.disks import Pulse
from koa_shared.errors import DependencyDown
from koa_shared.fits import read_structure
from koa_shared.ids import frame_id
from koa_shared.simulator.frames import Request, build

OpenDatabase = Callable[..., Database]
AT = datetime(2026, 11, 23, 9, 6, 38, 80_000, UTC)
STAGING = "koa-staging"


class Bucket:
    """An object store that may be away."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.away = False
        self.tries = 0

    async def put(self, bucket: str, key: str, *buffers: Any) -> None:
        await asyncio.sleep(0)
        self.tries += 1
        if self.away:
            raise DependencyDown("s3", "connection refused")
        assert bucket == STAGING
        self.objects[key] = b"".join(map(bytes, buffers))

    async def insist_on(self, bucket: str) -> None:
        """It is there."""


class Site:
    """A preparer with its lanes open, an instrument's disk, a bucket."""

    def __init__(self, preparer: Preparer, summit: Path) -> None:
        self.preparer, self.summit, self.bucket = preparer, summit, Bucket()
        preparer.worker.objects = self.bucket  # type: ignore[assignment]

    async def announce(self, path: str, data: bytes | None, instrument: str = "NIRES") -> str:
        file = self.summit / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            file.write_bytes(data)
        seen = file.stat()
        name = frame_id(path, seen.st_size, seen.st_mtime_ns)
        told = FileWritten(
            frame_id=name, path=path, size=seen.st_size, mtime_ns=seen.st_mtime_ns,
            source="test", instrument=instrument, detected=datetime.now(UTC), origin="live",
        )  # fmt: skip
        await self.preparer.db.write(self.preparer.store.announce, told, "")
        return name

    async def file(self, name: str) -> File:
        return await self.preparer.db.read(self.preparer.store.file, name)

    async def until(self, name: str, status: str, generation: int = 1) -> File:
        async with asyncio.timeout(20):
            while (row := await self.file(name)).status != status or row.generation != generation:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return row

    def kept(self, name: str, instrument: str = "NIRES") -> dict[str, bytes]:
        prefix = f"quarantine/{instrument}/{name}/1/"
        return {k.removeprefix(prefix): v for k, v in self.bucket.objects.items() if prefix in k}


@pytest.fixture
async def site(database: OpenDatabase, tmp_path: Path) -> AsyncIterator[Site]:
    config = Config(
        dev=True, database_url=database("preparer").url, path_map=f"/={tmp_path}/summit/",
        missing_seconds=0.2, ingestor_url="http://127.0.0.1:1",
    )  # fmt: skip
    preparer = Preparer(config)
    site = Site(preparer, tmp_path / "summit")
    async with preparer.workshop.open():
        yield site
    await preparer.http.aclose()
    preparer.db.close()


def frame(instrument: str = "NIRES", **more: Any) -> tuple[str, bytes]:
    source = {"NIRES": "nires_spec", "HIRES": "hires"}[instrument]
    kind = {"NIRES": "object", "HIRES": "bias"}[instrument]
    shot = build(instrument, Request(source, kind, 7, AT, 300_000, **more))
    return shot.path, b"".join(shot.parts)


def codes(row: File) -> list[str]:
    return [finding["code"] for finding in row.findings]


@pytest.mark.parametrize("fault", ["truncated", "text", "zero", "name"])
async def test_what_ends_invalid_is_kept_with_its_reasons(site: Site, fault: str) -> None:
    path, data = frame(fault=fault)
    name = await site.announce(path, data)
    row = await site.until(name, "INVALID")
    kept, file = site.kept(name), Path(path).name
    assert kept.keys() == {file, f"{file}.reasons.json"}
    assert kept[file] == data
    reasons = json.loads(kept[f"{file}.reasons.json"])
    assert (reasons["frame_id"], reasons["generation"], reasons["path"]) == (name, 1, path)
    assert (reasons["size"], reasons["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert codes(row) == ["QUARANTINED", *(found["code"] for found in reasons["findings"])]
    assert row.findings[0]["message"].endswith(f"{STAGING}/quarantine/NIRES/{name}/1/")
    assert row.findings[-1]["severity"] == "invalid"


async def test_what_was_never_read_has_nothing_to_keep(site: Site) -> None:
    path, _ = frame()
    (site.summit / path.lstrip("/")).mkdir(parents=True)
    name = await site.announce(path, None)
    row = await site.until(name, "INVALID")
    assert codes(row) == ["FITS_FILE_TYPE_ERROR"]
    assert site.bucket.objects == {}


async def test_nothing_is_said_before_it_is_kept(site: Site) -> None:
    site.bucket.away = True
    path, data = frame(fault="name")
    name = await site.announce(path, data)
    async with asyncio.timeout(10):
        while site.bucket.tries < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    row = await site.file(name)
    assert (row.status, row.findings, row.attempt) == ("PROCESSING", [], 0)
    site.bucket.away = False
    await site.until(name, "INVALID")
    assert site.kept(name)


async def test_a_release_tells_what_was_waived_by_whom_and_why(site: Site) -> None:
    path, data = frame(fault="name")
    name = await site.announce(path, data)
    await site.until(name, "INVALID")
    store, deed = site.preparer.store, ("night-operator", "renamed by the observer")
    order = {"waive": ["MISMATCHED_FILENAME"]}
    await site.preparer.db.write(store.again, name, "release", order, deed)
    row = await site.until(name, "TRANSFERRED", 2)
    text = "MISMATCHED_FILENAME by night-operator: renamed by the observer"
    said = [f["message"] for f in row.findings if f["code"] == "WAIVED"]
    assert said == [text]
    assert "MISMATCHED_FILENAME" in codes(row)
    manifest = next(v for k, v in site.bucket.objects.items() if k.endswith("manifest.json"))
    found = FilePrepared.model_validate_json(manifest).findings
    assert [f.message for f in found if f.code == "WAIVED"] == [text]
    [done] = await site.preparer.db.read(store.audit.last, name)
    assert (done["verb"], done["who"], done["why"]) == ("release", *deed)
    assert done["changed"]["waive"] == ["MISMATCHED_FILENAME"]
    again = await site.preparer.db.write(store.again, name, "reprocess", {}, ("other", "again"))
    assert again.options["waive"] == {"MISMATCHED_FILENAME": ": ".join(deed)}


async def test_an_operator_says_whose_a_frame_is(site: Site) -> None:
    """And what it was told is what the products say, whatever header and schedule do."""
    path, data = frame()
    name = await site.announce(path, data)
    first = await site.until(name, "TRANSFERRED")
    order = {"progid": "U777"}
    await site.preparer.db.write(site.preparer.store.again, name, "reprocess", order, ("sre", ""))
    second = await site.until(name, "TRANSFERRED", 2)
    told = [FilePrepared.model_validate(row.prepared) for row in (first, second)]
    assert told[0].program.progid != "U777"
    assert told[1].program.progid == "U777"
    assert "U777" in {card[1] for card in told[1].header if card[0] == "PROGID"}


@pytest.mark.parametrize("hdus", [1, 2, 3, 4])
async def test_a_hires_mosaic_cut_between_hdus_is_truncated(site: Site, hdus: int) -> None:
    path, data = frame("HIRES")
    whole = read_structure(data).hdus
    assert len(whole) == 4
    name = await site.announce(path, data[: whole[hdus - 1].end], "HIRES")
    row = await site.until(name, "TRANSFERRED" if hdus == 4 else "INVALID")
    assert ("TRUNCATED" in codes(row)) is (hdus < 4)


async def test_an_older_hires_frame_has_one_hdu(site: Site) -> None:
    path, data = frame("HIRES", cards={"DETECTOR": "Tektronix 2048 engineering", "NVIDINP": 1})
    alone = data[: read_structure(data).hdus[0].end]
    name = await site.announce(path, alone, "HIRES")
    row = await site.until(name, "TRANSFERRED")
    assert "TRUNCATED" not in codes(row)


async def test_a_mount_that_hangs_leaves_the_slots_to_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def read(path: str, most: int, pulse: Pulse) -> Any:
        if "nires" in path:
            go.wait(30)
        return read_file(path, most, pulse)

    monkeypatch.setattr("koa_shared.disks.SILENT", 0.3)
    monkeypatch.setattr("koa_preparer.worker.reading.read_file", read)
    path, data = frame()
    hung = [await site.announce(path.replace("0007", f"000{n}"), data) for n in range(5)]
    await asyncio.sleep(0.1)
    at, begun = time.monotonic(), await site.announce(*frame("HIRES"), "HIRES")
    await site.until(begun, "TRANSFERRED")
    assert time.monotonic() - at < 5, "as long as one read may hang"
    lane = site.preparer.workshop._lanes["prepare"]
    while len(lane.running) > 1:
        assert time.monotonic() - at < 5, "one is enough to look for the mount"
        await asyncio.sleep(0.02)
    go.set()
    for name in hung:
        row = await site.until(name, "INVALID")
        assert row.attempt == 0


async def test_frames_that_fail_alike_are_a_group_and_are_retried_as_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The night is not burnt: from the third frame on one attempt is enough."""
    broken, attempts = True, list[str]()

    async def gather(row: File, *_: Any) -> Any:
        attempts.append(row.frame_id)
        if broken:
            raise ZeroDivisionError(f"of frame {row.frame_id}")
        return await facts(row, *_)

    facts = site.preparer.worker._gather
    monkeypatch.setattr(site.preparer.worker, "_gather", gather)
    monkeypatch.setattr("koa_shared.jobs.workshop.backoff", lambda *_: 0.01)
    names = list[str]()
    for number in range(5):
        path, data = frame(cards={"SERIAL": number})
        at = path.replace("0007", f"{number:04}")
        names.append(await site.announce(at, data))
        row = await site.until(names[-1], "ERROR")
        assert codes(row)[-1] == "CODE_ERROR"
    assert [attempts.count(name) for name in names] == [5, 5, 1, 1, 1]
    rows = [await site.file(name) for name in names]
    [mark] = {row.fingerprint for row in rows}
    assert mark is not None
    assert mark.startswith("ZeroDivisionError-")
    broken = False
    store = site.preparer.store
    assert await site.preparer.db.write(store.retry_group, "another", ("sre", "")) == 0
    assert await site.preparer.db.write(store.retry_group, mark, ("sre", "mended")) == 5
    for name in names:
        row = await site.until(name, "INVALID", 2)  # as OFNAME is not their name
        assert row.fingerprint is None
    deeds = await site.preparer.db.read(store.audit.last)
    assert {(d["verb"], d["why"]) for d in deeds} == {("retry", "mended")}
    assert len(deeds) == 5
