"""Facts from the observatory's HTTP API and its EPICS archiver (facts 3.6)."""

import asyncio
import math
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import httpx
import structlog
from pydantic import TypeAdapter

from . import CHANNELS, Night, Proposal, Slot, Weather
from .sun import sun_times

logger = structlog.get_logger("koa_preparer")

# s; no frame waits for a call: patient with a slow API, and yet soon done with a hung one.
TIMEOUT = 2.0
WINDOW = timedelta(seconds=30)
PROPOSAL_FIELDS = {
    "pi": ("getPI", "LastName"),
    "institution": ("getAllocInst", "AllocInst"),
    "title": ("getTitle", "ProgramTitle"),
    "propint": ("getApprovedPP", "ProprietaryPeriod"),
}
Row = dict[str, Any]
Sample = tuple[Any, float | None]  # when and what
ROWS = TypeAdapter(list[Row])


class HttpProvider:
    """Asks the observatory; raises whatever httpx or the parsing raises.

    404 is an answer, "there is none".  Anything else that fails raises, so that it
    counts as missing and is asked again, instead of being stored half known.
    """

    def __init__(self, client: httpx.AsyncClient, archiver: str) -> None:
        self._client, self._archiver = client, archiver

    async def _rows(self, url: str, **query: Any) -> list[Row]:
        async with asyncio.timeout(TIMEOUT):
            answer = await self._client.get(url, params=query)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return []
        data = answer.raise_for_status().json() or []
        return ROWS.validate_python([data] if isinstance(data, dict) else data)

    async def _extra(self, path: str, **query: Any) -> list[Row]:
        try:
            return await self._rows(path, **query)
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            logger.warning("Part of a night is unknown", path=path, why=repr(error))
            return []

    async def night(self, hst_date: date, telescope: int, instrument: str) -> Night:
        """Return the night; raises only when the schedule itself can't be read."""
        ut_date, night = hst_date + timedelta(days=1), {"date": hst_date, "telnr": telescope}
        rows, sun, staff = await asyncio.gather(
            self._rows("schedule/getSchedule", **night, instr=instrument),
            self._extra("schedule/getTwilightData", date=ut_date),
            self._extra("employee/getNightStaff", **night),
        )
        told = {k: at for row in sun for k in ("sunrise", "sunset") if (at := _clock(row.get(k)))}
        # Several may be on duty; KOA names the last (facts 3.3).
        oas = [row.get("Alias") for row in staff if row.get("Type") in ("oa", "oar")]
        return Night(
            slots=tuple(map(_slot, rows)), oa=str(oas[-1]) if oas else None,
            **sun_times(ut_date) | told,
        )  # fmt: skip

    async def proposal(self, semid: str) -> Proposal | None:
        """Return the proposal; None when no endpoint knows the program."""

        async def ask(endpoint: str, field: str) -> Any:
            rows = await self._rows(f"proposals/{endpoint}", ktn=semid)
            return rows[0]["data"][field] if rows and rows[0].get("success") else None

        values = await asyncio.gather(*(ask(*where) for where in PROPOSAL_FIELDS.values()))
        known = Proposal(**dict(zip(PROPOSAL_FIELDS, values, strict=True)))
        return None if known == Proposal() else known

    async def weather(self, telescope: int, at: datetime) -> Weather | None:
        """Return the samples nearest to `at` of nine PVs, None when there are none."""
        edges = {"from": at - WINDOW, "to": at + WINDOW}
        window = {name: f"{edge:%Y-%m-%dT%H:%M:%S.%fZ}" for name, edge in edges.items()}
        url = self._archiver.format(tel=telescope)
        pvs = [channel.format(tel=telescope) for channel in CHANNELS.values()]
        answers = await asyncio.gather(*(self._rows(url, pv=pv, **window) for pv in pvs))

        def nearest(samples: Iterable[Sample]) -> Sample:
            return min(samples, key=lambda sample: abs(sample[0] - at), default=(None, None))

        # The archiver also gives the last change before `from`: it still holds.
        found = {
            key: nearest(_sample(row) for series in answer for row in series["data"])
            for key, answer in zip(CHANNELS, answers, strict=True)
        }
        values = {key: value for key, (_, value) in found.items()}
        guided, _ = found.pop("GUIDFWHM")
        outside, _ = nearest(sample for sample in found.values() if sample[0])
        known = guided or outside
        return Weather(values=values, time=outside, guidtime=guided) if known else None

    def override(self, instrument: str, at: datetime) -> str | None:  # noqa: ARG002
        """Return None: the observatory's API has no overrides."""
        return None


def _clock(text: object) -> time | None:
    try:
        hour, minute, second = (*map(int, str(text).split(":")), 0)[:3]
        return time(hour, minute, second)
    except ValueError:
        return None


def _slot(row: Row) -> Slot:
    return Slot(
        project=str(row.get("ProjCode") or ""), account=str(row.get("Account") or ""),
        start=_clock(row.get("StartTime")), end=_clock(row.get("EndTime")),
        kind=str(row.get("ObsType") or "Classical"),
    )  # fmt: skip


def _sample(row: Row) -> Sample:
    at = datetime.fromtimestamp(row["secs"], UTC)
    at += timedelta(microseconds=row.get("nanos", 0) // 1000)
    try:
        value = float(row["val"])
    except (TypeError, ValueError):
        value = math.nan
    return at, value if math.isfinite(value) else None
