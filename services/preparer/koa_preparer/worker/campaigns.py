"""Campaigns at work: their turns, and what a frame's next generation would change.

`worker` is the preparer's Worker.
"""

import asyncio
from typing import Any

from koa_shared.contracts import FilePrepared, Finding, FrameView, Page, Severity, Timeline
from koa_shared.db import safe_json
from koa_shared.errors import FrameFault, NotYet
from koa_shared.jobs.queue import Job

from ..pipeline.changes import changes
from ..providers import Facts
from ..store import File


async def rehearse(worker: Any, row: File, job: Job) -> None:
    """Prepare a frame as a campaign would, send nothing; note what would change."""
    old = FilePrepared.model_validate(row.prepared) if row.prepared else None
    before = [Finding.model_validate(finding) for finding in row.findings or ()]
    options = (row.options or {}) | job.payload["options"]
    # Everything would differ by it.
    at = Facts.model_validate(row.facts).prepared_at if old else None
    next_ = {"generation": row.generation + 1, "options": options, "facts": None}
    row, new = File(**row.model_dump() | next_), None
    try:
        raw = await worker.reader.read(row, job)
        made = await worker.decide(row, raw, at)
        found = made.findings
        if made.refusal is None:
            async with asyncio.TaskGroup() as group:
                shelf = worker.shelf(group, "", sends=False)
                new = await worker.fill(shelf, row, job, made, Timeline())
            found = new.findings
            told = new.model_dump(mode="json", exclude={"products"})
            new = FilePrepared.model_validate(safe_json(told) | {"products": shelf.products})
    except FrameFault as fault:
        severity = Severity.INVALID
        found = [Finding(code=fault.code, severity=severity, step=fault.step, message="")]
    differ = changes((old, before), (new, found))
    await worker.db.write(worker.store.tried, job, differ)


async def campaign(worker: Any, job: Job) -> None:
    """Take a campaign's turn: list its frames, then have one after the other prepared."""
    row = await worker.db.read(worker.store.campaign, int(job.key))
    if row.state == "running" and not row.is_selected:
        asked = {k: v for k, v in row.wanted.items() if k in ("instrument", "night", "status")}
        codes = row.wanted.get("findings") or [None]
        asked |= {"level": 0, "limit": 1000, "cursor": row.cursor, "finding": codes[0]}
        page = await worker.ingestor.call(Page[FrameView], "GET", "/v1/frames", **asked)
        now = {name: recipe.rules for name, recipe in worker.recipes.items()}
        await worker.db.write(worker.store.select, job, page, now)
        raise NotYet("the selection goes on", 0.0)
    wait = await worker.db.write(worker.store.turn, job, worker.config.park_alike)
    await count_campaigns(worker)
    if wait is not None:
        raise NotYet("its next turn comes", wait)


async def count_campaigns(worker: Any) -> None:
    """Tell the campaigns that are not over, and their frames."""
    worker.metrics.campaigns.clear()
    worker.metrics.campaign_frames.clear()
    for row in await worker.db.read(worker.store.campaigns):
        if row.state not in ("done", "cancelled"):
            worker.metrics.campaigns.labels(row.state).inc()
            for state, count in (await worker.db.read(worker.store.progress, row.id or 0)).items():
                worker.metrics.campaign_frames.labels(state).inc(count)
