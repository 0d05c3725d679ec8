"""What a caller sees: the public view, and every route of the status API (design 10)."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from koa_ingestor.api import _entries
from koa_ingestor.app import Ingestor, create_app
from koa_ingestor.catalog import is_open_to
from koa_ingestor.config import Config
from koa_shared.contracts import (
    Event,
    EventBatch,
    FilePrepared,
    FileWritten,
    Finding,
    Status,
    Timeline,
    utcnow,
)
from koa_shared.db import Database
from koa_shared.web import Caller, Tokens

KOAID = "KB.20251208.43200.00"
SECRET = "s3cr3t"
OpenDatabase = Callable[..., Database]
New = Callable[..., Any]
PAST, FUTURE = utcnow() - timedelta(days=1), utcnow() + timedelta(days=1)

# What the public may know of a frame (design 10), and no more.
PUBLIC = {
    "frame_id", "koaid", "instrument", "level", "version", "status", "step", "night",
    "timeline", "latency_seconds", "findings", "products",
}  # fmt: skip


class Store:
    """An object store that holds one object of 2880 bytes under any key."""

    async def stream(
        self, bucket: str, key: str, offset: int = 0, length: int = 0
    ) -> AsyncIterator[bytes]:
        yield (bytes(2880) + SECRET.encode())[offset : offset + length]


class Site:
    """An ingestor in this process, with its tokens; no loop runs."""

    def __init__(self, context: Ingestor, app: Any) -> None:
        self.context, self.db, self.store = context, context.db, context.store
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("10.0.0.9", 1))
        self.http = httpx.AsyncClient(transport=transport, base_url="http://ingestor")

    async def get(self, path: str, token: str = "", **headers: str) -> httpx.Response:
        given = {"Authorization": f"Bearer {token}"} if token else {}
        return await self.http.get(path, headers=given | headers)

    async def archive(self, prepared: FilePrepared, *events: Event) -> None:
        await self.db.write(self.store.hand_over, prepared, "")
        job = await self.db.write(self.store.queue.claim, "ingest")
        assert job is not None
        _, _, held = await self.db.write(self.store.begin, job)
        assert held is not None
        await self.db.write(self.store.commit, job, prepared, held.version, Timeline())
        await self.db.write(self.store.apply, EventBatch(events=list(events)))


TOKENS = {
    "owner": ("observer", ["2025B_C001"]), "other": ("observer", ["2025B_C002"]),
    "make": ("producer", []), "run": ("operator", []),
}  # fmt: skip


@pytest.fixture
async def site(database: OpenDatabase, tmp_path: Path) -> AsyncIterator[Site]:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        "".join(
            f'[[token]]\nname = "{name}"\nrole = "{role}"\nprograms = {programs}\n'
            f'sha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
            for name, (role, programs) in TOKENS.items()
        )
    )
    config = Config(tokens_file=tokens, database_url=database("ingestor").url)
    app, context = create_app(config), Ingestor(config)
    context.objects = Store()  # type: ignore[assignment]
    app.state.context = context
    site = Site(context, app)
    yield site
    await site.http.aclose()
    await context.http.aclose()
    context.db.close()


@pytest.fixture
def frame(new_file: New, new_prepared: New) -> Callable[..., FilePrepared]:
    """Make a frame that is full of secrets: `frame(release)`."""

    def make(release: Any = None, name: str = f"{SECRET}.fits", **more: Any) -> FilePrepared:
        file: FileWritten = new_file(path=f"/s/sdata1400/{SECRET}/{name}")
        finding = {"code": "WARN", "severity": "warning", "step": "rules", "message": SECRET}
        product = {
            "name": f"{KOAID}.fits", "role": "fits", "key": "k", "size": 2880, "md5": "0" * 32,
            "sha256": hashlib.sha256(bytes(2880)).hexdigest(),
        }  # fmt: skip
        secret = {
            "products": [product],
            "metadata": {"koaimtyp": "object", "object": SECRET, "ra": 1.5, "targname": SECRET},
            "header": [["OBJECT", SECRET, ""]], "findings": [finding],
            "program": {
                "semid": "2025B_C001", "pi": SECRET, "title": SECRET, "release_date": release,
            },
        }  # fmt: skip
        prepared: FilePrepared = new_prepared(file, **(secret | more))
        return prepared

    return make


Frame = Callable[..., FilePrepared]
ROUTES = ["", "/file", "/preview", "/header", "/metadata", f"/products/{KOAID}.fits", "/timeline"]


def everything(frame_id: str) -> list[str]:
    """Return every route that tells something of a frame."""
    names = [frame_id, KOAID]
    return [
        "/v1/frames", "/v1/nights/2025-12-08", "/v1/frames?koaid=" + KOAID,
        *(f"/v1/frames/{name}{route}" for name in names for route in ROUTES),
        f"/v1/frames/{KOAID}?version=1", f"/v1/frames/{KOAID}/file?version=1",
        f"/v1/frames?path=/s/sdata1400/{SECRET}/{SECRET}.fits", f"/v1/frames?name={SECRET}.fits",
        "/v1/parked", "/v1/audit", "/v1/overview", "/v1/scrub",
    ]  # fmt: skip


@pytest.mark.parametrize("token", ["", "other", "make"])
async def test_no_route_tells_a_secret(
    site: Site, frame: Frame, new_event: New, new_file: New, token: str
) -> None:
    prepared = frame(FUTURE)
    file = new_file(path=prepared.path).model_copy(update={"frame_id": prepared.frame_id})
    gaps = {"night": "2025-12-08", "instrument": "KCWI", "on_disk": 2, "announced": 2}
    batch = EventBatch.model_validate({"inventory": gaps | {"frame_gaps": [f"/s/{SECRET}2-3"]}})
    await site.archive(prepared, new_event(file, "QUEUED", 0, service="monitor"))
    await site.db.write(site.store.apply, batch)
    for path in everything(prepared.frame_id):
        answer = await site.get(path, token)
        assert SECRET not in answer.text.replace(path.split("?")[0], ""), path
        assert answer.status_code in (200, 401, 403), path
    for path in (f"/v1/frames?name={SECRET}.fits", "/v1/frames?program=2025B_C001"):
        assert (await site.get(path, token)).json()["items"] == []
    seen = (await site.get(f"/v1/frames/{KOAID}", token)).json()
    told = {name for name, value in seen.items() if value}
    assert told <= PUBLIC
    assert {"frame_id", "koaid", "status", "version", "night", "timeline"} <= told
    assert seen["findings"] == [
        {"code": "WARN", "severity": "warning", "step": "rules", "message": ""}
    ]
    assert seen["products"] == [{"name": f"{KOAID}.fits", "size": 2880}]


@pytest.mark.parametrize(
    ("token", "release"), [("owner", FUTURE), ("owner", None), ("run", None), ("", PAST)]
)
async def test_who_may_sees_it_whole(site: Site, frame: Frame, token: str, release: Any) -> None:
    prepared = frame(release)
    await site.archive(prepared)
    seen = (await site.get(f"/v1/frames/{prepared.frame_id}", token)).json()
    assert (seen["path"], seen["generation"], seen["origin"]) == (prepared.path, 1, "live")
    assert seen["findings"][0]["message"] == SECRET
    assert seen["program"]["pi"] == SECRET
    assert "key" not in seen["products"][0]
    url = seen["products"][0]["url"]
    assert url == f"/v1/frames/{prepared.frame_id}/products/{KOAID}.fits?version=1"
    assert (await site.get(url, token)).content == bytes(2880)
    header = await site.get(f"/v1/frames/{KOAID}/header", token)
    assert header.json() == [["OBJECT", SECRET, ""]]
    assert (await site.get(f"/v1/frames/{KOAID}/metadata", token)).json()["targname"] == SECRET
    file = await site.get(f"/v1/frames/{KOAID}/file", token)
    assert (file.status_code, file.content) == (200, bytes(2880))
    assert len((await site.get(f"/v1/frames?name={SECRET}.fits", token)).json()["items"]) == 1


@pytest.mark.parametrize("release", [FUTURE, None])
async def test_what_is_not_released_or_unknown_is_closed(
    site: Site, frame: Frame, release: Any
) -> None:
    await site.archive(frame(release))
    for route in ("file", "preview", "header", "metadata", f"products/{KOAID}.fits"):
        for token in ("", "other", "make"):
            answer = await site.get(f"/v1/frames/{KOAID}/{route}", token)
            assert (answer.status_code, answer.json()["code"]) == (403, "proprietary")


async def test_the_stream_goes_through_the_same_view(site: Site, frame: Frame) -> None:
    await site.archive(frame(FUTURE))
    told = {}
    for name, programs in (("public", []), ("owner", ["2025B_C001"])):
        caller, lines = Caller(name=name, programs=frozenset(programs)), ""
        entries = _entries(site.context, lambda caller=caller: caller, 0)  # type: ignore[misc]
        while lines.count("data:") < 3:
            lines += await anext(entries)
        await entries.aclose()  # type: ignore[attr-defined]
        told[name] = lines
    assert SECRET not in told["public"]
    assert SECRET in told["owner"]
    assert "event: COMPLETE" in told["public"]
    whole, public = (json.loads(text.rpartition("data: ")[2]) for text in reversed(told.values()))
    assert public["products"] == [{"name": f"{KOAID}.fits", "size": 2880}]
    assert public.get("metadata", {}) == {}
    # What a pipeline needs, without another question (docs/pipelines.md).
    known = {"frame_id", "koaid", "instrument", "level", "version", "night", "status"}
    assert {key: whole[key] for key in known} == {key: public[key] for key in known}
    assert (whole["koaid"], whole["level"], whole["version"]) == (KOAID, 0, 1)
    assert whole["metadata"]["koaimtyp"] == "object"
    [fits] = [product for product in whole["products"] if product["role"] == "fits"]
    assert (await site.get(fits["url"])).status_code == 403
    data = (await site.get(fits["url"], "owner")).content
    assert (len(data), hashlib.sha256(data).hexdigest()) == (fits["size"], fits["sha256"])


async def test_a_token_that_is_revoked_hears_no_more(
    site: Site, frame: Frame, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.toml"
    who = partial(Tokens(file, dev=False).find, "Bearer owner", "10.0.0.9")
    await site.archive(frame(FUTURE))
    entries = _entries(site.context, who, 0)
    assert [SECRET in await anext(entries) for _ in range(2)] == [False, True]
    file.write_text(file.read_text().replace(hashlib.sha256(b"owner").hexdigest(), "0" * 64))
    await site.archive(frame(FUTURE, "second.fits", koaid="KB.20251208.43201.00"))
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(entries), 20)


async def test_the_timeline_tells_generations_to_whom_the_frame_is_open(
    site: Site, frame: Frame, new_event: New, new_file: New
) -> None:
    prepared = frame(FUTURE)
    file = new_file(path=prepared.path).model_copy(update={"frame_id": prepared.frame_id})
    await site.archive(prepared, new_event(file, "QUEUED", 0, service="monitor"))
    public = {
        "service": "monitor", "seq": 0, "at": "2025-12-08T12:00:00.000Z",
        "status": "QUEUED", "step": "queued",
    }  # fmt: skip
    for name in (KOAID, prepared.frame_id):
        for token in ("", "other", "make"):
            assert (await site.get(f"/v1/frames/{name}/timeline", token)).json() == [public]
        for token in ("owner", "run"):
            whole = (await site.get(f"/v1/frames/{name}/timeline", token)).json()
            assert whole == [public | {"generation": 1}]


async def test_a_conflict_is_handed_over_decided_and_on_record(site: Site, frame: Frame) -> None:
    async def post(path: str, body: Any, token: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return await site.http.post(path, json=body, headers=headers)

    async def order(verb: str, **body: str) -> tuple[int, str]:
        answer = await post(f"/v1/frames/{other.frame_id}/{verb}", body, "run")
        return answer.status_code, answer.json().get("code") or answer.json()["status"]

    await site.archive(frame(FUTURE))
    other = frame(PAST, "other.fits", raw="b")
    handed = [await post("/v1/frames", other.model_dump(mode="json"), "make") for _ in range(2)]
    assert [answer.status_code for answer in handed] == [202, 200]
    assert handed[0].json() == {
        "frame_id": other.frame_id, "generation": 1, "status": "TRANSFERRED"
    }  # fmt: skip
    assert await order("accept", **{"as": "version"}) == (409, "conflict")
    job = await site.db.write(site.store.queue.claim, "ingest")
    assert job is not None
    why = {"code": "DUPLICATE_KOAID", "severity": "invalid", "step": "claim", "message": ""}
    finding, status = Finding.model_validate(why), Status.INVALID
    await site.db.write(site.store.end, job, finding, status)
    assert await order("retry") == (409, "conflict")
    assert await order("accept", why="no decision") == (422, "invalid_request")
    assert await order("accept", **{"as": "padded"}) == (409, "needs_reprocess")
    assert await order("accept", **{"as": "version", "why": "same"}) == (200, "TRANSFERRED")
    [deed] = (await site.get("/v1/audit", "run")).json()
    assert (deed["verb"], deed["who"], deed["why"]) == ("accept", "run", "same")
    assert deed["at"].endswith("Z")


async def test_what_is_told_of_a_night(site: Site, frame: Frame) -> None:
    await site.archive(frame(FUTURE))
    seen = {"night": "2025-12-08", "instrument": "KCWI", "on_disk": 3, "announced": 2}
    batch = EventBatch.model_validate({"inventory": seen | {"frame_gaps": ["/s/sdata1/k2-3"]}})
    await site.db.write(site.store.apply, batch)
    for token in ("", "other", "make"):
        public = (await site.get("/v1/nights/2025-12-08", token)).json()
        [row] = public["instruments"]
        assert (row["instrument"], row["announced"], row["archived"]) == ("KCWI", 1, 1)
        assert (row["gaps"], row["inventory"]["frame_gaps"]) == (1, [])
        assert [kind["type"] for kind in row["types"]] == [None]
        assert row["exposure_seconds"] is None
        [kept] = (await site.get("/v1/nights/2025-12-08/manifest", token)).json()["items"]
        assert (kept["koaid"], kept["size"], kept["sha256"]) == (KOAID, 2880, None)
    for token in ("owner", "run"):
        [row] = (await site.get("/v1/nights/2025-12-08", token)).json()["instruments"]
        assert [kind["type"] for kind in row["types"]] == ["object"]
        gaps = ["/s/sdata1/k2-3"] if token == "run" else []
        assert row["inventory"]["frame_gaps"] == gaps
        [kept] = (await site.get("/v1/nights/2025-12-08/manifest", token)).json()["items"]
        assert kept["sha256"] == hashlib.sha256(bytes(2880)).hexdigest()
    for wrong in ("yesterday", "0", "20251208", "2025-13-08", "-1", "2025-12-08T01:00:00Z"):
        assert (await site.get(f"/v1/nights/{wrong}")).status_code == 422
    for night in ("0001-01-01", "9999-12-31"):
        assert (await site.get(f"/v1/nights/{night}", "run")).json()["verdict"] == "unproven"


async def test_a_version_is_shown_to_whom_its_own_frame_is_open(site: Site, frame: Frame) -> None:
    """Two frames of one KOAID: who may see the later one has no right to the earlier."""
    await site.archive(frame(FUTURE))
    other = frame(
        PAST, "mine.fits", raw="b",
        program={"semid": "2025B_C002", "release_date": PAST},
    )  # fmt: skip
    await site.db.write(site.store.hand_over, other, "")
    for name in (KOAID, other.frame_id):
        for route in ("file", "header", "metadata"):
            answer = await site.get(f"/v1/frames/{name}/{route}?version=1", "other")
            assert answer.status_code in (403, 404), (name, route)


async def test_ranges(site: Site, frame: Frame) -> None:
    await site.archive(frame(PAST))
    where = f"/v1/frames/{KOAID}/file"
    part = await site.get(where, range="bytes=10-19")
    assert (part.status_code, len(part.content)) == (206, 10)
    assert part.headers["content-range"] == "bytes 10-19/2880"
    whole = await site.get(where, range="bytes=5-1")
    assert (whole.status_code, len(whole.content)) == (200, 2880)
    outside = await site.get(where, range="bytes=2880-")
    assert (outside.status_code, outside.json()["code"]) == (416, "range_not_satisfiable")


NONSENSE = [
    "/v1/frames/%00", "/v1/frames/nobody", f"/v1/frames/{KOAID}?version=99",
    f"/v1/frames/{KOAID}?version=0", f"/v1/frames/{KOAID}?version=-1",
    f"/v1/frames/{KOAID}?version={10**30}", f"/v1/frames/{KOAID}/products/nothing",
    "/v1/frames?night=today", "/v1/frames?limit=0", "/v1/frames?cursor=x", "/v1/frames?status=X",
    "/v1/frames?path=%00", f"/v1/frames?level={10**30}", "/v1/frames?since=yesterday",
]  # fmt: skip


@pytest.mark.parametrize("path", NONSENSE)
async def test_nonsense_is_answered_with_a_problem(site: Site, frame: Frame, path: str) -> None:
    await site.archive(frame(PAST))
    answer = await site.get(path, "run")
    with suppress(KeyError):
        if answer.status_code == 200:
            assert answer.json()["items"] == []
            return
    assert answer.status_code in (404, 422), answer.text
    assert answer.json()["retryable"] is False


@pytest.mark.parametrize(
    ("caller", "semid", "release", "is_open"),
    [
        (Caller(), None, None, False),
        (Caller(), "2025B_C001", None, False),
        (Caller(), None, FUTURE, False),
        (Caller(), None, PAST, True),
        (Caller(programs=frozenset({"2025B_C001"})), "2025B_C001", None, True),
        (Caller(programs=frozenset({"2025B_C001"})), "2025B_C002", FUTURE, False),
        (Caller(programs=frozenset({"2025B_C001"})), None, None, False),
        (Caller(role="producer"), "2025B_C001", FUTURE, False),
        (Caller(role="operator"), None, None, True),
    ],
)
def test_who_a_frame_is_open_to(
    caller: Caller, semid: str | None, release: Any, *, is_open: bool
) -> None:
    assert is_open_to(caller, semid, release) is is_open
