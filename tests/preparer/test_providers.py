"""Providers of program facts and weather (design 5, 8, 9; facts 3.3 to 3.6, 7.3)."""

import asyncio
import contextlib
import os
import socket
import threading
import time as clock
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

import koa_shared
from koa_preparer.config import Config
from koa_preparer.providers import (
    WEATHER_KEYS,
    Facts,
    Night,
    Proposal,
    Weather,
)
from koa_preparer.providers.gather import CachedProvider, gather_facts, open_provider
from koa_preparer.providers.http import HttpProvider
from koa_preparer.providers.sun import sun_times
from koa_preparer.providers.toml_file import TomlProvider
from koa_shared.errors import DependencyDown
from koa_shared.metrics import Metrics
from koa_shared.retry import Circuits

UT = datetime(2026, 11, 23, 5, 0, 0, 250_000, tzinfo=UTC)
HST_DATE = date(2026, 11, 22)
EXAMPLE = Path(koa_shared.__file__).parent / "data" / "schedule-example.toml"
Fault = Callable[[], Awaitable[Response | None]]


# The observatory: a real HTTP server that answers as facts 3.6 tell, or misbehaves.


@dataclass
class Observatory:
    """What the server knows, what it was asked, and how it misbehaves by path."""

    url: str = ""
    schedule: Any = field(
        default_factory=lambda: [
            {"ProjCode": "2026B_C272", "StartTime": "4:30", "EndTime": "10:00"},
            {
                "ProjCode": "U294",
                "StartTime": "10:00:00",
                "EndTime": "",
                "ObsType": "ToO",
                "Account": "kcwi2",
            },
        ]
    )
    staff: Any = field(
        default_factory=lambda: [
            {"Type": "oa", "Alias": "first"},
            {"Type": "oar", "Alias": "last"},
            {"Type": "sa", "Alias": "other"},
        ]
    )
    samples: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def calls(self, name: str) -> int:
        return Counter(path.rsplit("/", 1)[-1] for path, _ in self.asked)[name]

    def query(self, name: str) -> dict[str, str]:
        return next(query for path, query in self.asked if path.endswith(name))

    def answer(self, name: str, query: dict[str, str]) -> Any:
        if name == "getSchedule":
            return self.schedule
        if name == "getTwilightData":
            return {"sunrise": "16:31:02", "sunset": "03:44:05"}
        if name == "getNightStaff":
            return self.staff
        if name == "getData.json":
            rows = self.samples.get(query["pv"], [sample(0, 1.5)])
            return rows and [{"meta": {"name": query["pv"]}, "data": rows}]
        return self.proposal(name, query["ktn"])

    @staticmethod
    def proposal(name: str, semid: str) -> Any:
        values = {
            "getPI": {"LastName": "Alder"},
            "getAllocInst": {"AllocInst": "CIT"},
            "getTitle": {"ProgramTitle": "Imaginary"},
            "getApprovedPP": {"ProprietaryPeriod": 12},
        }
        if semid == "2026B_C272":
            return {"success": 1, "data": values[name]}
        return {"success": 0, "data": None}


def sample(offset: float, value: Any) -> dict[str, Any]:
    """Return an archiver's row, `offset` seconds after the exposure."""
    at = UT + timedelta(seconds=offset)
    return {
        "secs": int(at.timestamp()),
        "nanos": at.microsecond * 1000,
        "val": value,
        "severity": 0,
    }


async def broken() -> Response:
    return PlainTextResponse("no", 500)


async def junk() -> Response:
    return PlainTextResponse("<html>login</html>")


async def odd() -> Response:
    return JSONResponse(["not", "objects"])


async def absent() -> Response:
    return PlainTextResponse("no such thing", 404)


async def hang() -> None:
    await asyncio.sleep(3)


async def slow() -> None:
    await asyncio.sleep(0.5)


def build(site: Observatory) -> FastAPI:
    app = FastAPI()

    @app.get("/{path:path}", response_model=None)
    async def answer(path: str, request: Request) -> Any:
        name = path.rsplit("/", 1)[-1]
        query = dict(request.query_params)
        site.asked.append((path, query))
        for key in (query.get("pv", ""), name):
            if key in site.faults and (reply := await site.faults[key]()) is not None:
                return reply
        return JSONResponse(site.answer(name, query))

    return app


@contextlib.contextmanager
def serving(site: Observatory, **options: Any) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(build(site), log_level="critical", **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            clock.sleep(0.01)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Observatory]:
    site = Observatory()
    with serving(site) as address:
        site.url = f"http://{address}"
        yield site


@pytest.fixture
def site(server: Observatory) -> Observatory:
    fresh = Observatory(server.url)
    server.__dict__.update(fresh.__dict__)
    return server


@pytest.fixture
async def http(site: Observatory) -> AsyncIterator[HttpProvider]:
    async with httpx.AsyncClient(base_url=f"{site.url}/api", trust_env=False) as client:
        yield HttpProvider(client, f"{site.url}/k{{tel}}/retrieval/data/getData.json")


def opened(schedule: Path | str, **settings: Any) -> CachedProvider:
    config = Config(dev=True, schedule=str(schedule), **settings)
    return open_provider(config, Circuits(Metrics("preparer")))


def caching(provider: Any, **options: Any) -> CachedProvider:
    return CachedProvider(provider, Circuits(Metrics("preparer")), **options)


def down(provider: CachedProvider) -> set[str]:
    return {name for name, circuit in provider._circuits.items() if circuit.reason}


# A provider in the process, for what time does to a cache.


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A provider whose answers are attributes; an exception among them is raised."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.nights: list[tuple[date, int, str]] = []
        self.answers: dict[str, Any] = {
            "night": make_night(),
            "proposal": Proposal(pi="A", institution="B", title="C", propint=1),
            "weather": Weather(values=dict.fromkeys(WEATHER_KEYS, 1.0), time=UT),
        }
        self.gate = asyncio.Event()
        self.gate.set()

    async def _answer(self, what: str) -> Any:
        self.asked[what] += 1
        await self.gate.wait()
        answer = self.answers[what]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def night(self, hst_date: date, telescope: int, instrument: str) -> Any:
        self.nights.append((hst_date, telescope, instrument))
        return await self._answer("night")

    async def proposal(self, semid: str) -> Any:
        return await self._answer("proposal")

    async def weather(self, telescope: int, at: datetime) -> Any:
        return await self._answer("weather")

    def override(self, instrument: str, at: datetime) -> str | None:
        return None


def make_night(**changes: Any) -> Night:
    values = {
        "slots": ({"project": "C272"},),
        "sunrise": time(16, 30),
        "sunset": time(3, 45),
        "oa": "x",
    }
    return Night.model_validate(values | changes)


@pytest.mark.parametrize(
    ("slots", "at", "expected"),
    [
        ([{}], time(3, 44), False),  # before sunset
        ([{}], time(3, 45), True),
        ([{}], time(16, 30), False),
        ([], time(9), False),
        ([{"start": time(5), "end": time(6)}], time(6), False),
        ([{"start": time(5), "end": time(6)}, {"start": time(6)}], time(6), True),
        ([{"start": time(2)}], time(2, 30), True),  # the schedule's word, in daylight too
    ],
)
def test_scheduled_is_who_has_the_instrument_now(
    slots: list[dict[str, Any]], at: time, expected: object
) -> None:
    night = make_night(slots=[{"project": "C272"} | slot for slot in slots])
    assert night.is_on(at) is expected


def from_night(night: Night | None) -> str | None:
    if night is None or not night.slots:
        return None
    return f"2026B_{night.slots[0].project[-4:]}"


async def gather(provider: Any, wait: Any, semid_of: Any = from_night, ut: datetime = UT) -> Facts:
    return await gather_facts(
        provider, instrument="KCWI", telescope=2, ut=ut, semid_of=semid_of, wait=wait
    )


# Facts


async def test_facts_survive_being_stored_with_the_job() -> None:
    facts = await gather(opened(EXAMPLE), 0)
    assert facts.missing == ()
    assert Facts.model_validate_json(facts.model_dump_json()) == facts


@pytest.mark.parametrize(
    ("ut", "expected"),
    [
        (datetime(2026, 11, 23, 5, tzinfo=UTC), date(2026, 11, 22)),
        (datetime(2026, 11, 23, 22, 30, tzinfo=UTC), date(2026, 11, 22)),
        (datetime(2026, 3, 1, 0, 0, tzinfo=UTC), date(2026, 2, 28)),
    ],
)
async def test_night_is_ut_date_minus_one_facts_3_1(ut: datetime, expected: date) -> None:
    source = Scripted()
    await gather(caching(source), 1.0, ut=ut)
    assert source.nights == [(expected, 2, "KCWI")]


@pytest.mark.parametrize(
    ("day", "sunrise", "sunset"),
    [
        # Where astropy 8's Sun stands 0.833 degrees below the horizon of Keck.
        ("2010-03-21", "16:24:58", "04:32:59"),
        ("2016-01-09", "16:58:43", "03:58:41"),
        ("2019-06-15", "15:42:44", "05:01:54"),
        ("2024-09-22", "16:10:55", "04:18:16"),
        ("2025-12-08", "16:44:56", "03:42:50"),
        ("2026-11-23", "16:35:26", "03:41:17"),
    ],
)
def test_twilight_is_that_of_astropy(day: str, sunrise: str, sunset: str) -> None:
    found = sun_times(date.fromisoformat(day))
    for name, expected in (("sunrise", sunrise), ("sunset", sunset)):
        at = datetime.combine(date.fromisoformat(day), found[name])
        error = at - datetime.fromisoformat(f"{day} {expected}")
        assert abs(error) < timedelta(seconds=10)


# TOML


def write(path: Path, text: str) -> Path:
    """Write a file with an mtime of its own, however fast the test."""
    path.write_text(text)
    stamp = clock.time_ns() + len(text) * 1_000_000_000
    os.utime(path, ns=(stamp, stamp))
    return path


NIGHTS = """
[[night]]
oa = "any"
[[night]]
instrument = "KCWI"
oa = "kcwi"
[[night]]
date = "2026-11-22"
oa = "dated"
slots = [{ project = "C1", start = 04:30:00 }]
sunset = 03:00:00
[[night]]
date = 2026-11-23
instrument = "KCWI"
telescope = 1
oa = "one"
[[proposal]]
semid = "*_C272"
pi = "Any"
[[proposal]]
semid = "2026B_C272"
pi = "Exact"
propint = 0
"""


@pytest.mark.parametrize(
    ("day", "telescope", "instrument", "expected"),
    [
        (20, 2, "HIRES", "any"),
        (20, 2, "KCWI", "kcwi"),
        (22, 2, "KCWI", "dated"),
        (23, 2, "KCWI", "kcwi"),
        (23, 1, "KCWI", "one"),
    ],
)
async def test_toml_last_night_that_fits_wins(
    tmp_path: Path, day: int, telescope: int, instrument: str, expected: str
) -> None:
    toml = TomlProvider(write(tmp_path / "s.toml", NIGHTS))
    night = await toml.night(date(2026, 11, day), telescope, instrument)
    assert night.oa == expected


async def test_toml_twilight_is_told_or_computed(tmp_path: Path) -> None:
    toml = TomlProvider(write(tmp_path / "s.toml", NIGHTS))
    night = await toml.night(HST_DATE, 2, "HIRES")
    assert night.sunset == time(3, 0)
    assert night.sunrise == sun_times(date(2026, 11, 23))["sunrise"]
    assert night.slots[0].start == time(4, 30)
    assert night.slots[0].end is None


async def test_toml_proposal_of_the_semester_before_any(tmp_path: Path) -> None:
    toml = TomlProvider(write(tmp_path / "s.toml", NIGHTS))
    assert await toml.proposal("2026B_C272") == Proposal(pi="Exact", propint=0)
    assert await toml.proposal("2019A_C272") == Proposal(pi="Any")
    assert await toml.proposal("2026B_C27") is None


@pytest.mark.parametrize(
    ("instrument", "at", "expected"),
    [
        ("KCWI", "07:59:59.999", None),
        ("KCWI", "08:00", "C1"),
        ("KCWI", "08:59:59.999", "C1"),
        ("KCWI", "09:00", "C2"),
        ("LRIS", "08:00", None),
        ("LRIS", "09:30", "C2"),
    ],
)
def test_override_holds_from_start_until_end(
    tmp_path: Path, instrument: str, at: str, expected: str | None
) -> None:
    text = """
    [[override]]
    instrument = "KCWI"
    start = 2026-11-23T08:00:00Z
    end = 2026-11-22T23:00:00-10:00
    project = "C1"
    [[override]]
    start = 2026-11-23T09:00:00Z
    end = 2026-11-23T10:00:00Z
    project = "C2"
    """
    toml = TomlProvider(write(tmp_path / "s.toml", text))
    when = datetime.fromisoformat(f"2026-11-23T{at}+00:00")
    assert toml.override(instrument, when) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[night]\n", "line 1"),
        ('[[night]]\nintrument = "KCWI"', "intrument"),
        ('[[proposal]]\npi = "x"', "semid"),
        ("[[weather]]\nvalues = { WXTYPO = 1.0 }", "WXTYPO"),
        (
            '[[override]]\nproject = "C1"\nstart = 2026-01-01\nend = 2026-01-02',
            "timezone",
        ),
        (None, "No such file"),
    ],
)
def test_toml_broken_at_start_says_which_file_and_why(
    tmp_path: Path, text: str | None, why: str
) -> None:
    path = tmp_path / "s.toml"
    if text is not None:
        write(path, text)
    with pytest.raises(ValueError, match="no schedule in") as caught:
        opened(path)
    assert str(path) in str(caught.value)
    assert why in str(caught.value)


async def test_toml_is_read_anew_and_a_broken_change_keeps_the_good(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "s.toml", '[[proposal]]\nsemid = "*_C1"\npi = "old"')
    provider = opened(path)

    async def name() -> str | None:
        found = await provider.proposal("2026B_C1")
        return found.pi if found else None

    assert await name() == "old"
    write(path, '[[proposal]]\nsemid = "*_C1"\npi = "newer"')
    assert await name() == "newer"
    write(path, "broken [")
    assert await name() == "newer"
    path.unlink()
    assert await name() == "newer"
    write(path, '[[proposal]]\nsemid = "*_C1"\npi = "last of all"')
    assert await name() == "last of all"


async def test_example_schedule_knows_any_night() -> None:
    provider = opened(EXAMPLE)
    for instrument in ("KCWI", "ESI", "DEIMOS", "NIRES", "HIRES"):
        night = await provider.night(date(2031, 5, 17), 2, instrument)
        assert night is not None
        assert night.slots
        for slot in night.slots:
            program = await provider.proposal(f"2031A_{slot.project}")
            assert program is not None
            assert program.propint is not None
    esi = await provider.night(date(2031, 5, 17), 2, "ESI")
    assert esi is not None
    assert [s.project for s in esi.slots] == ["ENG"]
    released = await provider.proposal("2031A_N117")
    assert released is not None
    assert released.propint == 0
    weather = await provider.weather(2, UT)
    assert weather is not None
    assert weather.values["WXOUTTMP"] == 1.8
    assert weather.values["GUIDFWHM"] is None
    assert weather.guidtime is None


async def test_without_a_schedule_nothing_is_known_and_nothing_missing() -> None:
    facts = await gather(opened(""), 0, lambda _: "2026B_C272")
    assert facts.missing == ()
    assert (facts.proposal, facts.weather, facts.override) == (None, None, None)
    assert facts.night is not None
    assert facts.night.slots == ()


# HTTP


async def test_http_night_facts_3_6(site: Observatory, http: HttpProvider) -> None:
    night = await http.night(HST_DATE, 2, "KCWI")
    first, second = night.slots
    assert (first.project, first.start, first.end) == (
        "2026B_C272",
        time(4, 30),
        time(10),
    )
    assert (first.kind, second.kind, second.account) == ("Classical", "ToO", "kcwi2")
    assert second.end is None
    assert (night.sunrise, night.sunset) == (time(16, 31, 2), time(3, 44, 5))
    assert night.oa == "last"
    assert site.query("schedule/getSchedule") == {
        "date": "2026-11-22",
        "telnr": "2",
        "instr": "KCWI",
    }
    assert site.query("schedule/getTwilightData") == {"date": "2026-11-23"}
    assert site.query("employee/getNightStaff") == {"date": "2026-11-22", "telnr": "2"}
    assert {path.split("/")[0] for path, _ in site.asked} == {"api"}


async def test_http_one_entry_may_be_an_object(site: Observatory, http: HttpProvider) -> None:
    site.schedule, site.staff = site.schedule[0], site.staff[0]
    night = await http.night(HST_DATE, 2, "KCWI")
    assert [slot.project for slot in night.slots] == ["2026B_C272"]
    assert night.oa == "first"


@pytest.mark.parametrize("fault", [broken, junk, odd, absent])
async def test_http_night_without_twilight_and_staff(
    site: Observatory, http: HttpProvider, fault: Fault
) -> None:
    site.faults |= {"getTwilightData": fault, "getNightStaff": fault}
    night = await http.night(HST_DATE, 2, "KCWI")
    assert len(night.slots) == 2
    assert night.oa is None
    assert night.sunrise == sun_times(date(2026, 11, 23))["sunrise"]
    assert night.sunset == sun_times(date(2026, 11, 23))["sunset"]


@pytest.mark.parametrize("fault", [broken, junk, odd])
async def test_http_schedule_that_fails_raises(
    site: Observatory, http: HttpProvider, fault: Fault
) -> None:
    site.faults["getSchedule"] = fault
    with pytest.raises((httpx.HTTPError, ValueError)):
        await http.night(HST_DATE, 2, "KCWI")


async def test_http_404_is_an_answer(site: Observatory, http: HttpProvider) -> None:
    site.faults |= {"getSchedule": absent, "getData.json": absent}
    assert (await http.night(HST_DATE, 2, "KCWI")).slots == ()
    assert await http.weather(2, UT) is None


async def test_http_proposal(site: Observatory, http: HttpProvider) -> None:
    assert await http.proposal("2026B_C272") == Proposal(
        pi="Alder", institution="CIT", title="Imaginary", propint=12
    )
    assert await http.proposal("2026B_X999") is None
    site.faults["getTitle"] = broken
    with pytest.raises(httpx.HTTPStatusError):
        await http.proposal("2026B_C272")


async def test_http_weather_is_the_nearest_sample_with_padded_nanos_p4(
    site: Observatory, http: HttpProvider
) -> None:
    site.samples = {
        "k0:met:tempRaw": [sample(-29, 1), sample(-0.2, 2.5), sample(0.3, 3)],
        "k2:met:tempRaw": [sample(-3600, 4.5)],
        "k2:dcs:pnt:cam0:fwhm": [{"secs": 1795410000, "nanos": 50_000_000, "val": 0.6}],
        "k2:met:windAzRaw": [sample(0, "NaN")],
        "k0:met:pressureRaw": [],
    }
    weather = await http.weather(2, UT)
    assert weather is not None
    assert set(weather.values) == set(WEATHER_KEYS)
    assert weather.values["WXOUTTMP"] == 2.5
    assert weather.values["WXDOMTMP"] == 4.5
    assert weather.values["WXWNDIR"] is None
    assert weather.values["WXPRESS"] is None
    assert weather.values["WXWNDSP"] == 1.5
    assert weather.time == UT
    assert weather.guidtime == datetime.fromtimestamp(1795410000, UTC) + timedelta(milliseconds=50)
    window = next(q for path, q in site.asked if path.startswith("k2/"))
    assert window["from"] == "2026-11-23T04:59:30.250000Z"
    assert window["to"] == "2026-11-23T05:00:30.250000Z"


async def test_http_weather_pvs_facts_3_6(site: Observatory, http: HttpProvider) -> None:
    pvs = {
        "WXDWPT": "k0:met:dewpointRaw",
        "WXOUTHUM": "k0:met:humidityRaw",
        "WXOUTTMP": "k0:met:tempRaw",
        "WXPRESS": "k0:met:pressureRaw",
        "WXDOMTMP": "k1:met:tempRaw",
        "WXDOMHUM": "k1:met:humidityRaw",
        "WXWNDSP": "k1:met:windSpeedRaw",
        "WXWNDIR": "k1:met:windAzRaw",
        "GUIDFWHM": "k1:dcs:pnt:cam0:fwhm",
    }
    site.samples = {pv: [sample(0, i)] for i, pv in enumerate(pvs.values())}
    site.faults["getData.json"] = slow
    started = clock.monotonic()
    weather = await http.weather(1, UT)
    assert clock.monotonic() - started < 3.5, "nine PVs at 0.5 s each, at once"
    assert weather is not None
    assert weather.values == {key: float(i) for i, key in enumerate(pvs)}


async def test_http_hanging_upstream_ends_by_time_out(
    site: Observatory, http: HttpProvider
) -> None:
    site.faults["getSchedule"] = hang
    started = clock.monotonic()
    with pytest.raises(TimeoutError):
        await http.night(HST_DATE, 2, "KCWI")
    assert clock.monotonic() - started > 1.5


async def test_http_tls_is_verified(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    options = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=x"
    made = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", *options.split()),
        *("-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", str(key), "-out", str(cert)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await made.wait() == 0
    site = Observatory()
    quick = {"timeout_graceful_shutdown": 1}  # a TLS connection waits 30 s for its peer to part
    with serving(site, ssl_keyfile=key, ssl_certfile=cert, **quick) as address:
        stranger = opened(f"https://{address}/api")
        friend = opened(f"https://{address}/api", ca_file=cert)
        with pytest.raises(DependencyDown, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.proposal("2026B_C272")
        found = await friend.proposal("2026B_C272")
        assert found is not None


def test_schedule_of_another_host_needs_https() -> None:
    with pytest.raises(ValueError, match="https only"):
        opened("http://api.example.org/api")


# The cache and its circuits


async def test_cache_asks_once_per_night_and_fact(site: Observatory, http: HttpProvider) -> None:
    cached = caching(http)
    for _ in range(3):
        assert await cached.night(HST_DATE, 2, "KCWI") is not None
        assert await cached.proposal("2026B_C272") is not None
    assert site.calls("getSchedule") == site.calls("getPI") == 1
    await cached.night(HST_DATE + timedelta(days=1), 2, "KCWI")
    await cached.night(HST_DATE, 2, "LRIS")
    assert site.calls("getSchedule") == 3


@pytest.mark.parametrize(
    ("answer", "fresh_after"),
    [(make_night(), False), (make_night(oa=None), True), (make_night(slots=()), True)],
    ids=["whole", "no-assistant", "no-slots"],
)
async def test_cache_keeps_a_whole_night_and_asks_again_for_gaps(
    answer: Night, *, fresh_after: bool
) -> None:
    source, now = Scripted(), Clock()
    source.answers["night"] = answer
    cached = caching(source, clock=now)
    await cached.night(HST_DATE, 2, "KCWI")
    now.now += 59
    await cached.night(HST_DATE, 2, "KCWI")
    assert source.asked["night"] == 1
    now.now += 2
    source.answers["night"] = make_night(oa="new")
    assert await cached.night(HST_DATE, 2, "KCWI") == answer, "no frame waits for it"
    await asyncio.sleep(0.01)
    found = await cached.night(HST_DATE, 2, "KCWI")
    assert found == (make_night(oa="new") if fresh_after else answer)
    assert source.asked["night"] == 1 + fresh_after


async def test_cache_keeps_an_absence_briefly() -> None:
    source, now = Scripted(), Clock()
    there, source.answers["proposal"] = source.answers["proposal"], None
    cached = caching(source, clock=now)

    assert await cached.proposal("2026B_C272") is None
    source.answers["proposal"] = there
    now.now += 59
    assert await cached.proposal("2026B_C272") is None
    assert source.asked["proposal"] == 1
    now.now += 2
    assert await cached.proposal("2026B_C272") == there


async def test_cache_single_flight_per_key() -> None:
    source = Scripted()
    source.gate.clear()
    cached = caching(source)
    frames = [asyncio.create_task(cached.night(HST_DATE, 2, "KCWI")) for _ in range(20)]
    await asyncio.sleep(0.01)
    frames[0].cancel()
    source.gate.set()
    done = await asyncio.gather(*frames, return_exceptions=True)
    assert source.asked["night"] == 1
    assert isinstance(done[0], asyncio.CancelledError)
    assert done[1:] == [make_night()] * 19, "one that gives up takes nobody with it"


async def test_cache_does_not_grow_without_bound() -> None:
    cached = caching(Scripted())
    for number in range(2500):
        await cached.proposal(f"2026B_{number}")
    assert len(cached._known) == 2048
    assert ("proposal", "2026B_2499") in cached._known


async def ask_failing(cached: CachedProvider, telescope: int = 2) -> None:
    with pytest.raises(DependencyDown):
        await cached.night(HST_DATE, telescope, "KCWI")


async def test_circuit_opens_with_a_failure_and_a_success_closes_it() -> None:
    source = Scripted()
    source.answers["night"] = OSError("down")
    cached = caching(source)
    circuits = cached._circuits
    await ask_failing(cached)
    assert down(cached) == {"schedule"}
    assert "down" in circuits["schedule"].reason
    assert await cached.proposal("2026B_C272") is not None, "a circuit per upstream"

    while circuits["schedule"].wait() < 0.5:  # as after a while of being down
        circuits["schedule"].failed("down")
    for telescope in (1, 2):
        await ask_failing(cached, telescope)
    assert source.asked["night"] == 1, "nobody asks what is down"

    source.answers["night"] = make_night()
    await asyncio.sleep(circuits["schedule"].wait())
    assert await cached.night(HST_DATE, 2, "KCWI") == make_night()
    assert not circuits["schedule"].reason
    assert await cached.night(HST_DATE, 1, "KCWI") is not None
    assert source.asked["night"] == 3


async def test_circuit_open_still_gives_what_is_known() -> None:
    source, now = Scripted(), Clock()
    source.answers["night"] = make_night(oa=None)
    cached = caching(source, clock=now)
    await cached.night(HST_DATE, 2, "KCWI")
    source.answers["night"] = OSError("down")
    for _ in range(3):
        now.now += 61
        assert await cached.night(HST_DATE, 2, "KCWI") == make_night(oa=None)
        await asyncio.sleep(0.01)
    assert down(cached) == {"schedule"}


async def test_circuit_of_one_archiver_spares_the_other_telescope() -> None:
    source = Scripted()
    source.answers["weather"] = OSError("down")
    cached = caching(source)
    for second in range(3):
        with pytest.raises(DependencyDown):
            await cached.weather(1, UT + timedelta(seconds=second))
    source.answers["weather"] = None
    assert await cached.weather(2, UT) is None
    assert down(cached) == {"weather1"}


# Facts of a frame


async def test_gather_has_everything_from_the_observatory(http: HttpProvider) -> None:
    started = clock.monotonic()
    facts = await gather(caching(http), 5.0)
    assert clock.monotonic() - started < 4.5, "returns when all is there"
    assert facts.missing == ()
    assert facts.night is not None
    assert facts.proposal is not None
    assert facts.proposal.pi == "Alder"
    assert facts.weather is not None
    assert abs((facts.prepared_at - datetime.now(UTC)).total_seconds()) < 5


async def test_gather_hanging_upstreams_cost_the_budget_and_no_more(
    site: Observatory, http: HttpProvider
) -> None:
    site.faults |= dict.fromkeys(["getSchedule", "getData.json"], hang)
    cached, took = caching(http), []
    for _ in range(3):  # the best of three, as the machine has other things to do
        started = clock.monotonic()
        facts = await gather(cached, 0.1)
        took.append(clock.monotonic() - started)
        assert facts.missing == ("schedule", "proposal", "weather")
    assert 0.09 < min(took) < 0.5, "they hang for 3 s"


async def test_gather_late_facts_are_there_at_once_when_asked_again() -> None:
    source = Scripted()
    source.gate.clear()
    cached = caching(source)
    before = await gather(cached, 0.01)
    assert before.missing == ("schedule", "proposal", "weather")
    source.gate.set()
    await asyncio.sleep(0.02)
    now = await gather(cached, 0)
    assert now.missing == ()
    assert source.asked == {"night": 1, "proposal": 1, "weather": 2}


async def test_gather_waits_as_long_as_the_pass_over_the_file() -> None:
    source = Scripted()
    source.gate.clear()
    cached = caching(source)
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(gather(cached, over))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    over.set_result(None)
    facts = await waiting
    assert facts.missing == ("schedule", "proposal", "weather")
    source.gate.set()
    await asyncio.sleep(0.01)
    # The pass is over before the look-ups begin: what is cached is taken nevertheless.
    assert (await gather(cached, over)).missing == ()


async def test_gather_a_failed_pass_is_its_own_waiters_matter() -> None:
    async def failing() -> None:
        raise OSError("the disk")

    over = asyncio.ensure_future(failing())
    assert (await gather(caching(Scripted()), over)).missing == ()
    with pytest.raises(OSError, match="the disk"):
        await over


async def test_gather_header_names_the_program_while_the_schedule_hangs(
    site: Observatory, http: HttpProvider
) -> None:
    site.faults["getSchedule"] = hang
    cached = caching(http)
    facts = await gather(cached, 0.4, lambda _: "2026B_C272")
    assert facts.missing == ("schedule",)
    assert facts.proposal is not None
    assert site.calls("getPI") == 1


@pytest.mark.parametrize("fault", [broken, junk, odd])
async def test_gather_failing_upstreams_are_missing_and_raise_nothing(
    site: Observatory, http: HttpProvider, fault: Fault
) -> None:
    site.faults |= dict.fromkeys(["getSchedule", "getData.json", "getPI"], fault)
    cached = caching(http)
    facts = await gather(cached, 2.0)
    assert facts.missing == ("schedule", "proposal", "weather")
    facts = await gather(cached, 2.0, lambda _: "2026B_C272")
    assert facts.missing == ("schedule", "proposal", "weather")


async def test_gather_unreachable_observatory_raises_nothing() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        provider = opened(f"http://127.0.0.1:{port}/api", archiver="http://127.0.0.1:9/x")
        for _ in range(5):
            facts = await gather(provider, 1.0)
            assert facts.missing == ("schedule", "proposal", "weather")
        assert down(provider) == {"schedule", "weather2"}


async def test_gather_no_program_asks_for_no_proposal() -> None:
    source = Scripted()
    facts = await gather(caching(source), 1.0, lambda _: None)
    assert facts.missing == ()
    assert facts.proposal is None
    assert source.asked["proposal"] == 0


async def test_gather_takes_the_override_of_the_schedule(tmp_path: Path) -> None:
    text = """
    [[override]]
    start = 2026-11-23T00:00:00Z
    end = 2026-11-24T00:00:00Z
    project = "2026B_C9"
    """
    provider = opened(write(tmp_path / "s.toml", text))
    assert (await gather(provider, 0)).override == "2026B_C9"
