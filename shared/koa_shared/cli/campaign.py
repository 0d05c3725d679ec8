"""`koa campaign`: its public methods are the sub-commands; what retention keeps beside it."""

import asyncio
from typing import Annotated, Any

from pydantic import RootModel
from typer import Option

from ..client import Client, Ingestor
from ..contracts import Status
from .words import Fraction, Text, Where, Why

Digest = Annotated[str | None, Option(help="What made them, or `outdated`: not today's rules.")]
Rate = Annotated[float, Option(help="Frames per minute at most.")]
DryRun = Annotated[bool, Option("--dry-run", help="Only tell what would change.")]
Frames = Annotated[bool, Option("--frames", help="Each frame.")]


class Campaigns:
    """Many frames prepared anew, behind all other work."""

    def __init__(self, preparer: Client) -> None:
        self._preparer = preparer

    async def create(
        self, instrument: Text = None, night: Text = None, where: Where = None,
        rules: Digest = None, progid: Text = None, fraction: Fraction = None,
        per_minute: Rate = 30.0, dry_run: DryRun = False, why: Why = "",
    ) -> Any:  # fmt: skip
        """Prepare all frames anew that are selected; --dry-run waits and tells what changes."""
        states = [word for word in where or () if word in Status.__members__]
        order = {
            "instrument": instrument, "night": night, "status": states[0] if states else None,
            "findings": [word for word in where or () if word not in states], "rules": rules,
            "progid": progid, "fraction": fraction, "per_minute": per_minute, "why": why,
        }  # fmt: skip
        made = await self._preparer.order("campaigns", dry_run=dry_run, **order)
        while dry_run and made["state"] == "running":
            await asyncio.sleep(0.5)
            made = await self.show(made["campaign"], frames=True)
        return made

    async def list(self) -> Any:
        """List the last 100 campaigns."""
        return await self._preparer.json("GET", "/v1/campaigns")

    async def show(self, number: int, frames: Frames = False) -> Any:
        """Show how far a campaign is, and what changes in how many frames."""
        where, every, after = f"/v1/campaigns/{number}", list[Any](), 0
        while True:
            page = {"after": after, "limit": 1000 * frames}
            told = await self._preparer.json("GET", where, **page)
            every += told["each"]
            if (after := told.pop("next")) is None:
                return told | {"each": every}

    async def pause(self, number: int, why: Why = "") -> Any:
        """Hold a campaign back; what is on its way ends by itself."""
        return await self._preparer.order(f"campaigns/{number}/pause", why=why)

    async def resume(self, number: int, why: Why = "") -> Any:
        """Let a campaign go on that was paused, or parked as its frames failed alike."""
        return await self._preparer.order(f"campaigns/{number}/resume", why=why)

    async def cancel(self, number: int, why: Why = "") -> Any:
        """End a campaign for good; versions that it made stay."""
        return await self._preparer.order(f"campaigns/{number}/cancel", why=why)


class Keeping:
    """What is deleted, and what may be."""

    ingestor: Ingestor

    async def retention(self, dry_run: DryRun = False, why: Why = "") -> Any:
        """Delete what the policies say, now; --dry-run only lists it."""
        if dry_run:
            return await self.ingestor.json("GET", "/v1/retention")
        body = RootModel[dict[str, Any]]({"why": why})
        return await self.ingestor.json("POST", "/v1/retention", body=body)

    async def deletable(self, instrument: Text = None) -> Any:
        """List the raw files that the summit may delete, oldest first."""
        every, cursor = list[Any](), ""
        while True:
            more = {"instrument": instrument, "cursor": cursor or None}
            page = await self.ingestor.json("GET", "/v1/deletable", **more)
            every, cursor = every + page["items"], page["next"]
            if not cursor:
                return every
