"""The system's own frame: the true path, in no list, and gone after a while."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Site, running

KEEP = 3.0  # seconds


@pytest.fixture(scope="module")
def site(var: Path) -> Iterator[Site]:
    with running(var, sim=False, env={"KOA_STAGING_KEEP_SECONDS": str(KEEP)}) as site:
        yield site


def koa(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    urls = {f"KOA_{n.upper()}_URL": site.stack.url(n) for n in ("monitor", "preparer", "ingestor")}
    command = [str(Path(sys.executable).parent / "koa"), *words]
    env = os.environ | urls
    return subprocess.run(command, check=False, env=env, capture_output=True, text=True)


def objects(site: Site) -> list[str]:
    buckets = ("koa-archive", "koa-staging")
    return [str(o.object_name) for b in buckets for o in site.s3.list_objects(b, recursive=True)]


def test_a_canary_goes_the_whole_road_and_leaves_nothing(site: Site) -> None:
    done = koa(site, "canary", "--json")
    assert done.returncode == 0, done.stderr
    frame: dict[str, Any] = json.loads(done.stdout)
    assert (frame["status"], frame["origin"]) == ("COMPLETE", "canary")
    assert frame["koaid"].startswith("ZZ.")
    assert frame["findings"] == []
    assert frame["latency_seconds"] < 60
    # It stands in no list, unless it is asked for.
    assert site.frames() == []
    assert [f["frame_id"] for f in site.frames(origin="canary")] == [frame["frame_id"]]
    night = site.get("ingestor", f"/v1/nights/{frame['night']}").json()
    assert night["instruments"] == []
    metrics = site.get("ingestor", "/metrics").text
    assert 'koa_acquisition_to_availability_seconds_count{instrument="CANARY"' in metrics
    assert any(name.startswith("CANARY/") for name in objects(site))

    def gone() -> bool:
        return site.get("ingestor", f"/v1/frames/{frame['frame_id']}").status_code == 404

    site.wait(gone, KEEP + 10, "the end of a canary")
    assert objects(site) == []


def test_what_is_late_is_told_with_the_reason(site: Site) -> None:
    site.post("preparer", "/v1/instruments/CANARY/pause")
    done = koa(site, "canary", "--seconds", "1")
    site.post("preparer", "/v1/instruments/CANARY/resume")
    assert done.returncode == 1
    assert "canary_late: not available within 1 s" in done.stderr
    assert "CANARY is paused" in done.stderr
