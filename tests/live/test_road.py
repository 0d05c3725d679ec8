"""The whole road on real parts: IOC, three processes, S3, on both databases.

The judge is the observatory's own ledger: its digests are older than the files.
"""

import json
import threading
from functools import partial
from hashlib import md5
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from koa_shared.contracts import Timeline
from koa_shared.simulator.ledger import Entry

from .conftest import Frame, Site, running, sha256

pytestmark = pytest.mark.timeout(240)

# Four instruments: one whose keywords build the path (ESI), one with checksums and a
# table (KCWI), one with an extension (NIRES); some at their real sizes.
PLAN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("NIRC2", {"n": 3, "size": 1_500_000}),
    ("KCWI", {"n": 2, "size": 2_000_000}),
    ("KCWI", {"source": "kcwi_red"}),
    # Its camera is free again before a busy monitor has read the name: one a second.
    ("ESI", {"n": 3, "size": 900_000, "interval": 1.0}),
    ("NIRES", {"n": 2}),
)


class Listener(threading.Thread):
    """Reads the live stream as a program would."""

    def __init__(self, site: Site) -> None:
        super().__init__(daemon=True)
        self.url = site.stack.url("ingestor") + "/v1/stream"
        self.events: list[dict[str, str]] = []
        self.listening = threading.Event()
        self.start()
        assert self.listening.wait(10)

    def run(self) -> None:
        event: dict[str, str] = {}
        with httpx.stream("GET", self.url, timeout=60, trust_env=False) as answer:
            lines = answer.iter_lines()
            while True:
                try:
                    line = next(lines)
                except (StopIteration, httpx.HTTPError):
                    return  # the service was stopped
                self.listening.set()
                if line == "" and "data" in event:
                    self.events.append(event)
                    event = {}
                elif line:
                    key, _, event[key] = line.partition(": ")

    def available(self) -> dict[str, Frame]:
        """Return the frames that were told to be COMPLETE, by path."""
        told = [json.loads(e["data"]) for e in self.events if e["event"] == "COMPLETE"]
        return {frame["path"]: frame for frame in told}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """Give the database server's URL, "" for SQLite."""
    if request.param == "sqlite":
        return ""
    return str(request.getfixturevalue("postgres"))


@pytest.fixture(scope="module")
def home(database: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give what two runs of one installation share."""
    return {"var": tmp_path_factory.mktemp("road") / "var", "db": database}


def test_every_exposure_becomes_available_as_it_was_written(
    home: dict[str, Any],
) -> None:
    with running(**home) as site:
        listener = Listener(site)
        for instrument, order in PLAN:
            site.shoot(instrument, **order)
        entries = site.ledger()
        assert len(entries) == 11
        frames = site.ended([e.path for e in entries], 60)
        for entry in entries:
            check(site, entry, frames[entry.path])
        assert len(site.frames()) == len(entries)
        assert set(site.archived()) == site.catalogued()
        told = site.wait(
            lambda: found if len(found := listener.available()) == 11 else None,
            5, "the live stream's COMPLETE",
        )  # fmt: skip
        assert {path: f["koaid"] for path, f in told.items()} == {e.path: e.koaid for e in entries}
        ids = [int(event["id"]) for event in listener.events]
        assert ids == sorted(set(ids))


def check(site: Site, entry: Entry, frame: Frame) -> None:
    """Compare everything that is told of a frame with what was written."""
    assert (frame["status"], frame["koaid"]) == ("COMPLETE", entry.koaid), frame
    assert (frame["version"], frame["generation"]) == (1, 1)
    assert frame["instrument"] == entry.instrument
    assert frame["findings"] == []
    check_timeline(entry, frame)
    koaid = str(entry.koaid)
    products = {p["name"]: p for p in frame["products"]}
    bodies = {name: site.file(koaid, f"products/{name}") for name in products}
    for name, body in bodies.items():
        assert len(body) == products[name]["size"], name
        assert sha256(body) == products[name]["sha256"], name
        assert md5(body, usedforsecurity=False).hexdigest() == products[name]["md5"]
    raw = site.raw(koaid)
    assert (len(raw), sha256(raw)) == (entry.size, entry.sha256)
    check_ranges(site, koaid, bodies[f"{koaid}.fits"])
    check_tables(koaid, bodies, entry)
    Image.open(BytesIO(site.file(koaid, "preview"))).verify()
    assert site.file(koaid, "preview")[:3] == b"\xff\xd8\xff"
    header = site.get("ingestor", f"/v1/frames/{koaid}/header").json()
    assert header[0][:2] == ["SIMPLE", True]
    assert ["KOAID", f"{koaid}.fits"] in [card[:2] for card in header]
    metadata = site.get("ingestor", f"/v1/frames/{koaid}/metadata").json()
    assert isinstance(metadata["ra"], float)
    assert isinstance(metadata["dec"], float)
    check_trigger(site, entry, frame)


def check_timeline(entry: Entry, frame: Frame) -> None:
    """Every point is there, in the order of the road (design 4)."""
    timeline = [frame["timeline"].get(step) for step in Timeline.model_fields]
    assert None not in timeline, frame["timeline"]
    assert all(a <= b for a, b in pairwise(timeline)), frame["timeline"]
    acquired = Timeline.model_validate(frame["timeline"]).acquired
    assert acquired is not None
    assert entry.closed_at is not None
    # The file's time is that of its last write: at most a moment before its close.
    assert -0.5 < (acquired - entry.closed_at).total_seconds() < 0.01
    assert frame["latency_seconds"] < 60


def check_ranges(site: Site, koaid: str, whole: bytes) -> None:
    """Any part of the file is served (RFC 9110 14)."""
    url = site.stack.url("ingestor") + f"/v1/frames/{koaid}/file"

    def ask(part: str) -> httpx.Response:
        return site.http.get(url, headers={"Range": part})

    first, rest, last = ask("bytes=0-2879"), ask("bytes=2880-"), ask("bytes=-100")
    assert [a.status_code for a in (first, rest, last)] == [206, 206, 206]
    assert first.content + rest.content == whole
    assert last.content == whole[-100:]
    assert first.headers["Content-Range"] == f"bytes 0-2879/{len(whole)}"
    assert first.headers["ETag"] == f'"{sha256(whole)}"'
    assert ask(f"bytes={len(whole)}-").status_code == 416


def check_tables(koaid: str, bodies: dict[str, bytes], entry: Entry) -> None:
    """The products that tell about others tell the truth (facts 8.1, design 6)."""
    lines = bodies[f"{koaid}.md5sum.table"].decode().splitlines()
    told = {name: digest for digest, name in (line.split() for line in lines)}
    assert {f"{koaid}.fits", f"{koaid}.metadata.table"} < set(told)
    for name, digest in told.items():
        assert md5(bodies[name], usedforsecurity=False).hexdigest() == digest
    manifest = json.loads(bodies[f"{koaid}.manifest.json"])
    assert manifest["koaid"] == koaid
    assert manifest["path"] == entry.path
    assert (manifest["raw"]["size"], manifest["raw"]["sha256"]) == (
        entry.size,
        entry.sha256,
    )
    named = {p["name"]: p["sha256"] for p in manifest["products"]}
    assert set(bodies) - set(named) == {f"{koaid}.manifest.json"}
    assert named == {name: sha256(bodies[name]) for name in named}


def check_trigger(site: Site, entry: Entry, frame: Frame) -> None:
    """The broadcast is on record with what was decided about it."""
    row = site.trigger(entry.path)
    assert (row["decision"], row["frame_id"]) == ("accepted", frame["frame_id"])
    assert (row["service"], row["keyword"], row["value"]) == (
        entry.service,
        entry.keyword,
        entry.value,
    )


def test_a_second_run_goes_on_from_the_state_of_the_first(
    home: dict[str, Any],
) -> None:
    if not Path(home["var"]).exists():
        pytest.skip("there was no first run")
    with running(**home) as site:
        entries = site.ledger()
        objects = {key: o.last_modified for key, o in site.archived().items()}
        [late] = site.shoot("NIRES", size=400_000)
        site.ended([late.path], 30)
        # The keywords still have the last run's values: each is compared at the start.
        for source in {e.source for e in entries}:
            last = max((e for e in entries if e.source == source), key=lambda e: e.ut)
            ask = partial(compared, site, last.path)
            assert site.wait(ask, 10, f"a look at {source}") == {"duplicate"}
        frames = site.frames()
        assert {f["path"] for f in frames} == {e.path for e in [*entries, late]}
        assert {(f["status"], f["version"]) for f in frames} == {("COMPLETE", 1)}
        now = site.archived()
        assert {k: now[k].last_modified for k in objects} == objects
        assert set(now) == site.catalogued()


def compared(site: Site, path: str) -> set[str]:
    """Return what was decided about a keyword's first value after a start."""
    rows = site.get("monitor", "/v1/triggers", path=path).json()["items"]
    return {row["decision"] for row in rows if row["initial"]} - {None}
