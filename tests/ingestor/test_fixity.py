"""Fixity on both engines: what a scrub reads, marks, clears; what a download does then."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest
from sqlmodel import Session, update

from koa_ingestor import worker
from koa_ingestor.app import Ingestor, create_app
from koa_ingestor.config import Config
from koa_ingestor.pipeline import archive_key
from koa_ingestor.store import fixity
from koa_ingestor.store.fixity import ALL
from koa_ingestor.store.schema import Version
from koa_shared.contracts import FilePrepared, Timeline, utcnow
from koa_shared.db import Database
from koa_shared.errors import DependencyDown, LeaseLost
from koa_shared.jobs.queue import Job
from koa_shared.objects import CHUNK, ObjectMissing

KOAID = "KB.20251208.43200.00"
OpenDatabase = Callable[..., Database]
New = Callable[..., Any]


class Bucket:
    """Objects by key, as `ObjectStore` shows them; some can't be read, or nothing can."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.broken: set[str] = set()
        self.is_down = False
        self.reads: list[tuple[float, int]] = []

    def _of(self, key: str) -> bytes:
        if self.is_down or key in self.broken:
            raise DependencyDown("s3", "InternalError: no")
        if key not in self.kept:
            raise ObjectMissing(key)
        return self.kept[key]

    async def size(self, _: str, key: str) -> int:
        return len(self._of(key))

    async def names(self, _: str, prefix: str) -> dict[str, datetime]:
        if self.is_down:
            raise DependencyDown("s3", "refused")
        return {key: datetime.now(UTC) for key in self.kept if key.startswith(prefix)}

    async def stream(
        self, _: str, key: str, offset: int = 0, length: int = 0
    ) -> AsyncIterator[bytes]:
        data = self._of(key)[offset:][: length or None]
        self.reads.append((time.monotonic(), len(data)))
        for at in range(0, len(data), CHUNK):
            yield data[at : at + CHUNK]


class Site:
    """An ingestor in this process on a bucket in memory; no lane runs."""

    def __init__(self, context: Ingestor, app: Any) -> None:
        self.context, self.db, self.store = context, context.db, context.store
        self.bucket = Bucket()
        context.objects = context.worker.objects = self.bucket  # type: ignore[assignment]
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://ingestor")

    async def archive(
        self, prepared: FilePrepared, *contents: bytes, names: tuple[str, ...] = (".fits", ".jpg")
    ) -> int:
        """Archive a frame with these products; return its version."""
        products = [
            {
                "name": prepared.koaid + name, "role": "fits" if name == ".fits" else "preview",
                "key": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
                "md5": "0" * 32,
            }
            for name, data in zip(names, contents, strict=False)
        ]  # fmt: skip
        whole = FilePrepared.model_validate(prepared.model_dump() | {"products": products})
        await self.db.write(self.store.hand_over, whole, "")
        job = await self.db.write(self.store.queue.claim, "ingest")
        assert job is not None
        _, _, held = await self.db.write(self.store.begin, job)
        assert held is not None
        for product, data in zip(whole.products, contents, strict=False):
            where = (whole.instrument, whole.level, whole.koaid, held.version)
            self.bucket.kept[archive_key(where, product.name)] = data
        await self.db.write(self.store.commit, job, whole, held.version, Timeline())
        return held.version

    def key(self, name: str, version: int = 1) -> str:
        return archive_key(("KCWI", 0, KOAID, version), KOAID + name)

    async def scrub(self) -> Job:
        """Claim the next scrub and do it."""
        job = await self.db.write(self.store.queue.claim, "scrub")
        assert job is not None
        await self.context.worker.scrub(job)
        return job

    async def order(self, koaid: str | None = None) -> Job:
        answer = await self.http.post("/v1/scrub", json={"koaid": koaid, "why": "a test"})
        assert answer.status_code == 202, answer.text
        assert answer.json() == {"scrub": koaid or ALL}
        return await self.scrub()

    async def marks(self) -> dict[tuple[int, str], str]:
        state = (await self.http.get("/v1/scrub")).json()
        return {(m["version"], m["product"]): m["found"] for m in state["damaged"]}

    async def metrics(self) -> dict[str, float]:
        await self.context.worker.look()
        text = generate_latest(self.context.metrics.registry).decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("koa_scrub")]
        return {name: float(value) for name, _, value in lines}


@pytest.fixture
async def site(database: OpenDatabase, tmp_path: Path) -> AsyncIterator[Site]:
    config = Config(dev=True, var=tmp_path, database_url=database("ingestor").url, scrub_mbps=1e6)
    app, context = create_app(config), Ingestor(config)
    app.state.context = context
    site = Site(context, app)
    yield site
    await site.http.aclose()
    await context.http.aclose()
    context.db.close()


@pytest.fixture
def frame(new_file: New, new_prepared: New) -> Callable[..., FilePrepared]:
    """Make a frame: `frame(generation)`."""
    return lambda generation=1, **more: new_prepared(new_file(), generation, **more)


Frame = Callable[..., FilePrepared]
FITS, JPEG = bytes(range(256)) * 12, b"a picture"


async def back_date(site: Site, days: float, **which: Any) -> None:
    """Make versions look as if they were last read so many days ago."""

    def change(session: Session) -> None:
        then = utcnow() - timedelta(days=days)
        session.execute(update(Version).filter_by(**which).values(scrubbed_at=then))

    await site.db.write(change)


DAMAGES = [
    (lambda data: data[:9] + b"\0" + data[10:], "its SHA-256 is "),
    (lambda data: data[:-1], "it has 3071 bytes instead of 3072"),
    (lambda data: data + b"\0", "it has 3073 bytes instead of 3072"),
    (lambda data: b"", "it has 0 bytes instead of 3072"),
    (None, "it is missing in the store"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "found"), DAMAGES)
async def test_a_damaged_object_is_marked_not_served_and_free_again_once_it_is_right(
    site: Site, frame: Frame, spoil: Any, found: str
) -> None:
    await site.archive(frame(), FITS, JPEG)
    key, where = site.key(".fits"), f"/v1/frames/{KOAID}"
    site.bucket.kept[key] = spoil(FITS) if spoil else b""
    if spoil is None:
        del site.bucket.kept[key]
    await site.order(KOAID)
    marks = await site.marks()
    assert [*marks] == [(1, f"{KOAID}.fits")]
    assert marks[1, f"{KOAID}.fits"].startswith(found)
    metrics = await site.metrics()
    assert metrics['koa_scrub_mismatches{instrument="KCWI"}'] == 1
    site.bucket.reads.clear()
    for path in ("/file", f"/products/{KOAID}.fits", "/file?version=1"):
        answer = await site.http.get(where + path)
        assert (answer.status_code, answer.json()["code"]) == (500, "object_damaged")
        assert answer.json()["retryable"] is False
        assert f"koa reprocess {KOAID}" in answer.json()["detail"]
        assert found in answer.json()["detail"]
    assert site.bucket.reads == []  # not a byte is asked for
    assert (await site.http.get(f"{where}/preview")).content == JPEG
    seen = (await site.http.get(where)).json()
    assert (seen["status"], [f["code"] for f in seen["findings"]]) == (
        "COMPLETE", ["OBJECT_DAMAGED"],
    )  # fmt: skip
    site.bucket.kept[key] = FITS
    await site.order(KOAID)
    assert await site.marks() == {}
    assert "koa_scrub_mismatches" not in " ".join(await site.metrics())
    assert (await site.http.get(f"{where}/file")).content == FITS
    assert (await site.http.get(where)).json()["findings"] == []


async def test_a_new_version_is_good_and_the_old_one_stays_marked(site: Site, frame: Frame) -> None:
    await site.archive(frame(), FITS, JPEG)
    site.bucket.kept[site.key(".fits")] = FITS[::-1]
    await site.order(KOAID)
    assert await site.archive(frame(2), FITS, JPEG) == 2
    await site.order(KOAID)  # superseded versions are read, too
    assert [*await site.marks()] == [(1, f"{KOAID}.fits")]
    assert (await site.http.get(f"/v1/frames/{KOAID}/file")).content == FITS
    old = await site.http.get(f"/v1/frames/{KOAID}/file?version=1")
    assert (old.status_code, old.json()["code"]) == (500, "object_damaged")
    del site.bucket.kept[site.key(".jpg")]
    await site.order(KOAID)
    assert len(await site.marks()) == 2
    assert (await site.http.get(f"/v1/frames/{KOAID}")).json()["findings"] == []


async def test_the_oldest_are_read_first_and_only_what_is_due(site: Site, frame: Frame) -> None:
    for n in range(3):
        await site.archive(frame(n + 1), FITS, JPEG)
    await site.db.write(site.store.keep_scrubbing)
    await site.scrub()
    assert site.bucket.reads == []  # all were read when they were archived
    for version, days in ((1, 31), (2, 40), (3, 29)):
        await back_date(site, days, version=version)
    assert (await site.metrics())["koa_scrub_oldest_seconds"] == pytest.approx(40 * 86400, abs=60)
    rows = await site.db.read(site.store.to_scrub, ALL, 30)
    assert [held.version for _, held in rows] == [2, 1]
    state = (await site.http.get("/v1/scrub")).json()
    assert (state["versions"], state["due"]) == (3, 2)
    await site.order()
    metrics = await site.metrics()
    assert metrics["koa_scrub_objects_total"] == 6
    assert metrics["koa_scrub_bytes_total"] == 3 * (len(FITS) + len(JPEG))
    assert metrics["koa_scrub_oldest_seconds"] < 60
    state = (await site.http.get("/v1/scrub")).json()
    assert (state["due"], state["damaged"]) == (0, [])
    [deed] = (await site.http.get("/v1/audit")).json()
    assert (deed["verb"], deed["target"], deed["why"]) == ("scrub", ALL, "a test")


async def test_an_order_outlives_a_restart_and_goes_on_where_it_was(
    site: Site, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixity, "BATCH", 2)
    for n in range(4):
        await site.archive(frame(n + 1), FITS, JPEG)
    await site.http.post("/v1/scrub", json={})
    job = await site.db.write(site.store.queue.claim, "scrub")
    assert job is not None
    (_, first), *_ = await site.db.read(site.store.to_scrub, ALL, 30)
    await site.db.write(site.store.scrubbed, first, {})
    await site.db.write(site.store.queue.again, job, 0.0, "stopped")
    await site.db.write(site.store.keep_scrubbing)  # what a start does: it changes nothing
    await site.scrub()
    assert (await site.http.get("/v1/scrub")).json()["due"] == 1
    await site.scrub()
    assert sum(size for _, size in site.bucket.reads) == 3 * (len(FITS) + len(JPEG))
    assert (await site.http.get("/v1/scrub")).json()["due"] == 0


async def test_a_new_order_takes_the_running_one_back(site: Site, frame: Frame) -> None:
    await site.archive(frame(), FITS, JPEG)
    await site.http.post("/v1/scrub", json={})
    job = await site.db.write(site.store.queue.claim, "scrub")
    assert job is not None
    await site.http.post("/v1/scrub", json={})
    with pytest.raises(LeaseLost):
        await site.context.worker.scrub(job)
    await site.scrub()
    assert (await site.http.get("/v1/scrub")).json()["due"] == 0


async def test_it_waits_while_frames_are_archived(site: Site, frame: Frame, new_file: New) -> None:
    await site.archive(frame(), FITS, JPEG)
    live = frame().model_copy(update={"frame_id": new_file("kb0002.fits").frame_id})
    await site.db.write(site.store.hand_over, live, "")
    task = asyncio.create_task(site.order(KOAID))
    await asyncio.sleep(0.5)
    assert site.bucket.reads == []
    await site.db.write(site.store.queue.drop, "ingest", f"{live.frame_id}:1")
    await asyncio.wait_for(task, 5)
    assert len(site.bucket.reads) == 2


async def test_the_rate_is_bounded(
    site: Site, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "PIECE", 100_000)
    monkeypatch.setattr(worker, "REQUEST", 1000)
    site.context.config = site.context.worker.config = site.context.config.model_copy(
        update={"scrub_mbps": 1.0}
    )
    await site.archive(frame(), bytes(1_000_000), JPEG)
    await site.order(KOAID)
    took = site.bucket.reads[-1][0] - site.bucket.reads[0][0]
    assert 0.8 < took < 10  # 0.95 s, a megabyte but the first piece, and a picture; it jitters
    assert max(size for _, size in site.bucket.reads) <= 100_000


async def test_an_object_that_can_not_be_read_is_damaged_but_a_store_that_is_down_is_not(
    site: Site, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "AGAIN", (0.01, 0.0))
    await site.archive(frame(), FITS, JPEG)
    site.bucket.is_down = True
    with pytest.raises(DependencyDown):
        await site.order(KOAID)
    assert await site.marks() == {}
    site.bucket.is_down = False
    site.bucket.broken = {site.key(".fits")}
    await site.order(KOAID)
    assert await site.marks() == {(1, f"{KOAID}.fits"): "it can't be read: s3: InternalError: no"}


@pytest.mark.parametrize("size", [0, 9, CHUNK, 2 * CHUNK, 2 * CHUNK + 1])
async def test_a_whole_download_is_never_wrong_before_a_scrub_saw_it(
    site: Site, frame: Frame, size: int
) -> None:
    data = b"\1" * size
    await site.archive(frame(), data)
    where, key = f"/v1/frames/{KOAID}/file", site.key(".fits")
    assert (await site.http.get(where)).content == data
    spoilt = [data[:-1] + b"\0", data[:-1], data + b"\0"] if size else [b"\0"]
    for wrong in spoilt:
        site.bucket.kept[key] = wrong
        got = b""
        async with site.http.stream("GET", where) as answer:
            with suppress(httpx.HTTPError):
                got = await answer.aread()
        if answer.status_code == 200:  # then it breaks off, or it is the very bytes
            assert len(got) < size or got == data
        else:
            assert (answer.status_code, b"object_damaged" in got) == (500, True)
    if size:
        site.bucket.kept[key] = spoilt[0]
        job = await site.scrub()  # the download asked for it
        assert job.key == KOAID
        assert [*await site.marks()] == [(1, f"{KOAID}.fits")]


async def test_orders_are_for_operators_and_for_what_is_there(site: Site, frame: Frame) -> None:
    assert (await site.http.post("/v1/scrub", json={"koaid": "nobody"})).status_code == 404
    await site.archive(frame(), FITS, JPEG)
    [(row, _)] = await site.db.read(site.store.to_scrub, KOAID, 30)
    answer = await site.http.post("/v1/scrub", json={"koaid": row.frame_id})
    assert answer.json() == {"scrub": KOAID}
