"""A catalogue of any size, made by the database itself: rows as a night's frames leave them."""

import json
from dataclasses import dataclass

import sqlalchemy as sa

from koa_shared.db import Database

INSTRUMENTS = (
    "DEIMOS", "ESI", "GUIDER", "HIRES", "KCWI", "KPF", "LRIS", "MOSFIRE", "NIRC2", "NIRES",
    "NIRSPEC", "OSIRIS",
)  # fmt: skip
TYPES = ("object", "object", "object", "arclamp", "bias", "dark", "flatlamp", "undefined")
EVERY = 63  # s from one frame to the next: a million in two years
NEWEST = 1_793_534_400  # 2026-11-01T12:00:00Z
PROGRAMS = 400  # of each of four semesters

# What a frame's JSON columns hold, of usual size.
PRODUCTS = [
    {"name": f"KB.20251208.43200.00{end}", "role": "table", "size": 12345, "md5": "0" * 32,
     "sha256": "0" * 64, "key": "0" * 60}
    for end in (".fits", ".jpg", ".metadata.table", ".md5sum.table", ".raw_header", ".manifest")
]  # fmt: skip
STEPS = (
    "acquired", "detected", "queued", "process_start", "process_end", "transfer_start",
    "transfer_end", "notified", "ingest_start", "copy_start", "copy_end", "available",
)  # fmt: skip
TIMELINE = dict.fromkeys(STEPS, "2025-12-08T12:00:00.000Z")
CORE = {f"keyword{n}": "a value" for n in range(25)}
PROGRAM = {
    "semid": "2025B_C001",
    "progid": "C001",
    "pi": "Somebody",
    "title": "A title of some length",
}


@dataclass(frozen=True)
class Dialect:
    """How an engine says what SQL leaves open."""

    rows: str
    uuid: str
    time: str
    day: str
    json: str


ENGINES = {
    "sqlite": Dialect(
        rows="WITH RECURSIVE s(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM s WHERE i < {n} - 1)",
        uuid="lower(printf('%08x-%04x-5000-8000-%012x', h, h % 65536, i))",
        time="strftime('%Y-%m-%d %H:%M:%S', {at}, 'unixepoch') || '.000000'",
        day="strftime('%Y-%m-%d', {at}, 'unixepoch')",
        json="'{text}'",
    ),
    "postgresql": Dialect(
        rows="WITH s AS (SELECT i FROM generate_series(0::bigint, {n} - 1) i)",
        uuid="lpad(to_hex(h), 8, '0') || '-' || lpad(to_hex(h % 65536), 4, '0') || "
        "'-5000-8000-' || lpad(to_hex(i), 12, '0')",
        time="to_timestamp({at})",
        day="to_char(to_timestamp({at}) AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
        json="'{text}'::jsonb",
    ),
}  # fmt: skip


def _one_of(values: tuple[str, ...], number: str) -> str:
    cases = " ".join(f"WHEN {n} THEN '{value}'" for n, value in enumerate(values))
    return f"CASE {number} % {len(values)} {cases} END"


def columns(engine: str, n: int) -> dict[str, str]:
    """Return an SQL expression of `i` (a number) and `h` (its hash) for each column."""
    says, at = ENGINES[engine], f"({NEWEST} - ({n} - i) * {EVERY})"

    def text(value: object) -> str:
        return says.json.format(text=json.dumps(value))

    release = f"({at} + 47304000)"  # 18 months later
    until = says.time.format(at=release)
    return {
        "frame_id": says.uuid, "koaid": "'KB.' || i",
        "instrument": _one_of(INSTRUMENTS, "h"),
        "level": "CASE WHEN i % 1009 = 5 THEN 1 ELSE 0 END",
        "generation": "1", "version": "1",
        "status": "CASE WHEN i % 997 = 7 THEN 'ERROR' WHEN i % 97 = 5 THEN 'INVALID' "
        "WHEN i % 101 = 3 THEN 'DUPLICATE' ELSE 'COMPLETE' END",
        "step": "'available'", "source": "'s'",
        "origin": "CASE WHEN i % 991 = 3 THEN 'manual' WHEN i % 53 = 3 THEN 'recovered' "
        "ELSE 'live' END",
        "path": "'/s/sdata1400/kcwi1/kb' || i || '.fits'",
        "name": "'kb' || (i % 100000) || '.fits'",
        "night": says.day.format(at=at), "acquired": says.time.format(at=at),
        "updated": says.time.format(at=at), "timeline": text(TIMELINE), "findings": text([]),
        "products": text(PRODUCTS), "program": text(PROGRAM), "core": text(CORE),
        # A program has an instrument for a night: 2,000 frames in a row are of a few.
        "semid": f"'2026A_U' || ((i / 2000 * 7 + h % 5) % {PROGRAMS})",
        "koaimtyp": _one_of(TYPES, "(h / 16)"),
        "release_date": until,
        "released_at": f"CASE WHEN {release} < {NEWEST} THEN {until} END",
        "accepted": "(1 = 0)", "attempt": "0",
    }  # fmt: skip


def fill(db: Database, engine: str, n: int) -> None:
    """Make `n` frames, newest last."""
    made = columns(engine, n)
    rows = ENGINES[engine].rows.format(n=n)
    hashed = "SELECT i, (i * 2654435761) % 4294967296 AS h FROM s"
    query = f"INSERT INTO frame ({', '.join(made)}) "
    select = f"{rows} SELECT {', '.join(made.values())} FROM ({hashed}) AS t"
    # SQLite wants WITH behind INSERT INTO, PostgreSQL takes both.
    with db.engine.connect() as connection:
        connection.exec_driver_sql(
            (query + select).replace("%", "%%" if engine != "sqlite" else "%")
        )
        connection.commit()
    if engine == "postgresql":  # what autovacuum does
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE frame"))
