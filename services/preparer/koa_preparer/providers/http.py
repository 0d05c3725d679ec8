"""Facts from the observatory's HTTP API and its EPICS archiver (facts 3.6)."""

import asyncio
import math
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import httpx
import structlog

from . import CHANNELS, Night, Proposal, Slot, Weather
from .sun import sun_times

logger = structlog.get_logger("koa_preparer")

ARCHIVER = "http://k{tel}dataserver:17668/retrieval/data/getData.json"
# No frame waits for these calls: 2 s is patient with a slow API and yet frees a
# connection that hangs soon; the 5 s end even an answer that drips.
TIMEOUT, LONGEST = httpx.Timeout(2.0), 5.0
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


def _sample(row: dict[str, Any]) -> Sample:
    at = datetime.fromtimestamp(row["secs"], UTC)
    at += timedelta(microseconds=row.get("nanos", 0) // 1000)
    try:
        value = float(row["val"])
    except (TypeError, ValueError):
        value = math.nan
    return at, value if math.isfinite(value) else None


class HttpProvider:
    """Asks the observatory; raises whatever httpx or the parsing raises.

    404 is an answer, "there is none".  Anything else that fails raises, so that it
    counts as missing and is asked again, instead of being stored half known.
    """

    def __init__(self, base: str, archiver: str, client: httpx.AsyncClient) -> None:
        self._base, self._archiver, self._client = base.rstrip("/"), archiver, client

    async def _get(self, url: str, **query: Any) -> Any:
        async with asyncio.timeout(LONGEST):
            answer = await self._client.get(url, params=query, timeout=TIMEOUT)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return []
        return answer.raise_for_status().json() or []

    async def _rows(self, path: str, **query: Any) -> list[dict[str, Any]]:
        data = await self._get(f"{self._base}/{path}", **query)
        rows = [data] if isinstance(data, dict) else data
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}: not a list of objects")
        return list(rows)

    async def _extra(self, path: str, **query: Any) -> list[dict[str, Any]]:
        try:
            return await self._rows(path, **query)
        except (httpx.HTTPError, TimeoutError, ValueError, TypeError) as error:
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
        oas = [r.get("Alias") for r in staff if r.get("Type") in ("oa", "oar")]
        slots = tuple(
            Slot(
                project=str(row.get("ProjCode") or ""), account=str(row.get("Account") or ""),
                start=_clock(row.get("StartTime")), end=_clock(row.get("EndTime")),
                kind=str(row.get("ObsType") or "Classical"),
            )
            for row in rows
        )  # fmt: skip
        return Night(
            hst_date=hst_date, telescope=telescope, instrument=instrument, slots=slots,
            oa=str(oas[-1]) if oas else None, **sun_times(ut_date) | told,
        )  # fmt: skip

    async def proposal(self, semid: str) -> Proposal | None:
        """Return the proposal; None when no endpoint knows the program."""
        calls = (self._field(*where, semid) for where in PROPOSAL_FIELDS.values())
        values = dict(zip(PROPOSAL_FIELDS, await asyncio.gather(*calls), strict=True))
        return None if set(values.values()) == {None} else Proposal(**values)

    async def _field(self, endpoint: str, field: str, semid: str) -> Any:
        rows = await self._rows(f"proposals/{endpoint}", ktn=semid)
        return rows[0]["data"][field] if rows and rows[0].get("success") else None

    async def weather(self, telescope: int, at: datetime) -> Weather | None:
        """Return the samples nearest to `at` of nine PVs, None when there are none."""
        edges = {"from": at - WINDOW, "to": at + WINDOW}
        window = {name: f"{edge:%Y-%m-%dT%H:%M:%S.%fZ}" for name, edge in edges.items()}
        url, pvs = self._archiver.format(tel=telescope), CHANNELS.values()
        calls = (self._get(url, pv=pv.format(tel=telescope), **window) for pv in pvs)

        def nearest(samples: Iterable[Sample | None]) -> Sample | None:
            return min(filter(None, samples), key=lambda it: abs(it[0] - at), default=None)

        # The archiver also gives the last change before `from`: it still holds.
        found = {
            key: nearest(_sample(row) for series in answer for row in series["data"])
            for key, answer in zip(CHANNELS, await asyncio.gather(*calls), strict=True)
        }
        values = {key: sample and sample[1] for key, sample in found.items()}
        guider, outside = found.pop("GUIDFWHM"), nearest(found.values())
        if not guider and not outside:
            return None
        times = {"time": outside and outside[0], "guidtime": guider and guider[0]}
        return Weather(values=values, **times)

    def override(self, instrument: str, at: datetime) -> str | None:  # noqa: ARG002
        """Return None: the observatory's API has no overrides."""
        return None
