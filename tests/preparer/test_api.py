"""The preparer's front door: announcements and operators' orders (design 2)."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from koa_preparer.app import Preparer, create_app
from koa_preparer.config import Config
from koa_shared.contracts import FileWritten, Finding, Severity, Status
from koa_shared.db import Database

OpenDatabase = Callable[..., Database]
MakeFile = Callable[..., FileWritten]
FINDING = Finding(code="BAD", severity="invalid", step="rules", message="because")


@pytest.fixture
async def site(database: OpenDatabase) -> AsyncIterator[Preparer]:
    """Return a preparer whose lanes are closed."""
    context = Preparer(Config(dev=True, database_url=database("preparer").url))
    yield context
    await context.http.aclose()
    context.db.close()


@pytest.fixture
async def http(site: Preparer) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(site.config)
    app.state.context = site
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://site/v1") as client:
        yield client


async def announce(http: httpx.AsyncClient, file: FileWritten) -> httpx.Response:
    return await http.post("/files", json=file.model_dump(mode="json", exclude_unset=True))


async def spoil(site: Preparer) -> None:
    """End the frame announced last as INVALID."""
    job = await site.db.write(site.queue.claim, "prepare")
    assert job is not None
    await site.db.write(site.store.end, job, Status.INVALID, [FINDING])


async def test_announced_and_shown(http: httpx.AsyncClient, new_file: MakeFile) -> None:
    file = new_file()
    first, second = await announce(http, file), await announce(http, file)
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json() == second.json()
    assert first.json() == {"frame_id": file.frame_id, "generation": 1, "status": "QUEUED"}
    shown = (await http.get(f"/frames/{file.frame_id}")).json()
    assert (shown["path"], shown["status"], shown["findings"]) == (file.path, "QUEUED", [])
    assert shown["timeline"]["queued"]
    assert (await http.get("/frames/nobody")).json()["code"] == "unknown_frame"


async def test_an_instrument_nobody_has(http: httpx.AsyncClient, new_file: MakeFile) -> None:
    answer = await announce(http, new_file(instrument="NOSUCH"))
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_instrument")
    answer = await http.post("/instruments/NOSUCH/pause")
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_instrument")


@pytest.mark.parametrize(
    ("verb", "order", "options"),
    [
        ("retry", None, {}),
        ("retry", {"why": "mended"}, {}),
        (
            "release",
            {"waive": ["BAD"], "why": "it is fine"},
            {"waive": {"BAD": "dev: it is fine"}},
        ),
        (
            "reprocess",
            {"fraction": "padded", "progid": "C1"},
            {"fraction": "padded", "progid": "C1"},
        ),
    ],
)
async def test_orders_make_a_new_generation(
    site: Preparer, http: httpx.AsyncClient, new_file: MakeFile, verb: str, order: Any, options: Any
) -> None:
    file = new_file()
    await announce(http, file)
    early = await http.post(f"/frames/{file.frame_id}/{verb}", json=order)
    assert early.status_code == 409, "it is on its way"
    await spoil(site)
    answer = await http.post(f"/frames/{file.frame_id}/{verb}", json=order)
    assert answer.json() == {"frame_id": file.frame_id, "generation": 2, "status": "QUEUED"}
    row = await site.db.read(site.store.file, file.frame_id)
    assert row.options == options


@pytest.mark.parametrize(
    ("verb", "order"),
    [("release", None), ("release", {"waive": []}), ("retry", {"wave": 1}), ("forget", None)],
)
async def test_orders_that_make_no_sense(
    site: Preparer, http: httpx.AsyncClient, new_file: MakeFile, verb: str, order: Any
) -> None:
    file = new_file()
    await announce(http, file)
    await spoil(site)
    answer = await http.post(f"/frames/{file.frame_id}/{verb}", json=order)
    assert (answer.status_code, answer.json()["retryable"]) == (422, False)


@pytest.mark.parametrize("body", [None, {}, {"why": "clouds"}])
async def test_an_instrument_is_held_back_and_goes_on(
    site: Preparer, http: httpx.AsyncClient, body: Any
) -> None:
    for verb, paused in (("pause", True), ("resume", False)):
        answer = await http.post(f"/instruments/KCWI/{verb}", json=body)
        assert answer.json() == {"instrument": "KCWI", "paused": paused}
        held = (await site.details())["held"]
        assert held.keys() == ({"KCWI"} if paused else set())
        assert not paused or held["KCWI"].endswith("clouds" if body and body.get("why") else "-")
    deeds = (await http.get("/audit", params={"target": "KCWI"})).json()
    assert [(deed["verb"], deed["who"]) for deed in deeds] == [("resume", "dev"), ("pause", "dev")]


async def test_resend_says_how_many(http: httpx.AsyncClient) -> None:
    answer = await http.post("/resend", json={"since": "2025-12-08T00:00:00Z"})
    assert answer.json() == {"resent": 0}
    assert (await http.post("/resend", json={})).status_code == 422


async def test_a_group_is_shown_and_tried_again(
    site: Preparer, http: httpx.AsyncClient, new_file: MakeFile
) -> None:
    crashed = FINDING.model_copy(update={"code": "RULE_CRASHED", "severity": Severity.ERROR})
    for number in range(3):
        await announce(http, new_file(f"{number}.fits"))
        job = await site.db.write(site.queue.claim, "prepare")
        assert job is not None
        why = crashed.model_copy(update={"message": f"KeyError: card {number} of {number}.fits"})
        await site.db.write(site.store.end, job, Status.ERROR, [why])
    shown = (await http.get("/parked")).json()
    [mark] = {frame["fingerprint"] for frame in shown}
    assert len(shown) == 3
    assert mark.startswith("RULE_CRASHED-")
    answer = await http.post(f"/parked/{mark}/retry", json={"why": "a better rule"})
    assert answer.json() == {"retried": 3}
    assert (await http.get("/parked")).json() == []
    job = await site.db.write(site.queue.claim, "prepare")
    assert job is not None
    assert job.fingerprint == "", "it is counted anew"
    assert (await http.post(f"/parked/{mark}/retry")).json() == {"retried": 0}
    deeds = (await http.get("/audit")).json()
    assert [(d["verb"], d["why"], d["changed"]["status"]) for d in deeds] == [
        ("retry", "a better rule", "ERROR")
    ] * 3
