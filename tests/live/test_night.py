"""A simulated night with odd frames, and its report held against the observatory's ledger."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from koa_shared.contracts import utcnow
from koa_shared.simulator.ledger import Entry

from .conftest import Site, running, sha256

pytestmark = pytest.mark.timeout(240)
MARGIN = timedelta(minutes=1)
SMALL = 1_500_000


def settle(site: Site, entry: Entry) -> None:
    """Make a file half a minute old: a rescan leaves younger ones alone."""
    then = site.local(entry.path).stat().st_mtime - 30
    os.utime(site.local(entry.path), (then, then))


def odd_night(site: Site) -> tuple[str, Entry]:
    """Have a night with one of each; return its date and the frame that was lost."""
    one_night = lambda: (utcnow() - MARGIN).date() == (utcnow() + MARGIN).date()  # noqa: E731
    site.wait(one_night, 150, "the end of midnight")
    good = site.shoot("NIRC2", 4, size=SMALL)
    [bad] = site.shoot("NIRC2", fault="name")
    lost, silent = site.shoot("NIRC2", 2, silent=True, size=SMALL)
    site.local(lost.path).unlink()
    settle(site, silent)
    site.ended([entry.path for entry in (*good, bad)], 60)
    copy = good[0].path.replace("/nirc", "/copy/nirc", 1)
    site.write(copy, site.local(good[0].path).read_bytes())
    assert site.submit(copy, "NIRC2").status_code == 202
    assert site.ended([copy], 60)[copy]["status"] == "DUPLICATE"
    assert site.post("preparer", "/v1/instruments/ESI/pause").is_success
    [waiting] = site.shoot("ESI")
    site.wait(lambda: site.frames(path=waiting.path), 60, "the waiting frame")
    deliver(site, good[0])
    return good[0].ut.date().isoformat(), lost


def deliver(site: Site, entry: Entry) -> None:
    """Reduce one of the frames."""
    koaid, home = str(entry.koaid), str(Path(entry.path).parent / "redux")
    site.write(f"{home}/{koaid}_drp.fits", site.file(koaid))
    order = {"instrument": "NIRC2", "level": 1, "koaid": koaid, "directory": home}
    order |= {"pipeline": "koa_imager_lev1", "pipeline_version": "0.3"}
    answer = site.post("preparer", "/v1/products", order)
    assert answer.status_code == 202, answer.text
    assert site.end_of(answer.json()["came"][0]["frame_id"], 60)["status"] == "COMPLETE"


def row_of(report: Any, instrument: str, level: int = 0) -> Any:
    rows = report["instruments"]
    [row] = [row for row in rows if (row["instrument"], row["level"]) == (instrument, level)]
    return row


def whole_report(site: Site, night: str) -> Any:
    """Return the report once the disks were compared after the last frame."""
    assert site.post("monitor", "/v1/sources/nirc2/rescan").is_success

    def ask() -> Any:
        report = site.get("ingestor", f"/v1/nights/{night}").json()
        row = row_of(report, "NIRC2")
        seen = row["inventory"] or {"on_disk": 0}
        asked.append(row)
        return report if row["archived"] == 5 and seen["on_disk"] == 7 else None

    asked: list[Any] = []
    return site.wait(ask, 90, lambda: f"an inventory with the silent frame: {asked[-1]}")


def check(site: Site, report: Any, lost: Entry) -> None:
    entries = [e for e in site.ledger() if e.instrument == "NIRC2" and e.path != lost.path]
    kept = [e for e in entries if not e.fault]
    frames = [site.frame(str(e.koaid)) for e in kept]
    row = row_of(report, "NIRC2")
    told = ("announced", "archived", "invalid", "duplicate", "parked", "unfinished", "found")
    silent = sum(not entry.broadcasts for entry in entries)
    assert [row[name] for name in told] == [len(entries) + 1, len(kept), 1, 1, 0, 0, silent], row
    assert (len(entries), len(kept), silent) == (6, 5, 1)
    assert row["bytes"] == sum(entry.size for entry in kept)
    types = Counter(frame["metadata"]["koaimtyp"] for frame in frames)
    assert {kind["type"]: kind["frames"] for kind in row["types"]} == types
    exposed = sum(frame["metadata"]["exposure"] for frame in frames)
    assert row["exposure_seconds"] == pytest.approx(exposed)
    assert sum(row["hours"]) == row["announced"]
    latencies = sorted(frame["latency_seconds"] for frame in frames)
    assert row["latency"]["frames"] == len(kept)
    assert row["latency"]["max"] == report["worst"][0]["latency_seconds"] == latencies[-1]
    assert row["latency"]["p50"] == latencies[2]
    seen = row["inventory"]
    disk = len(entries) + 1
    assert (seen["on_disk"], seen["announced"], row["gaps"]) == (disk, disk, 1)
    number = Path(lost.path).stem[-4:]
    assert seen["frame_gaps"] == [lost.path.replace(f"{number}.fits", f"{number}-{number}")]
    assert (report["verdict"], row_of(report, "ESI")["unfinished"]) == ("incomplete", 1)
    reduced, science = row_of(report, "NIRC2", 1), types.get("object", 0)
    assert [reduced[name] for name in (*told[:3], "missing")] == [1, 1, 0, science - 1]
    assert reduced["pipelines"] == ["koa_imager_lev1 0.3"]
    assert {
        f["code"]: f["week"] for f in report["findings"] if f["code"] == "MISMATCHED_FILENAME"
    } == {"MISMATCHED_FILENAME": 0}


def test_the_report_tells_what_the_ledger_knows(postgres: str, var: Path, tmp_path: Path) -> None:
    """On PostgreSQL; tests/live/test_products.py reads a report of SQLite."""
    with running(var, db=postgres) as site:
        night, lost = odd_night(site)
        report = whole_report(site, night)
        check(site, report, lost)
        page, data = tmp_path / "night.html", tmp_path / "data"

        def koa(*more: str, **env: str) -> subprocess.CompletedProcess[str]:
            env = os.environ | {"KOA_INGESTOR_URL": site.stack.url("ingestor")} | env
            command = [sys.executable, "-m", "koa_shared.cli.__main__", "night", night, *more]
            return subprocess.run(command, env=env, text=True, capture_output=True, check=False)

        done = koa("--json", "--html", str(page))
        kept = json.loads(done.stdout)["manifest"]
        good = [e.koaid for e in site.ledger() if not e.fault and e.instrument == "NIRC2"]
        assert {entry["koaid"] for entry in kept} == {*good} - {lost.koaid}
        data.mkdir()
        for entry in kept:
            (data / entry["name"]).write_bytes(site.file(entry["koaid"]))
            assert sha256((data / entry["name"]).read_bytes()) == entry["sha256"]
        assert koa("--verify", str(data)).returncode == 0
        assert "INCOMPLETE" in (said := koa().stdout)
        assert "products  NIRC2 level 1  koa_imager_lev1 0.3  came 1, archived 1" in said
        text = page.read_text()
        assert all(entry["sha256"] in text for entry in kept)
        saved = tmp_path / "night.json"
        saved.write_text(done.stdout)
        flipped, missing, extra = (
            data / name for name in (kept[0]["name"], kept[1]["name"], "x.fits")
        )
        body = flipped.read_bytes()
        flipped.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
        missing.rename(extra)
        # Without any service.
        amiss = koa(
            "--verify", str(data), "--from", str(saved), KOA_INGESTOR_URL="http://127.0.0.1:9"
        )
        assert (amiss.returncode, amiss.stderr) == (1, "")
        for how, path in (("differing", flipped), ("missing", missing), ("extra", extra)):
            assert f"{how}  {path.name}" in amiss.stdout
        if out := os.environ.get("KOA_NIGHT_PAGE"):
            Path(out).write_text(text)
