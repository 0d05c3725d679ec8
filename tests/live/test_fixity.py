"""What happens when the object store loses or changes what is archived, on real parts."""

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from koa_shared.simulator.ledger import Entry
from koa_shared.simulator.stack import BIN

from .conftest import Frame, Site, running, sha256

pytestmark = pytest.mark.timeout(120)

ARCHIVE = "koa-archive"


@pytest.fixture(scope="module")
def site(var: Path) -> Iterator[Site]:
    with running(var) as site:
        yield site


def koa(site: Site, *words: str) -> str:
    """Run the command line; return what it says."""
    env = os.environ | {"PORT_OFFSET": str(site.stack.offset)}
    done = subprocess.run([BIN / "koa", *words], env=env, capture_output=True, check=True)
    return done.stdout.decode()


def exposure(site: Site, size: int) -> tuple[Entry, Frame, str]:
    """Take one exposure; return it, its frame, and the key of its archived FITS file."""
    [entry] = site.shoot("NIRES", size=size)
    frame = site.ended([entry.path], 30)[entry.path]
    assert frame["status"] == "COMPLETE", frame["findings"]
    koaid = frame["koaid"]
    return entry, frame, f"NIRES/{koaid.split('.')[1]}/lev0/{koaid}/v1/{koaid}.fits"


def flip(site: Site, key: str) -> bytes:
    """Change one byte of an archived object, behind the catalogue's back; return the old ones."""
    good = site.s3.get_object(ARCHIVE, key).read()
    bad = good[:-3000] + bytes([good[-3000] ^ 1]) + good[-2999:]
    site.s3.put_object(ARCHIVE, key, io.BytesIO(bad), len(bad))
    return good


def marks(site: Site, koaid: str) -> list[tuple[int, str]]:
    damaged = site.get("ingestor", "/v1/scrub").json()["damaged"]
    return [(mark["version"], mark["product"]) for mark in damaged if mark["koaid"] == koaid]


def await_marks(site: Site, koaid: str, wanted: list[tuple[int, str]]) -> None:
    site.wait(lambda: marks(site, koaid) == wanted, 20, lambda: f"{marks(site, koaid)}")


def reprocess(site: Site, frame: Frame, version: int) -> None:
    koa(site, "reprocess", frame["frame_id"], "--why", "damaged")
    got = lambda: site.frame(frame["frame_id"])["version"] == version  # noqa: E731
    site.wait(got, 20, f"version {version}")


def test_a_flipped_byte_is_found_told_never_served_and_mended(site: Site) -> None:
    entry, frame, key = exposure(site, 300_000)
    koaid, where = frame["koaid"], f"/v1/frames/{frame['koaid']}/file"
    good = flip(site, key)
    koa(site, "scrub", "--now", koaid, "--why", "a test")
    await_marks(site, koaid, [(1, f"{koaid}.fits")])
    assert koaid in koa(site, "scrub")
    answer = site.get("ingestor", where)
    assert (answer.status_code, answer.json()["code"]) == (500, "object_damaged")
    assert f"koa reprocess {koaid}" in answer.json()["detail"]
    assert f"`koa reprocess {koaid}` makes a good version" in koa(site, "why", koaid)
    assert "OBJECT_DAMAGED" in koa(site, "status", koaid)
    line = 'koa_scrub_mismatches{instrument="NIRES"} 1.0'
    site.wait(lambda: line in site.get("ingestor", "/metrics").text, 20, line)
    reprocess(site, frame, 2)
    assert sha256(site.raw(koaid)) == entry.sha256
    assert koa(site, "why", koaid).endswith("nothing to do.\n")
    assert site.get("ingestor", where, version=1).status_code == 500
    assert marks(site, koaid) == [(1, f"{koaid}.fits")]
    site.s3.put_object(ARCHIVE, key, io.BytesIO(good), len(good))  # from a backup
    koa(site, "scrub", "--now", "all")
    await_marks(site, koaid, [])
    assert sha256(site.raw(koaid, version=1)) == entry.sha256
    none = "koa_scrub_mismatches{"
    site.wait(lambda: none not in site.get("ingestor", "/metrics").text, 20, "no mark")
    state = site.get("ingestor", "/v1/scrub").json()
    assert (state["due"], state["versions"] >= 2) == (0, True)


def test_a_download_of_changed_bytes_breaks_off_and_has_them_marked(site: Site) -> None:
    _, frame, key = exposure(site, 3_000_000)
    koaid = frame["koaid"]
    flip(site, key)
    with pytest.raises(httpx.RemoteProtocolError):
        site.get("ingestor", f"/v1/frames/{koaid}/file")
    await_marks(site, koaid, [(1, f"{koaid}.fits")])
    answer = site.get("ingestor", f"/v1/frames/{koaid}/file")
    assert (answer.status_code, answer.json()["code"]) == (500, "object_damaged")


def test_a_lost_object_is_made_anew_from_another_version(site: Site) -> None:
    entry, frame, key = exposure(site, 300_000)
    koaid = frame["koaid"]
    reprocess(site, frame, 2)
    site.local(entry.path).unlink()
    site.s3.remove_object(ARCHIVE, key)
    koa(site, "scrub", "--now", koaid)
    await_marks(site, koaid, [(1, f"{koaid}.fits")])
    assert site.frame(koaid)["findings"] == []  # its version is good
    reprocess(site, frame, 3)
    assert sha256(site.raw(koaid)) == entry.sha256
