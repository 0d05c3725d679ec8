"""Takes exposures: builds the frame, writes the file, broadcasts, keeps the ledger."""

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field

from ..instruments import Instrument, Source
from .cards import Value
from .faults import FAULTS
from .frames import Exposure, Kind, Request, Template, build, path_of, templates
from .ledger import Entry, Ledger, read_ledger, stamp
from .quicklook import reduce

__all__ = ["Clock", "Dome", "Order"]

logger = structlog.get_logger("koa_simulator")

T = TypeVar("T")
Put = Callable[[str, str, str], None]

HUNDREDTH = timedelta(milliseconds=10)
PIECES = 20  # of a file that grows
REPEAT_SECONDS = 0.2
# The keywords of a path are read after the trigger (facts 1.1); a real readout of
# such an instrument takes many times longer.
READ_SECONDS = 0.05
QUICK_LOOK = "quick look"  # what such a task is named
OPPOSITE = {"false": "true", "true": "false"}


class Order(BaseModel):
    """One exposure to take, and what is odd about it; times in seconds.

    `late`: broadcast, then write.  `grow`: broadcast, then write slowly.  `silent`:
    no broadcast.  `repeat`: so many more broadcasts.  `reduce`: a quick look follows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    kind: str | None = None
    size: int | None = Field(default=None, ge=0)
    program: str | None = None
    cards: dict[str, Value] = {}
    fault: str | None = None
    late: float = Field(default=0, ge=0)
    grow: float = Field(default=0, ge=0)
    silent: bool = False
    repeat: int = Field(default=0, ge=0)
    reduce: bool = False


class Clock:
    """Start times that give each frame of an instrument a KOAID of its own.

    The production fraction writes .01 to .09 as .10 to .90 (facts 2.2): hundredths
    from .10 up are used, each once, so a burst runs at most 90 frames a second and
    the rest start a little later than they do.
    """

    def __init__(self) -> None:
        self._last: dict[str, datetime] = {}

    def note(self, instrument: str, used: datetime) -> None:
        """Take a time out, with all before it."""
        self._last[instrument] = max(used, self._last.get(instrument, used))

    def next(self, instrument: str, now: datetime, step: timedelta = HUNDREDTH) -> datetime:
        """Return the next free start time, `now` or shortly after."""
        at = now.replace(microsecond=now.microsecond // 10_000 * 10_000)
        if instrument in self._last:
            at = max(at, self._last[instrument] + step)
        if at.microsecond < 100_000:
            at = at.replace(microsecond=100_000)
        self._last[instrument] = at
        return at


class Dome:
    """All simulated cameras; each takes one exposure at a time."""

    def __init__(
        self,
        instruments: Iterable[Instrument],
        root: Path,
        ledger: Path,
        seed: int = 0,
        record: Path | None = None,
    ) -> None:
        self.root = root
        self._seed = seed
        self._record = record
        self._sources: dict[str, tuple[Source, str]] = {
            source.name: (source, instrument.name)
            for instrument in instruments
            for source in instrument.sources
            if source.name in _cameras(instrument.name)
        }
        self._locks = {name: asyncio.Lock() for name in self._sources}
        self._numbers = {name: itertools.count(1) for name in self._sources}
        self._clock = Clock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.left = self._remember(read_ledger(ledger))
        self._ledger = Ledger(ledger)

    def _remember(self, entries: list[Entry]) -> Mapping[tuple[str, str], str]:
        """Go on where an earlier run stopped; return the keywords as it left them."""
        left: dict[tuple[str, str], str] = {}
        for entry in entries:
            self._clock.note(entry.instrument, entry.ut)
            self._numbers[entry.source] = itertools.count(entry.frameno + 1)
            if entry.service and entry.keyword and entry.value is not None:
                left[entry.service, entry.keyword] = entry.value
                left |= {(entry.service, key): v for key, v in entry.read.items()}
        return left

    def source_of(self, instrument: str, source: str | None) -> str:
        """Return the source meant; raises ValueError with what there is."""
        template = templates().get(instrument)
        if template is None:
            raise ValueError(f"{instrument} can't be simulated: {', '.join(templates())}")
        name = source or template.default
        if name not in template.camera or name not in self._sources:
            raise ValueError(f"{instrument} has: {', '.join(template.camera)}")
        return name

    def check(self, order: Order) -> None:
        """Raise ValueError, with what there is, if an order can't be met."""
        kinds = self.kinds(order.source)
        if order.kind is not None and order.kind not in kinds:
            raise ValueError(f"{order.source} takes: {', '.join(kinds)}")
        if order.fault is not None and order.fault not in FAULTS:
            raise ValueError(f"known faults: {', '.join(FAULTS)}")

    def kinds(self, source: str) -> dict[str, Kind]:
        """Return what a source takes, the default first."""
        return self._template(source)[0].kinds(source)

    async def expose(self, order: Order, put: Put) -> Entry:
        """Take one exposure; a caller that is cancelled does not interrupt it."""
        return await asyncio.shield(self._begin(self._expose(order, put)))

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Wait for what is being exposed, five seconds at most; nothing more is reduced."""
        for task in self._tasks:
            if task.get_name() == QUICK_LOOK:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        self._ledger.close()

    def _template(self, source: str) -> tuple[Template, str]:
        instrument = self._sources[source][1]
        return templates()[instrument], instrument

    async def _expose(self, order: Order, put: Put) -> Entry:
        source, instrument = self._sources[order.source]
        async with self._locks[order.source]:
            whole = templates()[instrument].camera[order.source].whole_seconds
            step = timedelta(seconds=1) if whole else HUNDREDTH
            at = self._clock.next(instrument, datetime.now(UTC), step)
            exposure = await asyncio.to_thread(self._build, order, at)
            await asyncio.to_thread(self._ledger.begun, exposure, at, order.fault)
            tell = partial(self._broadcast, source, exposure, put)
            _announce(source, exposure, put)
            await self._write(order, exposure, tell)
            for _ in range(order.repeat):
                await asyncio.sleep(REPEAT_SECONDS)
                tell()
            if source.path_keywords:
                await asyncio.sleep(READ_SECONDS)
        entry = self._ledger.finish(exposure.path)
        logger.info("Exposure is taken", path=entry.path, size=entry.size)
        if order.reduce and entry.koaid and templates()[instrument].quick_look:
            self._begin(reduce(self.root, exposure)).set_name(QUICK_LOOK)
        return entry

    def _build(self, order: Order, at: datetime) -> Exposure:
        """Return the next frame whose path is free: files outlive a lost ledger."""
        template, instrument = self._template(order.source)
        kind = order.kind or next(iter(template.kinds(order.source)))
        request = Request(
            order.source,
            kind,
            next(self._numbers[order.source]),
            at,
            order.size,
            self._seed,
            order.program,
            fault=order.fault,
            cards=order.cards,
        )
        while self.local(path_of(instrument, request)).exists():
            request = replace(request, frameno=next(self._numbers[order.source]))
        return build(instrument, request)

    async def _write(self, order: Order, exposure: Exposure, tell: Callable[[], None]) -> None:
        """Write the file and tell about it, in the order that is asked for."""
        path = self.local(exposure.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if order.late:
            if not order.silent:
                tell()
            await asyncio.sleep(order.late)
        if order.grow:
            with path.open("xb", buffering=0) as file:
                for number, piece in enumerate(_pieces(exposure)):
                    await asyncio.to_thread(file.write, piece)
                    if number == 0 and not (order.late or order.silent):
                        tell()
                    await asyncio.sleep(order.grow / PIECES)
        else:
            await asyncio.to_thread(_write_file, path, exposure)
        self._ledger.closed(exposure.path)
        if not (order.late or order.grow or order.silent):
            tell()

    def _broadcast(self, source: Source, exposure: Exposure, put: Put) -> None:
        read = _read(source, exposure)
        value = source.required or exposure.announced
        at = datetime.now(UTC)
        put(source.service, source.keyword, value)
        facts = {"keyword": source.keyword, "value": value, "read": read}
        self._ledger.broadcast(exposure.path, at, service=source.service, **facts)
        if self._record is not None:
            line = {"t": stamp(at), "source": source.name, **facts}
            with self._record.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def local(self, path: str) -> Path:
        """Return where a path in its normal form lies here."""
        return self.root / path.lstrip("/")


def _cameras(instrument: str) -> Mapping[str, object]:
    return templates()[instrument].camera if instrument in templates() else {}


def _read(source: Source, exposure: Exposure) -> dict[str, str]:
    """Return the keywords that the path is built of (facts 1.1, ESI and HIRES)."""
    known = {
        "OUTDIR": exposure.outdir,
        "OUTFILE": exposure.outfile,
        "LFRAMENO": str(exposure.frameno),
    }
    return {keyword: known[keyword] for keyword in source.path_keywords}


def _announce(source: Source, exposure: Exposure, put: Put) -> None:
    """Set the parts of the path, and say that writing begins where that is told."""
    for keyword, text in _read(source, exposure).items():
        put(source.service, keyword, text)
    if source.required is not None:
        put(source.service, source.keyword, OPPOSITE[source.required])


def _pieces(exposure: Exposure) -> Iterator[memoryview]:
    whole = memoryview(b"".join(exposure.parts))
    size = max(1, -(-len(whole) // PIECES))
    return (whole[start : start + size] for start in range(0, len(whole) or 1, size))


def _write_file(path: Path, exposure: Exposure) -> None:
    with path.open("xb", buffering=0) as file:
        for chunk in exposure.chunks():
            file.write(chunk)
