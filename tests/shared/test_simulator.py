"""The simulated observatory: its frames, its ledger, and the real IOC that it runs."""

import asyncio
import hashlib
import io
import json
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from koa_shared.fits import read_structure
from koa_shared.ids import koaid, normal_path
from koa_shared.instruments import load_instruments
from koa_shared.simulator.__main__ import parse_size
from koa_shared.simulator.cards import Value
from koa_shared.simulator.control import NotRunning, Refused
from koa_shared.simulator.dome import Clock
from koa_shared.simulator.faults import FAULTS
from koa_shared.simulator.frames import Exposure, Request, build, templates
from koa_shared.simulator.ledger import Ledger, read_ledger
from koa_shared.testing.observatory import Observatory

AT = datetime(2026, 11, 23, 9, 6, 38, 480_000, UTC)
ALL = [
    (instrument, source, kind)
    for instrument, template in templates().items()
    for source in template.camera
    for kind in template.kinds(source)
]
SMALL = 200_000


def bytes_of(exposure: Exposure) -> bytes:
    return b"".join(exposure.parts)


def opened(data: bytes) -> Any:
    """Open a FITS file; whatever astropy would only warn of is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hdus = fits.open(io.BytesIO(data), checksum=True)
        hdus.verify("exception")
        return hdus


def name_in(header: Any) -> str:
    """Return the file name as the header tells it (facts 2.1)."""
    if "FILENAME" in header:
        return str(header["FILENAME"])
    if "DATAFILE" in header:
        return f"{header['DATAFILE']}.fits"
    if "OFNAME" in header:
        return str(header["OFNAME"])
    return f"{header['OUTFILE']}{header['FRAMENO']:04}.fits"


# Frames


@pytest.mark.parametrize(("instrument", "source", "kind"), ALL)
def test_frame_is_one_that_koa_can_name(instrument: str, source: str, kind: str) -> None:
    exposure = build(instrument, Request(source, kind, 17, AT, SMALL))
    data = bytes_of(exposure)
    header = opened(data)[0].header
    structure = read_structure(data)
    assert structure.hdus[-1].end == len(data) == exposure.size
    assert structure.odd == {}
    assert hashlib.sha256(data).hexdigest() == exposure.sha256
    assert 100 <= len(header) <= 300
    assert str(header["INSTRUME"]).startswith(instrument)
    assert name_in(header) == exposure.name == Path(exposure.path).name
    outdir = header["OUTDIR"].rstrip("/")
    assert (exposure.announced, exposure.path) == (
        f"{outdir}/{exposure.name}",
        normal_path(f"{outdir}/{exposure.name}"),
    )
    assert exposure.path.startswith("/s/sdata")
    ut = time.fromisoformat(header.get("UTC", header.get("UT")) + "0")
    camera = templates()[instrument].camera[source]
    day = date.fromisoformat(header["DATE-OBS"])
    assert koaid(camera.prefix, day, ut, camera.suffix) == exposure.koaid


def test_sources_are_the_instruments_own() -> None:
    known = load_instruments()
    for instrument, template in templates().items():
        roots = known[instrument].roots
        assert f"/s/{template.disk}" in roots
        assert set(template.camera) <= {s.name for s in known[instrument].sources}


@pytest.mark.parametrize(
    ("source", "megabytes"),
    [("nires_spec", 18.90), ("kcwi_blue", 10.16), ("nirc2", 4.2), ("kcwi_red", 37.9),
     ("esi", 18.3)],
)  # fmt: skip
def test_real_sizes_facts_8(source: str, megabytes: float) -> None:
    instrument, kind = next((i, k) for i, s, k in ALL if s == source)
    exposure = build(instrument, Request(source, kind, 1, AT))
    assert exposure.size / 1e6 == pytest.approx(megabytes, rel=0.01)
    assert opened(bytes_of(exposure))[0].data.std() > 1


@pytest.mark.parametrize("size", [300_000, 5_000_000, 140_000_000])
@pytest.mark.parametrize("instrument", templates())
def test_size_asked_for(instrument: str, size: int) -> None:
    source = templates()[instrument].default
    exposure = build(instrument, Request(source, "object", 1, AT, size))
    assert exposure.size == pytest.approx(size, rel=0.03)


def test_the_same_request_gives_the_same_bytes_and_no_other_does() -> None:
    request = Request("nirc2", "object", 1, AT, SMALL)
    others = [
        Request("nirc2", "object", 2, AT, SMALL),
        Request("nirc2", "object", 1, AT, SMALL, seed=1),
        Request("nirc2", "dark", 1, AT, SMALL),
        Request("nirc2", "object", 1, AT + timedelta(seconds=1), SMALL),
    ]
    first = build("NIRC2", request)
    assert first.sha256 == build("NIRC2", request).sha256
    assert len({first.sha256, *(build("NIRC2", r).sha256 for r in others)}) == 5
    assert b"".join(first.chunks(1000)) == bytes_of(first)


def test_table_extension_can_be_read() -> None:
    hdus = opened(bytes_of(build("KCWI", Request("kcwi_blue", "bias", 1, AT, SMALL))))
    assert hdus["Exposure Events"].data["SECONDS"][3] == 3


def test_cards_asked_for() -> None:
    cards: dict[str, Value] = {"UTC": "09:06:38.08", "COADDS": 3, "NEWKEY": True}
    request = Request("nirc2", "object", 1, AT, SMALL, program="N117", cards=cards)
    exposure = build("NIRC2", request)
    header = opened(bytes_of(exposure))[0].header
    assert {key: header[key] for key in cards} == cards
    assert header["PROGNAME"] == "N117"
    assert exposure.koaid is None


def is_refused(data: bytes) -> bool:
    """Tell whether a strict reader refuses the file."""
    try:
        opened(data)[0].data.sum()
    except (OSError, ValueError, TypeError, UserWarning, fits.VerifyError):
        return True
    return False


CHECKS: dict[str, Callable[[bytes, bytes], bool]] = {
    "zero": lambda good, bad: not bad,
    "text": lambda good, bad: is_refused(bad),
    "truncated": lambda good, bad: bad == good[: len(bad)] and len(bad) > 20_000,
    "header": lambda good, bad: bad == good[:2000],
    "unpadded": lambda good, bad: 0 < len(good) - len(bad) < 2880,
    "trailing": lambda good, bad: bad.startswith(good) and len(bad) > len(good),
    "junkfill": lambda good, bad: b"\x07" in bad and len(bad) == len(good),
    "gzip": lambda good, bad: bad[:2] == b"\x1f\x8b" and len(bad) > SMALL / 10,
    "checksum": lambda good, bad: is_refused(bad) and len(bad) == len(good),
    "deadclock": lambda good, bad: opened(bad)[0].header["UTC"] == "#### Error ###",
    "name": lambda good, bad: name_in(opened(bad)[0].header) != "n0001.fits",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(fault: str) -> None:
    good = build("NIRC2", Request("nirc2", "object", 1, AT, SMALL))
    bad = build("NIRC2", Request("nirc2", "object", 1, AT, SMALL, fault=fault))
    assert not is_refused(bytes_of(good))
    assert CHECKS[fault](bytes_of(good), bytes_of(bad))
    assert bad.koaid is None
    assert bad.path == good.path


# KOAIDs and the ledger


def test_a_burst_shares_no_koaid_facts_2_2() -> None:
    clock = Clock()
    now = datetime(2026, 11, 23, 23, 59, 59, 990_000, UTC)
    times = [clock.next("KCWI", now) for _ in range(300)]
    assert times == sorted(set(times))
    names = {koaid("KB", at.date(), at.time()) for at in times}
    assert len(names) == 300
    assert times[-1] - now < timedelta(seconds=4)
    assert clock.next("NIRC2", now) == now


def test_ledger_tells_what_was_not_announced(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    frames = [build("NIRC2", Request("nirc2", "dark", n, AT, SMALL)) for n in range(1, 4)]
    for frame in frames:
        ledger.begun(frame, AT, None)
    for frame in frames[1:]:
        ledger.closed(frame.path)
    for second in (1, 2):
        at = AT + timedelta(seconds=second)
        ledger.broadcast(frames[2].path, at, service="alad", keyword="FITSFILE")
    ledger.close()
    with path.open("a") as file:
        file.write('{"event": "begun", "pa')
    begun, closed, told = read_ledger(path)
    assert (begun.path, begun.sha256) == (frames[0].path, frames[0].sha256)
    assert begun.closed_at is None
    assert closed.closed_at is not None
    assert closed.broadcast_at is None
    assert (told.broadcasts, told.broadcast_at) == (2, AT.replace(second=39))


def test_parse_size() -> None:
    assert [parse_size(t) for t in ("real", "small", "140M", "1.5k", "9")] == [
        None, 400_000, 140_000_000, 1500, 9
    ]  # fmt: skip


# The IOC


@pytest.fixture
async def observatory(tmp_path: Path) -> AsyncIterator[Observatory]:
    record = tmp_path / "record.jsonl"
    async with Observatory(tmp_path, "--size=small", f"--record={record}") as running:
        yield running


class Ears:
    """Hears PVs in this process; `heard` is (PV without koa:, text), in order."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.beats = asyncio.Semaphore(0)
        self.open: list[Any] = []

    async def listen(self, *names: str) -> None:
        import aioca  # noqa: PLC0415 (reads the ports at its first use)

        def hear(value: Any) -> None:
            text = bytes(value).split(b"\0", 1)[0].decode()
            self.heard.append((value.name.removeprefix("koa:"), text))

        def beat(_: Any) -> None:
            self.beats.release()

        text = {"datatype": aioca.DBR_CHAR_BYTES, "all_updates": True}
        self.open = [aioca.camonitor(f"koa:{name}", hear, **text) for name in names]
        self.open.append(aioca.camonitor("koa:kbds:ITERATION", beat))
        await self.until(len(names))
        self.heard.clear()

    async def read(self, *names: str) -> list[str]:
        import aioca  # noqa: PLC0415

        pvs = [f"koa:{name}" for name in names]
        return [str(v) for v in await aioca.caget(pvs, datatype=aioca.DBR_CHAR_STR)]

    def close(self) -> None:
        import aioca  # noqa: PLC0415

        for subscription in self.open:
            subscription.close()
        aioca.purge_channel_caches()

    async def until(self, count: int) -> list[tuple[str, str]]:
        async with asyncio.timeout(10):
            while len(self.heard) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return self.heard


@pytest.fixture
async def ears(observatory: Observatory) -> AsyncIterator[Ears]:
    ears = Ears()
    yield ears
    ears.close()


def digest(observatory: Observatory, entry: Any) -> str:
    return hashlib.sha256(observatory.local(entry).read_bytes()).hexdigest()


async def cli(observatory: Observatory, *words: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "koa_shared.simulator", *words]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, f"--var={observatory.var}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.live
async def test_exposures_are_written_then_heard(observatory: Observatory, ears: Ears) -> None:
    await ears.listen("kbds:LOUTFILE", "alad:FITSFILE", "esi:WDISK", "esi:LFRAMENO")
    entries = [
        *await observatory.shoot("KCWI", 2, size=SMALL),
        *await observatory.shoot("NIRC2", kind="dark"),
        *await observatory.shoot("KCWI", size=SMALL, silent=True),
    ]
    heard = await ears.until(3)
    assert heard == [
        ("kbds:LOUTFILE", entries[0].path),
        ("kbds:LOUTFILE", entries[1].path),
        ("alad:FITSFILE", entries[2].path),
    ]
    assert [e.size for e in entries] == pytest.approx([SMALL] * 2 + [4.2e6, SMALL], 0.03)
    assert observatory.ledger() == entries
    assert [digest(observatory, e) for e in entries] == [e.sha256 for e in entries]
    for entry in entries[:3]:
        assert entry.closed_at
        assert entry.broadcast_at
        assert entry.begun_at <= entry.closed_at <= entry.broadcast_at
    assert entries[3].broadcast_at is None

    # ESI tells the parts, without /s, and WDISK last (facts 1.1, 1.2).
    ears.heard.clear()
    [esi] = await observatory.shoot("ESI", size=SMALL)
    await ears.until(3)
    assert ears.heard == [("esi:LFRAMENO", "1"), ("esi:WDISK", "true"),
                          ("esi:WDISK", "false")]  # fmt: skip
    parts = await ears.read("esi:OUTDIR", "esi:OUTFILE")
    [source] = load_instruments()["ESI"].sources
    read = dict(zip(("OUTDIR", "OUTFILE"), parts, strict=True)) | {"LFRAMENO": "1"}
    assert read == esi.read
    assert source.build_path("false", read) == esi.path.removeprefix("/s")

    # Instruments without frames are there, too; hearts beat.
    assert await ears.read("hiccd:WDISK", "koa:K2GUIDERFILE") == ["", ""]
    async with asyncio.timeout(5):
        await ears.beats.acquire()
        await ears.beats.acquire()
    lines = (observatory.root.parent / "record.jsonl").read_text().splitlines()
    recorded = [json.loads(line) for line in lines]
    assert [line["value"] for line in recorded] == [e.path for e in entries[:3]] + ["false"]
    assert recorded[3]["read"] == read


@pytest.mark.live
async def test_odd_writers(observatory: Observatory) -> None:
    shoot = observatory.shoot
    late, grown, twice, bad = await asyncio.gather(
        shoot("NIRC2", size=SMALL, late=0.5),
        shoot("KCWI", size=SMALL, grow=0.6),
        shoot("NIRES", size=SMALL, repeat=1, program="N117"),
        shoot("KCWI", source="kcwi_fcs", size=SMALL, fault="truncated"),
    )
    for entry in (late[0], grown[0]):
        assert entry.broadcast_at
        assert entry.closed_at
        assert entry.closed_at - entry.broadcast_at > timedelta(seconds=0.4)
        assert digest(observatory, entry) == entry.sha256
    assert (twice[0].broadcasts, late[0].broadcasts) == (2, 1)
    assert fits.getheader(observatory.local(twice[0]))["PROGNAME"] == "N117"
    assert (bad[0].fault, bad[0].koaid) == ("truncated", None)
    assert observatory.local(bad[0]).stat().st_size == bad[0].size < SMALL * 0.7
    with pytest.raises(Refused, match="KCWI has: kcwi_blue"):
        await shoot("KCWI", source="nirc2")
    with pytest.raises(Refused, match="takes: object, standard"):
        await shoot("NIRC2", kind="fpc")
    with pytest.raises(Refused, match="HIRES can't be simulated"):
        await shoot("HIRES")


@pytest.mark.live
async def test_shoot_on_the_command_line_and_after_a_crash(
    observatory: Observatory, ears: Ears
) -> None:
    words = ("shoot", "nirc2", "--n=2", "--size=200k", "--type=flat", "--set=COADDS=7")
    code, out, _ = await cli(observatory, *words)
    first = observatory.ledger()
    assert (code, out.split()) == (0, [entry.path for entry in first])
    assert [entry.kind for entry in first] == ["flat", "flat"]
    assert fits.getheader(observatory.local(first[0]))["COADDS"] == 7
    observatory.kill()
    code, _, error = await cli(observatory, "shoot", "nirc2")
    assert (code, "koa-sim run" in error) == (1, True)
    with pytest.raises(NotRunning):
        await observatory.shoot("NIRC2")

    await observatory.start()
    assert await ears.read("alad:FITSFILE") == [first[1].path]
    [third] = await observatory.shoot("NIRC2", size=SMALL)
    assert third.frameno == 3
    assert third.ut > first[1].ut
    assert await observatory.stop() == 0
    assert not observatory.control.exists()


@pytest.mark.live
async def test_a_night_goes_by_itself(tmp_path: Path) -> None:
    options = ("--cadence=0.3", "--burst=0.2", "--burst-size=3", "--size=small")
    async with Observatory(tmp_path, *options) as observatory:
        async with asyncio.timeout(20):
            while len(observatory.ledger()) < 30:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert await observatory.stop() == 0
    entries = observatory.ledger()
    assert all(entry.broadcasts == 1 for entry in entries)
    assert {entry.instrument for entry in entries} == set(templates())
    assert len({entry.koaid for entry in entries}) == len(entries)
    assert all(digest(observatory, entry) == entry.sha256 for entry in entries)
