"""The pipeline of examples/pipeline, a process in its own environment, beside a whole archive."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from koa_shared.contracts import utcnow

from .conftest import Frame, Site, header_size, running

pytestmark = pytest.mark.timeout(240)
HOME = Path(__file__).parents[2] / "examples" / "pipeline"
PYTHON = HOME / ".venv" / "bin" / "python"
SMALL = 400_000
MARGIN = timedelta(minutes=1)
SHORT = {"ITIME": 5.0, "TRUITIME": 5.0}  # the default takes 10 s


def need_environment() -> None:
    if not PYTHON.exists():
        why = f"{PYTHON} is not here: make {PYTHON.parents[1].relative_to(HOME.parents[1])}/.stamp"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)


@contextmanager
def pipeline(site: Site, work: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the pipeline for the length of a block, at the end of which it is killed."""
    urls = {f"KOA_{name.upper()}_URL": site.stack.url(name) for name in ("preparer", "ingestor")}
    redux = "/s/sdata904/redux"
    command: list[str | Path] = [PYTHON, HOME / "darksub.py", "--work", work]
    command += ["--directory", site.local(redux), "--announced", redux]
    work.mkdir(exist_ok=True)
    with (work / "log").open("ab") as log:
        process = subprocess.Popen(command, env=os.environ | urls, stdout=log, stderr=log)
    try:
        yield process
        assert process.poll() is None, (work / "log").read_text()
    finally:
        process.kill()
        process.wait()


def taken(site: Site, n: int = 1, **order: Any) -> list[Frame]:
    """Have NIRC2 take exposures; return them once they are archived."""
    entries = site.shoot("NIRC2", n, size=SMALL, **order)
    found = site.ended([entry.path for entry in entries], 30)
    assert {frame["status"] for frame in found.values()} == {"COMPLETE"}
    return [found[entry.path] for entry in entries]


def products(site: Site) -> list[Frame]:
    return site.frames(level=1, instrument="NIRC2")


def reduced(site: Site, parent: Frame, log: Path) -> Frame:
    """Return the product of a frame once it is archived."""

    def ask() -> Frame | None:
        mine = [f for f in products(site) if f["koaid"] == parent["koaid"]]
        assert len(mine) < 2
        return next((f for f in mine if f["status"] == "COMPLETE"), None)

    return site.wait(ask, 60, lambda: f"a product of {parent['koaid']}\n{log.read_text()}")


def pixels(data: bytes, kind: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the pixels of the primary HDU, read without a FITS library."""
    start, cards = header_size(data), data[: header_size(data)].decode("ascii")
    sides = [int(cards.split(f"NAXIS{axis}  =")[1].split("/")[0][:30]) for axis in (2, 1)]
    count = sides[0] * sides[1]
    return np.frombuffer(data, kind, count, start).reshape(sides).astype(float)


def raw(site: Site, frame: Frame) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the pixels as the instrument wrote them to its disk."""
    return pixels(site.local(frame["path"]).read_bytes(), ">i4")


def check(site: Site, parent: Frame, product: Frame, darks: list[Frame]) -> None:
    """Compare a product with what its raw frames give, and with what it says of itself."""
    data = site.file(product["frame_id"], f"products/{parent['koaid']}_drp.fits")
    dark = np.sort([raw(site, frame) for frame in darks], axis=0)[len(darks) // 2]
    expected = (raw(site, parent) - dark).astype(np.float32)
    assert np.array_equal(pixels(data, ">f4"), expected)
    assert abs(np.median(expected)) > 100  # the sky is brighter than a dark: something was done
    head = data[: header_size(data)].decode("ascii")
    for frame in (parent, *darks):
        [fits] = [p for p in frame["products"] if p["role"] == "fits"]
        assert f"{fits['name']} version 1" in head
        assert fits["sha256"] in head
    assert head.count("SHA-256") == 1 + len(darks)
    assert (product["version"], product["level"], product["pipeline"]) == (1, 1, "darksub 1.0.0")
    assert [link["frame_id"] for link in product["links"]] == [parent["frame_id"]]
    back = site.frame(parent["frame_id"])["links"]
    assert [link["frame_id"] for link in back] == [product["frame_id"]]


def test_it_reduces_what_becomes_available_and_survives_kills(var: Path, tmp_path: Path) -> None:
    need_environment()
    work, log = tmp_path / "work", tmp_path / "work" / "log"
    with running(var) as site:
        one_night = lambda: (utcnow() - MARGIN).date() == (utcnow() + MARGIN).date()  # noqa: E731
        site.wait(one_night, 150, "the end of midnight")
        [quick] = site.shoot("KCWI", size=SMALL, reduce=True)  # the simulator's own, seconds later
        darks, [first] = taken(site, 3, kind="dark"), taken(site)
        # Killed while the archive has its delivery, but gives no answer.
        redux, frozen = site.local("/s/sdata904/redux"), site.stack.processes["preparer"]
        made = redux / f"{first['koaid']}.v1" / f"{first['koaid']}_drp.fits"
        frozen.send_signal(signal.SIGSTOP)
        with pipeline(site, work):
            site.wait(made.exists, 60, log.read_text)
        frozen.send_signal(signal.SIGCONT)
        written = made.stat().st_mtime_ns
        more = taken(site, 2)  # while it was away
        with pipeline(site, work):
            for frame in (first, *more, *taken(site)):
                check(site, frame, reduced(site, frame, log), darks)
            assert made.stat().st_mtime_ns == written, "it was made twice"
            # No dark is as long as this one, until there is one.
            [short] = taken(site, cards=SHORT)
            waits = f"{short['koaid']} waits for a dark"
            site.wait(lambda: waits in log.read_text(), 30, log.read_text)
            late = taken(site, kind="dark", cards=SHORT)
            check(site, short, reduced(site, short, log), late)
        # Its memory lost, and its cursor ahead of the archive: `reset`, and all is told again.
        shutil.rmtree(work / "delivered")
        (work / "cursor.json").write_text(f'{{"id": "999999", "at": "{utcnow().isoformat()}"}}')
        [last] = taken(site)
        with pipeline(site, work):
            check(site, last, reduced(site, last, log), darks)
            settled = lambda: len([*work.glob("delivered/*")]) == 6  # noqa: E731
            site.wait(settled, 30, log.read_text)
        [look] = site.frames(level=1, instrument="KCWI")
        told = (look["koaid"], look["status"], look["pipeline"])
        assert told == (quick.koaid, "COMPLETE", "simulated quick look 1")
        ends = [(frame["status"], frame["version"]) for frame in products(site)]
        assert ends == [("COMPLETE", 1)] * 6
        assert set(site.archived()) == site.catalogued()
