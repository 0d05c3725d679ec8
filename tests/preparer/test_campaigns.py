"""Campaigns on both engines: which frames, how many at a time, once each, parked, rehearsed."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from koa_preparer.app import Preparer, create_app
from koa_preparer.config import Config
from koa_preparer.pipeline.changes import changes
from koa_preparer.pipeline.instruments import meaning, open_instruments, recipes
from koa_preparer.store import File, Store, jobs, outbox
from koa_preparer.store.campaigns import AHEAD, fits
from koa_shared.contracts import (
    FilePrepared,
    FileWritten,
    Finding,
    FrameView,
    Page,
    Status,
    Timeline,
)
from koa_shared.db import Database
from koa_shared.errors import Conflict
from koa_shared.jobs.outbox import Outbox
from koa_shared.jobs.queue import Job, JobQueue

OpenDatabase = Callable[..., Database]
MakeFile = Callable[..., FileWritten]
Make = Callable[..., FilePrepared]
NOON = datetime(2025, 12, 8, 12, 0, 0, tzinfo=UTC)
BAD = Finding(code="BAD", severity="invalid", step="rules", message="bad")
OLD, NEW = "a" * 16, "b" * 16


class Desk:
    """A ledger, and what the lanes would do to it."""

    def __init__(self, db: Database, new_file: MakeFile, make: Make) -> None:
        self.db, self.store = db, Store(JobQueue(jobs), Outbox(outbox))
        self.new_file, self.make = new_file, make

    async def claim(self, queue: str) -> Job:
        job = await self.db.write(self.store.queue.claim, queue)
        assert job is not None
        return job

    async def announced(self, count: int) -> list[FileWritten]:
        files = [self.new_file(f"kb{n:04}.fits", size=5760 + n) for n in range(count)]
        for file in files:
            await self.db.write(self.store.announce, file, "")
        for _ in files:
            await self.work()
        return files

    async def work(self, *, bad: bool = False) -> File:
        """Prepare a frame and hand it over, or find it bad."""
        job = await self.claim("prepare")
        row = await self.db.write(self.store.start, job)
        if bad:
            return await self.db.write(self.store.end, job, Status.INVALID, [BAD])
        fixed = {"koaid": "KB.20251208.43200.00", "raw_sha256": "a" * 64, "rules": OLD}
        await self.db.write(self.store.transferring, job, Timeline(), **fixed)
        file = self.new_file(row.path.rpartition("/")[2], size=row.size)
        made = self.make(file, row.generation)
        await self.db.write(self.store.transferred, job, made, None)
        await self.db.write(self.store.handed_over, await self.claim("handover"), NOON)
        return await self.db.read(self.store.file, row.frame_id)

    async def create(self, files: list[FileWritten], **order: Any) -> int:
        """Begin a campaign and select these files."""
        values: dict[str, Any] = {"wanted": {"instrument": "KCWI"}, "options": {}}
        values |= {"per_minute": 600.0} | order
        row = await self.db.write(self.store.create, values, ("sre", "a better rule"))
        assert row.id is not None
        items = [view(file.frame_id) for file in files]
        job = await self.claim("campaign")
        await self.db.write(self.store.select, job, Page(items=items[:2], next="c"), {"KCWI": NEW})
        half = await self.db.read(self.store.campaign, row.id)
        assert (half.cursor, half.is_selected) == ("c", False)
        await self.db.write(self.store.select, job, Page(items=items[1:], next=None), {"KCWI": NEW})
        await self.db.write(self.store.queue.again, job, 0.0, "")
        return row.id

    async def turn(self, alike: int = 3) -> float | None:
        job = await self.claim("campaign")
        wait = await self.db.write(self.store.turn, job, alike)
        if wait is not None:
            await self.db.write(self.store.queue.again, job, 0.0, "")
        return wait

    async def show(self, number: int) -> tuple[str, dict[str, int]]:
        shown = await self.db.read(self.store.show, number)
        return shown["state"], shown["frames"]


def view(frame_id: str = "", *codes: str, status: str = "COMPLETE") -> FrameView:
    found = [Finding(code=code, severity="warning", step="x", message="") for code in codes]
    return FrameView(
        frame_id=frame_id, instrument="KCWI", level=0, status=Status(status), step="x",
        findings=found, timeline=Timeline(),
    )  # fmt: skip


@pytest.fixture
def desk(database: OpenDatabase, new_file: MakeFile, new_prepared: Make) -> Desk:
    return Desk(database("preparer"), new_file, new_prepared)


async def test_each_frame_once_and_a_few_at_a_time(desk: Desk) -> None:
    files = await desk.announced(AHEAD + 2)
    number = await desk.create(files, options={"progid": "U294"})
    for _ in range(AHEAD):
        assert await desk.turn() == 0.1
    assert await desk.turn() == 0.5, "the others wait until one is done"
    assert await desk.show(number) == ("running", {"ordered": AHEAD, "waiting": 2})
    for _ in range(AHEAD):
        row = await desk.work()
        assert (row.generation, row.origin, row.options) == (2, "reprocess", {"progid": "U294"})
    waits = [await desk.turn(), await desk.turn()]
    await desk.work()
    await desk.work()
    assert [*waits, await desk.turn()] == [0.1, 0.1, None]
    assert await desk.show(number) == ("done", {"done": AHEAD + 2})
    rows = [await desk.db.read(desk.store.file, file.frame_id) for file in files]
    assert {row.generation for row in rows} == {2}
    [done] = await desk.db.read(desk.store.audit.last, files[0].frame_id)
    assert (done["who"], done["why"]) == ("sre", f"campaign {number}: a better rule")
    assert await desk.db.write(desk.store.queue.claim, "campaign") is None


async def test_a_pause_lets_end_what_is_on_its_way(desk: Desk) -> None:
    number = await desk.create(await desk.announced(3))
    await desk.turn()
    await desk.db.write(desk.store.switch, number, "pause", ("sre", "a storm"))
    assert await desk.turn() == 0.5
    await desk.work()
    assert await desk.turn() is None
    assert await desk.show(number) == ("paused", {"done": 1, "waiting": 2})
    found, after = list[str](), 0
    while after is not None:
        page = await desk.db.read(desk.store.show, number, None, after, 2)
        found, after = found + [row["frame_id"] for row in page["each"]], page["next"]
    assert len(set(found)) == len(found) == 3
    with pytest.raises(Conflict, match="is paused; pause is for running"):
        await desk.db.write(desk.store.switch, number, "pause", ("sre", ""))
    await desk.db.write(desk.store.switch, number, "resume", ("sre", ""))
    assert await desk.turn() == 0.1
    await desk.db.write(desk.store.switch, number, "cancel", ("sre", ""))
    await desk.work()
    assert await desk.turn() is None
    assert await desk.show(number) == ("cancelled", {"done": 2, "waiting": 1})


async def test_failures_stop_nothing_until_they_are_alike(desk: Desk) -> None:
    number = await desk.create(await desk.announced(5))
    for _ in range(3):
        await desk.turn()
        await desk.work(bad=True)
    assert await desk.turn() is None
    shown = await desk.db.read(desk.store.show, number)
    assert (shown["state"], shown["note"]) == ("parked", "3 frames failed alike: BAD")
    assert shown["frames"] == {"failed": 3, "waiting": 2}
    page = await desk.db.read(desk.store.show, number, "failed", 0, 9)
    assert {row["fault"] for row in page["each"]} == {"BAD"}
    await desk.db.write(desk.store.switch, number, "resume", ("sre", "mended"))
    for _ in range(2):
        await desk.turn()
        await desk.work(bad=True)
    assert await desk.turn() is None
    assert await desk.show(number) == ("done", {"failed": 5})


async def test_what_was_invalid_before_and_stays_so_parks_nothing(desk: Desk) -> None:
    files = [desk.new_file(f"kb{n:04}.fits") for n in range(3)]
    for file in files:
        await desk.db.write(desk.store.announce, file, "")
        await desk.work(bad=True)
    number = await desk.create(files)
    for _ in files:
        await desk.turn()
        await desk.work(bad=True)
    assert await desk.turn() is None
    assert await desk.show(number) == ("done", {"failed": 3})


async def test_frames_on_their_way_and_unknown_ones_are_skipped(desk: Desk) -> None:
    [file] = await desk.announced(1)
    late, lost = desk.new_file("kb9.fits"), desk.new_file("kb8.fits")
    await desk.db.write(desk.store.announce, late, "")
    number = await desk.create([late, lost, file])
    await desk.turn()
    assert await desk.show(number) == ("running", {"skipped": 2, "waiting": 1})
    page = await desk.db.read(desk.store.show, number, "skipped", 0, 9)
    assert {row["fault"] for row in page["each"]} == {
        "it is on its way",
        "it was not announced here",
    }


def test_which_frames_are_meant() -> None:
    good = view("", "ODD", "OTHER")
    assert fits(good, {}, OLD, NEW)
    assert fits(good, {"findings": ["ODD", "OTHER"]}, OLD, NEW)
    assert not fits(good, {"findings": ["ODD", "MORE"]}, OLD, NEW)
    assert fits(good, {"rules": OLD}, OLD, NEW)
    assert not fits(good, {"rules": OLD}, NEW, NEW)
    assert fits(good, {"rules": "outdated"}, OLD, NEW)
    assert fits(good, {"rules": "outdated"}, None, NEW)
    assert not fits(good, {"rules": "outdated"}, NEW, NEW)
    assert not fits(view(status="PROCESSING"), {}, OLD, NEW)
    assert not fits(view(status="DUPLICATE"), {}, OLD, NEW)
    assert fits(view(status="DUPLICATE"), {"status": "DUPLICATE"}, OLD, NEW)


def test_changes_are_told_by_name(new_file: MakeFile, new_prepared: Make) -> None:
    old = new_prepared(new_file())
    program = old.program.model_copy(update={"progid": "U294"})
    header = [*old.header, ["IMAGETYP", "dark", ""]]
    new = old.model_copy(update={"program": program, "header": header, "koaid": "KB.2"})
    odd = Finding(code="ODD", severity="warning", step="x", message="")
    assert changes((old, [odd]), (old, [odd])) == {}
    assert changes((old, [odd]), (new, [])) == {
        "koaid": [old.koaid, "KB.2"], "IMAGETYP": [None, "dark"],
        "program.progid": [old.program.progid, "U294"], "finding.ODD": ["warning", None],
    }  # fmt: skip
    assert changes((old, []), (None, [BAD])) == {
        "status": ["COMPLETE", "INVALID"], "finding.BAD": [None, "invalid"],
    }  # fmt: skip


def test_a_recipe_tells_what_made_a_version(tmp_path: Path) -> None:
    """One other word in an instrument's file is another recipe, of that instrument alone."""
    instruments, columns = open_instruments(None, None)
    first = recipes(instruments, columns)
    assert first == recipes(*open_instruments(None, None))
    instruments["ESI"] = instruments["ESI"].model_copy(update={"wave_unit": "micron"})
    changed = {name for name, one in recipes(instruments, columns).items() if one != first[name]}
    assert changed == {"ESI"}
    columns["HIRES"] = columns["HIRES"][:-1]
    changed = {name for name, one in recipes(instruments, columns).items() if one != first[name]}
    assert changed == {"ESI", "HIRES"}


RULE = '''"""A."""
class A:
    "B."
    def f(self):
        """C."""
        return "D."  # E.
'''


def test_words_about_a_rule_are_no_other_rule() -> None:
    for word in "ABCE":
        assert meaning(RULE.replace(f"{word}.", "other")) == meaning(RULE)
    assert meaning(RULE.replace("D.", "other")) != meaning(RULE)
    assert meaning("def f():\n    'Only words.'\n") == meaning("def f():\n    'Others.'\n")


@pytest.fixture
async def http(database: OpenDatabase) -> AsyncIterator[httpx.AsyncClient]:
    context = Preparer(Config(dev=True, database_url=database("preparer").url))
    app = create_app(context.config)
    app.state.context = context
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://site/v1") as client:
        yield client
    keys = await context.db.read(lambda s: list(s.scalars(select(jobs.c.queue))))
    assert set(keys) <= {"campaign"}
    await context.http.aclose()
    context.db.close()


async def test_orders(http: httpx.AsyncClient) -> None:
    order = {"instrument": "KCWI", "night": "2025-12-08", "findings": ["ODD"], "why": "x"}
    made = await http.post("/campaigns", json=order | {"progid": "U294"})
    assert made.status_code == 202
    told = made.json()
    wanted = {"instrument": "KCWI", "night": "2025-12-08", "findings": ["ODD"]}
    assert (told["wanted"], told["options"]) == (wanted, {"progid": "U294"})
    assert (told["state"], told["frames"], told["changes"]) == ("running", {}, {})
    number = told["campaign"]
    assert (await http.post(f"/campaigns/{number}/pause", json={"why": "x"})).json()["state"] == (
        "paused"
    )
    assert [row["state"] for row in (await http.get("/campaigns")).json()] == ["paused"]
    again = await http.post(f"/campaigns/{number}/pause", json={"why": "x"})
    assert again.status_code == 409


@pytest.mark.parametrize(
    ("order", "status", "code"),
    [
        ({}, 422, "rejected"),
        ({"why": "all"}, 422, "rejected"),
        ({"instrument": "NOSUCH"}, 422, "unknown_instrument"),
        ({"instrument": "KCWI", "per_minute": 0}, 422, "invalid_request"),
        ({"instrument": "KCWI", "status": "QUEUED"}, 422, "invalid_request"),
        ({"rules": "latest"}, 422, "invalid_request"),
    ],
)
async def test_bad_orders(http: httpx.AsyncClient, order: Any, status: int, code: str) -> None:
    answer = await http.post("/campaigns", json=order)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    missing = await http.get("/campaigns/7")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_campaign")


async def test_a_rehearsal_tells_what_changes_in_how_many(desk: Desk) -> None:
    files = await desk.announced(2)
    number = await desk.create(files, dry_run=True, options={"progid": "U294"})
    await desk.turn()
    await desk.turn()
    for found in ({"koaid": ["a", "b"], "IMAGETYP": [None, "dark"]}, {"koaid": ["a", "c"]}):
        job = await desk.claim("prepare")
        assert job.payload == {"campaign": number, "options": {"progid": "U294"}}
        assert job.priority >= 6
        await desk.db.write(desk.store.tried, job, found)
    assert await desk.turn() is None
    shown = await desk.db.read(desk.store.show, number)
    assert (shown["state"], shown["frames"]) == ("done", {"done": 2})
    assert shown["changes"] == {"koaid": 2, "IMAGETYP": 1}
    rows = [await desk.db.read(desk.store.file, file.frame_id) for file in files]
    assert {(row.generation, row.status) for row in rows} == {(1, "TRANSFERRED")}


async def test_what_cannot_be_rehearsed_leaves_no_job(desk: Desk) -> None:
    number = await desk.create(await desk.announced(1), dry_run=True)
    await desk.turn()
    job = await desk.claim("prepare")

    def park(session: Any) -> None:
        desk.store.tried(session, job, None, "ZeroDivisionError-1")
        desk.store.queue.again(session, job, None, "x", "ZeroDivisionError-1")

    await desk.db.write(park)
    assert await desk.turn() is None
    assert await desk.show(number) == ("done", {"failed": 1})
    assert await desk.db.read(lambda s: s.scalars(select(jobs.c.queue)).all()) == []
