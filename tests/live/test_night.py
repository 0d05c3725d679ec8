"""A simulated night with odd frames, and its report held against the observatory's ledger."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Frame, running, sha256

pytestmark = pytest.mark.timeout(240)


def test_the_report_tells_what_the_ledger_knows(var: Path, tmp_path: Path) -> None:
    with running(var, env={"KOA_MISSING_SECONDS": "5"}) as site:
        good = site.shoot("NIRC2", 4, size=1_500_000)
        [bad] = site.shoot("NIRC2", fault="zero")
        [silent] = site.shoot("NIRC2", silent=True, size=1_500_000)
        path = good[0].path.replace(".fits", "copy.fits")
        site.ended([e.path for e in (*good, bad)], 60)
        site.write(path, site.local(good[0].path).read_bytes())
        assert site.submit(path, "NIRC2").status_code == 202
        site.ended([path], 60)
        site.post("preparer", "/v1/instruments/ESI/pause")
        [waiting] = site.shoot("ESI")
        site.wait(lambda: site.frames(path=waiting.path), 30, "the waiting frame")
        site.local(good[2].path).unlink()  # a gap in the numbers

        def rescan() -> Frame | None:
            site.post("monitor", "/v1/sources/nirc2/rescan")
            found = [f for f in site.frames(path=silent.path) if f["status"] == "COMPLETE"]
            return found[0] if found else None

        site.wait(rescan, 90, "the frame that nobody announced")
        night = good[0].ut.date().isoformat()

        def told() -> Any:
            site.post("monitor", "/v1/sources/nirc2/rescan")
            report = site.get("ingestor", f"/v1/nights/{night}").json()
            row = {r["instrument"]: r for r in report["instruments"]}.get("NIRC2")
            seen = row and row["inventory"]
            return report if seen and seen["gaps"] and seen["on_disk"] == 6 else None

        report = site.wait(told, 60, "an inventory of the whole night")
        rows = {row["instrument"]: row for row in report["instruments"]}
        row = rows["NIRC2"]
        states = ("announced", "archived", "invalid", "duplicate", "unfinished", "found")
        assert [row[s] for s in states] == [7, 5, 2, 0, 0, 1], row
        assert row["bytes"] == sum(e.size for e in (*good, silent))
        assert (row["inventory"]["announced"], rows["ESI"]["unfinished"]) == (6, 1)
        assert report["verdict"] == "incomplete"
        assert len(report["worst"]) >= 4
        assert {f["code"] for f in report["findings"]} >= {"EMPTY_FILE"}

        page, data = tmp_path / "night.html", tmp_path / "data"
        data.mkdir()
        command = [sys.executable, "-m", "koa_shared.cli.__main__", "night", night]
        env = os.environ | {"KOA_INGESTOR_URL": site.stack.url("ingestor")}

        def koa(*more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *more], env=env, text=True, capture_output=True, check=False
            )

        done = koa("--json", "--html", str(page))
        kept = json.loads(done.stdout)["manifest"]
        assert {k["koaid"] for k in kept} == {e.koaid for e in (*good, silent)}
        for entry in kept:
            body = site.file(entry["koaid"])
            assert (len(body), sha256(body)) == (entry["size"], entry["sha256"])
            (data / entry["name"]).write_bytes(body)
        assert koa("--verify", str(data)).returncode == 0
        (data / kept[0]["name"]).write_bytes(b"flipped")
        assert koa("--verify", str(data)).returncode == 1
        assert "INCOMPLETE" in koa().stdout
        if out := os.environ.get("KOA_NIGHT_PAGE"):
            Path(out).write_text(page.read_text())
