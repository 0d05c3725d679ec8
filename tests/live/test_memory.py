"""Peak memory of the services with the largest frames announced at once; ten in `make bench`."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Site, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LARGE, EACH = 140_000_000, 2  # bytes; frames of each of two instruments
MOST = 400  # MB, of each service
CAMERAS = ("NIRES", "NIRC2")


@pytest.fixture(scope="module")
def site(var: Path) -> Iterator[Site]:
    with running(var) as site:
        yield site


def peak(pid: int) -> float:
    """Return the most memory a process ever had, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def test_large_frames_at_once_fit_into_400_mb(site: Site) -> None:
    for name in CAMERAS:
        site.post("preparer", f"/v1/instruments/{name}/pause")
    entries = [e for name in CAMERAS for e in site.shoot(name, EACH, size=LARGE)]
    for entry in entries:
        assert site.trigger(entry.path)["decision"] == "accepted"
    for name in CAMERAS:
        site.post("preparer", f"/v1/instruments/{name}/resume")
    frames = site.ended([e.path for e in entries], 180)
    assert {f["status"] for f in frames.values()} == {"COMPLETE"}
    processes = site.stack.processes
    peaks = {s: peak(processes[s].pid) for s in ("monitor", "preparer", "ingestor")}
    print("peak memory in MB:", {name: round(size) for name, size in peaks.items()})
    assert max(peaks.values()) < MOST
