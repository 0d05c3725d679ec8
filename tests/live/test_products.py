"""Reduced products on real parts: three processes, S3, and pipelines that write beside them."""

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from koa_shared.client import Koa
from koa_shared.config import Peers
from koa_shared.products import Delivered
from koa_shared.simulator.frames import Request, build
from koa_shared.simulator.stack import BIN

from .conftest import ENDS, Frame, Site, running, sha256

pytestmark = pytest.mark.timeout(240)

PIPELINE = {"pipeline": "KCWI_DRP", "pipeline_version": "1.1.0"}
LATENCY = "koa_acquisition_to_availability_seconds_count"


@pytest.fixture(scope="module")
def site(var: Path) -> Iterator[Site]:
    with running(var, env={"KOA_MISSING_SECONDS": "2"}) as site:
        yield site


@pytest.fixture(scope="module")
def koa(site: Site) -> Iterator[Koa]:
    urls: Any = {
        f"{name}_url": site.stack.url(name) for name in ("monitor", "preparer", "ingestor")
    }
    with Koa(Peers(**urls)) as koa:
        yield koa


def exposures(site: Site, n: int) -> list[Frame]:
    """Take KCWI exposures; return their frames."""
    entries = site.shoot("KCWI", n, size=600_000)
    frames = site.ended([entry.path for entry in entries], 60)
    assert {frame["status"] for frame in frames.values()} == {"COMPLETE"}, frames
    return [frames[entry.path] for entry in entries]


def reduce(site: Site, frame: Frame, home: str, change: bytes = b"") -> bytes:
    """Write what a pipeline makes of a frame: a cube with its header, and a plot."""
    cube = site.raw(frame["koaid"])
    cube = cube[: len(cube) - len(change)] + change
    site.write(f"{home}/redux/{frame['koaid']}_icubed.fits", cube)
    site.write(f"{home}/plots/arc_0_resid.png", b"a plot of a frame before")
    return cube


def end_of(site: Site, delivered: Delivered, n: int = 0) -> Frame:
    return site.end_of(delivered.came[n].frame_id, 60)


def command(site: Site, *words: str) -> Any:
    env = os.environ | {"PORT_OFFSET": str(site.stack.offset)}
    done = subprocess.run([BIN / "koa", *words], env=env, capture_output=True, check=True)
    return json.loads(done.stdout)


def test_a_quick_look_is_available_in_seconds_and_a_new_one_is_a_version(
    site: Site, koa: Koa
) -> None:
    [raw] = exposures(site, 1)
    home = "/s/sdata1400/kcwi1/quick"
    cube = reduce(site, raw, home)
    words = ("products", "submit", home, "--instrument", "KCWI", "--level", "1", "--json")
    pipeline = ("--pipeline", "KCWI_DRP", "1.1.0", "--koaid", raw["koaid"])
    told = Delivered.model_validate(command(site, *words, *pipeline))
    quick = end_of(site, told)
    assert (quick["status"], quick["level"], quick["version"]) == ("COMPLETE", 1, 1), quick
    print(f"quick look: {quick['latency_seconds']:.2f} s from its last write")
    assert quick["latency_seconds"] < 30
    assert f'{LATENCY}{{instrument="KCWI",level="1",origin="live"}} 1.0' in metrics(site)
    names = [product["name"] for product in quick["products"]]
    assert names[:2] == [f"{raw['koaid']}_icubed.fits", "arc_0_resid.png"]
    assert site.file(raw["koaid"], level=1) == cube
    assert quick["metadata"]["object"] == raw["metadata"]["object"]
    assert quick["program"] == site.frame(raw["koaid"])["program"]
    up, [down] = quick["links"], site.frame(raw["koaid"])["links"]
    assert [one["frame_id"] for one in up] == [raw["frame_id"]]
    assert (down["frame_id"], down["version"]) == (quick["frame_id"], 1)
    assert down["pipeline"] == "KCWI_DRP 1.1.0"
    # The same again, from elsewhere: one set. Reduced anew: the next version.
    reduce(site, raw, f"{home}/copy")
    order: dict[str, Any] = {"instrument": "KCWI", "level": 1, "koaid": raw["koaid"]} | PIPELINE
    same = end_of(site, koa.deliver(f"{home}/copy", **order))
    assert (same["status"], same["version"]) == ("DUPLICATE", None)
    better = reduce(site, raw, home, b"better")
    anew = end_of(site, koa.deliver(home, **order))
    assert (anew["status"], anew["version"]) == ("COMPLETE", 2)
    assert site.file(raw["koaid"], level=1) == better
    assert site.file(raw["koaid"], level=1, version=1) == cube
    shown = koa.delivered(told.delivery)
    assert [one.status for one in shown.came] == ["COMPLETE"]


def metrics(site: Site) -> str:
    return site.get("ingestor", "/metrics").text


def test_a_bad_product_holds_up_no_other_of_its_night(site: Site, koa: Koa) -> None:
    good, cut, gone = exposures(site, 3)
    home = "/s/sdata1400/kcwi1/night"
    cubes = {frame["koaid"]: reduce(site, frame, home) for frame in (good, cut)}
    site.write(f"{home}/redux/{cut['koaid']}_icubed.fits", cubes[cut["koaid"]][:-5000])
    order: dict[str, Any] = {"instrument": "KCWI", "level": 2, "night": good["night"]} | PIPELINE
    told = koa.deliver(home, **order)

    def closed() -> Delivered | None:
        now = koa.delivered(told.delivery)
        return now if {one.status for one in now.came} <= ENDS else None

    closed_ = site.wait(closed, 60, "the night's close")
    states = {one.koaid: (one.status, one.reason) for one in closed_.came}
    assert states[good["koaid"]] == ("COMPLETE", "")
    assert states[cut["koaid"]][0] == "INVALID"
    assert f"{cut['koaid']}_icubed.fits" in states[cut["koaid"]][1]
    assert {good["koaid"], cut["koaid"], gone["koaid"]} <= {*(closed_.expected or ())}
    assert gone["koaid"] in (closed_.missing or ())
    assert not {good["koaid"], cut["koaid"]} & {*(closed_.missing or ())}
    assert site.file(good["koaid"], level=2) == cubes[good["koaid"]]
    end_of(site, closed_, [one.koaid for one in closed_.came].index(cut["koaid"]))  # it is told
    report = site.get("ingestor", f"/v1/nights/{good['night']}").json()
    rows = {(row["instrument"], row["level"]): row for row in report["instruments"]}
    assert rows["KCWI", 2]["invalid"] == 1
    assert rows["KCWI", 0]["invalid"] == 0


def test_a_file_of_the_manifest_that_is_not_there_ends_its_set(site: Site, koa: Koa) -> None:
    [raw] = exposures(site, 1)
    home = "/s/sdata1400/kcwi1/missing"
    cube = reduce(site, raw, home)
    name = f"redux/{raw['koaid']}_icubed.fits"
    order: dict[str, Any] = {"instrument": "KCWI", "level": 1, "koaid": raw["koaid"]} | PIPELINE
    manifest = site.stack.var / "manifest"  # as sha256sum writes it
    manifest.write_text(f"{sha256(cube)}  {name}\n{'0' * 64} *plots/none.png\n")
    words = ("products", "submit", home, "--instrument", "KCWI", "--level", "1", "--json")
    more = ("--koaid", raw["koaid"], "--pipeline", "KCWI_DRP", "1", "--manifest", str(manifest))
    lacking = end_of(site, Delivered.model_validate(command(site, *words, *more)))
    assert lacking["status"] == "INVALID"
    assert "plots/none.png" in lacking["findings"][-1]["message"]
    flipped = end_of(site, koa.deliver(home, **order, manifest={name: "0" * 64}))
    assert flipped["findings"][-1]["code"] == "MANIFEST_MISMATCH"
    assert [link["status"] for link in site.frame(raw["koaid"])["links"]] == ["INVALID"]


def test_a_set_whose_raw_frame_is_on_its_way_waits_for_it(site: Site, koa: Koa) -> None:
    at = datetime(2026, 11, 23, 9, 6, 38, 80_000, UTC)
    shot = build("NIRES", Request("nires_spec", "object", 7, at, 300_000))
    assert shot.koaid
    home, data = "/s/sdata1500/nires9/redux", b"".join(map(bytes, shot.parts))
    site.write(f"{home}/{shot.koaid}_quick.fits", data)
    order = {"instrument": "NIRES", "level": 1, "koaid": shot.koaid, "pipeline": "quick"}
    told = koa.deliver(home, **order, pipeline_version="1")

    def waits() -> bool:
        answer = site.get("ingestor", f"/v1/frames/{told.came[0].frame_id}")
        codes = [f["code"] for f in answer.json().get("findings", ())]
        return "RAW_NOT_ARCHIVED" in codes

    site.wait(waits, 30, "a set that waits")
    site.write(shot.path, data)
    assert site.submit(shot.path, "NIRES").status_code == 202
    assert end_of(site, told)["status"] == "COMPLETE"


def test_a_killed_preparer_and_a_killed_ingestor_lose_no_set(site: Site, koa: Koa) -> None:
    [raw] = exposures(site, 1)
    home = "/s/sdata1400/kcwi1/killed"
    files = {f"f{n}.dat": os.urandom(400_000) for n in range(60)}
    for name, data in files.items():
        site.write(f"{home}/{name}", data)
    manifest = {name: sha256(data) for name, data in files.items()}
    order: dict[str, Any] = {"instrument": "KCWI", "level": 2, "koaid": raw["koaid"]} | PIPELINE
    told = koa.deliver(home, **order, manifest=manifest)
    frame_id = told.came[0].frame_id
    site.wait(lambda: len(site.staged(f"{frame_id}/")) > 2, 30, "some files of the set")
    site.stack.kill("preparer")
    assert len(site.staged(f"{frame_id}/")) < len(files), "it was in the midst"
    site.stack.start("preparer")
    home = f"lev2/{raw['koaid']}/v1/"
    site.wait(lambda: any(home in key for key in site.archived()), 60, "some archived files")
    site.stack.kill("ingestor")
    assert sum(home in key for key in site.archived()) < len(files), "it was in the midst"
    site.stack.start("ingestor")
    frame = end_of(site, told)
    assert (frame["status"], frame["version"]) == ("COMPLETE", 1)
    for name, data in files.items():
        assert site.file(frame_id, f"products/{name}") == data
    assert site.catalogued() <= {*site.archived()}
