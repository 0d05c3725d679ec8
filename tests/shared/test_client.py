"""The public client: pages, back-off, what lies on the disk when a download ends or breaks."""

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from pydantic import ValidationError

from koa_shared import client
from koa_shared.cli.get import Get
from koa_shared.client import Download, Koa, PeerFault
from koa_shared.config import Peers
from koa_shared.contracts import FrameView
from koa_shared.download import DigestMismatch, Offered, save
from koa_shared.errors import DependencyDown, Forbidden, NotFound

DATA = bytes(range(256)) * 1000
NAME = "NR.20261123.45753.84.fits"


class Archive(ThreadingHTTPServer):
    """An ingestor of frames with one product each; `plan` is what befalls the next answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.frames = dict[str, bytes](), list[FrameView]()
        self.plan, self.asked, self.ranges = list[str](), list[str](), list[str | None]()
        self.peers = Peers(ingestor_url=f"http://127.0.0.1:{self.server_address[1]}")

    def holds(self, name: str = NAME, data: bytes = DATA, **more: Any) -> FrameView:
        self.files[name] = data
        digest = more.pop("sha256", hashlib.sha256(data).hexdigest())
        values: dict[str, Any] = {
            "frame_id": hashlib.md5(name.encode()).hexdigest(), "koaid": name.removesuffix(".fits"),
            "instrument": "NIRES", "level": 0, "version": 1, "status": "COMPLETE", "step": "x",
            "findings": [], "timeline": {},
            "products": [{"name": name, "size": len(data), "sha256": digest}],
        }  # fmt: skip
        self.frames.append(FrameView.model_validate(values | more))
        return self.frames[-1]


class Answer(BaseHTTPRequestHandler):
    """One connection, kept."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        archive = self.server
        assert isinstance(archive, Archive)
        path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        archive.asked.append(path)
        fault = archive.plan.pop(0) if archive.plan else ""
        if fault.isdecimal():
            self.say(int(fault), b"busy", {"Retry-After": "0"})
        elif path == "/v1/frames":
            at, size = int(query.get("cursor", 0)), int(query["limit"])
            items = [f.model_dump(mode="json") for f in archive.frames[at : at + size]]
            more = str(at + size) if at + size < len(archive.frames) else None
            self.say(200, json.dumps({"items": items, "next": more}).encode())
        elif "/products/" in path:
            self.product(archive, fault, archive.files[path.rpartition("/")[2]])
        else:
            level = int(query.get("level", 0))
            ours = [f for f in archive.frames if path.endswith(f.frame_id)]
            known = [f for f in archive.frames if (f.koaid, f.level) == (unquote(path[11:]), level)]
            newest = max(ours or known, key=lambda frame: frame.version or 0)
            self.say(200, newest.model_dump_json().encode())

    def product(self, archive: Archive, fault: str, data: bytes) -> None:
        range_ = self.headers.get("Range")
        archive.ranges.append(range_)
        start = int(range_.removeprefix("bytes=").removesuffix("-")) if range_ else 0
        start = 0 if fault == "no ranges" else start
        sent = data[start : start + 100_000] if fault == "cut" else data[start:]
        sent = bytes([sent[0] ^ 1]) + sent[1:] if fault == "lie" else sent
        self.say(206 if start else 200, sent, {"Content-Length": str(len(data) - start)})
        self.close_connection = fault == "cut"

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "backoff", lambda *_: 0.001)


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def koa(archive: Archive) -> Iterator[Koa]:
    with Koa(archive.peers) as koa:
        yield koa


def fetched(koa: Koa, into: Path, *frames: FrameView, **more: Any) -> list[Download]:
    return list(koa.download(frames, into, **more))


def names(into: Path) -> set[str]:
    return {path.name for path in into.iterdir()}


# -- questions ----------------------------------------------------------------------------


def test_pages_are_asked_for_as_they_are_needed(
    archive: Archive, koa: Koa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 10)
    wanted = [archive.holds(f"{n}.fits").frame_id for n in range(25)]
    frames = koa.frames(instrument="NIRES")
    assert archive.asked == []
    assert [frame.frame_id for frame in islice(frames, 10)] == wanted[:10]
    assert len(archive.asked) == 1
    assert [frame.frame_id for frame in frames] == wanted[10:]
    assert len(archive.asked) == 3
    assert [frame.frame_id for frame in koa.frames(limit=12)] == wanted[:12]
    assert len(archive.asked) == 5


@pytest.mark.parametrize("filters", [{"instrumnet": "NIRES"}, {"night": "today"}, {"status": "x"}])
def test_what_is_no_filter_is_told_at_once(koa: Koa, filters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        koa.frames(**filters)


def test_busy_services_are_asked_again(archive: Archive, koa: Koa) -> None:
    archive.holds()
    archive.plan = ["503", "429", "500", "502"]
    assert len([*koa.frames()]) == 1
    assert len(archive.asked) == 5
    archive.plan = ["503"] * 10
    with pytest.raises(PeerFault) as caught:
        koa.frame(NAME)
    assert (caught.value.status, len(archive.asked)) == (503, 5 + client.TRIES)


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_what_another_try_does_not_mend_is_asked_once(
    archive: Archive, koa: Koa, status: str
) -> None:
    archive.plan = [status] * 2
    with pytest.raises(PeerFault) as caught:
        koa.frame(NAME)
    assert (caught.value.status, len(archive.asked)) == (int(status), 1)


def test_where_nobody_ever_answered_nobody_is_waited_for() -> None:
    with Koa(Peers(ingestor_url="http://127.0.0.1:1")) as koa, pytest.raises(DependencyDown):
        koa.frame(NAME)


# -- downloads ----------------------------------------------------------------------------


def test_a_product_comes_once(archive: Archive, koa: Koa, tmp_path: Path) -> None:
    into, frame, moved = tmp_path / "a" / "b", archive.holds(), list[int]()
    [first] = fetched(koa, into, frame, moved=moved.append)
    assert (first.path, first.size, first.moved, first.kept, first.error) == (
        into / NAME, len(DATA), len(DATA), None, None,
    )  # fmt: skip
    assert (sum(moved), first.path.read_bytes()) == (len(DATA), DATA)
    [second] = fetched(koa, into, frame)
    assert (second.moved, second.error, len(archive.ranges)) == (0, None, 1)
    assert names(into) == {NAME}


def test_a_cut_connection_is_gone_on_with(archive: Archive, koa: Koa, tmp_path: Path) -> None:
    archive.plan = ["cut", "503", "cut"]
    [done] = fetched(koa, tmp_path, archive.holds())
    assert (done.moved, done.error, done.path.read_bytes()) == (len(DATA), None, DATA)
    assert archive.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_without_ranges_costs_bytes_and_no_more(
    archive: Archive, koa: Koa, tmp_path: Path
) -> None:
    archive.plan = ["cut", "no ranges"]
    [done] = fetched(koa, tmp_path, archive.holds())
    assert (done.moved, done.path.read_bytes()) == (len(DATA) + 100_000, DATA)


def test_a_part_that_is_none_is_begun_anew(archive: Archive, koa: Koa, tmp_path: Path) -> None:
    frame = archive.holds()
    part = tmp_path / f".{NAME}.part"
    for junk in (b"junk" * 100, b"j" * len(DATA), b"j" * (len(DATA) + 1)):
        part.write_bytes(junk)
        [done] = fetched(koa, tmp_path, frame)
        assert done.path.read_bytes() == DATA
        assert names(tmp_path) == {NAME}
        done.path.unlink()


def test_wrong_bytes_get_no_name(archive: Archive, koa: Koa, tmp_path: Path) -> None:
    archive.plan = ["lie"]
    [done] = fetched(koa, tmp_path, archive.holds())
    assert (done.error, done.moved) == (None, 2 * len(DATA)), "once more is enough"
    done.path.unlink()
    archive.plan = ["lie", "lie"]
    [done] = fetched(koa, tmp_path, archive.holds())
    assert isinstance(done.error, DigestMismatch)
    assert not done.path.exists()
    [part] = tmp_path.iterdir()
    assert part.stat().st_size == 0


def test_other_content_is_kept_beside_and_told(archive: Archive, koa: Koa, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"my notes")
    [done] = fetched(koa, tmp_path, archive.holds())
    assert done.kept is not None
    assert done.kept.read_bytes() == b"my notes"
    assert done.kept.name == f"{NAME}.{hashlib.sha256(b'my notes').hexdigest()[:8]}.old"
    assert done.path.read_bytes() == DATA


def test_what_can_not_be_had_stops_nothing(archive: Archive, koa: Koa, tmp_path: Path) -> None:
    closed = archive.holds("1.fits", sha256=None)
    waiting = archive.holds("2.fits", products=[], version=None, status="PROCESSING")
    done = fetched(koa, tmp_path, closed, waiting, archive.holds("3.fits"))
    assert [type(one.error) for one in done] == [Forbidden, NotFound, type(None)]
    assert "2 is PROCESSING, it is not archived" in str(done[1].error)
    assert names(tmp_path) == {"3.fits"}


def test_a_name_that_leads_out_is_refused(archive: Archive, koa: Koa, tmp_path: Path) -> None:
    products = [{"name": "../out.fits", "size": 1, "sha256": "a" * 64}]
    with pytest.raises(ValidationError):
        fetched(koa, tmp_path / "in", archive.holds(products=products))
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


def test_the_last_version_counts(archive: Archive, koa: Koa, tmp_path: Path) -> None:
    first = archive.holds()
    second = archive.holds(data=DATA * 2, version=2, frame_id="0" * 32)
    [done, old] = fetched(koa, tmp_path, second, first)
    assert (done.error, done.frame.version) == (None, 2)
    assert getattr(old.error, "code", "") == "superseded"
    assert f"version 1 only: another frame, {second.frame_id}, holds a later" in str(old.error)
    assert (tmp_path / NAME).read_bytes() == DATA * 2
    assert names(tmp_path) == {NAME}


def test_who_names_a_frame_that_is_superseded_is_told(
    archive: Archive, koa: Koa, tmp_path: Path
) -> None:
    second = archive.holds(version=2)
    archive.holds(data=DATA * 2, version=3, frame_id="0" * 32)
    whole = Get(koa, None, tmp_path, 1)
    told = whole.run(lambda: [second], named=True)
    assert "superseded" not in told.get("left_out", {})
    assert [row["name"] for row in told["failed"]] == [second.koaid]
    assert "has version 2 only" in told["failed"][0]["reason"]
    told = Get(koa, None, tmp_path, 1).run(lambda: [second], named=False)
    assert (told["left_out"], "failed" in told) == ({"superseded": 1}, False)
    assert names(tmp_path) == set()


def test_reduced_sets_lie_apart(archive: Archive, koa: Koa, tmp_path: Path) -> None:
    """Sets have files of the same names; each lies whole in a directory of its own."""
    raw = archive.holds()

    files = {"reduced.fits.gz": b"x", "all.log": b"xx"}
    archive.files |= files
    products = [
        {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]

    def holds(frame_id: str, **more: Any) -> FrameView:
        return archive.holds(frame_id=frame_id * 32, products=products, **more)

    old = holds("a", koaid=raw.koaid, level=1)
    sets = [
        holds("b", koaid=raw.koaid, level=1, version=2),
        holds("c", koaid=raw.koaid, level=2),
        holds("d", koaid="NR.20261123.45754.84", level=1),
    ]
    done = fetched(koa, tmp_path, raw, *sets, old)
    assert [one.error and getattr(one.error, "code", "") for one in done[-2:]] == [
        None, "superseded",
    ]  # fmt: skip
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {NAME} | {
        f"lev{one.level}/{one.koaid}/v{one.version}/{name}" for one in sets for name in files
    }
    assert [one.moved for one in fetched(koa, tmp_path, *sets)] == [0] * 6
    [log] = fetched(koa, tmp_path, sets[0], products="*.log")
    assert log.path == tmp_path / "lev1" / str(raw.koaid) / "v2" / "all.log"
    odd = archive.holds(frame_id="e" * 32, koaid="../../x", level=1, products=products)
    assert {one.path.parent.parent.parent for one in fetched(koa, tmp_path, odd)} == {
        tmp_path / "lev1"
    }


def test_what_is_prepared_anew_meanwhile_is_not_left_out(
    archive: Archive, koa: Koa, tmp_path: Path
) -> None:
    listed = archive.holds(version=2)
    archive.holds(data=DATA * 2, version=3)
    done = fetched(koa, tmp_path, listed)
    assert [one.frame.version for one in done] == [3]
    assert (tmp_path / NAME).read_bytes() == DATA * 2


def test_two_versions_of_a_file_at_once_lose_nothing(tmp_path: Path) -> None:
    """Who comes second waits, and keeps what the first one has put there."""
    begun, go_on = threading.Event(), threading.Event()
    both = [DATA, DATA[::-1]]
    first, second = (
        Offered(name=NAME, size=len(d), sha256=hashlib.sha256(d).hexdigest()) for d in both
    )

    def slowly(at: int) -> Iterator[bytes]:
        yield both[0][at:100_000]
        begun.set()
        assert go_on.wait(20)
        yield both[0][100_000:]

    def soon(at: int) -> Iterator[bytes]:
        yield both[1][at:]

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(save, tmp_path / NAME, first, slowly)
        assert begun.wait(20)
        other = pool.submit(save, tmp_path / NAME, second, soon)
        threading.Timer(0.2, go_on.set).start()
        assert one.result(20) is None
        kept = other.result(20)
    assert kept is not None
    assert (kept.read_bytes(), (tmp_path / NAME).read_bytes()) == (both[0], both[1])
    assert names(tmp_path) == {NAME, kept.name}


def test_a_part_that_is_removed_meanwhile_is_a_fault_of_the_disk(tmp_path: Path) -> None:
    def read(_: int) -> Iterator[bytes]:
        yield DATA
        next(tmp_path.glob(".*.part")).unlink()

    product = Offered(name=NAME, size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
    with pytest.raises(FileNotFoundError):
        save(tmp_path / NAME, product, read)


def test_many_come_in_parallel_and_few_are_known_at_a_time(
    archive: Archive, koa: Koa, tmp_path: Path
) -> None:
    known = 0

    def frames() -> Iterator[FrameView]:
        nonlocal known
        for known in range(1, 201):
            yield archive.holds(f"{known}.fits", b"%d" % known)

    ahead = 0
    for count, done in enumerate(koa.download(frames(), tmp_path, parallel=8), 1):
        assert done.error is None
        ahead = max(ahead, known - count)
    assert ahead <= 17
    assert len(names(tmp_path)) == 200
    assert (tmp_path / "200.fits").read_bytes() == b"200"


def test_an_archive_that_is_away_ends_it(archive: Archive, koa: Koa, tmp_path: Path) -> None:
    archive.plan = ["503"] * 50
    frames = [archive.holds(f"{n}.fits") for n in range(3)]
    with pytest.raises(DependencyDown):
        fetched(koa, tmp_path, *frames, parallel=1)


def test_a_disk_fault_names_the_file(archive: Archive, koa: Koa, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(OSError, match=f"Is a directory: '{tmp_path / NAME}'"):
        fetched(koa, tmp_path, archive.holds())
