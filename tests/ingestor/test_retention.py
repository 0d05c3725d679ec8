"""Retention on both engines: what each policy takes and spares; what a summit may delete."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select, update

from koa_ingestor.app import Ingestor, create_app
from koa_ingestor.config import Config
from koa_ingestor.store.schema import Damage, FrameCode, Version, jobs
from koa_shared.contracts import EventBatch, FilePrepared, Finding, Status, Timeline, utcnow
from koa_shared.db import Database

KOAID = "KB.20251208.43200.00"
HOME = f"KCWI/20251208/lev0/{KOAID}"
OpenDatabase = Callable[..., Database]
New = Callable[..., Any]
Item = dict[str, Any]
BAD = Finding(code="BAD", severity="invalid", step="rules", message="x")
KEPT = Finding(code="QUARANTINED", severity="warning", step="quarantine", message="there")


def damage(version: int) -> Damage:
    where: dict[str, Any] = {"koaid": KOAID, "version": version, "product": "y"}
    return Damage(**where, instrument="KCWI", at=utcnow(), found="x")


class Bucket:
    """Keys of both buckets."""

    def __init__(self) -> None:
        self.kept: set[str] = set()

    async def names(self, _: str, prefix: str) -> dict[str, Any]:
        return {key: None for key in sorted(self.kept) if key.startswith(prefix)}

    async def remove(self, _: str, keys: list[str]) -> None:
        assert set(keys) <= self.kept
        self.kept -= set(keys)


class Site:
    """An ingestor whose lanes are closed."""

    def __init__(self, context: Ingestor, app: Any, new_file: New, new_prepared: New) -> None:
        self.context, self.db, self.store = context, context.db, context.store
        self.bucket, self.file, self.new_prepared = Bucket(), new_file(), new_prepared
        context.objects = context.worker.objects = self.bucket  # type: ignore[assignment]
        context.workshop.insist = lambda job: None  # type: ignore[method-assign]
        transport = httpx.ASGITransport(app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://ingestor/v1")

    async def archive(self, generation: int = 1, **more: Any) -> FilePrepared:
        """Archive a generation of the frame."""
        file = more.pop("file", self.file)
        prepared: FilePrepared = self.new_prepared(file, generation, **more)
        await self.db.write(self.store.hand_over, prepared, "")
        job = await self.db.write(self.store.queue.claim, "ingest")
        assert job is not None
        _, _, held = await self.db.write(self.store.begin, job)
        assert held is not None
        timeline = Timeline(available=utcnow() - timedelta(days=100 - generation))
        await self.db.write(self.store.commit, job, prepared, held.version, timeline)
        self.bucket.kept |= {f"{HOME}/v{held.version}/{p.name}" for p in prepared.products}
        return prepared

    async def mark(self, **values: Any) -> None:
        """Change the newest version behind the catalogue's back."""
        newest = max(await self.versions())
        mine = update(Version).where(Version.version == newest).values(**values)  # type: ignore[arg-type]
        await self.db.write(lambda s: s.execute(mine))

    async def scrub(self) -> None:
        await self.mark(scrubbed_at=utcnow())

    async def versions(self) -> list[int]:
        kept = select(Version.version).where(Version.deleted_at == None)  # noqa: E711
        return sorted(await self.db.read(lambda s: s.exec(kept).all()))

    async def told(self) -> list[Item]:
        items: list[Item] = (await self.http.get("/retention")).json()["items"]
        return items

    async def sweep(self) -> None:
        """Work off all that is to be deleted."""
        await self.db.write(lambda s: s.execute(jobs.update().values(not_before=0)))
        while job := await self.db.write(self.store.queue.claim, "sweep"):
            await self.context.worker.sweep(job)

    async def deeds(self, target: str) -> list[dict[str, Any]]:
        found = await self.db.read(self.store.audit.last, target)
        return [deed for deed in found if deed["verb"] == "delete"]


@pytest.fixture
async def site(
    database: OpenDatabase, tmp_path: Path, new_file: New, new_prepared: New
) -> AsyncIterator[Site]:
    config = Config(
        dev=True, var=tmp_path, database_url=database("ingestor").url, quarantine_days=10,
        version_days=10, versions_keep=0,
    )  # fmt: skip
    app, context = create_app(config), Ingestor(config)
    app.state.context = context
    site = Site(context, app, new_file, new_prepared)
    yield site
    await site.http.aclose()
    await context.http.aclose()
    context.db.close()


async def test_a_superseded_version_goes_and_says_so(site: Site) -> None:
    for generation in (1, 2, 3):
        await site.archive(generation)
    assert await site.told() == [], "nothing, before a scrub has read the current version"
    await site.scrub()
    dry = await site.told()
    assert [(i["policy"], i["prefix"]) for i in dry] == [
        ("versions", f"{HOME}/v1/"), ("versions", f"{HOME}/v2/"),
    ]  # fmt: skip
    assert {(i["target"], i["objects"], i["bytes"]) for i in dry} == {(KOAID, 1, 2880)}
    answer = await site.http.post("/retention", json={"why": "the disk is full"})
    assert (answer.status_code, answer.json()["items"]) == (202, dry)
    gone = await site.http.get(f"/frames/{KOAID}", params={"version": 1})
    assert (gone.status_code, gone.json()["code"]) == (410, "version_deleted")
    assert (await site.http.get(f"/frames/{KOAID}")).json()["version"] == 3
    assert (await site.http.post("/retention")).json()["items"] == []
    await site.sweep()
    assert site.bucket.kept == {f"{HOME}/v3/{KOAID}.fits"}
    deeds = await site.deeds(KOAID)
    assert {(d["who"], d["why"]) for d in deeds} == {("dev", "the disk is full")}
    assert {(d["changed"]["prefix"], d["changed"]["objects"]) for d in deeds} == {
        (item["prefix"], 1) for item in dry
    }
    assert await site.versions() == [3]
    # A number is never given twice, and what is deleted is not scrubbed.
    await site.archive(4)
    assert await site.versions() == [3, 4]
    state = (await site.http.get("/scrub")).json()
    assert state["versions"] == 2


@pytest.mark.parametrize("spared", ["age", "count", "raw", "damaged", "never"])
async def test_what_is_spared(site: Site, spared: str) -> None:
    await site.archive(1)
    await site.archive(2)
    await site.scrub()
    policies = site.context.worker.policies
    assert len(await site.db.read(site.store.retention, policies)) == 1
    if spared == "age":  # it was superseded 98 days ago
        policies = policies._replace(version_days=99)
    elif spared == "count":
        policies = policies._replace(versions_keep=1)
    elif spared == "never":
        policies = policies._replace(version_days=0)
    elif spared == "raw":
        await site.mark(raw_sha256="b" * 64)
    else:
        mark = damage(2)
        await site.db.write(lambda s: s.add(mark))
    assert await site.db.read(site.store.retention, policies) == []


async def ended(site: Site, new_event: New, generation: int = 1, days: float = 11) -> None:
    """Have the preparer end a generation INVALID, some days ago."""
    at = utcnow() - timedelta(days=days)
    more = {"at": at, "generation": generation, "findings": [KEPT, BAD]}
    event = new_event(site.file, Status.INVALID, seq=generation, **more)
    await site.db.write(site.store.apply, EventBatch(events=[event]))


async def test_quarantine_of_what_is_complete_by_now(site: Site, new_event: New) -> None:
    where = f"quarantine/KCWI/{site.file.frame_id}"
    site.bucket.kept = {f"{where}/1/a.fits", f"{where}/2/a.fits", f"{where}/1/a.reasons.json"}
    await ended(site, new_event)
    assert await site.told() == [], "it is still INVALID"
    await ended(site, new_event, 2, days=1)
    assert await site.told() == []
    await site.archive(3)
    at = utcnow() - timedelta(days=10.5)
    again = new_event(site.file, Status.INVALID, seq=9, at=at, generation=1)
    await site.db.write(site.store.apply, EventBatch(events=[again]))  # as after a `resend`
    dry = await site.told()
    assert [(i["policy"], i["prefix"]) for i in dry] == [("quarantine", f"{where}/1/")]
    assert (utcnow() - datetime.fromisoformat(dry[0]["since"])).days == 11
    await site.db.write(site.store.retain, site.context.worker.policies, ("retention", "policy"))
    await site.sweep()
    assert {key for key in site.bucket.kept if "quarantine" in key} == {f"{where}/2/a.fits"}
    [deed] = await site.deeds(site.file.frame_id)
    assert deed["changed"] == {"policy": "quarantine", "prefix": f"{where}/1/", "objects": 2}
    assert await site.db.read(site.store.audit.last) == [], "no operator did it"
    codes = await site.db.read(lambda s: s.exec(select(FrameCode.generation)).all())
    assert 2 in codes


async def test_staging_goes_with_what_earlier_attempts_left(site: Site) -> None:
    prepared, name = await site.archive(2), site.file.frame_id
    archived = set(site.bucket.kept)
    site.bucket.kept |= {f"{name}/{n}/1/x.fits" for n in (1, 2, 3)}
    await site.db.write(site.store.plan_sweep, prepared, 3600.0)
    [item] = await site.told()
    assert (item["policy"], item["prefix"]) == ("staging", f"{name}/")
    assert 3500 < item["due_seconds"] <= 3600
    await site.sweep()
    assert site.bucket.kept == archived | {f"{name}/3/1/x.fits"}
    [deed] = await site.deeds(name)
    assert (deed["changed"]["policy"], deed["changed"]["objects"]) == ("staging", 2)


async def deletable(site: Site, **query: Any) -> list[Item]:
    answer = await site.http.get("/deletable", params=query)
    assert answer.status_code == 200, answer.text
    items: list[Item] = answer.json()["items"]
    return items


async def test_a_raw_file_may_go_once_it_is_old_and_verified(site: Site, new_event: New) -> None:
    prepared = await site.archive(1)
    assert await deletable(site) == [], "no scrub has read it since"
    await site.scrub()
    [item] = await deletable(site)
    assert item["path"] == prepared.path
    assert (item["size"], item["sha256"]) == (prepared.raw.size, prepared.raw.sha256)
    assert (item["koaid"], item["version"]) == (KOAID, 1)
    assert await deletable(site, instrument="KPF") == []
    mark = damage(1)
    await site.db.write(lambda s: s.add(mark))
    assert await deletable(site) == []
    await site.db.write(lambda s: s.delete(s.get(Damage, (KOAID, 0, 1, "y"))))
    days = (utcnow() - prepared.timeline.acquired).days + 1  # type: ignore[operator]
    young = await site.db.read(site.store.deletable, days, {"limit": 9, "instrument": None}, None)
    assert young == ([], None)
    await ended(site, new_event, 2)
    assert await deletable(site) == [], "its last generation is INVALID"


async def test_deletable_is_paged(site: Site, new_file: New) -> None:
    for n in range(3):
        file, koaid = new_file(f"kb{n}.fits"), f"KB.20251208.4320{n}.00"
        await site.archive(1, file=file, koaid=koaid)
        await site.scrub()
    found, cursor = list[str](), ""
    while True:
        page = (await site.http.get("/deletable", params={"limit": 1, "cursor": cursor})).json()
        found += [item["koaid"] for item in page["items"]]
        if (cursor := page["next"]) is None:
            break
    assert sorted(found) == [f"KB.20251208.4320{n}.00" for n in range(3)]
    assert (await site.http.get("/deletable", params={"cursor": "x"})).status_code == 422


async def test_late_facts_enrich_the_record_and_no_pixel(site: Site, new_event: New) -> None:
    prepared = await site.archive(1)
    program = {"semid": "2025B_U1", "progid": "U1", "release_date": "2027-06-08T00:00:00Z"}
    more = {"program": program, "weather": {"WXDOMTMP": 2.5}, "generation": 1}
    event = new_event(site.file, Status.TRANSFERRED, seq=9, step="enrich", **more)
    await site.db.write(site.store.apply, EventBatch(events=[event]))
    await site.db.write(site.store.apply, EventBatch(events=[event]))
    seen = (await site.http.get(f"/frames/{KOAID}")).json()
    assert (seen["program"]["progid"], seen["version"], seen["status"]) == ("U1", 1, "COMPLETE")
    core = (await site.http.get(f"/frames/{KOAID}/metadata")).json()
    assert core == prepared.metadata | {"WXDOMTMP": 2.5}
    assert (await site.http.get(f"/frames/{KOAID}/header")).json() == prepared.header
    [deed] = await site.db.read(site.store.audit.last, site.file.frame_id)
    assert (deed["verb"], deed["who"]) == ("enrich", "koa-preparer")
    before, after = deed["changed"]["program"]
    assert (before["semid"], after["semid"]) == (prepared.program.semid, "2025B_U1")
    assert len(deed["changed"]["facts"]) == 16


async def test_a_scrub_does_not_bring_back_what_is_deleted(site: Site) -> None:
    await site.archive(1)
    await site.archive(2)
    await site.scrub()
    every = await site.db.read(site.store.to_scrub, KOAID, 1.0)
    await site.http.post("/retention")
    await site.sweep()
    for _, held in every:
        found = {"y": "it is missing in the store"} if held.version == 1 else {}
        await site.db.write(site.store.scrubbed, held, found)
    state = (await site.http.get("/scrub")).json()
    assert (state["versions"], state["damaged"]) == (1, [])
