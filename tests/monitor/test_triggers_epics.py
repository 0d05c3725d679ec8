"""Every trigger of facts 1.1, on a real EPICS server: source, instrument and path.

The table is typed from the facts, not read from the instrument files it tests.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import aioca
import pytest

from koa_monitor.sources import Broadcast
from koa_monitor.sources.epics import EpicsSource
from koa_shared.instruments import Instrument, Source, load_instruments
from koa_shared.testing.ioc import Ioc, use_loopback

use_loopback()

# source, instrument, service, keyword, path (less /s/sdata), heartbeat, its seconds
TRIGGERS = [
    ("koa", "KCWI", "koa", "LOUTFILE", "1400/t1.fits", "DISPCLK", 1),
    ("kpf", "KPF", "kpfassemble", "LOUTFILE", "1701/k.fits", "DISP1CLK", 5),
    ("kcwi_fcs", "KCWI", "kfcs", "LASTFILE", "1400/f.fits", "ITERATION", 30),
    ("kcwi_svs", "KCWI", "ksvs", "LASTFILE", "1400/s.fits", "ITERATION", 30),
    ("kcwi_blue", "KCWI", "kbds", "LOUTFILE", "1400/kb.fits", "ITERATION", 1),
    ("kcwi_red", "KCWI", "krds", "LOUTFILE", "1400/kr.fits", "ITERATION", 1),
    ("nires_img", "NIRES", "nids", "LASTFILE", "1500/v.fits", "ITERATION", 600),
    ("nires_spec", "NIRES", "nsds", "LASTFILE", "1500/s.fits", "ITERATION", 600),
    ("deimos_spec", "DEIMOS", "deimosplus", "LASTCCD", "1001/d.fits", "UPTIME", 1),
    ("deimos_fcs", "DEIMOS", "deifcs", "FCSIMGFI", "1001/f.fits", None, None),
    ("lris_red", "LRIS", "lredccd", "LOUTFILE", "241/r.fits", "UPTIME", 1),
    ("lris_blue", "LRIS", "lrisplus", "BLUE_LASTFILE", "241/b.fits", "UPTIME", 1),
    ("mosfire", "MOSFIRE", "mosfire", "LASTFILE", "1300/m.fits", "ITERATION", 1),
    ("nirc2", "NIRC2", "alad", "FITSFILE", "900/n.fits", "DISP1CLK", 1),
    ("nirc2_unp", "NIRC2", "alad", "RAWFITSFILE", "900/u.fits", "DISP1CLK", 1),
    ("nirspec_spec", "NIRSPEC", "nspec", "LASTFILE", "600/s.fits", "UPTIME", 1),
    ("nirspec_scam", "NIRSPEC", "nscam", "LASTFILE", "600/i.fits", "DISP1CLK", 1),
    ("osiris_spec", "OSIRIS", "osiris", "SLASTFILE", "1100/s.fits", "ITERATION", 1),
    ("osiris_img", "OSIRIS", "osiris", "ILASTFILE", "1100/i.fits", "ITERATION", 1),
    ("guiderk1", "GUIDER", "koa", "K1GUIDERFILE", "1/g1.fits", "DISPCLK", 5),
    ("guiderk2", "GUIDER", "koa", "K2GUIDERFILE", "1/g2.fits", "DISPCLK", 5),
]  # fmt: skip

# source, instrument, service, heartbeat, its seconds, OUTDIR; both hear WDISK=false
FORMATTED = [
    ("esi", "ESI", "esi", None, None, "/s/sdata700/esi1/2025dec08"),
    ("hires", "HIRES", "hiccd", "INFOMCLK", 1, "/s/sdata125/hires1/2025dec08"),
]
TEST_ONLY = {"koa"}


@pytest.fixture(scope="module")
def sources() -> dict[str, tuple[Instrument, Source]]:
    instruments = load_instruments().values()
    return {s.name: (i, s) for i in instruments for s in i.sources}


@pytest.fixture(scope="module")
def ioc() -> Iterator[Ioc]:
    texts = {(service, keyword) for _, _, service, keyword, *_ in TRIGGERS}
    texts |= {
        (service, keyword)
        for _, _, service, *_ in FORMATTED
        for keyword in ("WDISK", "OUTDIR", "OUTFILE", "LFRAMENO")
    }
    beats = {(t[2], t[5]) for t in TRIGGERS if t[5]} | {("hiccd", "INFOMCLK")}
    pvs: dict[str, str | int] = {f"koa:{s}:{k}": "" for s, k in texts}
    with Ioc("softioc", pvs | {f"koa:{s}:{k}": 0 for s, k in beats}) as running:
        yield running


@pytest.fixture
async def channels() -> AsyncIterator[None]:
    yield
    aioca.purge_channel_caches()


async def see_heartbeat(source: EpicsSource, ioc: Ioc) -> None:
    """Return when a heartbeat has come that was sent after this call."""
    if (beat := source.source.heartbeat) is None:
        assert source.heartbeat_age is None
        return
    sent = time.monotonic()
    count = time.monotonic_ns() // 1000 % 2**31
    ioc.put({f"koa:{source.source.service}:{beat.keyword}": count})
    while (source.heartbeat_age or 0) > time.monotonic() - sent:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def hear_change(source: EpicsSource, ioc: Ioc, pv: str, value: str) -> Broadcast:
    """Return the broadcast that setting `pv` leads to."""
    heard: asyncio.Queue[Broadcast] = asyncio.Queue()
    task = asyncio.create_task(source.run(heard.put))
    try:
        async with asyncio.timeout(10):
            assert (await heard.get()).initial
            ioc.put({pv: value})
            change = await heard.get()
            assert not change.initial
            await see_heartbeat(source, ioc)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return change


def test_these_are_all_sources_of_facts_1_1(
    sources: dict[str, tuple[Instrument, Source]],
) -> None:
    typed = {t[0] for t in TRIGGERS} | {f[0] for f in FORMATTED}
    assert len(typed) == 23
    assert set(sources) == typed
    assert {name for name, (_, source) in sources.items() if source.test} == TEST_ONLY


@pytest.mark.usefixtures("channels")
@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda t: t[0])
async def test_trigger_value_is_the_path(
    trigger: tuple[str, str, str, str, str, str | None, float | None],
    sources: dict[str, tuple[Instrument, Source]],
    ioc: Ioc,
) -> None:
    name, instrument, service, keyword, rest, beat, seconds = trigger
    value = f"/s/sdata{rest}"
    owner, source = sources[name]
    assert owner.name == instrument
    assert (source.service, source.keyword) == (service, keyword)
    assert source.required is None
    heartbeat = source.heartbeat
    assert (heartbeat and heartbeat.keyword, heartbeat and heartbeat.seconds) == (
        beat,
        seconds,
    )
    pv = f"koa:{service}:{keyword}"
    change = await hear_change(EpicsSource(source), ioc, pv, value)
    assert (change.source, change.keyword, change.value) == (name, keyword, value)
    assert source.build_path(change.value, change.read) == value


@pytest.mark.usefixtures("channels")
@pytest.mark.parametrize(
    ("number", "file"),
    [("7", "e0007"), ("0012", "e0012"), (" 345 ", "e0345"), ("12345", "e12345")],
)
@pytest.mark.parametrize("formatted", FORMATTED, ids=lambda f: f[0])
async def test_path_of_three_keywords(
    formatted: tuple[str, str, str, str | None, float | None, str],
    number: str,
    file: str,
    sources: dict[str, tuple[Instrument, Source]],
    ioc: Ioc,
) -> None:
    name, instrument, service, beat, seconds, outdir = formatted
    owner, source = sources[name]
    assert (owner.name, source.service, source.keyword) == (
        instrument,
        service,
        "WDISK",
    )
    assert source.required == "false"
    assert (source.heartbeat and source.heartbeat.keyword) == beat
    assert (source.heartbeat and source.heartbeat.seconds) == seconds
    pv = f"koa:{service}:"
    values = {"WDISK": "true", "OUTDIR": outdir, "OUTFILE": "e", "LFRAMENO": number}
    ioc.put({pv + key: value for key, value in values.items()})
    writing = await hear_change(EpicsSource(source), ioc, f"{pv}WDISK", "writing")
    assert writing.read == {}
    change = await hear_change(EpicsSource(source), ioc, f"{pv}WDISK", "false")
    assert (change.source, change.value) == (name, "false")
    assert source.build_path(change.value, change.read) == f"{outdir}/{file}.fits"


class Moved(EpicsSource):
    """A source during whose first read of the path the observer moves on."""

    def __init__(self, source: Source, ioc: Ioc) -> None:
        super().__init__(source)
        self.ioc = ioc
        self.reads: list[str] = []

    async def read(self, keywords: tuple[str, ...]) -> dict[str, str]:
        first = await super().read(keywords[:1])
        if not self.reads:
            pv = f"koa:{self.source.service}:"
            self.ioc.put({f"{pv}OUTDIR": "/s/sdata799", f"{pv}LFRAMENO": "8"})
        self.reads.append(first["OUTDIR"])
        return first | await super().read(keywords[1:])


@pytest.mark.usefixtures("channels")
@pytest.mark.parametrize("formatted", FORMATTED, ids=lambda f: f[0])
async def test_outdir_changed_between_the_reads(
    formatted: tuple[str, str, str, str | None, float | None, str],
    sources: dict[str, tuple[Instrument, Source]],
    ioc: Ioc,
) -> None:
    name, _, service, _, _, outdir = formatted
    pv = f"koa:{service}:"
    values = {"WDISK": "true", "OUTDIR": outdir, "OUTFILE": "e", "LFRAMENO": "7"}
    ioc.put({pv + key: value for key, value in values.items()})
    moved = Moved(sources[name][1], ioc)
    change = await hear_change(moved, ioc, f"{pv}WDISK", "false")
    assert moved.reads == [outdir, "/s/sdata799", "/s/sdata799"]
    # Never the torn /…/e0008.fits of the old directory.
    path = moved.source.build_path(change.value, change.read)
    assert path == "/s/sdata799/e0008.fits"
