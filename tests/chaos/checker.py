"""The history checker: judges a finished run; imports nothing of the product.

It reads what the observatory wrote (its own ledger), what the databases say happened, and
what lies in the archive bucket, and tells every promise that was broken.

The ledger is JSON lines; lines of one (path, sha256) add to each other:

    {"path", "sha256", "size", "closed_at",     a file as the instrument wrote it
     "broadcast_at": null or RFC 3339,          when a keyword named it
     "kept": true,                              it lies in a watched root still
     "ends": ["archived"]}                      what may become of it

`ends` holds `archived`, `INVALID`, `DUPLICATE`, or several with `+` in this order, where a
file ends so under one frame and so under another; `gone` if the instrument itself may have
destroyed it before anybody could read it.  `sha256` is "" for a name without a file.
"""

import hashlib
import json
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import psycopg
from psycopg.rows import dict_row

Row = dict[str, Any]
BLOCK, CARD = 2880, 80
ROAD = ("QUEUED", "PROCESSING", "TRANSFERRING", "TRANSFERRED", "INGESTING")
ENDS = ("COMPLETE", "INVALID", "ERROR", "DUPLICATE")
RANK = {status: rank for rank, status in enumerate(ROAD)} | dict.fromkeys(ENDS, len(ROAD))
TIMES = (
    "acquired", "detected", "queued", "process_start", "process_end", "transfer_start",
    "transfer_end", "notified", "ingest_start", "copy_start", "copy_end", "available",
)  # fmt: skip
# Work that may wait when everything has ended: staging, disks and late facts.
LATER = ("sweep", "rescan", "enrich", "scrub")
DAWN, SECOND = datetime.min.replace(tzinfo=UTC), timedelta(seconds=1)  # S3 tells no finer time
FRAME_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Breach(NamedTuple):
    """One broken promise."""

    code: str
    frame: str
    sentence: str


class Bucket(Protocol):
    """The archive bucket, read only."""

    def written(self) -> dict[str, datetime]:
        """Return when every object was written, by key."""

    def get(self, key: str) -> bytes:
        """Return an object whole."""


class MinioBucket:
    """The archive bucket through a `minio` client."""

    def __init__(self, client: Any, name: str = "koa-archive") -> None:
        self.client, self.name = client, name

    def written(self) -> dict[str, datetime]:
        found = self.client.list_objects(self.name, recursive=True)
        return {str(o.object_name): o.last_modified for o in found if not o.is_dir}

    def get(self, key: str) -> bytes:
        answer = self.client.get_object(self.name, key)
        try:
            return bytes(answer.read())
        finally:
            answer.close()
            answer.release_conn()


# -- reading ----------------------------------------------------------------------


def read_ledger(path: Path) -> list[Row]:
    """Return the files that were written, each with all that its lines say."""
    found: dict[tuple[str, str], Row] = {}
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            row = json.loads(line)
            default = {"broadcast_at": None, "kept": True, "ends": ["archived"]}
            found.setdefault((row["path"], row["sha256"]), default).update(row)
    return list(found.values())


class Tables:
    """One service's database: a SQLite file or a PostgreSQL URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def rows(self, query: str) -> list[Row]:
        if self.url.startswith("postgresql:"):
            with psycopg.connect(self.url, row_factory=dict_row) as link:
                return link.execute(query.encode()).fetchall()
        with closing(sqlite3.connect(f"file:{self.url}?mode=ro", uri=True, timeout=20)) as file:
            file.row_factory = sqlite3.Row
            return [dict(row) for row in file.execute(query)]


def parsed(value: Any) -> Any:
    """Return JSON, which SQLite gives as text."""
    return json.loads(value) if isinstance(value, str) else value


def moment(value: Any) -> datetime | None:
    """Return an aware time; SQLite gives text without a zone."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if value is not None and value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    return value  # type: ignore[no-any-return]


@dataclass
class History:
    """All that is known of a run."""

    ledger: list[Row]
    frames: dict[str, Row]
    versions: list[Row]
    claims: set[tuple[str, int]]
    events: dict[tuple[str, str], list[Row]]
    stream: dict[str, list[Row]]
    prepared: dict[str, Row]
    heard: dict[str, Row]
    broadcasts: list[Row]
    waiting: list[Row]
    reopened: Counter[str]

    @classmethod
    def read(cls, ledger: Path, databases: Mapping[str, str]) -> "History":
        """Read the ledger and the databases of `monitor`, `preparer` and `ingestor`."""
        db = {service: Tables(url) for service, url in databases.items()}
        frames, versions = db["ingestor"].rows("SELECT * FROM frame"), []
        for row in frames:
            row |= {name: parsed(row[name]) for name in ("timeline", "findings", "products")}
        claims = db["ingestor"].rows("SELECT * FROM version")
        for row in (row for row in claims if row["committed_at"] is not None):
            at = moment(row["committed_at"])
            versions.append(row | {"products": parsed(row["products"]), "committed_at": at})
        events = defaultdict[tuple[str, str], list[Row]](list)
        for row in db["ingestor"].rows("SELECT * FROM eventseen ORDER BY seq"):
            events[row["frame_id"], row["service"].lower()].append(row)
        stream = defaultdict[str, list[Row]](list)
        for row in db["ingestor"].rows("SELECT * FROM stream ORDER BY id"):
            stream[row["frame_id"]].append(row | {"at": moment(row["at"])})
        waiting = [
            {"service": service} | row
            for service, tables in db.items()
            for row in tables.rows("SELECT queue, key, state, error FROM job")
            if row["queue"] not in LATER
        ]
        for service in ("monitor", "preparer"):
            rows = db[service].rows("SELECT id, payload FROM outbox")
            more = [parsed(row["payload"])["frame_id"] for row in rows]
            waiting += [{"service": service, "queue": "outbox", "key": key} for key in more]
        deeds = db["ingestor"].rows("SELECT target FROM audit")
        return cls(
            ledger=read_ledger(ledger),
            frames={row["frame_id"]: row for row in frames},
            versions=versions,
            claims={(row["koaid"], row["version"]) for row in claims},
            events=dict(events),
            stream=dict(stream),
            prepared={r["frame_id"]: r for r in db["preparer"].rows("SELECT * FROM file")},
            heard={r["frame_id"]: r for r in db["monitor"].rows("SELECT * FROM file")},
            broadcasts=db["monitor"].rows("SELECT * FROM broadcast"),
            waiting=waiting,
            reopened=Counter(row["target"] for row in deeds),
        )

    def __post_init__(self) -> None:
        self.by_path, self.by_sha = (
            defaultdict[str, list[Row]](list),
            defaultdict[str, list[Row]](list),
        )
        for frame in self.frames.values():
            self.by_path[frame["path"]].append(frame)
        for version in self.versions:
            self.by_sha[version["raw_sha256"]].append(version)


# -- deciding ---------------------------------------------------------------------


def check(
    history: History,
    bucket: Bucket,
    seen: set[tuple[str, int]] | None = None,
    *,
    restored: bool = False,
) -> list[Breach]:
    """Return every broken promise; `restored`: a catalogue lost its past to a backup.

    The bytes of versions in `seen` are not read once more; those that are read are added.
    """
    found: list[Breach] = []
    for rule in (ended, frames_end, nothing_waits, once, asked_for):
        found += rule(history)
    if not restored:
        found += [*untold(history), *never_backwards(history), *visible_when_durable(history)]
    found += in_order(history, restored=restored)
    return [*found, *archive_is_whole(history, bucket, set() if seen is None else seen)]


def key_of(frame: Row, version: Row, name: str) -> str:
    """Return where the design says that a product lies."""
    koaid = version["koaid"]
    home = f"{frame['instrument']}/{koaid.split('.')[1]}/lev{frame['level']}"
    return f"{home}/{koaid}/v{version['version']}/{name}"


def reason(frame: Row) -> str:
    """Return why a frame is not archived, "" if nothing says so."""
    told = [f for f in frame["findings"] if f["severity"] != "warning" and f["message"]]
    return f"{told[-1]['code']}: {told[-1]['message']}" if told else ""


def originals(frame: Row) -> set[str]:
    """Return the frames that a duplicate names."""
    texts = [f["message"] for f in frame["findings"] if f["code"] == "DUPLICATE"]
    return {name for text in texts for name in FRAME_ID.findall(text)} - {frame["frame_id"]}


def how_it_ended(history: History, entry: Row) -> list[str]:
    """Return the ends of one written file, each once."""
    ends, paths = [], history.by_path.get(entry["path"], [])
    mine = {frame["frame_id"] for frame in paths}
    kept = history.by_sha.get(entry["sha256"], [])
    if any(version["frame_id"] in mine for version in kept):
        ends.append("archived")
    if any(frame["status"] == "INVALID" and reason(frame) for frame in paths):
        ends.append("INVALID")
    owners = {version["frame_id"] for version in kept} - mine
    if any(frame["status"] == "DUPLICATE" and originals(frame) & owners for frame in paths):
        ends.append("DUPLICATE")
    return ends


def ended(history: History) -> Iterator[Breach]:
    """Every file that was announced or lies in a watched root has one end."""
    for entry in history.ledger:
        if not (entry["broadcast_at"] or entry["kept"]):
            continue
        ends = "+".join(how_it_ended(history, entry))
        if not ends and "gone" in entry["ends"]:
            continue
        if not ends:
            seen = [(f["status"], f["step"]) for f in history.by_path.get(entry["path"], [])]
            yield Breach("lost", entry["path"], f"it has no end; its frames are {seen}")
        elif ends not in entry["ends"]:
            whys = [reason(f) for f in history.by_path.get(entry["path"], [])]
            want = " or ".join(entry["ends"])
            yield Breach("wrong_end", entry["path"], f"it is {ends}, not {want} {whys}")


def frames_end(history: History) -> Iterator[Breach]:
    """Every frame has an end, and says what such an end must tell."""
    committed = {version["frame_id"] for version in history.versions}
    for name, frame in history.frames.items():
        status, path = frame["status"], frame["path"]
        if status not in ENDS:
            yield Breach("stuck", name, f"{path} is {status}, {frame['step']}")
        elif status == "ERROR":
            yield Breach("parked", name, f"{path}: {reason(frame)}")
        elif status == "INVALID" and not reason(frame):
            yield Breach("no_reason", name, f"{path} is INVALID and nobody says why")
        elif status == "DUPLICATE" and not originals(frame) & history.frames.keys():
            yield Breach("no_original", name, f"{path} names no frame we have")
        elif status == "COMPLETE" and name not in committed:
            yield Breach("uncommitted", name, f"{path} is COMPLETE without a version")


def nothing_waits(history: History) -> Iterator[Breach]:
    """No work is left, and something was decided about every broadcast."""
    for job in history.waiting:
        yield Breach("waiting", job["key"], f"{job['service']} still has it in {job['queue']}")
    for row in history.broadcasts:
        if not row["decision"]:
            yield Breach("undecided", row["value"], "nothing was decided about the broadcast")


def once(history: History) -> Iterator[Breach]:
    """Nothing is archived twice: neither a frame's generation nor the same bytes."""
    claims = Counter((v["frame_id"], v["generation"]) for v in history.versions)
    for (name, generation), count in claims.items():
        if count > 1:
            sentence = f"generation {generation} is committed {count} times"
            yield Breach("doubled", name, sentence)
    owners = defaultdict[str, set[str]](set)
    for version in history.versions:
        owners[version["raw_sha256"]].add(version["frame_id"])
    for sha, names in owners.items():
        if len(names) > 1:
            yield Breach("doubled", sha, f"the same bytes are archived for {sorted(names)}")


def asked_for(history: History) -> Iterator[Breach]:
    """Nothing is archived that was not written by the observatory at that path."""
    written = {(entry["path"], entry["sha256"]) for entry in history.ledger}
    for version in history.versions:
        frame = history.frames.get(version["frame_id"])
        path = frame["path"] if frame else "?"
        if (path, version["raw_sha256"]) not in written:
            sentence = f"{version['koaid']} is archived, and {path} was never written so"
            yield Breach("unasked", version["frame_id"], sentence)


def untold(history: History) -> Iterator[Breach]:
    """Every event that a service noted has arrived."""
    for service, rows in (("monitor", history.heard), ("preparer", history.prepared)):
        for name, row in rows.items():
            seen = {e["seq"] for e in history.events.get((name, service), [])}
            whole = set(range(1, row["seq"] + 1)) if service == "preparer" else {0}
            if missing := whole - seen:
                sentence = f"events {sorted(missing)} of the {service} never arrived"
                yield Breach("untold", name, sentence)
    for name, frame in history.frames.items():
        told = [row["status"] for row in history.stream.get(name, [])]
        if frame["status"] not in told[-1:]:
            sentence = f"it is {frame['status']}, the stream ends with {told[-1:]}"
            yield Breach("untold", name, sentence)


def never_backwards(history: History) -> Iterator[Breach]:
    """(generation, rank) never falls, in the events of a service and in the stream."""
    for (name, service), rows in history.events.items():
        for old, new in pairwise(rows):
            before, after = [(e["generation"], RANK[e["status"]]) for e in (old, new)]
            if after < before:
                sentence = f"the {service} says {new['status']} after {old['status']}"
                yield Breach("backwards", name, sentence)
    for name, rows in history.stream.items():
        steps = [status for status, _ in groupby(row["status"] for row in rows)]
        falls = [f"{a} {b}" for a, b in pairwise(steps) if RANK[b] <= RANK[a]]
        may = history.frames[name]["generation"] - 1 + history.reopened[name]
        if len(falls) > may:
            yield Breach("backwards", name, f"the stream tells {', '.join(falls)}")


def visible_when_durable(history: History) -> Iterator[Breach]:
    """A frame is told to be COMPLETE only once it is read back and committed."""
    first: dict[str, datetime] = {}
    for version in history.versions:
        at = first.get(version["frame_id"], version["committed_at"])
        first[version["frame_id"]] = min(at, version["committed_at"])
    for name, rows in history.stream.items():
        told = [row["at"] for row in rows if row["status"] == "COMPLETE"]
        if told and (name not in first or min(told) < first[name]):
            sentence = f"told at {min(told)}, committed at {first.get(name)}"
            yield Breach("early", name, sentence)


def in_order(history: History, *, restored: bool) -> Iterator[Breach]:
    """Timelines only go on, unless a finding says that a clock did not."""
    for name, frame in history.frames.items():
        skewed = any(f["code"] == "CLOCK_SKEW" for f in frame["findings"])
        times = [(key, moment(frame["timeline"].get(key))) for key in TIMES]
        known = [(key, at) for key, at in times if at is not None]
        for (before, old), (after, new) in pairwise(known):
            if new < old and not skewed:
                yield Breach("disorder", name, f"{after} {new} is before {before} {old}")
        keys = {key for key, _ in known}
        first = frame["generation"] == 1 and not restored  # an operator's is not detected
        if frame["status"] == "COMPLETE" and first and keys != set(TIMES):
            sentence = f"its timeline lacks {sorted(set(TIMES) - keys)}"
            yield Breach("disorder", name, sentence)


# -- the bytes --------------------------------------------------------------------


def header_size(data: bytes) -> int:
    """Return where the primary header's last block ends."""
    cards = range(0, len(data), CARD)
    end = next((at for at in cards if data[at : at + 8] == b"END     "), len(data))
    return -(-(end + CARD) // BLOCK) * BLOCK


def archive_is_whole(
    history: History, bucket: Bucket, seen: set[tuple[str, int]]
) -> Iterator[Breach]:
    """All that is committed lies in the archive as declared, and gives the raw file back."""
    written, known = bucket.written(), set[str]()
    committed = {(v["koaid"], v["version"]) for v in history.versions}
    fresh = [v for v in history.versions if (v["koaid"], v["version"]) not in seen]

    def judge(version: Row) -> list[Breach]:
        return list(_bytes(history, version, bucket, set(written)))

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(judge, fresh):
            yield from found
    seen |= committed
    for version in history.versions:
        frame = history.frames[version["frame_id"]]
        mine = {key_of(frame, version, p["name"]) for p in version["products"]}
        known |= mine
        late = [key for key in mine if written.get(key, DAWN) > version["committed_at"] + SECOND]
        if late:
            sentence = f"{min(late)} was written after {version['committed_at']}, its commit"
            yield Breach("rewritten", version["frame_id"], sentence)
    for key in written.keys() - known:
        koaid, number = key.split("/")[3:5]
        if (koaid, int(number[1:])) not in history.claims - committed:
            yield Breach("unasked", key, "no version names this object")


def _bytes(history: History, version: Row, bucket: Bucket, keys: set[str]) -> Iterator[Breach]:
    name, parts = version["frame_id"], dict[str, bytes]()
    for product in version["products"]:
        key = key_of(history.frames[name], version, product["name"])
        if key not in keys:
            yield Breach("missing_object", name, f"{key} is not in the archive")
            continue
        data = bucket.get(key)
        if (len(data), hashlib.sha256(data).hexdigest()) != (product["size"], product["sha256"]):
            yield Breach("wrong_bytes", name, f"{key} is not what was declared")
        parts[key.rpartition("/")[2].removeprefix(version["koaid"])] = data
    if not {".raw_header", ".fits"} <= parts.keys():
        yield Breach("missing_object", name, f"{version['koaid']} lacks its header or its data")
        return
    raw = parts[".raw_header"] + parts[".fits"][header_size(parts[".fits"]) :]
    if hashlib.sha256(raw).hexdigest() != version["raw_sha256"]:
        yield Breach("wrong_bytes", name, f"{version['koaid']} does not give the raw file back")


def tally(history: History) -> Counter[str]:
    """Count how the written files ended."""
    return Counter("+".join(how_it_ended(history, entry)) or "gone" for entry in history.ledger)
