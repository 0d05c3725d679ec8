"""Facts from the observatory's HTTP API and its EPICS archiver (facts 3.6)."""

import asyncio
import math
from collections.abc import Awaitable, Iterable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import httpx
import structlog

from . import CHANNELS, Night, Proposal, Slot, Weather
from .sun import sun_times

logger = structlog.get_logger("koa_preparer")

ARCHIVER = "http://k{tel}dataserver:17668/retrieval/data/getData.json"
# No frame waits for these calls: 2 s is patient with a slow API and yet frees a
# connection that hangs long before the circuit's next probe.
TIMEOUT = httpx.Timeout(2.0)
WINDOW = timedelta(seconds=30)
PROPOSAL_FIELDS = {
    "pi": ("getPI", "LastName"),
    "institution": ("getAllocInst", "AllocInst"),
    "title": ("getTitle", "ProgramTitle"),
    "propint": ("getApprovedPP", "ProprietaryPeriod"),
}
Sample = tuple[datetime, float | None]


def _clock(text: object) -> time | None:
    try:
        hour, minute, second = (*map(int, str(text).split(":")), 0)[:3]
        return time(hour, minute, second)
    except ValueError:
        return None


def _slot(row: dict[str, Any]) -> Slot:
    return Slot(
        project=str(row.get("ProjCode") or ""),
        start=_clock(row.get("StartTime")),
        end=_clock(row.get("EndTime")),
        kind=str(row.get("ObsType") or "Classical"),
        account=str(row.get("Account") or ""),
    )


def _sample(row: dict[str, Any]) -> Sample:
    at = datetime.fromtimestamp(row["secs"], UTC)
    at += timedelta(microseconds=row.get("nanos", 0) // 1000)
    try:
        value = float(row["val"])
    except (TypeError, ValueError):
        return at, None
    return at, value if math.isfinite(value) else None


def _nearest(samples: Iterable[Sample | None], at: datetime) -> Sample | None:
    there = (sample for sample in samples if sample)
    return min(there, key=lambda sample: abs(sample[0] - at), default=None)


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def _all(*calls: Awaitable[Any]) -> list[Any]:
    """Return all results, or raise the first error when every call has ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


class HttpProvider:
    """Asks the observatory; raises whatever httpx or the parsing raises.

    404 is an answer, "there is none".  Anything else that fails raises, so that it
    counts as missing and is asked again, instead of being stored half known.
    """

    def __init__(self, base: str, archiver: str, client: httpx.AsyncClient) -> None:
        self._base, self._archiver, self._client = base.rstrip("/"), archiver, client

    async def _get(self, url: str, **query: str | int) -> Any:
        answer = await self._client.get(url, params=query, timeout=TIMEOUT)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return answer.raise_for_status().json()

    async def _rows(self, path: str, **query: str | int) -> list[dict[str, Any]]:
        data = await self._get(f"{self._base}/{path}", **query)
        rows = [data] if isinstance(data, dict) else data or []
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}: not a list of objects")
        return list(rows)

    async def _extra(self, path: str, **query: str | int) -> list[dict[str, Any]]:
        try:
            return await self._rows(path, **query)
        except (httpx.HTTPError, ValueError, TypeError) as error:
            logger.warning("Part of a night is unknown", path=path, why=repr(error))
            return []

    async def night(self, hst_date: date, telescope: int, instrument: str) -> Night:
        """Return the night; raises only when the schedule itself can't be read."""
        ut_date = hst_date + timedelta(days=1)
        night: dict[str, str | int] = {"date": str(hst_date), "telnr": telescope}
        rows, sun, staff = await _all(
            self._rows("schedule/getSchedule", **night, instr=instrument),
            self._extra("schedule/getTwilightData", date=str(ut_date)),
            self._extra("employee/getNightStaff", **night),
        )
        told = {k: _clock(row.get(k)) for row in sun for k in ("sunrise", "sunset")}
        # Several may be on duty; KOA names the last (facts 3.3).
        oas = [r.get("Alias") for r in staff if r.get("Type") in ("oa", "oar")]
        return Night(
            hst_date=hst_date,
            telescope=telescope,
            instrument=instrument,
            slots=tuple(_slot(row) for row in rows),
            oa=str(oas[-1]) if oas else None,
            **sun_times(ut_date) | {k: v for k, v in told.items() if v},
        )

    async def proposal(self, semid: str) -> Proposal | None:
        """Return the proposal; None when no endpoint knows the program."""
        calls = (self._field(*where, semid) for where in PROPOSAL_FIELDS.values())
        values = dict(zip(PROPOSAL_FIELDS, await _all(*calls), strict=True))
        known = any(value is not None for value in values.values())
        return Proposal.model_validate(values) if known else None

    async def _field(self, endpoint: str, field: str, semid: str) -> Any:
        rows = await self._rows(f"proposals/{endpoint}", ktn=semid)
        return rows[0]["data"][field] if rows and rows[0].get("success") else None

    async def weather(self, telescope: int, at: datetime) -> Weather | None:
        """Return the samples nearest to `at` of nine PVs, None when there are none."""
        calls = (self._nearest(pv, telescope, at) for pv in CHANNELS.values())
        found = dict(zip(CHANNELS, await _all(*calls), strict=True))
        values = {key: sample and sample[1] for key, sample in found.items()}
        guider = found.pop("GUIDFWHM")
        outside = _nearest(found.values(), at)
        if outside is None and guider is None:
            return None
        return Weather(
            values=values,
            time=outside and outside[0],
            guidtime=guider and guider[0],
        )

    async def _nearest(self, pv: str, telescope: int, at: datetime) -> Sample | None:
        window = {"from": _iso(at - WINDOW), "to": _iso(at + WINDOW)}
        url = self._archiver.format(tel=telescope)
        data = await self._get(url, pv=pv.format(tel=telescope), **window)
        # The archiver also gives the last change before `from`: it still holds.
        return _nearest((_sample(r) for s in data or [] for r in s["data"]), at)

    def override(self, instrument: str, at: datetime) -> str | None:  # noqa: ARG002
        """Return None: the observatory's API has no overrides."""
        return None
