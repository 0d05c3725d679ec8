"""What the system promises when parts of it, or files, are not as they should be.

One installation for all; every test leaves it whole.
"""

import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from subprocess import run

import pytest

from koa_shared.simulator.ledger import Entry
from koa_shared.simulator.stack import BIN

from .conftest import Frame, Site, header_size, running, sha256

pytestmark = pytest.mark.timeout(120)

SMALL = 300_000


@pytest.fixture(scope="module")
def site(var: Path) -> Iterator[Site]:
    with running(var) as site:
        yield site


def archived_once(site: Site, *entries: Entry, seconds: float = 30) -> list[Frame]:
    """Wait until the files are available, each as it was written and only once."""
    site.ended([e.path for e in entries], seconds)
    frames = []
    for entry in entries:
        rows = site.frames(path=entry.path)
        [frame] = [f for f in rows if f["status"] != "DUPLICATE"]
        assert frame["status"] == "COMPLETE", frame["findings"]
        assert frame["koaid"] == entry.koaid
        assert frame["version"] == 1
        assert sha256(site.raw(frame["koaid"])) == entry.sha256
        frames.append(frame)
    return frames


def again(site: Site, path: str, data: bytes) -> Frame:
    """Write a file and name it; return its frame at its end."""
    site.write(path, data)
    answer = site.submit(path, "NIRES")
    assert answer.status_code == 202, answer.text
    return site.end_of(answer.json()["frame_id"])


def await_version(site: Site, frame_id: str, version: int) -> None:
    site.wait(
        lambda: site.frame(frame_id)["version"] == version, 20, f"version {version} of {frame_id}"
    )


def other_bytes(data: bytes) -> bytes:
    """Return a frame of the same header with one other pixel."""
    at = header_size(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def exposure(site: Site) -> tuple[Entry, Frame, bytes]:
    """Take one exposure; return what was written, its frame, its bytes."""
    [entry] = site.shoot("NIRES", size=SMALL)
    [frame] = archived_once(site, entry)
    return entry, frame, site.local(entry.path).read_bytes()


# -- files ------------------------------------------------------------------------


def test_a_file_that_appears_late_is_waited_for(site: Site) -> None:
    archived_once(site, *site.shoot("NIRES", size=SMALL, late=1.5))


def test_a_growing_file_is_one_frame(site: Site) -> None:
    [entry] = site.shoot("NIRES", size=SMALL, grow=2)
    archived_once(site, entry)
    # Ten seconds old, a rescan sees it, with other size and time than was announced.
    time.sleep(10.5)
    site.post("monitor", "/v1/sources/nires_spec/rescan")
    time.sleep(2)
    archived_once(site, entry)


def test_a_silent_file_is_found_by_a_rescan(site: Site) -> None:
    [entry] = site.shoot("NIRC2", size=SMALL, silent=True)
    settle(site, entry)
    since = (entry.begun_at - timedelta(minutes=1)).isoformat()
    answer = site.post("monitor", "/v1/sources/nirc2/rescan", {"since": since})
    assert answer.status_code == 202, answer.text
    [frame] = archived_once(site, entry)
    assert frame["origin"] == "recovered"


def settle(site: Site, *entries: Entry) -> None:
    """Make files half a minute old: a rescan leaves younger ones alone."""
    for entry in entries:
        local = site.local(entry.path)
        then = local.stat().st_mtime - 30
        os.utime(local, (then, then))


def test_repeated_broadcasts_are_one_frame(site: Site) -> None:
    [entry] = site.shoot("NIRES", size=SMALL, repeat=3)
    archived_once(site, entry)
    site.trigger(entry.path, count=4)
    rows = site.get("monitor", "/v1/triggers", path=entry.path).json()["items"]
    assert sorted(row["decision"] for row in rows) == ["accepted"] + ["duplicate"] * 3


# -- services and stores that are away --------------------------------------------


def test_frames_wait_for_the_object_store_and_none_is_parked(site: Site) -> None:
    site.stack.kill("s3")
    try:
        entries = site.shoot("NIRES", 3, size=SMALL) + site.shoot("ESI", 2, size=SMALL)
        time.sleep(10)
        seen = [f for e in entries for f in site.frames(path=e.path)]
        assert {f["status"] for f in seen} <= {"QUEUED", "PROCESSING", "TRANSFERRING"}
    finally:
        site.stack.start("s3")
    frames = archived_once(site, *entries, seconds=40)
    assert [f["findings"] for f in frames] == [[]] * 5
    assert [f["attempt"] for f in frames] == [0] * 5


@pytest.mark.parametrize("service", ["ingestor", "preparer"])
def test_frames_wait_for_a_service(site: Site, service: str) -> None:
    site.stack.kill(service)
    try:
        entries = site.shoot("NIRES", 2, size=SMALL) + site.shoot("KCWI", 2, size=SMALL)
        for entry in entries:
            assert site.trigger(entry.path)["decision"] == "accepted"
    finally:
        site.stack.start(service)
        site.stack.wait_ready(service)
    archived_once(site, *entries)


def test_frames_that_the_monitor_missed_are_found(site: Site) -> None:
    site.stack.kill("monitor")
    try:
        entries = site.shoot("NIRES", 3, size=SMALL) + site.shoot("ESI", 2, size=SMALL)
    finally:
        site.stack.start("monitor")
        site.stack.wait_ready("monitor")
    frames = archived_once(site, *entries, seconds=40)
    assert {f["origin"] for f in frames} == {"recovered"}


# -- the same again ---------------------------------------------------------------


def test_the_same_bytes_elsewhere_are_a_duplicate_that_names_the_first(
    site: Site,
) -> None:
    entry, frame, data = exposure(site)
    copy = again(site, entry.path.replace("/nires", "/copy/nires"), data)
    assert (copy["status"], copy["version"]) == ("DUPLICATE", None)
    [finding] = copy["findings"]
    assert frame["koaid"] in finding["message"]
    assert frame["frame_id"] in finding["message"]
    archived_once(site, entry)


def test_other_bytes_of_a_koaid_are_a_version_if_an_operator_says_so(
    site: Site,
) -> None:
    entry, _, data = exposure(site)
    koaid, other = str(entry.koaid), other_bytes(data)
    conflict = again(site, entry.path, other)  # the file is rewritten
    assert (conflict["status"], conflict["version"]) == ("INVALID", None)
    assert [f["code"] for f in conflict["findings"]] == ["DUPLICATE_KOAID"]
    assert sha256(site.raw(koaid)) == entry.sha256
    where = f"/v1/frames/{conflict['frame_id']}/accept"
    answer = site.post("ingestor", where, {"as": "version", "why": "it was rewritten"})
    assert answer.status_code == 200, answer.text
    await_version(site, conflict["frame_id"], 2)
    assert sha256(site.raw(koaid, version=1)) == entry.sha256
    assert sha256(site.raw(koaid, version=2)) == sha256(other)
    assert sha256(site.raw(koaid)) == sha256(other)


def test_a_file_that_was_only_touched_is_a_duplicate(site: Site) -> None:
    entry, _, data = exposure(site)
    touched = again(site, entry.path, data)
    assert touched["status"] == "DUPLICATE"
    assert site.frame(str(entry.koaid))["version"] == 1


def test_reprocessing_makes_a_version_of_the_same_raw_bytes(site: Site) -> None:
    entry, frame, _ = exposure(site)
    for version in (2, 3):
        where = f"/v1/frames/{frame['frame_id']}/reprocess"
        answer = site.post("preparer", where, {"why": "a test"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["generation"] == version
        await_version(site, frame["frame_id"], version)
        for old in range(1, version + 1):
            assert sha256(site.raw(str(entry.koaid), version=old)) == entry.sha256
        site.local(entry.path).unlink(missing_ok=True)  # the next is rebuilt
    assert set(site.archived()) >= site.catalogued()


# -- operators --------------------------------------------------------------------


def test_a_paused_source_keeps_its_broadcasts(site: Site) -> None:
    site.post("monitor", "/v1/sources/nires_spec/pause")
    try:
        entries = site.shoot("NIRES", 2, size=SMALL)
        archived_once(site, *site.shoot("NIRC2", size=SMALL))
        rows = site.get("monitor", "/v1/triggers", source="nires_spec").json()["items"]
        assert [row["decision"] for row in rows[:2]] == [None, None]
        assert site.frames(path=entries[0].path) == []
    finally:
        site.post("monitor", "/v1/sources/nires_spec/resume")
    archived_once(site, *entries)


def test_a_paused_instrument_waits_and_others_go_on(site: Site) -> None:
    site.post("preparer", "/v1/instruments/NIRES/pause", {"why": "a test"})
    try:
        entries = site.shoot("NIRES", 2, size=SMALL)
        archived_once(site, *site.shoot("NIRC2", size=SMALL))
        paths = {e.path for e in entries}
        waiting = site.wait(
            lambda: found
            if len(found := [f for f in site.frames() if f["path"] in paths]) == 2
            else None,
            10, "two frames that wait",
        )  # fmt: skip
        assert {f["status"] for f in waiting} == {"QUEUED"}
    finally:
        site.post("preparer", "/v1/instruments/NIRES/resume")
    archived_once(site, *entries)


def test_nothing_is_parked_and_the_bucket_is_what_the_catalogue_says(
    site: Site,
) -> None:
    assert site.get("ingestor", "/v1/parked").json()["items"] == []
    assert site.get("preparer", "/v1/parked").json() == []
    assert set(site.archived()) == site.catalogued()


def test_an_operator_lets_an_invalid_frame_pass(site: Site) -> None:
    [entry] = site.shoot("NIRES", size=SMALL, fault="name")
    frame = site.ended([entry.path], 30)[entry.path]
    assert frame["status"] == "INVALID"
    assert {"MISMATCHED_FILENAME", "QUARANTINED"} <= {f["code"] for f in frame["findings"]}
    kept = site.staged(f"quarantine/NIRES/{frame['frame_id']}/1/")
    name = Path(entry.path).name
    assert {key.rpartition("/")[2] for key in kept} == {name, f"{name}.reasons.json"}
    assert entry.sha256 in {sha256(data) for data in kept.values()}
    order = {"waive": ["MISMATCHED_FILENAME"], "why": "renamed by the observer"}
    site.post("preparer", f"/v1/frames/{frame['frame_id']}/release", order)
    await_version(site, frame["frame_id"], 1)
    assert site.frame(frame["frame_id"])["generation"] == 2
    released = site.frame(frame["frame_id"])
    koaid = released["koaid"]
    assert sha256(site.raw(koaid)) == entry.sha256
    manifest = json.loads(site.file(koaid, f"products/{koaid}.manifest.json"))
    text = "MISMATCHED_FILENAME by dev: renamed by the observer"
    for told in (released, manifest):
        assert [f["message"] for f in told["findings"] if f["code"] == "WAIVED"] == [text]
    assert site.frames(finding="WAIVED") == [released]
    deeds = site.get("preparer", "/v1/audit", target=frame["frame_id"]).json()
    assert [(d["verb"], d["who"], d["why"]) for d in deeds] == [("release", "dev", order["why"])]


# -- disasters (the last, as it forgets what was not archived) ----------------------


def test_a_lost_catalogue_is_rebuilt_from_the_bucket(site: Site) -> None:
    entry, frame, _ = exposure(site)
    site.post("preparer", f"/v1/frames/{frame['frame_id']}/reprocess", {"why": "a test"})
    await_version(site, frame["frame_id"], 2)
    columns = ("koaid", "version", "generation", "night", "metadata", "program", "products", "path")

    def catalogue() -> dict[str, list[object]]:
        rows = site.frames(status="COMPLETE")
        return {row["frame_id"]: [row[column] for column in columns] for row in rows}

    before = catalogue()
    site.stack.kill("ingestor")
    for file in site.stack.var.glob("ingestor.db*"):
        file.unlink()
    for command in ("migrate", "rebuild", "rebuild"):  # once more changes nothing
        run([BIN / "koa-ingestor", command], env=site.stack.environment("ingestor"), check=True)
    site.stack.start("ingestor")
    site.stack.wait_ready("ingestor")
    assert catalogue() == before
    for version in (1, 2):
        assert sha256(site.raw(str(entry.koaid), version=version)) == entry.sha256
    archived_once(site, *site.shoot("NIRES", size=SMALL))
