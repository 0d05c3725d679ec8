"""The three services as a person at a terminal reaches them."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import Field

from ..client import Client, Ingestor, Monitor, PeerRefused, Preparer
from ..config import PeerUrl, Settings
from ..contracts import FrameView, Status, utcnow
from ..errors import Conflict, DependencyDown, NotFound
from ..ids import normal_path
from .why import faults, sentence, unknown

FRAME_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
KOAID = re.compile(r"[A-Z0-9]{2}\.\d{8}\.\d{5}\.\d{2}\w*(\.fits)?")


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
    """The clients of the three services, and what needs more than one of them."""

    def __init__(self, peers: Peers, http: httpx.AsyncClient) -> None:
        self.monitor = Monitor("monitor", peers.monitor_url, http)
        self.preparer = Preparer("preparer", peers.preparer_url, http)
        self.ingestor = Ingestor("ingestor", peers.ingestor_url, http)

    async def find(self, name: str) -> FrameView:
        """Return the newest frame of a frame_id, KOAID, announced path or file name."""
        if FRAME_ID.fullmatch(name):
            with suppress(DependencyDown):  # away, or not told yet: ask the preparer
                return await self.ingestor.frame(name)
            known = await self.preparer.json("GET", f"/v1/frames/{name}")
            return FrameView.model_validate({"level": 0} | known)
        if KOAID.fullmatch(name):
            return await self.ingestor.frame(name)
        key, value = ("path", normal_path(name)) if "/" in name else ("name", name)
        page = await self.ingestor.frames(limit=1, **{key: value})
        if not page.items:
            raise NotFound(f"no frame has the {key} {value}")
        return page.items[0]

    def owner(self, frame: FrameView) -> Client:
        """Return the service that has a frame, and that takes orders about it.

        It is the ingestor's once that has begun with it (`timeline.ingest_start`), has
        ended it at a step of its own or was handed it; else it is the preparer's.
        """
        begun = frame.timeline.ingest_start or frame.step in ("claim", "promote")
        handed = frame.status is Status.TRANSFERRED and frame.timeline.notified
        return self.ingestor if begun or handed else self.preparer

    async def explain(self, name: str) -> dict[str, Any]:
        """Return one sentence about a frame, or about a path that no frame has."""
        try:
            frame = await self.find(name)
        except NotFound:
            if "/" not in name:
                raise
            path = normal_path(name)
            query = {"path": path}
            page = await self.monitor.json("GET", "/v1/triggers", **query)
            sources = await self.monitor.json("GET", "/v1/sources")
            return {"frame": None, "why": unknown(path, page["items"], sources)}
        holds = [] if frame.status.is_end else await self.holds(frame)
        text = sentence(frame, self.owner(frame).name, holds, utcnow())
        return {"frame": frame, "why": text}

    async def holds(self, frame: FrameView) -> list[str]:
        """Return what holds a waiting frame back: a pause, a dependency, a service."""
        service, name, path = self.owner(frame), frame.instrument, frame.path or ""
        try:
            state = await service.json("GET", "/readyz", verbose="")
        except DependencyDown as down:
            return [f"{down} ({service.url})"]
        paused = [f"{name} is paused (`koa resume {name}`)"] * (name in state["held"])
        return paused + [
            f"{what} is down ({reason})"  # a disk holds back its own frames only
            for what, reason in state["circuits"].items()
            if reason != "closed" and path.startswith(what.partition("disk:")[2])
        ]

    async def order(self, peer: Client | None, name: str, verb: str, **more: Any) -> Any:
        """Give an order about a frame; to its owner unless one service has the verb."""
        frame = await self.find(name)
        peer = peer or self.owner(frame)
        answer = await peer.order(frame.frame_id, verb, **more)
        return {"service": peer.name} | answer.model_dump()

    async def accept(self, name: str, as_: str, why: str) -> Any:
        """Decide a KOAID conflict; another KOAID is another generation."""
        frame = await self.find(name)
        if "DUPLICATE_KOAID" not in dict(faults(frame).keys()):
            raise Conflict(f"{frame.frame_id} has no finding DUPLICATE_KOAID")
        name, more = frame.frame_id, {"as": as_, "why": why}
        try:
            return await self.order(self.ingestor, name, "accept", **more)
        except PeerRefused as refusal:
            if refusal.code != "needs_reprocess":
                raise
        more = {"fraction": as_, "why": why}
        return await self.order(self.preparer, name, "reprocess", **more)

    async def parked(self) -> list[Any]:
        """Return what waits for an operator; the ingestor knows the preparer's too."""
        rows = await self.preparer.json("GET", "/v1/parked")
        page = await self.ingestor.json("GET", "/v1/parked")
        rows += [
            row
            for row in page["items"]
            if self.owner(FrameView.model_validate(row)) is self.ingestor
        ]
        return rows

    async def hold(self, name: str, verb: str) -> Any:
        """Pause or resume a source, or else an instrument; capitals are no source."""
        rows = [] if name.isupper() else await self.monitor.json("GET", "/v1/sources")
        if any(row["name"] == name for row in rows):
            return await self.monitor.json("POST", f"/v1/sources/{name}/{verb}")
        path = f"/v1/instruments/{quote(name.upper(), safe='')}/{verb}"
        return await self.preparer.json("POST", path)
