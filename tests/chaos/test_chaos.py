"""A short night under fault, and the proof that its judge sees what is wrong.

Six bugs are planted in copies of what the night left behind; each must be caught.
"""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from koa_shared.testing import FAULT_POINTS

from .checker import DAWN, Breach, History, check, read_ledger
from .harness import Result, suffer, visits
from .night import Night, beside, now
from .scenarios import broadcasts_of_nothing
from .table import FAULTS, SMOKE

SEED = 20261129
Codes = set[str]


class Objects:
    """A copy of the archive bucket in memory."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects, self.at = objects, dict[str, datetime]()

    def written(self) -> dict[str, datetime]:
        return {key: self.at.get(key, DAWN) for key in self.objects}

    def get(self, key: str) -> bytes:
        return self.objects[key]


class Past:
    """Copies of what a night left: to be changed by a bug, and judged."""

    def __init__(self, home: Path, objects: dict[str, bytes]) -> None:
        self.home, self.bucket = home, Objects(dict(objects))
        self.ledger = home / "ledger.jsonl"

    def judge(self) -> list[Breach]:
        databases = {s: str(self.home / f"{s}.db") for s in ("monitor", "preparer", "ingestor")}
        return check(History.read(self.ledger, databases), self.bucket)

    def codes(self) -> Codes:
        return {breach.code for breach in self.judge()}

    def sql(self, service: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.home / f"{service}.db", isolation_level=None)) as db:
            return db.execute(statement, values).fetchall()

    def frame(self, status: str = "COMPLETE") -> str:
        """Return the id of some frame."""
        query = "SELECT frame_id FROM frame WHERE status = ? ORDER BY frame_id"
        return str(self.sql("ingestor", query, status)[0][0])

    def forget(self, path: str) -> None:
        """Take a path out of the observatory's ledger."""
        lines = [row for row in read_ledger(self.ledger) if row["path"] != path]
        self.ledger.write_text("".join(json.dumps(row) + "\n" for row in lines))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Result], Night, Path]]:
    home = tmp_path_factory.mktemp("chaos")
    night = Night(home / "var", SEED)
    with night.open():
        done = [suffer(night, fault, "sqlite") for fault in FAULTS if fault.name in SMOKE]
        broadcasts_of_nothing(night)
        night.settle()
        copies, bucket = home / "copies", night.bucket()
        copies.mkdir()
        for service in ("monitor", "preparer", "ingestor"):
            night.backup(service, copies / f"{service}.db")
        shutil.copy(night.ledger, copies / "ledger.jsonl")
        night.objects = {key: bucket.get(key) for key in bucket.written()}
        yield done, night, copies
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def past(results: tuple[list[Result], Night, Path], tmp_path: Path) -> Past:
    _, night, copies = results
    shutil.copytree(copies, tmp_path / "past")
    return Past(tmp_path / "past", night.objects)


# -- the night --------------------------------------------------------------------


def test_a_short_night_under_fault_breaks_no_promise(
    results: tuple[list[Result], Night, Path],
) -> None:
    done, night, _ = results
    assert night.watcher.downloaded > 0
    assert [result.name for result in done] == list(SMOKE)
    for result in done:
        assert result.breaches == [], result.name
        assert result.frames > 0
        assert result.injected > 0 or result.name == "quiet"


def test_every_fault_point_was_passed(results: tuple[list[Result], Night, Path]) -> None:
    counts = visits(results[1])
    print(*(f"{name} {count}" for name, count in counts.items()))
    assert set(counts) == set(FAULT_POINTS)
    assert all(counts.values()), counts


def test_a_thread_that_dies_fails_its_scenario(tmp_path: Path) -> None:
    def die() -> None:
        raise OSError(36, "File name too long")

    with pytest.raises(OSError, match="too long"):
        beside(lambda: None, die)
    night = Night(tmp_path / "var", SEED)
    night.ledger = tmp_path / "gone" / "ledger.jsonl"  # nothing can be noted there
    with pytest.raises(FileNotFoundError), night.exposing():
        pass


# -- the judge --------------------------------------------------------------------


def test_what_the_night_left_is_whole(past: Past) -> None:
    assert past.judge() == []


def test_a_dropped_outbox_row(past: Past) -> None:
    # The preparer's last word about a file at fault never reaches the catalogue.
    name = past.frame("INVALID")
    [(last,)] = past.sql("preparer", "SELECT seq FROM file WHERE frame_id = ?", name)
    gone = "DELETE FROM eventseen WHERE frame_id = ? AND lower(service) = 'preparer' AND seq = ?"
    past.sql("ingestor", gone, name, last)
    past.sql("ingestor", "UPDATE frame SET status = 'PROCESSING' WHERE frame_id = ?", name)
    told = "DELETE FROM stream WHERE frame_id = ? AND status = 'INVALID'"
    past.sql("ingestor", told, name)
    assert past.codes() == {"untold", "stuck", "lost"}


def test_a_dropped_outbox_row_that_changes_no_status(past: Past) -> None:
    name = past.frame()
    gone = "DELETE FROM eventseen WHERE frame_id = ? AND lower(service) = 'preparer' AND seq = 1"
    past.sql("ingestor", gone, name)
    assert past.codes() == {"untold"}


def test_a_double_promotion(past: Past) -> None:
    name = past.frame()
    columns = "koaid, frame_id, generation, raw_sha256, raw_size, committed_at, products, header"
    copy = f"INSERT INTO version (version, {columns}, core) SELECT 2, {columns}, core FROM version"
    past.sql("ingestor", f"{copy} WHERE frame_id = ?", name)
    [(koaid,)] = past.sql("ingestor", "SELECT koaid FROM frame WHERE frame_id = ?", name)
    for key in [key for key in past.bucket.objects if f"/{koaid}/v1/" in key]:
        past.bucket.objects[key.replace("/v1/", "/v2/")] = past.bucket.objects[key]
    assert past.codes() == {"doubled"}


@pytest.mark.parametrize("name", ["fits", "raw_header", "manifest.json"])
def test_a_flipped_byte(past: Past, name: str) -> None:
    key = min(key for key in past.bucket.objects if key.endswith(f".{name}"))
    data = past.bucket.objects[key]
    at = len(data) // 2
    past.bucket.objects[key] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    assert past.codes() == {"wrong_bytes"}


def test_bytes_that_agree_with_the_catalogue_and_not_with_the_instrument(past: Past) -> None:
    # The product may lie to itself in every place: the instrument's ledger is older.
    name = past.frame()
    [(path,)] = past.sql("ingestor", "SELECT path FROM frame WHERE frame_id = ?", name)
    rows = read_ledger(past.ledger)
    for row in rows:
        row["sha256"] = "f" * 64 if row["path"] == path else row["sha256"]
    past.ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert past.codes() == {"lost", "unasked"}


def test_a_missing_object(past: Past) -> None:
    del past.bucket.objects[min(key for key in past.bucket.objects if key.endswith(".fits"))]
    assert past.codes() == {"missing_object"}


def test_a_publication_before_the_commit(past: Past) -> None:
    early = "UPDATE stream SET at = '2026-01-01 00:00:00.000000' WHERE status = 'COMPLETE'"
    past.sql("ingestor", f"{early} AND frame_id = ?", past.frame())
    assert past.codes() == {"early"}


def test_a_publication_without_a_commit(past: Past) -> None:
    name = past.frame()
    past.sql("ingestor", "UPDATE version SET committed_at = NULL WHERE frame_id = ?", name)
    assert {"early", "uncommitted", "lost"} <= past.codes()


def test_visible_before_it_was_read_back(past: Past) -> None:
    name = past.frame()
    query = "SELECT timeline FROM frame WHERE frame_id = ?"
    timeline = json.loads(past.sql("ingestor", query, name)[0][0])
    timeline["copy_end"] = now()
    change = "UPDATE frame SET timeline = ? WHERE frame_id = ?"
    past.sql("ingestor", change, json.dumps(timeline), name)
    assert past.codes() == {"disorder"}


def test_a_status_that_goes_backwards(past: Past) -> None:
    name = past.frame()
    back = "INSERT INTO stream (frame_id, status, at) VALUES (?, ?, ?)"
    for status in ("PROCESSING", "COMPLETE") * 5:  # the night may have begun it anew, too
        past.sql("ingestor", back, name, status, now().replace("T", " ")[:23])
    assert past.codes() == {"backwards"}


def test_an_event_that_goes_backwards(past: Past) -> None:
    change = "UPDATE eventseen SET status = 'PROCESSING' WHERE frame_id = ?"
    newest = "AND lower(service) = 'preparer' AND seq = (SELECT max(seq) FROM eventseen e"
    mine = "WHERE e.frame_id = eventseen.frame_id AND lower(e.service) = 'preparer')"
    past.sql("ingestor", f"{change} {newest} {mine}", past.frame())
    assert past.codes() == {"backwards"}


def test_an_unannounced_file(past: Past) -> None:
    name = past.frame()
    [(path,)] = past.sql("ingestor", "SELECT path FROM frame WHERE frame_id = ?", name)
    past.forget(path)
    assert past.codes() == {"unasked"}


def test_an_object_that_is_written_again_after_its_commit(past: Past) -> None:
    past.bucket.at[min(past.bucket.objects)] = datetime.now(UTC)
    assert past.codes() == {"rewritten"}


def test_an_object_that_nobody_put_there(past: Past) -> None:
    past.bucket.objects["NIRC2/20260101/lev0/N2.20260101.00000.10/v1/x"] = b"x"
    assert past.codes() == {"unasked"}


def test_a_lost_frame(past: Past) -> None:
    row = read_ledger(past.ledger)[0] | {"path": "/s/sdata904/lost.fits", "sha256": "0" * 64}
    with past.ledger.open("a") as ledger:
        ledger.write(json.dumps(row) + "\n")
    assert past.codes() == {"lost"}


def test_a_parked_frame_and_an_end_without_a_reason(past: Past) -> None:
    parked, silent = past.frame(), past.frame("INVALID")
    past.sql("ingestor", "UPDATE frame SET status = 'ERROR' WHERE frame_id = ?", parked)
    past.sql("ingestor", "UPDATE frame SET findings = '[]' WHERE frame_id = ?", silent)
    assert {"parked", "no_reason"} <= past.codes()
