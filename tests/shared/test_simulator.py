"""The simulated observatory: its frames, its ledger, and the real IOC that it runs."""

import asyncio
import hashlib
import io
import json
import re
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
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
from koa_shared.simulator.night import slowness
from koa_shared.simulator.quicklook import BIN, quick_look
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


def name_in(header: Any) -> str | None:
    """Return the file name as the header tells it (facts 2.1); GUIDER's does not."""
    if "CAMNAME" in header and "INSTRUME" not in header:
        return None
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
    assert structure.hdus[-1].end == len(data) == exposure.size < 1_000_000
    assert structure.odd == {}
    assert hashlib.sha256(data).hexdigest() == exposure.sha256
    assert 100 <= len(header) <= 300
    assert str(header.get("INSTRUME", "GUIDER")).startswith(instrument)
    assert name_in(header) in (exposure.name, None)
    assert exposure.name == Path(exposure.path).name
    if "OUTDIR" in header:
        outdir = header["OUTDIR"].rstrip("/")
        assert exposure.announced == f"{outdir}/{exposure.name}"
    assert exposure.path == normal_path(exposure.announced)
    assert exposure.path.startswith("/s/sdata")
    # The FCS camera of DEIMOS has no other time than that of DATE (facts 2.1).
    day, ut = header["DATE"].split("T") if source == "deimos_fcs" else ("", "")
    ut = time.fromisoformat(ut or header.get("UTC", header.get("UT")))
    day = date.fromisoformat(day or header["DATE-OBS"])
    camera = templates()[instrument].camera[source]
    assert koaid(camera.prefix, day, ut, camera.suffix) == exposure.koaid


def test_all_instruments_and_monitor_entries_facts_1_1() -> None:
    """12 instruments, 23 monitor entries; each shoots what its instrument can take."""
    known = load_instruments()
    assert len(templates()) == 12
    cameras = {source for template in templates().values() for source in template.camera}
    assert len(cameras) == 23
    for instrument, template in templates().items():
        roots = known[instrument].roots
        assert f"/s/{template.disk}" in roots or instrument == "GUIDER"
        assert set(template.camera) == {s.name for s in known[instrument].sources}
        assert {kind for source in template.camera for kind in template.kinds(source)} == set(
            template.kind
        )


@pytest.mark.parametrize("instrument", [n for n, t in templates().items() if t.quick_look])
def test_quick_look_is_a_set_of_level_1(instrument: str) -> None:
    template = templates()[instrument]
    exposure = build(instrument, Request(template.default, "object", 17, AT, SMALL))
    name = template.quick_look.format(koaid=exposure.koaid)
    [rule] = [rule for rule in load_instruments()[instrument].reduced if rule.level == 1]
    assert rule.choose([name], str(exposure.koaid), 17) == [name]
    assert load_instruments()[instrument].paths.refusal(f"/s/{template.disk}/redux/{name}")
    raw = next(h.data for h in opened(bytes_of(exposure)) if h.is_image and h.data is not None)
    reduced = opened(quick_look(bytes_of(exposure)))[0]
    corner = raw.reshape(-1, *raw.shape[-2:])[0][:BIN, :BIN].mean()
    last = raw.reshape(-1, *raw.shape[-2:])[0][-2 * BIN :, -2 * BIN :]
    assert reduced.data.shape == tuple(side // BIN for side in raw.shape[-2:])
    assert np.median(reduced.data) == pytest.approx(0, abs=1e-3)
    assert reduced.data[0, 0] != reduced.data[-1, -1]
    level = corner - reduced.data[0, 0]
    assert last.min() <= reduced.data[-1, -1] + level <= last.max()
    assert "less their median" in str(reduced.header["HISTORY"])


def test_no_keyword_of_a_template_is_unknown_to_fits() -> None:
    for instrument, template in templates().items():
        cards: list[Mapping[str, Any]] = [template.cards]
        cards += [kind.cards for kind in template.kind.values()]
        cards += [camera.cards for camera in template.camera.values()]
        for key in (key for part in cards for key in part if not key.startswith("COMMENT")):
            assert re.fullmatch(r"[A-Z0-9_-]{1,8}", key), (instrument, key)


# Megabytes and the shape of each HDU, the primary first: images (x, y), tables by name;
# facts 0 and 8, the issue, and the NAXIS of the real headers.
TABLES = ["ObjectCat", "MaskDesign", "DesiSlits", "SlitObjMap", "BluSlits"]
REAL: dict[str, tuple[float, list[Any]]] = {
    "nires_spec": (18.90, [(2048, 1024), (2048, 1280)]),
    "kcwi_blue": (10.16, [(2300, 2200), "Exposure Events"]),
    "nirc2": (4.2, [(1024, 1024)]),
    "kcwi_red": (37.9, [(4600, 4114)]),
    "esi": (18.3, [(2232, 4096)]),
    "deimos_spec": (140, [None, *[(2140, 4096)] * 8, *TABLES]),
    "deimos_fcs": (3.1, [None, *[(640, 1200)] * 2]),
    "hires": (17.6, [None, *[(713, 4096)] * 3]),
    "lris_red": (17.5, [(2124, 4112)]),
    "lris_blue": (9.5, [None, *[(577, 2048)] * 4]),
    "kpf": (140, [None, *[(2094, 4110)] * 4, (1024, 255), "EXPMETER_SCI", "EXPMETER_SKY",
                  (640, 512), "GUIDER_CUBE_ORIGINS", "TELEMETRY"]),
    "mosfire": (16.8, [(2048, 2048), "Mechanical_Slit_List", "Science_Slit_List"]),
    "nirspec_spec": (16.8, [(2048, 2048)]),
    "osiris_spec": (16.8, [(2048, 2048)]),
    "osiris_img": (16.8, [(2048, 2048)]),
    "guiderk1": (1.32, [(640, 512)]),
    "guiderk2": (0.144, [(255, 255)]),
}  # fmt: skip


@pytest.mark.parametrize("source", REAL)
def test_real_sizes_facts_0_and_8(source: str) -> None:
    megabytes, shapes = REAL[source]
    instrument, kind = next((i, k) for i, s, k in ALL if s == source)
    exposure = build(instrument, Request(source, kind, 1, AT))
    assert exposure.size / 1e6 == pytest.approx(megabytes, rel=0.01)
    hdus = opened(bytes_of(exposure))
    assert [h.name if "TTYPE1" in h.header else h.shape[::-1] or None for h in hdus] == shapes
    assert next(hdu for hdu in hdus if hdu.is_image and hdu.size).data.std() > 1


@pytest.mark.parametrize("size", [None, 500_000])
def test_sections_follow_the_window(size: int | None) -> None:
    """DATASEC and DETSEC are those of the pixels that are there (LRIS blue, binned 2,2)."""
    hdus = opened(bytes_of(build("LRIS", Request("lris_blue", "object", 1, AT, size))))
    seen: list[tuple[int, bool]] = []
    for hdu in hdus[1:]:
        first, last = hdu.header["DATASEC"][1:].split(",")[0].split(":")
        start, end = hdu.header["DETSEC"][1:].split(",")[0].split(":")
        assert hdu.header["EXTNAME"] == f"VidInp{len(seen) + 1}"
        assert abs(int(end) - int(start)) + 1 == 2 * (int(last) - int(first) + 1)
        assert int(last) <= hdu.header["NAXIS1"]
        assert hdu.header["DETSEC"].endswith(f",1:{2 * hdu.header['NAXIS2']}]")
        seen.append((int(start), int(end) > int(start)))
    assert seen == [(1, True), (2048, False), (2049, True), (4096, False)]
    if size is None:
        assert hdus[4].header["DATASEC"] == "[26:537,1:2048]"
        assert hdus[4].header["DETSEC"] == "[4096:3073,1:4096]"


@pytest.mark.parametrize("size", [300_000, 5_000_000, 140_000_000])
@pytest.mark.parametrize("instrument", templates())
def test_size_asked_for(instrument: str, size: int) -> None:
    source = templates()[instrument].default
    exposure = build(instrument, Request(source, "object", 1, AT, size))
    assert exposure.size == pytest.approx(size, rel=0.05)


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
    hdus = opened(bytes_of(build("DEIMOS", Request("deimos_spec", "bias", 1, AT, SMALL))))
    assert hdus["DesiSlits"].columns.names[:3] == ["dSlitId", "DesId", "slitRA"]
    assert hdus["MaskDesign"].data["DesName"][0] == "desname"


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


def test_a_clock_of_whole_seconds_shares_no_koaid() -> None:
    """FCS images of DEIMOS (facts 2.1): only DATE tells when, without a fraction."""
    clock = Clock()
    step = timedelta(seconds=1)
    times = [clock.next("DEIMOS", AT, step) for _ in range(3)]
    requests = [Request("deimos_fcs", "fcscal", n, at, SMALL) for n, at in enumerate(times)]
    names = [build("DEIMOS", request).koaid for request in requests]
    assert names == [f"DF.20261123.{second}.00" for second in (32798, 32799, 32800)]


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

    # Hearts beat.
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
    with pytest.raises(Refused, match="LWS can't be simulated"):
        await shoot("LWS")


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


def test_large_detectors_come_slower_than_quick_ones() -> None:
    """A camera's rate is at most 10 MB of pixels for each cadence (make run: 20 s)."""
    cameras = {name: camera for t in templates().values() for name, camera in t.camera.items()}
    names = ("kpf", "kcwi_red", "nirc2", "guiderk2")
    slow = {name: slowness(cameras[name], None) for name in names}
    assert slow == {
        "kpf": pytest.approx(13.95, rel=0.01),
        "kcwi_red": pytest.approx(3.78, rel=0.01),
        "nirc2": 1,
        "guiderk2": 1,
    }
    assert slowness(cameras["kpf"], 400_000) == 1


@pytest.mark.live
async def test_a_night_goes_by_itself(tmp_path: Path) -> None:
    options = ("--cadence=0.3", "--burst=0.2", "--burst-size=3", "--size=small")
    async with Observatory(tmp_path, *options) as observatory:
        async with asyncio.timeout(20):
            while {e.instrument for e in observatory.ledger()} != set(templates()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert await observatory.stop() == 0
    entries = observatory.ledger()
    assert all(entry.broadcasts == 1 for entry in entries)
    assert len(entries) >= 12
    assert len({entry.koaid for entry in entries}) == len(entries)
    assert all(digest(observatory, entry) == entry.sha256 for entry in entries)
