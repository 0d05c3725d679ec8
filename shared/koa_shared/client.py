"""The typed clients of the services: `Koa` for people and programs, the rest for each other."""

import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import BaseModel, RootModel, ValidationError

from . import faults, logs
from .config import Peers
from .contracts import EventBatch, Filters, FrameView, Page, Problem, Submission, Submitted
from .download import Offered, home_of, in_parallel, newest, offered, save
from .errors import DependencyDown, Forbidden, KoaError, Rejected
from .products import Delivered, Delivery
from .retry import backoff

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

# A peer answers after one commit; 10 s is a hung peer. Connecting is loopback or WAN.
TIMEOUT = httpx.Timeout(10.0, connect=3.0)
FLOWING = httpx.Timeout(60.0, connect=3.0)  # between bytes; a quiet stream says so every 15 s
FOR_GOOD = (400, 409, 422)  # with our document and `retryable: false` (design 2)
TRIES = 6  # of a person's program; with back-off that is about 15 s
PAGE = 1000  # frames, the most that the API gives at once


class PeerRefused(Rejected):
    """The peer refused it for good, with our problem document."""


class PeerFault(DependencyDown):
    """The peer answered, but not as it should; `again` if it may be asked again."""

    def __init__(self, name: str, response: httpx.Response, problem: Problem | None) -> None:
        told = f"{problem.code}: {problem.detail}" if problem else response.text[:200]
        super().__init__(name, f"answered {response.status_code} {told}")
        self.status, self.code = response.status_code, problem.code if problem else ""
        self.again = problem.retryable if problem else self.status == 429 or self.status >= 500
        after = response.headers.get("Retry-After", "")
        self.wait = min(60.0, float(after)) if after.isdecimal() else 0.0


def _options(token: str | None, ca_file: Path | None) -> dict[str, Any]:
    return {
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        "timeout": TIMEOUT,
        "verify": ssl.create_default_context(cafile=ca_file) if ca_file else True,
        "limits": httpx.Limits(max_keepalive_connections=20, keepalive_expiry=300),
        "trust_env": False,
    }


def open_http(token: str | None = None, ca_file: Path | None = None) -> httpx.AsyncClient:
    """Return one HTTP client for all peers of a process; connections are kept."""
    return httpx.AsyncClient(**_options(token, ca_file))


def _sent(body: BaseModel | None, params: dict[str, Any]) -> dict[str, Any]:
    """Return what httpx is told of a request; keywords that are not None become the query."""
    return {
        "content": None if body is None else body.model_dump_json(exclude_unset=True),
        "params": {name: value for name, value in params.items() if value is not None},
        "headers": {"Content-Type": "application/json", "traceparent": logs.traceparent()},
    }


def _checked(name: str, response: httpx.Response) -> httpx.Response:
    """Return a good answer; raises PeerRefused for a refusal for good, else PeerFault."""
    if response.is_success:
        return response
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:  # not from one of ours
        raise PeerFault(name, response, None) from None
    if not problem.retryable and response.status_code in FOR_GOOD:
        raise PeerRefused(problem.detail, code=problem.code)
    raise PeerFault(name, response, problem)


def _parsed(name: str, answer: type[Model], response: httpx.Response) -> Model:
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as error:
        raise DependencyDown(name, f"answered nonsense: {error}") from error


# -- the services among themselves ----------------------------------------------------------


class Client:
    """One service as a peer: every answer is a model, every fault has a class."""

    def __init__(self, name: str, url: str, http: httpx.AsyncClient) -> None:
        self.name, self.url, self._http = name, url.rstrip("/"), http

    async def request(
        self, method: str, path: str, /, *, body: BaseModel | None = None, **params: Any
    ) -> httpx.Response:
        """Send one request; keywords that are not None become the query.

        Raises PeerRefused for a refusal for good, DependencyDown for everything else.
        """
        try:
            with faults.around("peer", path):
                response = await self._http.request(method, self.url + path, **_sent(body, params))
        except httpx.HTTPError as error:
            raise DependencyDown(self.name, repr(error)) from error
        return _checked(self.name, response)

    async def call(self, answer: type[Model], method: str, path: str, /, **more: Any) -> Model:
        """Send one request and return its answer as a model."""
        return _parsed(self.name, answer, await self.request(method, path, **more))


class Ingestor(Client):
    """The ingestor as a peer."""

    async def tell(self, batch: EventBatch) -> None:
        """Tell what happened to frames, sources and directories."""
        await self.request("POST", "/v1/events", body=batch)


# -- people and their programs --------------------------------------------------------------


class Service:
    """One service as a person's program asks it; threads may share it."""

    def __init__(self, name: str, url: str, http: httpx.Client) -> None:
        self.name, self.url, self._http, self._answered = name, url, http, False

    @contextmanager
    def open(
        self, path: str, /, *, headers: dict[str, str], method: str = "GET",
        body: BaseModel | None = None, **params: Any,
    ) -> Iterator[httpx.Response]:  # fmt: skip
        """Yield the answer to a request, its body still to be read; raises as `request`."""
        sent = _sent(body, params)
        sent["headers"] |= headers
        timeout = FLOWING if headers else TIMEOUT
        try:
            with self._http.stream(method, self.url + path, timeout=timeout, **sent) as response:
                self._answered = True
                if not response.is_success:
                    response.read()
                yield _checked(self.name, response)
        except httpx.HTTPError as error:
            raise DependencyDown(self.name, repr(error)) from error

    def request(self, method: str, path: str, /, **more: Any) -> httpx.Response:
        """Send one request (`body` is a model, other keywords the query), return the answer.

        Raises PeerRefused for a refusal for good (`code`), PeerFault for any other answer
        (`status`, `code`), DependencyDown where none comes.
        """
        with self.open(path, method=method, headers={}, **more) as response:
            response.read()
            return response

    def call(self, answer: type[Model], method: str, path: str, /, **more: Any) -> Model:
        """Send one request and return its answer as a model."""
        return _parsed(self.name, answer, self.request(method, path, **more))

    def json(self, method: str, path: str, /, **more: Any) -> Any:
        """Send one request and return its answer as it is."""
        return self.request(method, path, **more).json()

    def order(self, path: str, **options: Any) -> Any:
        """Give an operator's order; None leaves an option out."""
        given = RootModel[dict[str, Any]]({k: v for k, v in options.items() if v is not None})
        return self.json("POST", f"/v1/{path}", body=given)

    def again(self, ask: Callable[[], T]) -> T:
        """Do what only reads, and again with back-off after 429, 5xx or a lost connection.

        A service that never answered is not waited for: its address may be wrong.
        """
        for attempt in count(1):
            try:
                return ask()
            except DependencyDown as fault:
                if attempt == TRIES or not self._answered or not getattr(fault, "again", True):
                    raise
                time.sleep(max(getattr(fault, "wait", 0.0), backoff(attempt)))
        raise AssertionError


class Change(NamedTuple):
    """A frame changed; `status` is `reset`, without a frame, where changes are missing."""

    id: str
    status: str
    frame: FrameView | None


class Download(NamedTuple):
    """What became of one product: at `path` are its `size` bytes, of which `moved` came now.

    `kept` is where other content lies that had its name; `error` says why it is not there.
    """

    frame: FrameView
    path: Path
    size: int
    moved: int = 0
    kept: Path | None = None
    error: Exception | None = None


class Koa:
    """The archive's real-time ingestion: frames, the live stream, downloads, submissions.

    Without `peers` the environment says where it is, as for the command `koa`.
    Each of the services is there by itself, too, for all the rest of its API.
    Raises KoaError (PeerRefused) and DependencyDown (PeerFault), OSError of the own disk.
    """

    def __init__(self, peers: Peers | None = None) -> None:
        peers = peers or Peers()
        token = peers.token_file.read_text().strip() if peers.token_file else None
        self._http = httpx.Client(**_options(token, peers.ca_file))
        self.monitor = Service("monitor", peers.monitor_url, self._http)
        self.preparer = Service("preparer", peers.preparer_url, self._http)
        self.ingestor = Service("ingestor", peers.ingestor_url, self._http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def frame(self, name: str, version: int | None = None, level: int | None = None) -> FrameView:
        """Return a frame by its frame_id or KOAID (and level), its last version or another."""
        where = f"/v1/frames/{quote(name, safe='')}"
        ask = partial(self.ingestor.call, FrameView, "GET", where, version=version, level=level)
        return self.ingestor.again(ask)

    def frames(self, limit: int | None = None, **filters: Any) -> Iterator[FrameView]:
        """Yield frames, the newest acquired first; `filters` are the fields of Filters.

        Pages are asked for as they are needed. Raises ValueError for what is no filter.
        """
        query = Filters(**filters, limit=min(limit or PAGE, PAGE)).model_dump(mode="json")
        return islice(self._pages(query), limit)

    def _pages(self, query: dict[str, Any]) -> Iterator[FrameView]:
        while True:
            ask = partial(self.ingestor.call, Page[FrameView], "GET", "/v1/frames", **query)
            page = self.ingestor.again(ask)
            yield from page.items
            query["cursor"] = page.next
            if page.next is None:
                return

    def stream(
        self, last: str | None = None, told: Callable[[str], None] = lambda _: None
    ) -> Iterator[Change]:
        """Yield each change of a frame from behind the id `last`, by default from now on.

        A connection that breaks off is told and opened again, where it was.
        """
        heard = 0
        while True:
            headers = {"Last-Event-ID": last} if last else {"Accept": "text/event-stream"}
            try:
                with self.ingestor.open("/v1/stream", headers=headers) as response:
                    for entry in _entries(response.iter_lines()):
                        last, heard = entry.get("id", last), 1
                        if "event" in entry:
                            changed = entry["event"] != "reset"
                            parse = FrameView.model_validate_json
                            frame = parse(entry["data"]) if changed else None
                            yield Change(last or "", entry["event"], frame)
                why = "it ended"
            except DependencyDown as fault:
                if not heard or getattr(fault, "status", 0) in (401, 403):
                    raise
                why = str(fault)
            told(why)
            time.sleep(backoff(heard, 0.5, 10.0))
            heard += 1

    def submit(self, path: str, **more: Any) -> Submitted:
        """Have a file archived that nobody announced; `more` are the fields of Submission."""
        order = Submission(path=path, **more)
        return self.monitor.call(Submitted, "POST", "/v1/files", body=order)

    def deliver(self, directory: str, **more: Any) -> Delivered:
        """Have what a pipeline wrote archived; `more` are the fields of Delivery.

        Asked again until it is answered: with the delivery's own id a repeat changes nothing.
        """
        told = {"delivery": str(uuid4())} | {k: v for k, v in more.items() if v is not None}
        order = Delivery(directory=directory, **told)
        ask = partial(self.preparer.call, Delivered, "POST", "/v1/products", body=order)
        return self.preparer.again(ask)

    def delivered(self, delivery: str) -> Delivered:
        """Return what became of a delivery."""
        where = f"/v1/products/{quote(delivery, safe='')}"
        return self.preparer.again(partial(self.preparer.call, Delivered, "GET", where))

    def download(
        self, frames: Iterable[FrameView], directory: Path, *, products: str | None = None,
        parallel: int = 4, moved: Callable[[int], None] = lambda _: None,
    ) -> Iterator[Download]:  # fmt: skip
        """Fetch the products whose names match into `directory`; yield what became of each.

        By default a raw frame's FITS file, and all of a reduced set, which lies in a directory
        of its own, `lev1/KOAID/v1`.  Files that are whole are left alone, parts of files are gone
        on with, each is renamed when its SHA-256 is right, `parallel` at once; `moved` is told
        of bytes as they come.
        Raises DependencyDown when the archive is away, OSError when the disk is full.
        """
        directory.mkdir(parents=True, exist_ok=True)
        stop = Event()

        def came(size: int) -> None:
            if stop.is_set():
                raise KoaError("it was stopped", code="stopped")
            moved(size)

        def work() -> Iterator[Callable[[], Download]]:
            for frame, superseded in newest(frames, self.frame):
                name, home = frame.koaid or frame.frame_id, directory / home_of(frame)
                try:
                    if superseded:
                        raise superseded
                    found = offered(frame, products)
                except KoaError as error:
                    yield partial(Download, frame, directory / name, 0, error=error)
                    continue
                for product in found:
                    blank = Download(frame, home / product.name, product.size)
                    yield partial(self._fetch, blank, product, came)

        try:
            yield from in_parallel(work(), parallel)
        finally:
            stop.set()

    def _fetch(self, blank: Download, product: Offered, moved: Callable[[int], None]) -> Download:
        frame, came = blank.frame, list[int]()
        where = f"/v1/frames/{frame.frame_id}/products/{quote(product.name)}"

        def read(at: int) -> Iterator[bytes]:
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={at}-"} if at else {})
            with self.ingestor.open(where, headers=headers, version=frame.version) as response:
                skip = 0 if response.status_code == 206 else at  # a proxy may know no ranges
                for chunk in response.iter_raw():
                    moved(len(chunk))
                    came.append(len(chunk))
                    yield chunk[skip:]
                    skip = max(0, skip - len(chunk))

        try:
            if product.sha256 is None:  # so the archive tells whom it is not open to
                why = f"{frame.koaid} is proprietary; a token that names its program is needed"
                raise Forbidden(why, code="proprietary")
            kept = self.ingestor.again(lambda: save(blank.path, product, read))
        except (KoaError, PeerFault) as error:
            if getattr(error, "again", False):
                raise
            return blank._replace(error=error, moved=sum(came))
        except OSError as error:  # the disk's, and it names no file where one is written to
            raise OSError(error.errno, error.strerror, str(blank.path)) from error
        return blank._replace(kept=kept, moved=sum(came))


def _entries(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the entries of a stream of server-sent events, each as its fields."""
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        if line == "" and fields:
            yield fields
            fields = {}
        elif key:
            fields[key] = value.removeprefix(" ")
