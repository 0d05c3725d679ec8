"""Malformed input on real parts: the table in docs/contracts.md, row by row.

Each row is announced, a good frame of the same instrument right behind it.
"""

import contextlib
import gzip
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from koa_shared.simulator.frames import Exposure, Request, build

from .conftest import BLOCK, CARD, Frame, Site, header_size, running, sha256
from .test_memory import MOST, peak

pytestmark = pytest.mark.timeout(120)

DOCS = Path(__file__).parents[2] / "docs" / "contracts.md"
ROW = re.compile(r"^\| (?!Case )(.+?) \| (\w+) \| (\S+) \|$", re.MULTILINE)
TABLE = [m.groups() for m in ROW.finditer(DOCS.read_text().split("## Malformed")[1])]
FOLDER = "/s/sdata1500/nires9/malformed"
GOOD_SECONDS = 5.0
MISSING_SECONDS = 3.0
# Broadcasts any text on the simulated observatory's keyword, as its server would.
CAPUT = """
import asyncio, sys
from aioca import caput, DBR_CHAR_STR
asyncio.run(caput("koa:nsds:LASTFILE", sys.argv[1], datatype=DBR_CHAR_STR))
"""
numbers = itertools.count(1)


@dataclass
class Case:
    """What is written where; `path` is announced, by a broadcast or by a post."""

    data: bytes | None = None
    path: str = ""
    broadcast: bool = False
    prepare: Callable[[Site, Path], None] = field(default=lambda site, local: None)
    fault: str | None = None
    instrument: str = "NIRES"

    def __post_init__(self) -> None:
        self.path = self.path or f"{FOLDER}/x{next(numbers):05}.fits"


def frame(path: str = "", instrument: str = "NIRES", **cards: Any) -> tuple[str, bytes]:
    """Return path and bytes of a good frame; each call gives another KOAID."""
    number = next(numbers)
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=9)
    at += timedelta(seconds=number // 80, milliseconds=100 + 10 * (number % 80))
    path = path or f"{FOLDER}/s{number:05}.fits"
    stem = path.rsplit("/", 1)[-1].removesuffix(".fits")
    source = {"NIRES": "nires_spec", "NIRC2": "nirc2"}[instrument]
    named = {"NIRES": {"DATAFILE": stem}, "NIRC2": {"FILENAME": f"{stem}.fits"}}
    request = Request(
        source, "object", number, at, 200_000, number, cards=named[instrument] | cards
    )
    exposure: Exposure = build(instrument, request)
    return path, b"".join(bytes(part) for part in exposure.parts)


def line(keyword: str, text: bytes) -> bytes:
    return (f"{keyword:8}= ".encode() + text).ljust(CARD)[:CARD]


def with_cards(data: bytes, *cards: bytes) -> bytes:
    """Replace cards of the primary header by keyword; new ones go before END."""
    size = header_size(data)
    lines = [data[at : at + CARD] for at in range(0, size, CARD)]
    lines = lines[: next(n for n, text in enumerate(lines) if text[:8] == b"END     ")]
    places = {text[:8]: n for n, text in reversed(list(enumerate(lines)))}
    for new in cards:
        if (place := places.get(new[:8])) is None:
            lines.append(new)
        else:
            lines[place] = new
    head = b"".join([*lines, b"END".ljust(CARD)])
    return head.ljust(-(-len(head) // BLOCK) * BLOCK) + data[size:]


def changed(*cards: bytes, instrument: str = "NIRES") -> Case:
    """Return a frame whose header has these cards instead of its own."""
    path, data = frame(instrument=instrument)
    return Case(with_cards(data, *cards), path)


def spoilt(spoil: Callable[[bytes], bytes], **cards: Any) -> Case:
    path, data = frame(**cards)
    return Case(spoil(data), path)


def second_hdu(data: bytes) -> int:
    return data.index(b"XTENSION")


def end_of_pixels(data: bytes) -> int:
    """Return where the last data unit ends, its padding left out."""
    return len(data.rstrip(b"\0"))


def flipped() -> Case:
    path, data = frame(instrument="NIRC2")
    middle = header_size(data) + 1000
    wrong = bytes([data[middle] ^ 1])
    data = data[:middle] + wrong + data[middle + 1 :]
    return Case(data, path, instrument="NIRC2")


def repeated() -> Case:
    path, data = frame()
    more = [line("AIRMASS", f"{n / 10:20}".encode()) for n in range(11, 20)]
    head = header_size(data)
    end = data.index(b"END".ljust(CARD))
    cards = data[:end] + b"".join(more) + data[0:CARD] + b"END".ljust(CARD)
    return Case(cards.ljust(-(-len(cards) // BLOCK) * BLOCK) + data[head:], path)


def linked(target: Callable[[Site, Path], Path]) -> Callable[[Site, Path], None]:
    def prepare(site: Site, local: Path) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        local.symlink_to(target(site, local))

    return prepare


def outside(site: Site, local: Path) -> Path:
    """Write a good frame where no data root is."""
    place = site.stack.var.parent / f"outside-{local.name}"
    place.write_bytes(frame(path=f"/{local.name}")[1])
    return place


def elsewhere(site: Site, local: Path) -> Path:
    """Write a good frame in another directory of the data roots."""
    return site.write(f"{FOLDER}/elsewhere/{local.name}", frame(f"/{local.name}")[1])


def climbing(*, broadcast: bool = False) -> Case:
    """Announce a file two directories above the data roots."""
    name = f"out{next(numbers)}.fits"
    path = f"/s/sdata1500/../../../../{name}"

    def prepare(site: Site, local: Path) -> None:
        site.local("/s/sdata1500").mkdir(parents=True, exist_ok=True)
        local.write_bytes(frame(f"/{name}")[1])

    return Case(None, path, broadcast, prepare)


def newline(*, broadcast: bool = False) -> Case:
    path = f"{FOLDER}/two\nlines{next(numbers)}.fits"
    return Case(frame()[1], path, broadcast)


def made(make: Callable[[Path], None]) -> Case:
    def prepare(site: Site, local: Path) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        make(local)

    return Case(None, prepare=prepare)


def quotes() -> Case:
    path, data = frame(f'{FOLDER}/it\'s "{next(numbers)}"; DROP.fits')
    return Case(data, path)


def hostile(text: bytes, *keywords: str) -> Case:
    names = keywords or ("OBJECT", "OBSERVER", "TARGNAME", "PROGNAME", "DOMESTAT")
    return changed(*(line(name, b"'" + text + b"'") for name in names))


def many_hdus(count: int) -> bytes:
    """Return HDUs without data, the first of them primary."""
    cards = [line("BITPIX", b"%20d" % 8), line("NAXIS", b"%20d" % 0), b"END".ljust(CARD)]
    first = b"".join([line("SIMPLE", b"%20s" % b"T"), *cards]).ljust(BLOCK)
    other = b"".join([line("XTENSION", b"'IMAGE   '"), *cards]).ljust(BLOCK)
    return first + other * (count - 1)


def endless(size: int) -> bytes:
    """Return a header that never ends."""
    return line("SIMPLE", b"%20s" % b"T").ljust(size)


def hole(local: Path, data: bytes, size: int = 0) -> None:
    """Write a file that holds `data` and, to its size, nothing that takes room."""
    local.write_bytes(data)
    os.truncate(local, max(size, len(data)))


BUILDERS: dict[str, Callable[[], Case]] = {
    "zero bytes": lambda: Case(b""),
    "zero bytes, broadcast": lambda: Case(fault="zero"),
    "text": lambda: Case(b"out of disk space\n" * 20),
    "text, broadcast": lambda: Case(fault="text"),
    "gzip": lambda: spoilt(lambda d: gzip.compress(d, 1)),
    "gzip, broadcast": lambda: Case(fault="gzip"),
    "half a header": lambda: spoilt(lambda d: d[:2000]),
    "half a header, at a block's end": lambda: spoilt(lambda d: d[:BLOCK]),
    "cut in the data": lambda: spoilt(lambda d: d[: len(d) * 2 // 3]),
    "cut in the second header": lambda: spoilt(lambda d: d[: second_hdu(d) + 100]),
    "cut between HDUs, NEXTEND says more": lambda: spoilt(
        lambda d: d[: second_hdu(d)], NEXTEND=1
    ),
    "blocks of NULs where the data end": lambda: spoilt(
        lambda d: d[: len(d) - 3 * BLOCK] + bytes(3 * BLOCK)
    ),
    "wrong DATASUM": flipped,
    "absurd NAXIS": lambda: changed(line("NAXIS", b"%20d" % 1000)),
    "absurd NAXIS1": lambda: changed(line("NAXIS1", b"%20d" % 10**15)),
    "negative NAXIS1": lambda: changed(line("NAXIS1", b"%20d" % -5)),
    "NAXIS1 is no number": lambda: changed(line("NAXIS1", b"'many    '")),
    "BITPIX is 7": lambda: changed(line("BITPIX", b"%20d" % 7)),
    "100,000 cards": lambda: changed(
        *(line(f"C{n}", b"%20d" % n) for n in range(100_000))
    ),
    "40,000 HDUs": lambda: made(lambda local: hole(local, many_hdus(40_000))),
    "100,000 HDUs": lambda: made(lambda local: hole(local, many_hdus(100_000))),
    "a header of 100 MB": lambda: made(lambda local: hole(local, endless(10**8))),
    "a header of 1 GB, a hole": lambda: made(lambda local: hole(local, endless(BLOCK), 10**9)),
    "2 GB, nearly all a hole": lambda: made(lambda local: hole(local, frame()[1], 2 * 10**9)),
    "10 GB, nearly all a hole": lambda: made(lambda local: hole(local, frame()[1], 10**10)),
    "repeated cards": repeated,
    "unreadable cards": lambda: changed(
        line("AIRMASS", b"1.2.3.4 ???"), b"AIRMASS  no equals".ljust(CARD)
    ),
    "`#### Error ###` in DATE-OBS": lambda: changed(
        line("DATE-OBS", b"'#### Error ###'")
    ),
    "`#### Error ###` in the time": lambda: changed(
        *(line(k, b"'#### Error ###'") for k in ("UT", "UTC", "TIME-OBS"))
    ),
    "no INSTRUME": lambda: changed(
        line("INSTRUME", b"'        '"), line("CURRINST", b"'OTHER   '"),
        line("OUTDIR", b"'/s/x    '"), line("FILNAME", b"'x       '"),
    ),
    "junk behind END": lambda: Case(fault="junkfill"),
    "junk behind the last HDU": lambda: Case(fault="trailing"),
    "missing final padding": lambda: Case(fault="unpadded"),
    "the header names another file": lambda: Case(fault="name"),
    "missing file": Case,
    "missing file, broadcast": lambda: Case(broadcast=True),
    "path out of the roots": climbing,
    "path out of the roots, broadcast": lambda: climbing(broadcast=True),
    "symbolic link out of the roots": lambda: Case(prepare=linked(outside)),
    "symbolic link within the roots": lambda: Case(prepare=linked(elsewhere)),
    "symbolic link to itself": lambda: Case(prepare=linked(lambda _, local: local)),
    "directory": lambda: made(Path.mkdir),
    "FIFO": lambda: made(os.mkfifo),
    "name with quotes": quotes,
    "name with a newline": newline,
    "name with a newline, broadcast": lambda: newline(broadcast=True),
    "name that is no UTF-8": lambda: Case(path=f"{FOLDER}/caf\xe9\x80.fits"),
    "name with a NUL": lambda: Case(path=f"{FOLDER}/a\0b.fits"),
    "name of 5000 letters": lambda: Case(path=f"{FOLDER}/{'a' * 5000}.fits"),
    "path of no data root, broadcast": lambda: Case(
        path="/etc/passwd", broadcast=True
    ),
    "path of a folder that is not archived": lambda: Case(
        frame()[1], f"{FOLDER}/mira/x{next(numbers)}.fits"
    ),
    "blank, broadcast": lambda: Case(path="  ", broadcast=True),
    "hostile header: NUL bytes": lambda: hostile(b"M\x0031"),
    "hostile header: bytes that are no UTF-8": lambda: hostile(b"caf\xe9 \xff\xfe"),
    "hostile header: surrogates": lambda: hostile(b"\xed\xa0\x80 \xed\xbf\xbf"),
    "hostile header: NaN and Infinity": lambda: changed(
        line("RA", b"NaN"), line("DEC", b"-Infinity"), line("AIRMASS", b"Infinity"),
        line("ITIME", b"'NaN     '"), line("EL", b"'Infinity'"),
    ),
    "hostile header: numbers without end": lambda: changed(
        line("AIRMASS", b"9" * 60), line("EL", b"1E99999"), line("AZ", b"-1E-99999"),
        line("EQUINOX", b"1" + b"0" * 60), line("ITIME", b"1E400"),
    ),
    "hostile header: quotes and SQL": lambda: hostile(b"''; DROP TABLE frame; --"),
    "hostile header: control characters": lambda: hostile(b"a\r\n\x1b[31m\x07b"),
}  # fmt: skip


def params() -> Iterator[Any]:
    for database in ("sqlite", "postgresql"):
        for case, status, code in TABLE:
            if database == "sqlite" or case.startswith("hostile"):
                yield pytest.param(database, case, status, code, id=f"{case}-{database}")


@pytest.fixture(scope="module")
def site_on(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Site]]:
    """Give the installation on a database, started when first asked for.

    It gives up soon on what is missing or incomplete.
    """
    env = {"KOA_MISSING_SECONDS": str(MISSING_SECONDS)}
    open_: dict[str, Site] = {}
    with contextlib.ExitStack() as stack:

        def site_on(database: str) -> Site:
            if database not in open_:
                is_pg = database == "postgresql"
                url = request.getfixturevalue("postgres") if is_pg else ""
                var = tmp_path_factory.mktemp("malformed") / "var"
                context = running(var, db=url, env=env)
                open_[database] = stack.enter_context(context)
            return open_[database]

        yield site_on


def test_the_table_and_the_cases_are_the_same() -> None:
    assert [case for case, _, _ in TABLE] == list(BUILDERS)


@pytest.mark.parametrize(("database", "case", "status", "code"), list(params()))
def test_row(
    site_on: Callable[[str], Site], database: str, case: str, status: str, code: str
) -> None:
    site = site_on(database)
    sent = BUILDERS[case]()
    answer = announce(site, sent)
    check_good_frame(site)
    if status == "refused":
        assert answer["code"] == code
        assert answer["retryable"] is False
        check_reason(answer["detail"])
    elif status == "ignored":
        assert answer["decision"] == "ignored"
        check_reason(answer["reason"])
    else:
        found = site.end_of(answer["frame_id"])
        check_end(site, sent, found, status, code)
    assert all(site.get(s, "/livez").status_code == 200 for s in SERVICES)


def test_none_of_them_takes_much_memory(site_on: Callable[[str], Site]) -> None:
    """Behind all rows: the most that each service ever had."""
    processes = site_on("sqlite").stack.processes
    peaks = {s: peak(processes[s].pid) for s in SERVICES}
    print("peak memory in MB:", {name: round(size) for name, size in peaks.items()})
    assert max(peaks.values()) < MOST


SERVICES = ("monitor", "preparer", "ingestor")


def announce(site: Site, sent: Case) -> Frame:
    """Write the file and tell about it; return what the monitor says about it."""
    if sent.fault:
        [entry] = site.shoot("NIRES", size=200_000, fault=sent.fault)
        sent.path, sent.data = entry.path, site.local(entry.path).read_bytes()
        return site.trigger(sent.path)
    if "\0" not in sent.path:
        sent.prepare(site, site.local(sent.path))
    if sent.data is not None:
        site.write(sent.path, sent.data)
    if sent.broadcast:
        command = [sys.executable, "-c", CAPUT, sent.path]
        subprocess.run(command, env=site.stack.environment(), check=True, timeout=20)
        return site.trigger(sent.path)
    answer: Frame = site.submit(sent.path, sent.instrument).json()
    return answer


def check_good_frame(site: Site) -> None:
    """Nothing stands in the way of the next frame."""
    path, data = frame()
    site.write(path, data)
    answer = site.submit(path, "NIRES").json()
    found = site.end_of(answer["frame_id"], GOOD_SECONDS)
    assert found["status"] == "COMPLETE", found
    assert sha256(site.raw(found["koaid"])) == sha256(data)


def check_end(site: Site, sent: Case, found: Frame, status: str, code: str) -> None:
    assert found["status"] == status, found["findings"]
    codes = {f["code"] for f in found["findings"]}
    if code == "-":
        assert codes == set()
    else:
        assert code in codes
    for finding in found["findings"]:
        check_reason(finding["message"])
    if status == "COMPLETE":
        data = sent.data or site.local(sent.path).read_bytes()
        assert sha256(site.raw(found["koaid"])) == sha256(data)
        for what in ("header", "metadata", "products/" + found["products"][0]["name"]):
            site.file(found["koaid"], what)
    else:
        assert found["version"] is None


def check_reason(text: str) -> None:
    """A person can read it: some words, no traceback, no class of an exception."""
    assert len(text.split()) >= 3, text
    assert "Traceback" not in text, text
    assert not re.search(r"\w+(Error|Exception)\(", text), text
