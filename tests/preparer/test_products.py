"""Deliveries of reduced products at the preparer: what makes a set, what ends it, what is told."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from koa_preparer.app import Preparer, create_app
from koa_preparer.config import Config
from koa_preparer.store import File
from koa_shared.contracts import FilePrepared
from koa_shared.db import Database
from koa_shared.errors import DependencyDown

OpenDatabase = Callable[..., Database]
MakeFile = Callable[..., bytes]
KOAID, OTHER = "KB.20251208.32798.80", "KB.20251208.33000.10"
HOME = "/s/sdata1400/kcwi1/2025dec08"
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # of no query


class Bucket:
    """An object store that may be away."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.away = False

    async def put(self, bucket: str, key: str, *buffers: Any) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise DependencyDown("s3", "connection refused")
        self.objects[key] = b"".join(map(bytes, buffers))


class Site:
    """A preparer with its lanes open, a pipeline's disk, a bucket, and its front door."""

    def __init__(self, preparer: Preparer, summit: Path, http: httpx.AsyncClient) -> None:
        self.preparer, self.summit, self.http = preparer, summit, http
        self.bucket = Bucket()
        preparer.worker.objects = self.bucket  # type: ignore[assignment]

    def write(self, name: str, data: bytes, home: str = HOME) -> None:
        file = self.summit / home.lstrip("/") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    async def deliver(self, **more: Any) -> httpx.Response:
        told = {
            "instrument": "KCWI", "level": 1, "pipeline": "KCWI_DRP",
            "pipeline_version": "1.1.0", "directory": HOME,
        }  # fmt: skip
        return await self.http.post("/products", json=told | more)

    async def taken(self, **more: Any) -> dict[str, Any]:
        answer = await self.deliver(**more)
        assert answer.status_code == 202, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def until(self, frame_id: str, *statuses: str) -> File:
        store = self.preparer.store
        async with asyncio.timeout(30):
            while True:
                row = await self.preparer.db.read(store.file, frame_id)
                if row.status in statuses:
                    return row
                await asyncio.sleep(0.02)

    async def end(self, status: str, **more: Any) -> File:
        """Deliver one set; return it once it is what it should be."""
        told = await self.taken(koaid=KOAID, **more)
        row = await self.until(told["came"][0]["frame_id"], "TRANSFERRED", "INVALID", "ERROR")
        assert row.status == status, row.findings
        return row


@pytest.fixture
async def site(database: OpenDatabase, tmp_path: Path) -> AsyncIterator[Site]:
    config = Config(
        dev=True, database_url=database("preparer").url, path_map=f"/={tmp_path}/summit/",
        missing_seconds=0.3, ingestor_url="http://127.0.0.1:1",
    )  # fmt: skip
    preparer = Preparer(config)
    app = create_app(config)
    app.state.context = preparer
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://site/v1") as http:
        site = Site(preparer, tmp_path / "summit", http)
        async with preparer.workshop.open():
            yield site
    await preparer.http.aclose()
    preparer.db.close()


@pytest.fixture
def cube(make_file: MakeFile) -> bytes:
    return make_file({"FRAMENO": 12, "OBJECT": "M31", "TTIME": 300.0, "RA": 10.68, "DEC": 41.27})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_a_set_is_read_once_and_handed_over_whole(site: Site, cube: bytes) -> None:
    names = {
        f"redux/{KOAID}_icubed.fits": cube, "plots/arc_11_a.png": b"11",
        "plots/arc_12_a.png": b"12", f"redux/{OTHER}_icubed.fits": cube,
    }  # fmt: skip
    for name, data in names.items():
        site.write(name, data)
    row = await site.end("TRANSFERRED")
    assert (row.level, row.koaid, row.path, row.origin) == (1, KOAID, HOME, "live")
    prepared = FilePrepared.model_validate(row.prepared)
    told = {product.name: product for product in prepared.products}
    own = [f"{KOAID}.lev1.md5sum.table", f"{KOAID}.lev1.manifest.json"]
    # A plot of a frame before it is its calibration; its own comes at level 2 only.
    assert list(told) == [f"{KOAID}_icubed.fits", "arc_11_a.png", *own]
    for product in prepared.products:
        data = site.bucket.objects[product.key]
        assert (product.size, product.sha256) == (len(data), sha256(data))
    files = [told[f"{KOAID}_icubed.fits"], told["arc_11_a.png"]]
    lines = "".join(sorted(f"{file.sha256}  {file.name}\n" for file in files)).encode()
    assert prepared.raw.sha256 == sha256(lines)
    assert prepared.raw.size == sum(file.size for file in files)
    assert prepared.metadata["object"] == "M31"
    assert ["FRAMENO", 12, ""] in prepared.header
    assert prepared.utdatetime.isoformat() == "2025-12-08T09:06:38+00:00"
    assert prepared.recipe
    assert prepared.recipe.software == "KCWI_DRP 1.1.0"
    assert prepared.program.release_date is None, "it is closed until its raw frame says otherwise"
    newest = max(f.stat().st_mtime_ns for f in site.summit.rglob("*") if f.name in told)
    assert prepared.timeline.acquired
    assert int(prepared.timeline.acquired.timestamp() * 1000) == newest // 1_000_000
    manifest = FilePrepared.model_validate_json(site.bucket.objects[told[own[1]].key])
    assert manifest.products == prepared.products[:-1]
    table = site.bucket.objects[told[own[0]].key].decode()
    assert table.split() == [
        w for f in sorted(files, key=lambda f: f.name) for w in (f.md5, f.name)
    ]


async def test_content_decides_not_the_date_nor_the_directory(site: Site, cube: bytes) -> None:
    site.write(f"redux/{KOAID}_icubed.fits", cube)
    first = await site.end("TRANSFERRED")
    site.write(f"redux/{KOAID}_icubed.fits", cube, home=f"{HOME}/again")
    again = await site.end("TRANSFERRED", directory=f"{HOME}/again")
    assert first.frame_id != again.frame_id
    assert (first.prepared or {})["raw"] == (again.prepared or {})["raw"]


@ON_SQLITE
@pytest.mark.parametrize(
    ("fault", "code", "named"),
    [
        ("flipped", "MANIFEST_MISMATCH", "plot.png"),
        ("missing", "PRODUCT_MISSING", "plot.png"),
        ("cut", "TRUNCATED", "cube.fits"),
        ("alike", "DUPLICATE_NAME", "b_plot.png"),
    ],
)
async def test_a_bad_file_ends_its_set_and_is_named(
    site: Site, cube: bytes, fault: str, code: str, named: str
) -> None:
    site.write("cube.fits", cube[:100] if fault == "cut" else cube)
    if fault != "missing":
        site.write("plot.png", b"plot")
    manifest = {"cube.fits": sha256(cube), "plot.png": sha256(b"plot")}
    if fault == "flipped":
        site.write("plot.png", b"plof")
    if fault == "alike":
        manifest = dict.fromkeys(["a/plot.png", "b/plot.png", "a_plot.png", "b_plot.png"], "0" * 64)
    row = await site.end("INVALID", manifest=manifest)
    assert row.findings[-1]["code"] == code
    assert named in row.findings[-1]["message"]
    if fault != "missing":
        return
    site.write("plot.png", b"plot")
    answer = await site.http.post(f"/frames/{row.frame_id}/retry")
    assert answer.status_code == 200, answer.text
    assert (await site.until(row.frame_id, "TRANSFERRED")).generation == 2


async def test_a_file_that_is_seen_late_is_waited_for(site: Site, cube: bytes) -> None:
    site.preparer.config = site.preparer.worker.reader.config  # the reader's
    told = await site.taken(koaid=KOAID, files=["cube.fits"], directory=f"{HOME}/late")
    site.write("cube.fits", cube, home=f"{HOME}/late")
    assert (await site.until(told["came"][0]["frame_id"], "TRANSFERRED", "INVALID")).koaid == KOAID


@ON_SQLITE
async def test_a_directory_that_is_not_there_ends_its_set_and_is_named(site: Site) -> None:
    row = await site.end("INVALID", directory=f"{HOME}/nowhere")
    assert row.findings[-1]["code"] == "PRODUCT_MISSING"
    assert f"{HOME}/nowhere" in row.findings[-1]["message"]


async def test_a_repeat_is_known_and_another_order_is_refused(site: Site, cube: bytes) -> None:
    site.write(f"redux/{KOAID}_icubed.fits", cube)
    order = {"koaid": KOAID, "delivery": str(uuid.uuid4())}
    first, second = await site.deliver(**order), await site.deliver(**order)
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["came"][0]["frame_id"] == second.json()["came"][0]["frame_id"]
    other = await site.deliver(**order, level=2)
    assert (other.status_code, other.json()["code"]) == (409, "delivery_taken")


@ON_SQLITE
@pytest.mark.parametrize(
    ("order", "status", "code"),
    [
        ({"koaid": KOAID, "directory": "/s/../../etc"}, 422, "filepath_reject"),
        ({"koaid": KOAID, "instrument": "NOSUCH"}, 422, "unknown_instrument"),
        ({"koaid": "NR.20251208.32798.80"}, 422, "wrong_koaid"),
        ({"koaid": KOAID, "instrument": "GUIDER"}, 422, "wrong_koaid"),
        ({"night": "2025-12-08", "directory": f"{HOME}/nowhere"}, 503, "no_directory"),
        ({"night": "2025-12-08", "instrument": "NIRC2", "level": 2}, 422, "no_rule"),
        ({}, 422, "bad_delivery"),
    ],
)
async def test_what_can_not_be_meant_is_refused(
    site: Site, order: dict[str, Any], status: int, code: str
) -> None:
    (site.summit / HOME.lstrip("/")).mkdir(parents=True)
    answer = await site.deliver(**order)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert (await site.http.get(f"/products/{uuid.uuid4()}")).status_code == 404


async def test_a_night_says_what_came_and_what_is_missing(
    site: Site, cube: bytes, new_file: Any, new_prepared: Any
) -> None:
    gone, arc = "KB.20251208.40000.00", "KB.20251208.41000.00"
    for koaid, kind in ((KOAID, "object"), (OTHER, "object"), (gone, "object"), (arc, "arclamp")):
        await handed_over(site, new_file(f"{koaid}.fits"), new_prepared, koaid, kind)
    site.write(f"redux/{KOAID}_icubed.fits", cube)
    site.write(f"redux/{OTHER}_icubed.fits", cube[:100])
    site.write(f"redux/{arc}_int.fits", cube)  # of a calibration, and no set
    told = await site.taken(night="2025-12-08")
    assert [one["koaid"] for one in told["came"]] == [KOAID, OTHER]
    assert told["expected"] == [KOAID, OTHER, gone]
    assert told["missing"] == [gone]
    good, bad = [
        await site.until(one["frame_id"], "TRANSFERRED", "INVALID") for one in told["came"]
    ]
    assert (good.status, bad.status) == ("TRANSFERRED", "INVALID")
    shown = (await site.http.get(f"/products/{told['delivery']}")).json()
    assert [one["status"] for one in shown["came"]] == ["TRANSFERRED", "INVALID"]
    assert f"{OTHER}_icubed.fits" in shown["came"][1]["reason"]
    assert good.origin == "manual", "a night is behind what is live"


async def handed_over(site: Site, file: Any, new_prepared: Any, koaid: str, kind: str) -> None:
    """Have a raw frame prepared, as far as the ledger tells."""

    def settle(session: Any) -> None:
        row = File(
            **file.model_dump(exclude={"trigger"}), status="TRANSFERRED", koaid=koaid, options={},
            prepared=json.loads(
                new_prepared(file, koaid=koaid, metadata={"koaimtyp": kind}).model_dump_json()
            ),
        )  # fmt: skip
        session.add(row)

    await site.preparer.db.write(settle)


async def test_an_outage_costs_a_set_nothing(site: Site, cube: bytes) -> None:
    site.bucket.away = True
    site.write(f"redux/{KOAID}_icubed.fits", cube)
    told = await site.taken(koaid=KOAID)
    await asyncio.sleep(0.3)
    site.bucket.away = False
    row = await site.until(told["came"][0]["frame_id"], "TRANSFERRED", "INVALID", "ERROR")
    assert (row.status, row.attempt) == ("TRANSFERRED", 0)


async def test_a_set_is_not_reprocessed_here(site: Site, cube: bytes) -> None:
    site.write(f"redux/{KOAID}_icubed.fits", cube)
    row = await site.end("TRANSFERRED")
    answer = await site.http.post(f"/frames/{row.frame_id}/reprocess")
    assert answer.status_code == 409
    assert "its pipeline" in answer.json()["detail"]
