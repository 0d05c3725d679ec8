"""Campaigns at work: their turns, and what a frame's next generation would change."""

import asyncio
from typing import Any

from koa_shared.contracts import FilePrepared, Finding, Severity, Timeline
from koa_shared.db import safe_json
from koa_shared.errors import FrameFault, NotYet
from koa_shared.jobs.queue import Job

from ..pipeline.changes import changes
from ..providers import Facts
from ..store import File


class Campaigning:
    """Of the Worker: handlers of the lane `campaign`, and of frames that are only tried."""

    db: Any
    store: Any
    reader: Any
    recipes: Any
    config: Any
    ingestor: Any
    metrics: Any
    shelf: Any
    _make: Any
    _fill: Any

    async def rehearse(self, row: File, job: Job) -> None:
        """Prepare a frame as a campaign would, send nothing; note what would change."""
        old = FilePrepared.model_validate(row.prepared) if row.prepared else None
        before = [Finding.model_validate(finding) for finding in row.findings or ()]
        options = (row.options or {}) | job.payload["options"]
        # Everything would differ by it.
        at = Facts.model_validate(row.facts).prepared_at if old else None
        next_ = {"generation": row.generation + 1, "options": options, "facts": None}
        row, new = File(**row.model_dump() | next_), None
        try:
            raw = await self.reader.read(row, job)
            made = await self._make(row, job, raw, at)
            found = made.findings
            if made.refusal is None:
                async with asyncio.TaskGroup() as group:
                    shelf = self.shelf(group, "", sends=False)
                    new = await self._fill(shelf, row, job, made, Timeline())
                found = new.findings
                told = new.model_dump(mode="json", exclude={"products"})
                new = FilePrepared.model_validate(safe_json(told) | {"products": shelf.products})
        except FrameFault as fault:
            severity = Severity.INVALID
            found = [Finding(code=fault.code, severity=severity, step=fault.step, message="")]
        differ = changes((old, before), (new, found))
        await self.db.write(self.store.tried, job, differ)

    async def campaign(self, job: Job) -> None:
        """Take a campaign's turn: list its frames, then have one after the other prepared."""
        row = await self.db.read(self.store.campaign, int(job.key))
        if row.state == "running" and not row.is_selected:
            asked = {k: v for k, v in row.wanted.items() if k in ("instrument", "night", "status")}
            codes = row.wanted.get("findings") or [None]
            page = await self.ingestor.frames(
                level=0, limit=1000, cursor=row.cursor, finding=codes[0], **asked
            )
            now = {name: recipe.rules for name, recipe in self.recipes.items()}
            await self.db.write(self.store.select, job, page, now)
            raise NotYet("the selection goes on", 0.0)
        wait = await self.db.write(self.store.turn, job, self.config.park_alike)
        await self.count_campaigns()
        if wait is not None:
            raise NotYet("its next turn comes", wait)

    async def count_campaigns(self) -> None:
        """Tell the campaigns that are not over, and their frames."""
        self.metrics.campaigns.clear()
        self.metrics.campaign_frames.clear()
        for row in await self.db.read(self.store.campaigns):
            if row.state not in ("done", "cancelled"):
                self.metrics.campaigns.labels(row.state).inc()
                for state, count in (await self.db.read(self.store.progress, row.id or 0)).items():
                    self.metrics.campaign_frames.labels(state).inc(count)
