"""An ingestor alone, and frames put straight into its catalogue."""

import contextlib
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlmodel import Session, create_engine, insert

from koa_ingestor.store.schema import Frame, Version
from koa_shared.simulator.stack import BIN, Stack
from tests.live.conftest import free_offset

Row = dict[str, Any]
VERSION = {
    "raw_sha256": "0" * 64,
    "raw_size": 1,
    "committed_at": datetime(2026, 11, 29, tzinfo=UTC),
}


@contextlib.contextmanager
def ingestor(var: Path) -> Iterator[Stack]:
    """Run an ingestor without an object store; whoever calls is an operator."""
    stack = Stack(var, offset=free_offset(), sim=False)
    for name in ("log", "s3"):
        (var / name).mkdir(parents=True)
    stack._make_keys()
    subprocess.run([BIN / "koa-ingestor", "migrate"], env=stack.environment("ingestor"), check=True)
    try:
        stack.start("ingestor")
        stack.wait_ready("ingestor")
        yield stack
    finally:
        stack.down()


def put(stack: Stack, rows: Iterable[Row]) -> None:
    """Put frames into the catalogue; a few have headers, too."""
    engine = create_engine(f"sqlite:///{stack.var}/ingestor.db")
    with Session(engine) as session:
        whole = list(rows)
        session.execute(insert(Frame), whole)
        archived = [row for row in whole if row["version"] and len(whole) < 100]
        for row in archived:
            session.add(Version.model_validate(row | VERSION | {"header": header(row)}))
        session.commit()
    engine.dispose()


def frame(at: datetime, **more: Any) -> Row:
    """Return an available frame that was acquired `at`, as a row of the catalogue."""
    prefix = more.pop("prefix", "ES")
    seconds = (at - at.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
    hundredths = at.microsecond // 10_000
    koaid = more.pop("koaid", f"{prefix}.{at:%Y%m%d}.{int(seconds):05d}.{hundredths:02d}")
    name = more.pop("name", f"e{at:%y%m%d_%H%M%S}.fits")
    latency, target = more.pop("latency", 1.5), more.pop("target", "M31")
    status, semid = more.get("status", "COMPLETE"), more.get("semid", "2026B_C272")
    points = ("acquired", "detected", "process_start", "process_end", "transfer_start",
              "transfer_end", "ingest_start", "copy_start", "copy_end", "available")  # fmt: skip
    shares = (0, 0.05, 0.06, 0.3, 0.2, 0.5, 0.55, 0.56, 0.95, 1)
    times = {
        point: (at + timedelta(seconds=latency * share)).isoformat(timespec="milliseconds")
        for point, share in zip(points, shares, strict=True)
        if status == "COMPLETE" or share < 0.1
    }
    whole = {
        "frame_id": str(uuid.uuid4()), "koaid": koaid, "instrument": "ESI", "level": 0,
        "generation": 1, "status": status, "step": status.lower(), "origin": "live",
        "source": "esi", "path": f"/s/sdata703/esi9/{at:%Y%b%d}/{name}".lower(), "name": name,
        "night": f"{at:%Y-%m-%d}", "acquired": at, "updated": at, "timeline": times,
        "findings": [], "semid": semid, "program": {"semid": semid, "pi": "Alder"},
        "koaimtyp": more.pop("type", "object"), "products": [], "version": None,
        "recipe": None, "attempt": 0, "accepted": False,
    }  # fmt: skip
    whole["core"] = {"koaimtyp": whole["koaimtyp"], "targname": target, "elaptime": 60.0}
    if status == "COMPLETE":
        digest = f"{int(seconds):064x}"
        product = {"role": "fits", "size": 17_000_000, "sha256": digest, "md5": digest[:32]}
        whole |= {"version": 1, "products": [product | {"name": f"{koaid}.fits", "key": koaid}]}
    return whole | more


def header(row: Row) -> list[list[Any]]:
    """Return the cards of a frame, some of them hostile."""
    cards = [["SIMPLE", True, "conforms"], ["OBJECT", row["core"]["targname"], "what it is"]]
    cards += [["HISTORY", "</table><script>alert(1)</script>", ""], ["AIRMASS", 1.25, ""]]
    return cards + [[f"KEY{n}", n, "filler"] for n in range(300)]


def ut(text: str) -> datetime:
    """Return a time in UT."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
