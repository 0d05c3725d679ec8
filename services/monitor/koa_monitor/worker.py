"""The monitor's workshop: what was heard becomes a file, a file is announced."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import structlog
from sqlmodel import Session

from koa_shared import logs
from koa_shared.client import PeerRefused, Preparer
from koa_shared.contracts import (
    FileWritten,
    Finding,
    Inventory,
    Origin,
    Severity,
    Trigger,
    utcnow,
)
from koa_shared.db import Database
from koa_shared.disks import Disks
from koa_shared.errors import NotYet
from koa_shared.instruments import Instrument, Source
from koa_shared.jobs.queue import Job
from koa_shared.jobs.workshop import Failure, Lane, Workshop

from .config import Config
from .metrics import MonitorMetrics
from .pipeline import (
    Ignored,
    Stat,
    announced_path,
    file_written,
    frame_gaps,
    is_wanted,
    look_again,
)
from .store import Broadcast, Store

__all__ = ["Worker"]

logger = structlog.get_logger("koa_monitor")

SETTLED = 10.0  # s; a file found by a rescan must be that old (design 5)
RESCAN_LIMIT = 300.0  # s; a whole data root over NFS
# A directory untouched for two days before the look-back holds nothing new; files
# rewritten in place do not touch it, so younger ones are read whole.
OLD_DIRECTORY = timedelta(days=2)


class Worker:
    """Handlers of the monitor's lanes."""

    def __init__(
        self,
        config: Config,
        db: Database,
        store: Store,
        disks: Disks,
        preparer: Preparer,
        instruments: dict[str, Instrument],
        metrics: MonitorMetrics,
    ) -> None:
        self.config, self.db, self.store, self.disks = config, db, store, disks
        self.preparer, self.instruments, self.metrics = preparer, instruments, metrics
        self.paused: set[str] = set()
        self.inventories: list[Inventory] = []
        self._sources: dict[str, tuple[Source, Instrument]] = {
            s.name: (s, i) for i in instruments.values() for s in i.sources
        }
        self._workshop: Workshop | None = None

    def lanes(self, workshop: Workshop) -> None:
        """Open the monitor's lanes."""
        self._workshop = workshop
        workshop.add(Lane("resolve", self.resolve, self._failed, 16, (), None, self._hold))
        workshop.add(
            Lane("announce", self.announce, self._failed, 8, ("preparer",))
        )
        workshop.add(
            Lane("rescan", self.rescan, self._failed, 2, (), None, self.disks.paused)
        )

    def _hold(self) -> frozenset[str]:
        stuck = self.disks.paused()
        names = (n for n, (_, i) in self._sources.items() if i.name in stuck)
        return frozenset(self.paused | set(names))

    def _wake(self, *queues: str) -> None:
        if self._workshop is not None:
            self._workshop.wake(*queues)

    def _failed(self, session: Session, job: Job, failure: Failure) -> None:
        self.store.attempt_failed(session, job, failure.delay)

    async def resolve(self, job: Job) -> None:
        """Decide about one broadcast: a new frame, a known one, or none."""
        heard = await self.db.read(self.store.broadcast, job.payload["id"])
        source, instrument = self._sources[heard.source]
        try:
            path = announced_path(source, instrument, heard.value, heard.read)
        except Ignored as why:
            await self._ignore(job, heard, str(why), None)
            return
        stat = await self._look(heard, instrument, path)
        if stat is None:
            await self._ignore(job, heard, "an old file that is gone", path)
            return
        file = file_written(
            stat, instrument.name, source.name, heard.heard,
            Origin.RECOVERED if heard.initial else Origin.LIVE, trigger_of(heard),
        )  # fmt: skip
        logs.bind("monitor", job.trace, frame_id=file.frame_id, instrument=instrument.name)
        decision, reason = await self.db.write(
            self.store.accept, stat, file, job, job.trace
        )
        self.metrics.triggers.labels(source.name, decision).inc()
        logger.info("Broadcast decided", decision=decision, reason=reason, path=path)
        if decision == "accepted":
            self._wake("announce")
            await self._plan_siblings(instrument.name, path)

    async def _ignore(
        self, job: Job, heard: Broadcast, reason: str, path: str | None
    ) -> None:
        await self.db.write(self.store.decide, job, "ignored", reason, path)
        self.metrics.triggers.labels(heard.source, "ignored").inc()
        logger.info("Broadcast ignored", source=heard.source, reason=reason)

    async def _look(
        self, heard: Broadcast, instrument: Instrument, path: str
    ) -> Stat | None:
        local = self.disks.map.local(path)
        try:
            found = await self.disks.run(path, instrument.name, lambda: os.stat(local))
        except (OSError, ValueError) as error:
            limit = self.config.missing_seconds
            delay = look_again(heard.heard, utcnow(), limit)
            if delay is not None:
                raise NotYet(f"the file is not there yet: {error}", delay) from error
            return None if heard.initial else Stat(path, 0, 0)
        return Stat(path, found.st_size, found.st_mtime_ns)

    async def _plan_siblings(self, instrument: str, path: str) -> None:
        """Look through the broadcast's own directory once its files have settled."""
        payload = {"directory": str(PurePosixPath(path).parent)}
        await self.db.write(
            self.store.plan_rescan, instrument, payload, SETTLED + 1
        )

    async def announce(self, job: Job) -> None:
        """Tell the preparer; it answers once its own ledger has the file."""
        file = FileWritten.model_validate(job.payload)
        try:
            answer = await self.preparer.announce(file)
        except PeerRefused as refusal:
            finding = Finding(
                code=refusal.code, severity=Severity.ERROR, step="announce",
                message=str(refusal),
            )  # fmt: skip
            logger.error("File was refused", path=file.path, why=str(refusal))
            await self.db.write(self.store.refused, job, finding)
            return
        await self.db.write(self.store.announced, job, answer.frame_id)
        logger.info("File announced", frame_id=file.frame_id, path=file.path)

    async def rescan(self, job: Job) -> None:
        """Compare the disks with the ledger; what nobody announced is taken on."""
        instrument = self.instruments[job.grp]
        since = await self._since(instrument, job.payload)
        if job.payload.get("resend"):
            count = await self.db.write(self.store.resend, instrument.name, since)
            logger.info("Ledger sent again", instrument=instrument.name, count=count)
        directory = job.payload.get("directory")
        found: list[Stat] = []
        for root in [directory] if directory else instrument.roots:
            found += await self.disks.run(
                root, instrument.name,
                lambda root=root: self._walk(instrument, root, since, bool(directory)),
                RESCAN_LIMIT,
            )  # fmt: skip
        known = await self.db.read(self.store.is_known, found)
        for stat in found:
            if stat.path not in known:
                await self._recover(instrument, stat)
        await self.db.write(self.store.queue.finish, job)
        if not directory:
            self.inventories.append(inventory(instrument.name, found, known))
        self._wake("announce")

    async def _since(self, instrument: Instrument, payload: dict[str, Any]) -> datetime:
        if payload.get("since"):
            return datetime.fromisoformat(payload["since"])
        return await self.db.read(self.store.since, instrument.name)

    def _walk(
        self, instrument: Instrument, root: str, since: datetime, flat: bool
    ) -> list[Stat]:
        """Return the settled files under `root` written since then (runs in a thread)."""
        now, out = datetime.now(UTC).timestamp(), []
        oldest, old_dir = since.timestamp(), (since - OLD_DIRECTORY).timestamp()
        for folder, inner, names in os.walk(self.disks.map.local(root)):
            if flat:
                inner.clear()
            if Path(folder).stat().st_mtime < old_dir:
                continue
            for name in names:
                path = self.disks.map.announced(f"{folder}/{name}")
                if not is_wanted(instrument, path):
                    continue
                try:
                    seen = os.stat(f"{folder}/{name}")
                except OSError:
                    continue  # gone again, or a dangling link
                if oldest <= seen.st_mtime <= now - SETTLED:
                    out.append(Stat(path, seen.st_size, seen.st_mtime_ns))
        return out

    async def _recover(self, instrument: Instrument, stat: Stat) -> None:
        name = f"rescan:{instrument.name}"
        file = file_written(
            stat, instrument.name, name, utcnow(), Origin.RECOVERED, None
        )
        await self.db.write(self.store.accept, stat, file, None, logs.new_trace())
        logger.warning("File found that nobody announced", path=stat.path)


def trigger_of(heard: Broadcast) -> Trigger:
    """Return the broadcast as it travels with its file."""
    return Trigger(
        service=heard.service, keyword=heard.keyword, value=heard.value, time=heard.time
    )


def inventory(instrument: str, found: list[Stat], known: set[str]) -> Inventory:
    """Return what a rescan saw of tonight (UT date)."""
    night = utcnow().date()
    tonight = [
        s.path
        for s in found
        if datetime.fromtimestamp(s.mtime_ns / 1e9, UTC).date() == night
    ]
    return Inventory(
        night=night.isoformat(), instrument=instrument, on_disk=len(tonight),
        announced=len(known.intersection(tonight)), frame_gaps=frame_gaps(tonight),
    )  # fmt: skip
