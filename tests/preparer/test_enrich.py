"""Facts that come late, for a frame of which only header and products are there."""

from datetime import UTC, datetime, time
from types import SimpleNamespace
from typing import Any

import pytest

from koa_preparer.providers import Facts, Night
from koa_preparer.worker import Worker

NIGHT = Night(sunrise=time(16), sunset=time(5))
PREPARED = datetime(2019, 1, 7, 3, tzinfo=UTC)
CARDS = [
    ["INSTRUME", "DEIMOS", ""],
    ["KOAID", "DE.20190107.10800.00.fits", ""],
    ["OUTFILE", "d0106_", ""],
    ["FRAMENO", 46, ""],
    ["DATE-OBS", "2019-01-07", ""],
    ["UTC", "03:00:00.00", ""],
    ["PROGNAME", "S347", ""],
    ["KOAIMTYP", "flatlamp", ""],
]


def product(name: str, role: str) -> dict[str, Any]:
    return {"name": name, "role": role, "key": name, "size": 1, "sha256": "0" * 64, "md5": "0" * 32}


@pytest.mark.parametrize(
    ("roles", "progid", "months"),
    [
        pytest.param(["fits"], "ENG", 0, id="3.5-no-mask"),
        pytest.param(["fits", "table"], "S347", 18, id="3.5-mask-tells-a-target"),
    ],
)
async def test_a_mask_stays_secret(maker: Any, roles: list[str], progid: str, months: int) -> None:
    """A daytime flat with a mask's tables is not open, though its tables are not read again."""
    prepared = {
        "frame_id": "00000000-0000-4000-8000-000000000001",
        "instrument": "DEIMOS",
        "origin": "live",
        "path": "/s/sdata1001/deimos3/d0106_0046.fits",
        "generation": 1,
        "attempt": 1,
        "koaid": "DE.20190107.10800.00",
        "utdatetime": PREPARED,
        "products": [product(f"x{n}", role) for n, role in enumerate(roles)],
        "raw": {"size": 1, "sha256": "0" * 64, "md5": "0" * 32},
        "metadata": {},
        "header": CARDS,
        "program": {},
        "timeline": {},
    }
    before = Facts(prepared_at=PREPARED, missing=("schedule",))
    row = SimpleNamespace(
        facts=before.model_dump(mode="json"),
        prepared=prepared,
        instrument="DEIMOS",
        path=prepared["path"],
        read_mtime_ns=0,
        timeline={"notified": "2019-01-07T03:00:01.000Z"},
    )
    told: dict[str, Any] = {}

    async def gather(*_: Any) -> Facts:
        return Facts(prepared_at=PREPARED, night=NIGHT)

    async def read(*_: Any) -> Any:
        return row

    async def write(*_: Any, **facts: Any) -> None:
        told.update(facts)

    worker: Any = SimpleNamespace(
        db=SimpleNamespace(read=read, write=write),
        store=SimpleNamespace(file_of=None, enriched=None),
        instruments=maker.instruments,
        config=SimpleNamespace(koaid_fraction="production"),
        _gather=gather,
    )
    await Worker.enrich(worker, SimpleNamespace())  # type: ignore[arg-type]
    assert (told["program"].progid, told["program"].propint) == (progid, months)
