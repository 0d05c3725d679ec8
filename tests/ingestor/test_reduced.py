"""Reduced frames in the catalogue, on both engines: versions, links, who may see them, rebuild."""

import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest
from sqlalchemy import delete, update

from koa_ingestor.app import Ingestor, create_app
from koa_ingestor.config import Config
from koa_ingestor.pipeline import archive_key
from koa_ingestor.store.schema import Damage, Frame, FrameCode, Prepared, Version
from koa_shared.contracts import EventBatch, FilePrepared, Product, Program, RawFile, Recipe, utcnow
from koa_shared.db import Database
from koa_shared.errors import NotYet
from koa_shared.ids import set_id
from koa_shared.jobs.queue import Job
from koa_shared.objects import ObjectMissing
from koa_shared.web import Caller

KOAID = "KB.20251208.43200.00"
PAST, FUTURE = datetime(2020, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)
DELIVERY = "5e9f8a1c-0000-4000-8000-{:012}"
CLOSED = Program()
RECIPE = Recipe(software="KCWI_DRP 1.1.0", rules="0" * 16)
OpenDatabase = Callable[..., Database]
New = Callable[..., Any]


class Bucket:
    """Both buckets as one, by key."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def copy(self, source: tuple[str, str], target: tuple[str, str]) -> None:
        self.kept[target[1]] = self.kept[source[1]]

    async def get(self, _: str, key: str) -> bytes:
        if key not in self.kept:
            raise ObjectMissing(key)
        return self.kept[key]

    async def digest(self, _: str, key: str) -> tuple[int, str]:
        data = await self.get("", key)
        return len(data), hashlib.sha256(data).hexdigest()

    async def size(self, _: str, key: str) -> int:
        return len(await self.get("", key))

    async def names(self, _: str, prefix: str) -> dict[str, datetime]:
        # As a store may: in no order.
        found = sorted((key for key in self.kept if key.startswith(prefix)), reverse=True)
        return dict.fromkeys(found, datetime.now(UTC))

    async def folders(self, _: str, prefix: str = "") -> list[str]:
        inside = (key.removeprefix(prefix) for key in self.kept if key.startswith(prefix))
        return sorted({f"{prefix}{key.split('/')[0]}/" for key in inside if "KCWI" in prefix + key})

    async def stream(self, _: str, key: str, offset: int = 0, length: int = 0) -> Any:
        yield (await self.get("", key))[offset:][: length or None]


class Site:
    """An ingestor in this process on a bucket in memory; its lanes do what they are told."""

    def __init__(self, context: Ingestor, app: Any, new: tuple[New, New]) -> None:
        self.context, self.db, self.store = context, context.db, context.store
        self.bucket, (self.file, self.prepared) = Bucket(), new
        context.objects = context.worker.objects = self.bucket  # type: ignore[assignment]
        context.workshop.insist = lambda job: None  # type: ignore[method-assign]  # no lane runs
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://ingestor")

    def raw(self, generation: int = 1, **more: Any) -> FilePrepared:
        more.setdefault("release", PAST)
        return self._staged(self.prepared(self.file(), generation, **more), b"raw")

    def reduced(self, content: bytes, delivery: int = 1, level: int = 1) -> FilePrepared:
        """Return a set with this content, as the preparer hands it over."""
        name = set_id(DELIVERY.format(delivery), level, KOAID)
        file = self.file(frame_id=name, path="/s/redux", level=level)
        raw = RawFile(sha256=hashlib.sha256(content).hexdigest(), md5="0" * 32, size=1)
        more = {"program": CLOSED, "recipe": RECIPE, "metadata": {}}
        prepared = self.prepared(file, **more).model_copy(update={"raw": raw})
        return self._staged(prepared, content)

    def _staged(self, prepared: FilePrepared, content: bytes) -> FilePrepared:
        stem = KOAID + (f".lev{prepared.level}" if prepared.level else "")

        def product(name: str, role: str, data: bytes) -> Product:
            key = f"{prepared.frame_id}/{prepared.generation}/1/{name}"
            self.bucket.kept[key] = data
            sha = hashlib.sha256(data).hexdigest()
            told = {"name": name, "role": role, "key": key, "size": len(data), "sha256": sha}
            return Product(**told, md5=hashlib.md5(data).hexdigest())

        whole = prepared.model_copy(update={"products": [product(f"{stem}.fits", "fits", content)]})
        manifest = whole.model_dump_json().encode()
        last = product(f"{stem}.manifest.json", "manifest", manifest)
        return whole.model_copy(update={"products": [*whole.products, last]})

    async def hand_over(self, prepared: FilePrepared) -> Job:
        await self.db.write(self.store.hand_over, prepared, "")
        return await self.claim()

    async def claim(self) -> Job:
        job = await self.db.write(self.store.queue.claim, "ingest")
        assert job is not None
        return job

    async def ingest(self, prepared: FilePrepared) -> dict[str, Any]:
        await self.context.worker.ingest(await self.hand_over(prepared))
        return await self.get(prepared.frame_id)

    async def get(self, name: str, **query: Any) -> dict[str, Any]:
        answer = await self.http.get(f"/v1/frames/{name}", params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture
async def site(
    database: OpenDatabase, tmp_path: Path, new_file: New, new_prepared: New
) -> AsyncIterator[Site]:
    config = Config(dev=True, var=tmp_path, database_url=database("ingestor").url, raw_seconds=60)
    app, context = create_app(config), Ingestor(config)
    app.state.context = context
    site = Site(context, app, (new_file, new_prepared))
    yield site
    await site.http.aclose()
    await context.http.aclose()
    context.db.close()


def linked(frame: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (one["level"], one["version"], one["frame_id"], one["pipeline"]) for one in frame["links"]
    ]


async def test_both_are_linked_and_each_level_has_its_own_versions(site: Site) -> None:
    raw, quick, science = site.raw(), site.reduced(b"1"), site.reduced(b"2", level=2)
    assert (await site.ingest(raw))["links"] == []
    told = await site.ingest(quick)
    assert (told["status"], told["level"], told["version"]) == ("COMPLETE", 1, 1)
    assert told["pipeline"] == RECIPE.software
    assert linked(told) == [(0, 1, raw.frame_id, None)]
    await site.ingest(science)
    again = await site.ingest(site.reduced(b"3", delivery=2))
    assert (again["status"], again["version"]) == ("COMPLETE", 2)
    parent = await site.get(KOAID)
    assert (parent["frame_id"], parent["pipeline"]) == (raw.frame_id, None)
    assert linked(parent) == [
        (1, 2, again["frame_id"], RECIPE.software), (2, 1, science.frame_id, RECIPE.software),
    ]  # fmt: skip
    listed = (await site.http.get("/v1/frames", params={"level": 0})).json()["items"]
    assert [linked(frame) for frame in listed] == [linked(parent)]
    for level, version, content in ((0, 1, b"raw"), (1, 1, b"1"), (1, 2, b"3"), (2, 1, b"2")):
        query = {"level": level, "version": version}
        body = await site.http.get(f"/v1/frames/{KOAID}/file", params=query)
        assert body.content == content
        assert (await site.get(KOAID, **query))["version"] == version
        assert archive_key(("KCWI", level, KOAID, version), "") in "".join(site.bucket.kept)
    assert (await site.http.get(f"/v1/frames/{KOAID}?level=2&version=2")).status_code == 404
    lists = await site.http.get(f"/v1/frames/{KOAID}/timeline", params={"level": 1})
    assert lists.status_code == 200


async def test_the_same_content_is_a_duplicate_whenever_it_comes(site: Site) -> None:
    await site.ingest(site.raw())
    for delivery, content in enumerate((b"1", b"2")):
        assert (await site.ingest(site.reduced(content, delivery)))["version"] == delivery + 1
    late = await site.ingest(site.reduced(b"1", delivery=9))
    assert (late["status"], late["version"]) == ("DUPLICATE", None)
    assert "version 1" in late["findings"][-1]["message"]
    # As a raw frame it would be another one's KOAID.
    assert (await site.ingest(site.reduced(b"1", delivery=9, level=2)))["status"] == "COMPLETE"


async def test_it_waits_until_its_raw_frame_is_archived(site: Site) -> None:
    quick = site.reduced(b"1")
    job = await site.hand_over(quick)
    with pytest.raises(NotYet, match=KOAID) as wait:
        await site.context.worker.ingest(job)
    end = await site.db.read(site.store.stream_end)
    with pytest.raises(NotYet):
        await site.context.worker.ingest(job)
    assert await site.db.read(site.store.stream_end) == end, "nothing is new"
    await site.db.write(site.store.queue.again, job, 60.0, str(wait.value))
    told = await site.get(quick.frame_id)
    assert told["status"] == "TRANSFERRED"
    assert [f["code"] for f in told["findings"] if f["code"] != "CLOCK_SKEW"] == [
        "RAW_NOT_ARCHIVED"
    ]
    assert not await site.db.read(site.store.is_busy), "the scrub does not wait for it"
    await site.ingest(site.raw())
    await site.db.write(lambda s: s.execute(update(site.store.queue.table).values(not_before=0)))
    await site.context.worker.ingest(await site.claim())
    assert (await site.get(quick.frame_id))["status"] == "COMPLETE"


async def test_after_long_an_operator_is_asked(site: Site) -> None:
    quick = site.reduced(b"1")
    late = quick.timeline.model_copy(update={"notified": utcnow() - timedelta(seconds=61)})
    told = await site.ingest(quick.model_copy(update={"timeline": late}))
    assert told["status"] == "ERROR"
    assert told["findings"][-1]["severity"] == "error"
    assert "retry this one" in told["findings"][-1]["message"]
    await site.ingest(site.raw())
    answer = await site.http.post(f"/v1/frames/{quick.frame_id}/retry", json={"why": "it came"})
    assert answer.status_code == 200, answer.text
    await site.context.worker.ingest(await site.claim())
    assert (await site.get(quick.frame_id))["status"] == "COMPLETE"


async def state(site: Site, prepared: FilePrepared) -> Any:
    return await site.db.read(site.store.find, prepared.frame_id)


async def test_it_is_as_closed_as_its_raw_frame(site: Site, new_event: New) -> None:
    raw, quick = site.raw(release=FUTURE), site.reduced(b"1")
    await site.ingest(raw)
    await site.ingest(quick)
    row = await state(site, quick)
    assert (row.semid, row.release_date, row.koaimtyp) == ("2025B_C001", FUTURE, "object")
    stranger = await site.db.read(
        site.store.frames, {"level": 1, "program": "2025B_C001"}, Caller()
    )
    assert stranger[0] == []
    # The raw frame's facts come late: both follow.
    program = {"semid": "2025B_N002", "release_date": PAST}
    late = new_event(site.file(), "TRANSFERRED", 9, step="enrich", program=program)
    await site.db.write(site.store.apply, EventBatch(events=[late]))
    row = await state(site, quick)
    assert (row.semid, row.release_date, row.released_at) == ("2025B_N002", PAST, PAST)
    # A raw frame that is prepared anew, for another program.
    await site.ingest(site.raw(2, release=FUTURE, semid="2025B_U003"))
    row = await state(site, quick)
    assert (row.semid, row.released_at) == ("2025B_U003", None)
    # Another file that claims the KOAID changes nothing.
    other = site.prepared(site.file("other.fits"), raw="b", semid="2025B_X999", release=PAST)
    assert (await site.ingest(site._staged(other, b"x")))["status"] == "INVALID"
    assert (await state(site, quick)).semid == "2025B_U003"


async def test_what_is_hidden_of_a_raw_frame_is_hidden_of_its_products(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, quick = site.raw(release=FUTURE), site.reduced(b"1")
    await site.ingest(raw)
    await site.ingest(quick)
    monkeypatch.setattr("koa_shared.web.is_loopback", lambda _: False)
    for name, level in ((KOAID, 0), (KOAID, 1), (quick.frame_id, 1)):
        seen = await site.get(name, level=level)
        assert (seen["links"], seen["pipeline"], seen["path"]) == ([], None, None)
        for what in ("file", "metadata", f"products/{KOAID}.lev1.fits"):
            answer = await site.http.get(f"/v1/frames/{name}/{what}", params={"level": level})
            assert answer.status_code == 403, answer.text


async def test_damage_is_of_one_level(site: Site) -> None:
    await site.ingest(site.raw())
    await site.ingest(site.reduced(b"1"))
    mark: Any = {"koaid": KOAID, "level": 1, "version": 1, "product": f"{KOAID}.lev1.fits"}
    row = Damage(**mark, instrument="KCWI", at=utcnow(), found="gone")
    await site.db.write(lambda session: session.add(row))
    assert (await site.http.get(f"/v1/frames/{KOAID}/file")).status_code == 200
    assert (await site.http.get(f"/v1/frames/{KOAID}/file?level=1")).status_code == 500
    job = Job(0, "scrub", KOAID, "", 0, 0, {}, 0, 0, "", "")
    seen = await site.db.read(site.store.to_scrub, job.key, 30)
    assert sorted(held.level for _, held in seen) == [0, 1]
    for _, held in seen:
        assert await site.db.write(site.store.scrubbed, held, {}) is (held.level == 1)
    assert (await site.http.get(f"/v1/frames/{KOAID}/file?level=1")).content == b"1"


async def test_the_catalogue_is_rebuilt_with_all_levels(site: Site) -> None:
    raw, quick = site.raw(release=FUTURE), site.reduced(b"1")
    for prepared in (raw, quick, site.reduced(b"2", 2), site.reduced(b"3", level=2)):
        await site.ingest(prepared)

    def forget(session: Any) -> None:
        for table in (Frame, FrameCode, Version, Prepared):
            session.execute(delete(table))

    before = await site.get(KOAID)
    await site.db.write(forget)
    assert (await site.http.get(f"/v1/frames/{KOAID}")).status_code == 404
    await site.context.worker.rebuild()
    after = await site.get(KOAID)
    assert linked(after) == linked(before)
    assert len(after["links"]) == 2
    row = await state(site, quick)
    assert (row.version, row.semid, row.release_date) == (1, "2025B_C001", FUTURE)


async def test_latency_is_told_by_level_and_a_night_counts_raw_frames(site: Site) -> None:
    await site.ingest(site.raw())
    await site.ingest(site.reduced(b"1"))
    text = generate_latest(site.context.metrics.registry).decode()
    count = "koa_acquisition_to_availability_seconds_count"
    for level in (0, 1):
        assert f'{count}{{instrument="KCWI",level="{level}",origin="live"}} 1.0' in text
    assert 'koa_frame_types_total{instrument="KCWI",type="science"} 1.0' in text
    report = (await site.http.get("/v1/nights/2025-12-08")).json()
    assert [(row["level"], row["archived"]) for row in report["instruments"]] == [(0, 1), (1, 1)]
    assert [row["bytes"] for row in report["instruments"]] == [5760, 1]
    told = (await site.http.get("/v1/nights/2025-12-08/manifest")).json()["items"]
    assert [(one["koaid"], one["name"]) for one in told] == [(KOAID, f"{KOAID}.fits")]
    can = (await site.http.get("/v1/deletable")).json()["items"]
    assert can == []
