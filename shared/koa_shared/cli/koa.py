"""What `koa` can do: the public methods are its commands, their docstrings the help."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import httpx
from pydantic import Field
from typer import Option

from ..client import Client, Ingestor, Monitor, PeerRefused, Preparer
from ..config import PeerUrl, Settings
from ..contracts import FrameView, Status, Submission, Submitted, utcnow
from ..errors import DependencyDown, NotFound
from ..ids import normal_path
from .why import sentence, unknown

Why = Annotated[str, Option(help="The reason, for the record.")]
Text = Annotated[str | None, Option()]
Codes = Annotated[list[str], Option(help="A finding's code; may be repeated.")]
As = Annotated[Literal["version", "padded"], Option("--as")]
Fraction = Annotated[Literal["production", "padded"] | None, Option()]


def _here(port: int) -> str:
    return f"http://127.0.0.1:{port + int(os.environ.get('PORT_OFFSET') or 0)}"


class Peers(Settings):
    """Where the services are, and the token that is shown to them."""

    monitor_url: PeerUrl = Field(default_factory=lambda: _here(8001))
    preparer_url: PeerUrl = Field(default_factory=lambda: _here(8002))
    ingestor_url: PeerUrl = Field(default_factory=lambda: _here(8003))
    token_file: Path | None = None
    ca_file: Path | None = None


class Koa:
    """The clients of the three services; a frame is named by ID, KOAID, path or file name."""

    def __init__(self, peers: Peers, http: httpx.AsyncClient) -> None:
        self._monitor = Monitor("monitor", peers.monitor_url, http)
        self._preparer = Preparer("preparer", peers.preparer_url, http)
        self.ingestor = Ingestor("ingestor", peers.ingestor_url, http)

    async def submit(self, path: str, instrument: Text = None, source: Text = None) -> Submitted:
        """Have a file archived that nobody announced; exit code 1 if it is ignored."""
        order = Submission(path=path, instrument=instrument, source=source)
        return await self._monitor.submit(order)

    async def status(self, name: str) -> FrameView:
        """Show a frame, the newest of its name, with findings, timeline and products."""
        if "/" not in name:
            for peer in (self.ingestor, self._preparer):  # which knows it even if that is away
                with suppress(DependencyDown):
                    return await peer.call(FrameView, "GET", f"/v1/frames/{quote(name)}")
        query = {"path": normal_path(name)} if "/" in name else {"name": name}
        page = await self.ingestor.frames(limit=1, **query)
        if not page.items:
            raise NotFound(f"no frame has the {''.join(query)} {name}", code="unknown_frame")
        return page.items[0]

    async def why(self, name: str) -> dict[str, Any]:
        """Tell in one sentence where a frame is (or why a path has none) and what to do."""
        try:
            frame = await self.status(name)
        except NotFound:
            if "/" not in name:
                raise
            path = normal_path(name)
            page, sources = await self.triggers(path=path), await self.sources()
            return {"frame": None, "why": unknown(path, page["items"], sources)}
        peer = self._owner(frame)
        holds = [] if frame.status.is_end else await self._holds(peer, frame.instrument)
        return {"frame": frame, "why": sentence(frame, peer.name, holds, utcnow())}

    async def triggers(self, source: Text = None, path: Text = None) -> Any:
        """List the last 100 broadcasts and what was decided about each."""
        return await self._monitor.json("GET", "/v1/triggers", source=source, path=path)

    async def sources(self) -> Any:
        """List the keyword sources and their state."""
        return await self._monitor.json("GET", "/v1/sources")

    async def parked(self) -> Any:
        """List the frames that wait for an operator, in whatever service."""
        return (await self.ingestor.json("GET", "/v1/parked"))["items"]

    async def retry(self, name: str, why: Why = "") -> Any:
        """Try an ERROR or INVALID frame again, at the service where it ended."""
        return await self._order(name, "retry", why=why)

    async def release(self, name: str, waive: Codes, why: Why) -> Any:
        """Let a frame pass in spite of the findings that are waived."""
        return await self._order(name, "release", waive=waive, why=why)

    async def reprocess(
        self, name: str, why: Why = "", progid: Text = None, fraction: Fraction = None
    ) -> Any:
        """Make a frame's products anew: a new generation and version."""
        return await self._order(name, "reprocess", why=why, progid=progid, fraction=fraction)

    async def accept(self, name: str, as_: As, why: Why) -> Any:
        """Decide a KOAID conflict: the same exposure (version) or another one (padded)."""
        frame_id = (await self.status(name)).frame_id
        try:
            return await self._order(frame_id, "accept", why=why, **{"as": as_})
        except PeerRefused as refusal:
            if refusal.code != "needs_reprocess":
                raise
        return await self.reprocess(frame_id, why, fraction="padded")

    async def pause(self, name: str) -> Any:
        """Hold back a source of the monitor or (in capitals) an instrument of the preparer."""
        return await self._switch(name, "pause")

    async def resume(self, name: str) -> Any:
        """Let go on what was paused."""
        return await self._switch(name, "resume")

    async def _switch(self, name: str, verb: str) -> Any:
        if name.isupper():
            return await self._preparer.json("POST", f"/v1/instruments/{quote(name)}/{verb}")
        return await self._monitor.json("POST", f"/v1/sources/{quote(name)}/{verb}")

    async def _order(self, name: str, verb: str, **options: Any) -> Any:
        frame = await self.status(name)
        where = {"retry": self._owner(frame), "accept": self.ingestor}
        peer = where.get(verb, self._preparer)
        answer = await peer.order(frame.frame_id, verb, **options)
        return {"service": peer.name} | answer.model_dump()

    def _owner(self, frame: FrameView) -> Client:
        """Return who has a frame: the ingestor once it was handed it, else the preparer."""
        begun = frame.timeline.ingest_start or frame.step in ("claim", "promote")
        handed = frame.status is Status.TRANSFERRED and frame.timeline.notified
        return self.ingestor if begun or handed else self._preparer

    async def _holds(self, peer: Client, instrument: str) -> list[str]:
        """Return what holds a waiting frame back: what is down, or a pause."""
        try:
            state = await peer.json("GET", "/readyz", verbose="")
        except DependencyDown as down:  # an observer is not told
            return [] if getattr(down, "status", 0) in (401, 403) else [str(down)]
        found = [f"{k} is down ({v})" for k, v in state["circuits"].items() if v != "closed"]
        if instrument in state.get("held", ()):
            found.append(f"{instrument} is paused (`koa resume {instrument}`)")
        return found
