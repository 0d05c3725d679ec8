"""The observatory's own record of what it did: JSON lines, only ever appended.

Each exposure leaves up to three kinds of lines, tied together by `path` (the normal
form, /s/sdataNNN/...; a path is used once).  Times are RFC 3339 UTC in milliseconds.

    {"event": "begun", "path", "instrument", "source", "kind", "frameno", "koaid",
     "ut", "size", "sha256", "fault", "begun_at"}           before the file is created
    {"event": "closed", "path", "closed_at"}                the file is complete
    {"event": "broadcast", "path", "broadcast_at", "service", "keyword", "value",
     "read"}                                                after each broadcast

`sha256` is of the whole file as it will be.  A path that is begun and not closed may
lie there cut short; one that is closed and not broadcast must be found by a rescan.
Lines survive a kill of this process, not of the machine.
"""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from .frames import Exposure

__all__ = ["Entry", "Ledger", "read_ledger", "stamp"]


class Entry(BaseModel):
    """One exposure: what all its lines say.  `broadcast_at` is the first one's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str
    instrument: str
    source: str
    kind: str
    frameno: int
    koaid: str | None
    ut: datetime
    size: int
    sha256: str
    fault: str | None = None
    begun_at: datetime
    closed_at: datetime | None = None
    broadcast_at: datetime | None = None
    broadcasts: int = 0
    service: str | None = None
    keyword: str | None = None
    value: str | None = None
    read: dict[str, str] = {}


def stamp(at: datetime | None = None) -> str:
    """Return RFC 3339 UTC with milliseconds; default now."""
    text = (at or datetime.now(UTC)).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class Ledger:
    """Appends; each line is one write."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._open: dict[str, dict[str, Any]] = {}

    def begun(self, exposure: Exposure, ut: datetime, fault: str | None) -> None:
        """Note a frame before its file exists."""
        names = ("path", "instrument", "source", "kind", "frameno", "koaid", "size")
        facts = {name: getattr(exposure, name) for name in names}
        more = {"sha256": exposure.sha256, "fault": fault, "begun_at": stamp()}
        self._append("begun", **facts, ut=stamp(ut), **more)

    def closed(self, path: str) -> None:
        """Note that the file is complete, now."""
        self._append("closed", path=path, closed_at=stamp())

    def broadcast(self, path: str, at: datetime, **facts: object) -> None:
        """Note that the keyword was set at `at`."""
        self._append("broadcast", path=path, broadcast_at=stamp(at), **facts)

    def finish(self, path: str) -> Entry:
        """Return what all lines of a path say, and forget it."""
        return Entry.model_validate(self._open.pop(path))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _append(self, event: str, **facts: Any) -> None:
        line = {"event": event, **facts}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        _merge(self._open, line)


def read_ledger(path: Path) -> list[Entry]:
    """Return the exposures of a ledger in order; an unfinished last line is skipped."""
    found: dict[str, dict[str, Any]] = {}
    for line in _lines(path):
        _merge(found, line)
    return [Entry.model_validate(entry) for entry in found.values() if "size" in entry]


def _merge(found: dict[str, dict[str, Any]], line: dict[str, Any]) -> None:
    entry = found.setdefault(line["path"], {"broadcasts": 0})
    first = entry.get("broadcast_at") or line.get("broadcast_at")
    count = entry["broadcasts"] + (line["event"] == "broadcast")
    entry |= {**line, "broadcast_at": first, "broadcasts": count}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield json.loads(line)
