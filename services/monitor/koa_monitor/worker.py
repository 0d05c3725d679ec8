"""The monitor's workshop: what was heard becomes a file, a file is announced."""

import errno
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path, PurePosixPath

import structlog
from sqlmodel import Session

from koa_shared import logs
from koa_shared.client import Client, PeerRefused
from koa_shared.contracts import Accepted, FileWritten, Inventory, Origin, Trigger, utcnow
from koa_shared.disks import Disks, Pulse
from koa_shared.errors import NotYet
from koa_shared.instruments import Instrument
from koa_shared.jobs.queue import Job
from koa_shared.jobs.workshop import Lane, Workshop

from . import pipeline
from .config import Config
from .metrics import MonitorMetrics
from .pipeline import Ignored, Stat, file_written
from .store import SETTLED, Broadcast, Store

logger = structlog.get_logger("koa_monitor")

RESCAN_LIMIT = 60.0  # s without a file; one directory of thousands over NFS
# A directory untouched for two days before the look-back holds nothing new; files
# rewritten in place do not touch it, so younger ones are read whole.
OLD_DIRECTORY = timedelta(days=2)
CANARY, CANARY_KEEP = "CANARY", 3600.0  # s; it takes two, or somebody wants to look at it


@dataclass
class Worker:
    """Handlers of the monitor's lanes."""

    config: Config
    store: Store
    disks: Disks
    preparer: Client
    metrics: MonitorMetrics
    workshop: Workshop
    instruments: dict[str, Instrument]
    inventories: dict[tuple[str, date], Inventory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.db, every = self.workshop.db, self.instruments.values()
        self._sources = {source.name: (source, i) for i in every for source in i.sources}
        self.workshop.add(
            Lane("resolve", self.resolve, slots=16, paused=self._paused),
            Lane("announce", self.announce, slots=8, needs=("preparer",)),
            Lane("rescan", self.rescan, paused=lambda _: self.disks.paused()),
        )

    def _paused(self, session: Session) -> frozenset[str]:
        stuck = self.disks.paused()
        names = (name for name, (_, i) in self._sources.items() if i.name in stuck)
        return frozenset(self.store.audit.held(session)).union(names)

    async def resolve(self, job: Job) -> None:
        """Decide about one broadcast: a new frame, a known one, or none."""
        heard = Broadcast.model_validate(job.payload)
        source, instrument = self._sources[heard.source]
        path = None
        try:
            path = pipeline.announced_path(source, instrument, heard.value, heard.read or {})
            stat = await self._look(heard, instrument, path)
        except Ignored as why:
            decided = {"decision": "ignored", "reason": str(why), "path": path}
            await self.db.write(self.store.decide, job, **decided)
            self.metrics.triggers.labels(source.name, "ignored").inc()
            logger.info("Broadcast ignored", source=source.name, reason=str(why), path=path)
            return
        origin = Origin.RECOVERED if heard.initial else Origin.LIVE
        trigger = Trigger.model_validate(heard, from_attributes=True)
        where = (instrument.name, source.name)
        file = file_written(stat, where, heard.heard, origin, trigger)
        logs.bind("monitor", logs.traceparent(), frame_id=file.frame_id, instrument=instrument.name)
        decision, reason = await self.db.write(self.store.accept, file, job.trace, job)
        self.metrics.triggers.labels(source.name, decision).inc()
        logger.info("Broadcast decided", decision=decision, reason=reason, path=path)

    async def _look(self, heard: Broadcast, instrument: Instrument, path: str) -> Stat:
        local = self.disks.map.local(path)
        try:
            found = await self.disks.run(path, instrument.name, Path(local).stat)
        except (OSError, ValueError) as error:
            delay = pipeline.look_again(heard.heard, utcnow(), self.config.missing_seconds)
            if delay is not None:
                raise NotYet(f"the file is not there yet: {error}", delay) from error
            if heard.initial:
                raise Ignored("an old value, whose file is gone") from error
            return Stat(path, 0, 0)
        return Stat(path, found.st_size, found.st_mtime_ns)

    async def announce(self, job: Job) -> None:
        """Tell the preparer; it answers once its own ledger has the file."""
        file = FileWritten.model_validate(job.payload)
        try:
            answer = await self.preparer.call(Accepted, "POST", "/v1/files", body=file)
        except PeerRefused as refusal:
            logger.error("File was refused", path=file.path, why=str(refusal))
            await self.db.write(self.store.refused, job, f"{refusal.code}: {refusal}")
            return
        await self.db.write(self.store.announced, job, answer.frame_id)
        logger.info("File announced", frame_id=file.frame_id, path=file.path)

    async def rescan(self, job: Job) -> None:
        """Compare the disks with the ledger; what nobody announced is taken on."""
        instrument, order = self.instruments[job.grp], job.payload
        since, now = await self.db.read(self.store.since, instrument.name), utcnow()
        if order.get("since"):
            since = datetime.fromisoformat(order["since"])
        if order.get("resend"):
            count = await self.db.write(self.store.resend, instrument.name, since)
            logger.info("Ledger sent again", instrument=instrument.name, count=count)
        directory = order.get("directory")
        # An inventory is of whole nights, and of the last one until the next has lasted an hour.
        nights = {since.date(), now.date()} if not directory else set()
        midnight = since.replace(hour=0, minute=0, second=0, microsecond=0)
        oldest = since if directory else midnight
        found: list[Stat] = []
        for root in [directory] if directory else instrument.roots:
            pulse, flat = Pulse(), bool(directory)
            walk = partial(self._walk, instrument, root, oldest, pulse=pulse, flat=flat)
            found += await self.disks.run(root, instrument.name, walk, RESCAN_LIMIT, pulse)
            if not directory:
                with suppress(OSError):  # nothing was ever written there
                    look = partial(shutil.disk_usage, self.disks.map.local(root))
                    usage = await self.disks.run(root, instrument.name, look)
                    self.metrics.disk_free.labels(instrument.name, root).set(usage.free)
        known = await self.db.read(self.store.known, found)
        where = (instrument.name, f"rescan:{instrument.name}")
        fresh = [
            stat for stat in found
            if stat.frame_id not in known and stat.mtime_ns / 1e9 >= since.timestamp()
        ]  # fmt: skip
        young = set[str]()
        for stat in fresh:
            if abs(now.timestamp() - stat.mtime_ns / 1e9) < SETTLED:
                young.add(str(PurePosixPath(stat.path).parent))
            else:
                file = file_written(stat, where, utcnow(), Origin.RECOVERED)
                await self.db.write(self.store.accept, file, logs.new_trace())
                known.add(stat.frame_id)
                logger.warning("File found that nobody announced", path=stat.path)
        await self.db.write(self.store.rescanned, job, instrument.name, young)
        for night in sorted(nights):  # tonight's is the last
            seen = inventory((instrument.name, night, now), found, known)
            self.inventories[instrument.name, night] = seen
            self.metrics.gaps.labels(instrument.name).set(len(seen.frame_gaps))

    async def canary(self) -> str:
        """Write a frame of our own and take it on as if it were announced; return its id."""
        now, root = utcnow(), self.instruments[CANARY].roots[0]
        path = f"{root}/canary_{now:%Y%m%dT%H%M%S}_{secrets.token_hex(4)}.fits"

        def write() -> Stat:
            file = Path(self.disks.map.local(path))
            file.parent.mkdir(parents=True, exist_ok=True)
            for old in file.parent.glob("canary_*.fits"):
                if old.stat().st_mtime < time.time() - CANARY_KEEP:
                    old.unlink(missing_ok=True)
            file.write_bytes(pipeline.canary_frame(file.name, now))
            seen = file.stat()
            return Stat(path, seen.st_size, seen.st_mtime_ns)

        stat = await self.disks.run(path, CANARY, write)
        file = file_written(stat, (CANARY, "canary"), utcnow(), Origin.CANARY)
        await self.db.write(self.store.accept, file, logs.new_trace())
        return file.frame_id

    def _walk(
        self, instrument: Instrument, root: str, since: datetime, *, flat: bool, pulse: Pulse
    ) -> list[Stat]:
        """Return the files under `root` written since then (runs in a thread)."""
        out = []
        oldest, old_directory = since.timestamp(), (since - OLD_DIRECTORY).timestamp()
        for folder, inner, names in os.walk(self.disks.map.local(root), onerror=unless_gone):
            pulse.beat()
            if flat:
                inner.clear()
            if Path(folder).stat().st_mtime < old_directory:
                continue
            for name in names:
                pulse.beat()
                path = self.disks.map.announced(f"{folder}/{name}")
                try:
                    seen = Path(folder, name).stat()
                    path.encode()
                except (OSError, UnicodeEncodeError):
                    continue  # gone again, a dangling link, or a name nobody can write
                if oldest <= seen.st_mtime and pipeline.is_wanted(instrument, path):
                    out.append(Stat(path, seen.st_size, seen.st_mtime_ns))
        return out


def unless_gone(error: OSError) -> None:
    """Raise what hides files; a directory that is not there hides none."""
    if error.errno != errno.ENOENT:
        raise error


def inventory(of: tuple[str, date, datetime], found: list[Stat], known: set[str]) -> Inventory:
    """Return what a rescan saw; `of` is instrument, night (UT date) and when it began."""
    instrument, night, at = of
    seen = [s for s in found if datetime.fromtimestamp(s.mtime_ns / 1e9, UTC).date() == night]
    return Inventory(
        night=night.isoformat(), instrument=instrument, at=at, on_disk=len(seen),
        announced=sum(s.frame_id in known for s in seen),
        frame_gaps=pipeline.frame_gaps(s.path for s in seen),
    )  # fmt: skip
