"""The monitor as a whole, without a control system and without peers."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from koa_monitor.app import Monitor, create_app
from koa_monitor.config import Config
from koa_monitor.sources import Broadcast
from koa_shared.contracts import Inventory
from koa_shared.errors import DependencyDown
from tests.conftest import NOON

READ = {"OUTDIR": "/s/sdata700", "OUTFILE": "e", "LFRAMENO": "7"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "night.jsonl").write_text("")
    return Config(
        dev=True, var=tmp_path, sources="kcwi_blue, esi", path_map=f"/s={tmp_path}",
        control=f"replay:{tmp_path / 'night.jsonl'}", missing_seconds=0,
        preparer_url="http://127.0.0.1:9", ingestor_url="http://127.0.0.1:9",
    )  # fmt: skip


@pytest.fixture
async def app(config: Config) -> AsyncIterator[Any]:
    made = create_app(config)
    Monitor(config).db.migrate()
    async with made.router.lifespan_context(made):
        yield made


@pytest.fixture
async def monitor(app: Any) -> Monitor:
    context: Monitor = app.state.context
    return context


@pytest.fixture
async def http(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://monitor") as client:
        yield client


def heard(value: str = "/s/sdata1400/kb1.fits", *, initial: bool = False) -> Broadcast:
    return Broadcast("kcwi_blue", "kbds", "LOUTFILE", value, NOON, initial, {})


async def test_each_connection_asks_for_a_rescan(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    async def rescan(*instruments: Any) -> None:
        asked.append(tuple(i.name for i in instruments))

    monkeypatch.setattr(monitor, "_rescan", rescan)
    await monitor.hear(heard("/s/sdata1400/kb1.fits", initial=True))
    await monitor.hear(heard("/s/sdata1400/kb2.fits"))
    assert asked == [("KCWI",)]


async def test_a_missed_broadcast_is_followed_by_a_rescan_of_everything(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    async def rescan(*instruments: Any) -> bool:
        asked.append(tuple(i.name for i in instruments))
        return len(asked) == 2  # the first could not be written down either

    async def away(*_: Any) -> None:
        raise DependencyDown("database", "the disk is full")

    monkeypatch.setattr(monitor, "_rescan", rescan)
    with monkeypatch.context() as down:
        down.setattr(monitor.db, "write", away)
        await monitor.hear(heard("/s/sdata1400/kb1.fits"))
    await monitor.hear(heard("/s/sdata1400/kb2.fits"))
    await monitor.hear(heard("/s/sdata1400/kb3.fits"))
    await monitor.hear(heard("/s/sdata1400/kb4.fits"))
    assert asked == [("KCWI", "ESI")] * 2


async def test_no_inventory_is_lost_while_one_is_told(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Monitor(config)
    monitor.db.migrate()
    await monitor.start()
    first, second = (
        Inventory(night="2025-12-08", instrument="KCWI", on_disk=n, announced=n) for n in (1, 2)
    )
    told: list[Inventory] = []
    monitor.worker.inventories["KCWI", NOON.date()] = first

    async def tell(batch: Any) -> None:
        if batch.inventory:
            told.append(batch.inventory)
        if batch.inventory is first:
            monitor.worker.inventories["KCWI", NOON.date()] = second  # a rescan ends just then
        if second in told:
            raise DependencyDown("ingestor", "it could not be told")

    monkeypatch.setattr("koa_monitor.app.REPORT_SECONDS", 0.01)
    monkeypatch.setattr(monitor.ingestor, "tell", tell)
    reporting = asyncio.create_task(monitor._report())
    async with asyncio.timeout(10):
        while len(told) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert told == [first, second]
    assert monitor.worker.inventories == {("KCWI", NOON.date()): second}
    reporting.cancel()


async def test_an_inventory_is_of_whole_nights_and_counts_what_the_rescan_took_on(
    monitor: Monitor, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    since = now - timedelta(days=1)
    early = since.replace(hour=0, minute=0, second=0)  # of that night, before the look-back
    times = {1: early, 2: since + timedelta(seconds=1), 5: since + timedelta(seconds=2)}
    times[6] = now - timedelta(seconds=30)
    expected = {since.date(): Counter[str](), now.date(): Counter[str]()}
    (tmp_path / "sdata1400" / "kcwi1").mkdir(parents=True)
    for number, at in times.items():
        file = tmp_path / "sdata1400" / "kcwi1" / f"kb{number:06}.fits"
        file.write_bytes(b"SIMPLE")
        os.utime(file, (at.timestamp(), at.timestamp()))
        expected[at.date()] += Counter(disk=1, known=int(at >= since))
    await http.post("/v1/sources/kcwi_blue/rescan", json={"since": since.isoformat()})
    seen = monitor.worker.inventories
    async with asyncio.timeout(20):
        while not all(("KCWI", night) in seen for night in expected):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for night, told in expected.items():
        one = seen["KCWI", night]
        assert (one.night, one.on_disk, one.announced) == (
            night.isoformat(), told["disk"], told["known"],
        )  # fmt: skip
        assert one.at is not None
        assert one.at >= now - timedelta(milliseconds=1)
    assert "/s/sdata1400/kcwi1/kb000003-000004" in seen["KCWI", since.date()].frame_gaps


async def test_disks_and_last_frames_are_measured(
    monitor: Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def value(name: str, **labels: str) -> float | None:
        return monitor.metrics.registry.get_sample_value(name, labels)

    (tmp_path / "sdata1400").mkdir()
    monkeypatch.setattr("koa_monitor.app.REPORT_SECONDS", 0.01)
    reporting = asyncio.create_task(monitor._report())
    await monitor.db.write(monitor.store.note_source, "esi", last_frame_at=NOON)
    await monitor._rescan(*monitor.sources.values())
    silent = {"source": "kcwi_blue", "instrument": "KCWI"}
    esi = {"source": "esi", "instrument": "ESI"}
    last, free = "koa_source_last_frame_timestamp_seconds", "koa_data_root_free_bytes"
    root = {"instrument": "KCWI", "root": "/s/sdata1400"}
    async with asyncio.timeout(10):
        while (  # noqa: ASYNC110
            value(last, **esi) != NOON.timestamp()
            or value("koa_frame_gaps", instrument="KCWI") != 0
        ):
            await asyncio.sleep(0.01)
    reporting.cancel()
    assert value(last, **silent) == 0
    assert (value(free, **root) or 0) > 0
    assert value(free, instrument="ESI", root="/s/sdata700") is None  # never written to


async def test_sources_are_paused_and_resumed(http: httpx.AsyncClient, monitor: Monitor) -> None:
    states = (await http.get("/v1/sources")).json()
    told = [(s["name"], s["instrument"], s["connected"], s["paused"]) for s in states]
    assert told == [("kcwi_blue", "KCWI", True, False), ("esi", "ESI", True, False)]
    paused = (await http.post("/v1/sources/esi/pause", json={"why": "dome"})).json()
    assert paused["paused"] is True
    assert paused["paused_why"].startswith("by dev since ")
    assert paused["paused_why"].endswith(" UTC: dome")
    assert (await monitor.db.read(monitor.store.audit.held)).keys() == {"esi"}
    resumed = (await http.post("/v1/sources/esi/resume")).json()
    assert (resumed["paused"], resumed["paused_why"]) == (False, None)
    assert await monitor.db.read(monitor.store.audit.held) == {}
    deeds = (await http.get("/v1/audit")).json()
    assert [(d["verb"], d["target"], d["why"]) for d in deeds] == [
        ("resume", "esi", ""), ("pause", "esi", "dome"),
    ]  # fmt: skip
    unknown = await http.post("/v1/sources/hires/pause")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_source")
    assert (await http.post("/v1/sources/esi/forget")).status_code == 422


@pytest.mark.parametrize("order", [None, {}, {"since": "2025-12-08T00:00:00Z", "resend": True}])
async def test_a_rescan_is_planned(http: httpx.AsyncClient, order: dict[str, Any] | None) -> None:
    answer = await http.post("/v1/sources/esi/rescan", json=order)
    assert (answer.status_code, answer.json()["instrument"]) == (202, "ESI")
    [deed] = (await http.get("/v1/audit", params={"target": "esi"})).json()
    assert (deed["who"], deed["verb"]) == ("dev", "rescan")
    assert deed["changed"]["resend"] is bool((order or {}).get("resend"))
    wrong = await http.post("/v1/sources/esi/rescan", json={"since": "yesterday"})
    assert wrong.status_code == 422


async def test_triggers_tell_what_was_decided(http: httpx.AsyncClient, monitor: Monitor) -> None:
    await monitor.hear(heard("/elsewhere/kb1.fits"))
    [row] = (await http.get("/v1/triggers", params={"source": "kcwi_blue"})).json()["items"]
    assert (row["value"], row["service"], row["time"]) == (
        "/elsewhere/kb1.fits", "kbds", "2025-12-08T12:00:00.000Z",
    )  # fmt: skip
    assert "read" not in row


async def test_a_file_is_submitted(http: httpx.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "sdata1400").mkdir()
    (tmp_path / "sdata1400" / "kb1.fits").write_text("x")

    async def submit(path: str, **more: str) -> tuple[int, str]:
        answer = await http.post("/v1/files", json={"path": path} | more)
        body = answer.json()
        return answer.status_code, body.get("decision") or body["code"]

    assert await submit("/sdata1400/kb1.fits") == (202, "accepted")
    assert await submit("/s/sdata1400/kb1.fits", instrument="kcwi") == (200, "duplicate")
    assert await submit("/s/sdata1400/kb1.fits", source="kcwi_blue") == (200, "duplicate")
    assert await submit("/s/sdata1400/mira/kb1.fits") == (200, "ignored")
    assert await submit("/s/sdata1400/kb2.fits") == (422, "FITS_NOT_FOUND")
    assert await submit("/s/nowhere/kb1.fits") == (422, "unknown_instrument")
    assert await submit("/s/sdata1400/kb1.fits", instrument="X") == (422, "unknown_instrument")
    assert await submit("/s/sdata1400/kb1.fits", source="x") == (404, "unknown_source")


def test_a_source_nobody_has_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="KOA_SOURCES names no source: kcwi_green"):
        Monitor(Config(dev=True, var=tmp_path, sources="esi,kcwi_green"))
