"""A night as the catalogue of either engine adds it up."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from koa_ingestor.store import Store, nights
from koa_ingestor.store.schema import jobs
from koa_shared.contracts import Event, EventBatch, FilePrepared, FileWritten, Timeline
from koa_shared.db import Database
from koa_shared.jobs.queue import JobQueue
from koa_shared.reports import FindingCount
from koa_shared.web import Caller
from tests.conftest import NOON

NIGHT, BEFORE = "2025-12-08", NOON - timedelta(days=1)
OPERATOR = Caller(name="sre", role="operator")
STATES = ("announced", "archived", "invalid", "duplicate", "parked", "unfinished", "found")
WARNING = {"severity": "warning", "step": "read", "message": "w"}

Make = Callable[..., Any]


class Night:
    """A catalogue that frames are put into."""

    def __init__(self, db: Database, makers: tuple[Make, Make, Make]) -> None:
        self.db, self.store = db, Store(JobQueue(jobs), list)
        self.new_file, self.new_prepared, self.new_event = makers

    async def tell(self, *events: Event) -> None:
        await self.db.write(self.store.apply, EventBatch(events=list(events)))

    async def archive(self, prepared: FilePrepared) -> None:
        await self.db.write(self.store.hand_over, prepared, "")
        job = await self.db.write(self.store.queue.claim, "ingest")
        assert job is not None
        _, _, held = await self.db.write(self.store.begin, job)
        assert held is not None
        await self.db.write(self.store.commit, job, prepared, held.version, Timeline())

    async def add(self, second: int, generation: int = 1, **more: Any) -> FileWritten:
        """Archive a frame acquired at a second after noon; its monitor is heard too late.

        A reduced one is `of` another second's.
        """
        of = more.pop("of", second)
        names = {"source", "origin", "level", "instrument"}
        told = {name: more.pop(name) for name in names & more.keys()}
        file: FileWritten = self.new_file(f"k{second}.fits", **told)
        at = more.pop("at", NOON) + timedelta(seconds=second)
        prepared = self.new_prepared(
            file, generation, f"{second % 10}", koaid=f"KB.{at:%Y%m%d}.{43200 + of}.00",
            utdatetime=at, timeline={"acquired": at},
            metadata={"koaimtyp": more.pop("kind", "object"), "exposure": 30.0}, **more,
        )  # fmt: skip
        await self.archive(prepared)
        await self.tell(self.new_event(file, "QUEUED", 0, service="monitor"))
        return file


@pytest.fixture
def night(database: Make, new_file: Make, new_prepared: Make, new_event: Make) -> Night:
    return Night(database("ingestor"), (new_file, new_prepared, new_event))


async def test_a_night_is_added_up(night: Night) -> None:
    first = await night.add(0)
    await night.archive(  # anew: a second version, whose latency does not count
        night.new_prepared(
            first, 2, "0", koaid="KB.20251208.43200.00", timeline={"acquired": NOON},
            metadata={"koaimtyp": "object", "exposure": 30.0},
        )
    )  # fmt: skip
    await night.add(1, source="rescan:KCWI", origin="recovered")
    await night.add(2, origin="recovered", kind="bias")  # the first broadcast after a start
    drp = {"software": "KCWI_DRP 1.1.0", "rules": "0" * 16}
    await night.add(3, level=1, of=0, recipe=drp)
    await night.add(4, at=BEFORE)
    await night.add(5, origin="canary")
    bad, waiting = night.new_file("bad.fits"), night.new_file("waiting.fits")
    acquired = {"acquired": NOON + timedelta(hours=2)}
    found = [WARNING | {"code": code} for code in ("EMPTY_FILE", "OLD")]
    await night.tell(
        night.new_event(bad, "INVALID", 1, timeline=acquired, findings=found),
        night.new_event(waiting, "PROCESSING", 1, timeline={"acquired": NOON}),
        night.new_event(  # in the week before, and too long ago
            night.new_file("old.fits"), "INVALID", 1,
            timeline={"acquired": BEFORE}, findings=found[1:],
        ),
        night.new_event(
            night.new_file("older.fits"), "INVALID", 1,
            timeline={"acquired": NOON - timedelta(days=8)}, findings=found,
        ),
    )  # fmt: skip
    told = await night.db.read(night.store.night, NIGHT, OPERATOR)
    raw, reduced = told.instruments
    assert [getattr(raw, name) for name in STATES] == [5, 3, 1, 0, 0, 1, 1]
    assert [getattr(reduced, name) for name in STATES] == [1, 1, 0, 0, 0, 0, 0]
    assert (reduced.missing, reduced.verdict, told.verdict) == (1, "incomplete", "incomplete")
    assert (raw.missing, raw.pipelines, reduced.types) == (0, [], [])
    assert reduced.pipelines == ["KCWI_DRP 1.1.0"]
    assert (raw.level, raw.bytes, raw.exposure_seconds) == (0, 3 * 5760, 90.0)
    assert [(t.type, t.frames, t.exposure_seconds) for t in raw.types] == [
        ("object", 2, 60.0), ("bias", 1, 30.0),
    ]  # fmt: skip
    assert (raw.hours[12], raw.hours[14], sum(raw.hours)) == (4, 1, 5)
    assert raw.latency is not None
    assert (raw.latency.frames, len(told.worst)) == (2, 2)
    assert told.worst[0].latency_seconds == pytest.approx(raw.latency.max, abs=1e-3)
    assert told.findings == [
        FindingCount(instrument="KCWI", code="EMPTY_FILE", frames=1, week=0),
        FindingCount(instrument="KCWI", code="OLD", frames=1, week=1),
    ]
    for caller in (Caller(), Caller(role="observer", programs=["2025B_C002"])):
        blind, sets = (await night.db.read(night.store.night, NIGHT, caller)).instruments
        assert (sets.pipelines, sets.missing) == ([], 0)  # they tell of hidden frames
        assert [(t.type, t.frames, t.exposure_seconds) for t in blind.types] == [(None, 3, None)]
        assert [getattr(blind, name) for name in STATES] == [5, 3, 1, 0, 0, 1, 1]


async def test_a_manifest_comes_in_pages(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nights, "KEPT", 2)
    written = [await night.add(second) for second in range(5)]
    again = night.new_prepared(written[3], 2, "3", koaid="KB.20251208.43203.00", utdatetime=NOON)
    await night.archive(again)
    await night.add(11, at=NOON - timedelta(days=1))
    read, kept = night.db.read, list[tuple[str, int]]()
    cursor: str | None = ""
    while cursor is not None:
        files, cursor = await read(night.store.manifest, NIGHT, OPERATOR, cursor)
        assert 0 < len(files) <= 2
        kept += [(one.koaid[-8:], one.version) for one in files]
    assert kept == [(f"4320{n}.00", 2 if n == 3 else 1) for n in range(5)]
